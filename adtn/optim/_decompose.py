"""Truncated decompositions of a given weight: a start for linear topologies.

All of them run in NumPy float64 on the host: MPS has neither float64 nor QR.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .._arrays import finite_array
from .._checks import checked
from ..errors import TopologyError
from ..generator import Generator
from ..topology import CP, TT, TensorRing, Tucker

_ALS_SWEEPS = 50


@checked(TopologyError)
def decompose(generator: Generator, target: Any) -> Generator:
    """The generator with parameters from a truncated decomposition of a weight.

    Parameters
    ----------
    generator : Generator
        With a TT or MPO (TT-SVD), Tucker (HOSVD) or CP (alternating least squares) topology, no activation and
        no base.
    target : array
        Of the generator's shape, of any framework.

    Returns
    -------
    Generator

    Raises
    ------
    TopologyError
        For other topologies.

    References
    ----------
    TT-SVD: I. Oseledets (2011), SIAM J. Sci. Comput. 33, 2295. HOSVD: L. De Lathauwer, B. De Moor, J. Vandewalle
    (2000), SIAM J. Matrix Anal. Appl. 21, 1253. ALS: T. Kolda, B. Bader (2009), SIAM Review 51, 455.

    Examples
    --------
    >>> import adtn, numpy as np
    >>> W = np.outer(np.arange(1.0, 9.0), np.arange(1.0, 9.0))
    >>> gen = adtn.decompose(adtn.Generator((8, 8), adtn.TT(bond=1), dtype="float64"), W)
    >>> bool(np.allclose(gen.weight(), W))
    True
    """
    topology = generator.topology
    if not _is_plain(generator):
        raise TopologyError(
            "A decomposition needs a linear topology without shared cores and without a base; train it instead."
        )
    legs = generator.weighting.to_state(_weight(generator, target))
    if not has_decomposition(generator):
        raise TopologyError(
            f"No decomposition for {type(topology).__name__}; TT, MPO, Tucker and CP have one. Train it instead."
        )
    if isinstance(topology, TT):
        params = _tt_svd(generator, topology, legs)
    elif isinstance(topology, Tucker):
        params = _hosvd(generator, legs)
    else:
        params = _cp_als(generator, legs)
    return generator.with_params(params)


def _weight(generator: Generator, target: Any) -> np.ndarray:
    found = np.asarray(finite_array("target", target, TopologyError), dtype=np.float64)
    if found.shape != generator.shape:
        raise TopologyError(f"Got a target of shape {found.shape} for a generator of {generator.shape}; expected that.")
    return found


def has_decomposition(generator: Generator) -> bool:
    """Whether :func:`decompose` takes it."""
    known = isinstance(generator.topology, (TT, Tucker, CP)) and not isinstance(generator.topology, TensorRing)
    return known and _is_plain(generator)


def _is_plain(generator: Generator) -> bool:
    nonlinear = any(segment.activation != "identity" for segment in generator.segments)
    return not (nonlinear or generator.topology.share or generator.base is not None)


def _tt_svd(generator: Generator, topology: TT, legs: np.ndarray) -> dict[str, np.ndarray]:
    """Singular vectors from left to right; the rest of the tensor goes into the last site."""
    sites = topology.sites(generator.layout)
    dims = generator.layout.dims
    rest = np.transpose(legs, [q for site in sites for q in site])
    params: dict[str, np.ndarray] = {}
    left = 1
    for k, site in enumerate(sites):
        own = tuple(dims[q] for q in site)
        shape = generator.params[f"site{k}"].shape
        if k == len(sites) - 1:
            params[f"site{k}"] = rest.reshape(shape)
            break
        chi = shape[1] if k else shape[0]
        u, s, vt = np.linalg.svd(rest.reshape(left * math.prod(own), -1), full_matrices=False)
        core = u[:, :chi].reshape(left, *own, chi)
        core = np.moveaxis(core, -1, 1)
        params[f"site{k}"] = core.reshape(shape)
        rest = s[:chi, None] * vt[:chi]
        left = chi
    return params


def _hosvd(generator: Generator, legs: np.ndarray) -> dict[str, np.ndarray]:
    """Leading left singular vectors of every unfolding; the core is the projection on them."""
    core = legs
    params: dict[str, np.ndarray] = {}
    for q, d in enumerate(legs.shape):
        r = generator.params[f"factor{q}"].shape[0]
        unfolding = np.moveaxis(legs, q, 0).reshape(d, -1)
        # eigenvectors of the small Gram matrix: an unfolding has d rows and very many columns
        _, vectors = np.linalg.eigh(unfolding @ unfolding.T)
        factor = vectors[:, ::-1][:, :r].T
        params[f"factor{q}"] = factor
        core = np.moveaxis(np.tensordot(factor, core, axes=(1, q)), 0, q)
    return {**params, "core": core}


def _cp_als(generator: Generator, legs: np.ndarray) -> dict[str, np.ndarray]:
    """Alternating least squares from the generator's own first values."""
    n = legs.ndim
    factors = [np.asarray(generator.params[f"factor{q}"], dtype=np.float64) for q in range(n)]
    for _ in range(_ALS_SWEEPS):
        for q in range(n):
            others = [f for p, f in enumerate(factors) if p != q]
            gram = np.ones((factors[q].shape[0],) * 2)
            for f in others:
                gram = gram * (f @ f.T)
            rhs = _mttkrp(legs, factors, q)
            ridge = 1e-12 * np.trace(gram) / len(gram)
            factors[q] = np.linalg.solve(gram + (ridge + 1e-300) * np.eye(len(gram)), rhs)
            if q < n - 1:
                factors[q] /= np.maximum(np.linalg.norm(factors[q], axis=1, keepdims=True), 1e-300)
    return {f"factor{q}": f for q, f in enumerate(factors)}


def _mttkrp(legs: np.ndarray, factors: list[np.ndarray], q: int) -> np.ndarray:
    """The tensor times all factors but the q-th, term by term: ``(terms, d_q)``."""
    x = np.moveaxis(legs, q, 0)[None]
    first = True
    for p, f in enumerate(factors):
        if p == q:
            continue
        # x: (terms or 1, d_q, d_p, ...)
        x = np.tensordot(f, x[0], axes=(1, 1)) if first else np.einsum("rd,rqd...->rq...", f, x)
        first = False
    return x if not first else np.broadcast_to(x, (factors[q].shape[0], *x.shape[1:]))
