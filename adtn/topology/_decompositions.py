"""Truncated decompositions of a tensor in NumPy float64 on the host.

MPS has neither float64 nor QR, and a decomposition is computed only once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .._typing import Float

_ALS_SWEEPS = 50


def tt_svd(
    tensor: Float[np.ndarray, "*legs"], sites: list[tuple[int, ...]], bonds: Sequence[int]
) -> list[Float[np.ndarray, "..."]]:
    """Decompose a tensor into a tensor train by truncated SVDs from left to right.

    Parameters
    ----------
    tensor : numpy.ndarray
        The tensor.
    sites : list of tuple of int
        Axes on each site.
    bonds : sequence of int
        Largest bond dimension between each site and the next.

    Returns
    -------
    list of numpy.ndarray
        Cores ``(left, right, *axes)``, without ``left`` on the first site and without ``right`` on the last.

    References
    ----------
    I. Oseledets (2011), SIAM J. Sci. Comput. 33, 2295.
    """
    dims = tensor.shape
    rest = np.transpose(tensor, [q for site in sites for q in site])
    cores: list[np.ndarray] = []
    left = 1
    for k, site in enumerate(sites):
        axes, ends = tuple(dims[q] for q in site), (left,) if k else ()
        if k == len(sites) - 1:  # the remainder is the last core
            cores.append(rest.reshape(*ends, *axes))
            break
        u, s, vt = np.linalg.svd(rest.reshape(left * math.prod(axes), -1), full_matrices=False)
        chi = min(bonds[k], s.size)
        cores.append(np.moveaxis(u[:, :chi].reshape(left, *axes, chi), -1, 1).reshape(*ends, chi, *axes))
        rest = s[:chi, None] * vt[:chi]
        left = chi
    return cores


def truncated_svd(
    matrix: Float[np.ndarray, "m n"], bond: int
) -> tuple[Float[np.ndarray, "m rank"], Float[np.ndarray, "rank n"]]:
    """Return the best factors of a matrix; each singular value is divided equally between both."""
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    root = np.sqrt(s[:bond])
    return u[:, :bond] * root, root[:, None] * vt[:bond]


def hosvd(
    tensor: Float[np.ndarray, "*legs"], ranks: Sequence[int | None]
) -> tuple[Float[np.ndarray, "*ranks"], dict[int, Float[np.ndarray, "..."]]]:
    """Project a tensor onto the leading left singular vectors of every unfolding.

    Parameters
    ----------
    tensor : numpy.ndarray
        The tensor.
    ranks : sequence of (int or None)
        One rank per axis, ``None`` for an axis that is not projected.

    Returns
    -------
    tuple of numpy.ndarray and dict of int to numpy.ndarray
        The core, and the factor ``(rank, dimension)`` of every projected axis.

    References
    ----------
    L. De Lathauwer, B. De Moor, J. Vandewalle (2000), SIAM J. Matrix Anal. Appl. 21, 1253.
    """
    core, factors = tensor, dict[int, np.ndarray]()
    for q, (d, r) in enumerate(zip(tensor.shape, ranks, strict=True)):
        if r is None:
            continue
        unfolding = np.moveaxis(tensor, q, 0).reshape(d, -1)
        # use eigenvectors of the small Gram matrix: an unfolding has few rows and many columns
        _, vectors = np.linalg.eigh(unfolding @ unfolding.T)
        factors[q] = vectors[:, ::-1][:, :r].T
        core = np.moveaxis(np.tensordot(factors[q], core, axes=(1, q)), 0, q)
    return core, factors


def cp_als(
    tensor: Float[np.ndarray, "*legs"], factors: list[Float[np.ndarray, "rank _"]]
) -> list[Float[np.ndarray, "rank _"]]:
    """Improve the factors of a canonical polyadic decomposition by alternating least squares.

    Parameters
    ----------
    tensor : numpy.ndarray
        The tensor.
    factors : list of numpy.ndarray
        Initial factors ``(terms, dimension)`` of every axis.

    References
    ----------
    T. Kolda, B. Bader (2009), SIAM Review 51, 455.
    """
    factors, n = list(factors), tensor.ndim
    for _ in range(_ALS_SWEEPS):
        for q in range(n):
            gram = np.ones((factors[q].shape[0],) * 2)
            for p, factor in enumerate(factors):
                gram = gram * (factor @ factor.T) if p != q else gram
            ridge = 1e-12 * np.trace(gram) / len(gram)
            factors[q] = np.linalg.solve(gram + (ridge + 1e-300) * np.eye(len(gram)), _mttkrp(tensor, factors, q))
            if q < n - 1:
                factors[q] /= np.maximum(np.linalg.norm(factors[q], axis=1, keepdims=True), 1e-300)
    return factors


def _mttkrp(
    tensor: Float[np.ndarray, "*legs"], factors: list[Float[np.ndarray, "rank _"]], q: int
) -> Float[np.ndarray, "rank leg"]:
    """Multiply a tensor by all factors except the q-th, term by term, to ``(terms, d_q)``."""
    x = np.moveaxis(tensor, q, 0)[None]
    first = True
    for p, factor in enumerate(factors):
        if p == q:
            continue
        # x: (terms or 1, d_q, d_p, ...)
        x = np.tensordot(factor, x[0], axes=(1, 1)) if first else np.einsum("rd,rqd...->rq...", factor, x)
        first = False
    return x if not first else np.broadcast_to(x, (factors[q].shape[0], *x.shape[1:]))
