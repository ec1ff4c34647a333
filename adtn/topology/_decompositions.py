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


def tr_svd(
    tensor: Float[np.ndarray, "*legs"],
    sites: list[tuple[int, ...]],
    bonds: Sequence[int],
    initial: Sequence[Float[np.ndarray, "..."]],
) -> list[Float[np.ndarray, "..."]]:
    """Decompose a tensor into a tensor ring: the rank of the first site is divided between both of its bonds.

    Parameters
    ----------
    tensor : numpy.ndarray
        The tensor.
    sites : list of tuple of int
        Axes on each site.
    bonds : sequence of int
        Largest bond dimension after each site; the last one closes the ring.
    initial : sequence of numpy.ndarray
        Cores of the full size. Where the ranks are smaller than the bonds, the rest of the cores is taken from these,
        made small, as a bond with zeros on both sides could not be trained.

    Returns
    -------
    list of numpy.ndarray
        Cores ``(left, right, *axes)``.

    References
    ----------
    Q. Zhao, G. Zhou, S. Xie, L. Zhang, A. Cichocki (2016), arXiv:1606.05535.
    """
    dims = [tuple(tensor.shape[q] for q in site) for site in sites]
    unfolding = np.transpose(tensor, [q for site in sites for q in site]).reshape(math.prod(dims[0]), -1)
    u, s, vt = np.linalg.svd(unfolding, full_matrices=False)
    # the best pair of bonds whose product the rank permits; of two, that with the larger first bond
    first, last = max(
        ((a, min(bonds[-1], s.size // a)) for a in range(1, min(bonds[0], s.size) + 1)),
        key=lambda pair: pair[0] * pair[1],
    )
    rank = first * last
    rest = (s[:rank, None] * vt[:rank]).reshape(first, last, -1)
    # the closing bond is carried along as an axis of the last site
    train = np.moveaxis(rest, 1, 2).reshape(first, *(d for site in dims[1:] for d in site), last)
    chained = [
        tuple(range(1 + sum(map(len, dims[1:k])), 1 + sum(map(len, dims[1 : k + 1])))) for k in range(1, len(dims))
    ]
    chained = [(0,), *chained[:-1], (*chained[-1], train.ndim - 1)]
    head, *cores = tt_svd(train, chained, [first, *bonds[1:-1]])
    cores[0] = np.tensordot(head, cores[0], axes=(0, 0))  # the bond of the first site, whose core is square
    cores[-1] = np.moveaxis(cores[-1], -1, 1)
    cores = [np.moveaxis(u[:, :rank].reshape(*dims[0], first, last), (-1, -2), (0, 1)), *cores]
    return [_filled(core, full) for core, full in zip(cores, initial, strict=True)]


def _filled(core: Float[np.ndarray, "..."], initial: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Put a core into the corner of a larger one, whose other entries are small."""
    scale = 0.01 * np.linalg.norm(core) / max(float(np.linalg.norm(initial)), 1e-300)
    full = np.array(initial, dtype=np.float64) * scale
    full[tuple(slice(0, n) for n in core.shape)] = core
    return full


def tree_svd(
    tensor: Float[np.ndarray, "*legs"], groups: Sequence[Sequence[tuple[int, ...]]], bonds: Sequence[Sequence[int]]
) -> tuple[Float[np.ndarray, "..."], list[list[Float[np.ndarray, "..."]]]]:
    """Decompose a tensor into a tree by truncated SVDs of the legs of every subtree, from the legs to the root.

    Parameters
    ----------
    tensor : numpy.ndarray
        The tensor.
    groups : sequence of sequence of tuple of int
        For every rank from the legs to the root, the positions of the legs that each of its bonds joins.
    bonds : sequence of sequence of int
        The dimension of each of these bonds.

    Returns
    -------
    tuple of numpy.ndarray and list of list of numpy.ndarray
        The root, and the isometries ``(bond, *children)`` of every rank.

    References
    ----------
    L. Grasedyck (2010), SIAM J. Matrix Anal. Appl. 31, 2029.
    """
    levels: list[list[np.ndarray]] = []
    for joined, dims in zip(groups, bonds, strict=True):
        # merge first, so that every group is one axis
        axes = [tuple(tensor.shape[c] for c in group) for group in joined]
        tensor = tensor.reshape([math.prod(axis) for axis in axes])
        # a leg that no other joins has no core in the tree, or one that need not rotate it
        ranks = [None if axis == (d,) else d for axis, d in zip(axes, dims, strict=True)]
        tensor, factors = hosvd(tensor, ranks)
        levels.append([factors[p].reshape(-1, *axis) if p in factors else np.eye(*axis) for p, axis in enumerate(axes)])
    return tensor, levels


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
        if r <= unfolding.shape[1] < d:
            factors[q] = np.linalg.svd(unfolding, full_matrices=False)[0][:, :r].T
        else:  # use eigenvectors of the small Gram matrix: an unfolding has few rows and many columns
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
