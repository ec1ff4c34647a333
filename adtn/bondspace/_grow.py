r"""New components of a bond, which change nothing at first and follow the gradient of a loss.

With :math:`W = \sum_k A_k B_k` and the gradient G of the loss with respect to the tensor :math:`A B` of both cores, a
new component :math:`u \otimes v` changes the loss most, at first order and for a given norm, if u and v are the leading
singular vectors of G. It starts at :math:`u \otimes 0`, so that the weight stays and the gradient of the zeros is
:math:`G^\top u`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, Any

import numpy as np

from .._arrays import finite_array
from .._checks import Range, checked, shown
from .._typing import Float
from ..errors import TopologyError
from ..generator import Generator, topology_for
from ..topology import Core, Networks, Segment, bond_indices, cores_of, find_bond

_MERGED = "(merged)"


@checked(TopologyError)
def grow(generator: Generator, bond: str | None, components: Annotated[int, Range(1)], gradient: Any) -> Generator:
    """Return a generator with the same weight and more components on one of its bonds, or on all of them.

    The new ones are zero in the core on the second side. On the first side they are the directions in which the loss
    changes most, with the root mean square of its entries, so that they are used as soon as training goes on.

    Parameters
    ----------
    generator : Generator
    bond : str or None
        A bond between two cores, as :func:`adtn.bonds` lists it; ``None`` for every one that can have more.
    components : int
        The number of new ones on each; at most as many as both cores together can use. With ``None``, fewer where that
        is so.
    gradient : array
        ``dL/dW`` of the loss, of the shape of the weight: such as the residual of a fit, or the mean over some batches.

    Returns
    -------
    Generator

    Raises
    ------
    TopologyError
        If it is not a bond between two trained cores with parameters of their own, it cannot have as many components,
        no bond can grow, or the gradient does not fit.

    Examples
    --------
    >>> import adtn, numpy as np
    >>> from adtn.bondspace import grow
    >>> W = np.random.default_rng(0).standard_normal((64, 64))
    >>> gen = adtn.Generator((64, 64), adtn.MPO(bond=2), dtype="float64")
    >>> larger = grow(gen, "b0", 3, gen.weight() - W)
    >>> larger.topology, bool(np.allclose(larger.weight(), gen.weight()))
    (MPO(bond=(5,)), True)

    References
    ----------
    U. Evci et al. (2022), arXiv:2201.05125 (new neurons along gradients).
    """
    generator = generator.without_isometries()  # new components are zero on one side
    if bond is None:
        return _everywhere(generator, components, gradient)
    return _grown(generator, bond, components, gradient)


def _everywhere(generator: Generator, components: int, gradient: Any) -> Generator:
    grown = generator
    for bond in bond_indices(generator.segments):
        ends = _ends(grown, bond.name)
        if ends is None:
            continue
        most = _room(bond.dim, *ends)
        if most > 0:
            grown = _grown(grown, bond.name, min(components, most), gradient)
    if grown is generator:
        raise TopologyError("Got a generator without a bond that can have more components; expected one at least.")
    return grown


def _ends(generator: Generator, bond: str) -> list[Core] | None:
    """Return the cores at the ends of a bond that can grow, ``None`` at others."""
    index = find_bond(generator.segments, bond)
    cores = {core.name: core for core in cores_of(generator.segments)}
    uses = [core.param for core in cores.values()]
    ends = [cores[name] for name in index.ends]
    free = all(core.trainable and uses.count(core.param) == 1 for core in ends)
    if index.kind != "linear" or ends[0] is ends[1] or not free or len(set(ends[0].inds) & set(ends[1].inds)) > 1:
        return None
    return ends


def _room(dim: int, first: Core, second: Core) -> int:
    """Return how many more components both cores together can use."""
    return min(math.prod(core.shape) // dim for core in (first, second)) - dim


def _grown(generator: Generator, bond: str, components: int, gradient: Any) -> Generator:
    index, ends = find_bond(generator.segments, bond), _ends(generator, bond)
    if ends is None:
        raise TopologyError(
            f"Got bond={bond!r} of the kind {index.kind!r} between {' and '.join(index.ends)}; expected the only bond "
            "between two trained cores that share their parameters with no other."
        )
    g = _merged_gradient(generator, index.segment, ends, index.index, gradient)
    first, second = (np.asarray(generator.params[core.param], np.float64) for core in ends)
    at = [core.inds.index(index.index) for core in ends]
    rows = first.size // index.dim
    matrix = g.reshape(rows, -1)
    most = _room(index.dim, *ends)
    if components > most:
        raise TopologyError(f"Got components={components} for {bond!r} of {index.dim}; expected at most {most}.")
    if not 0.0 < np.linalg.norm(matrix) < math.inf or not np.any(first):
        raise TopologyError(
            f"Got a gradient that does not reach {bond!r}, as it or another core is zero or not finite; train first."
        )
    u = np.linalg.svd(matrix, full_matrices=False)[0][:, :components]
    size = float(np.sqrt(np.mean(first**2))) * np.sqrt(rows)  # an entry of u has 1 / sqrt(rows)
    shape = [d for k, d in enumerate(first.shape) if k != at[0]]
    new = np.moveaxis((u * size).reshape(*shape, components), -1, at[0])
    grown = np.concatenate([first, new], at[0])
    zeros = list(second.shape)
    zeros[at[1]] = components
    params = {ends[0].param: grown, ends[1].param: np.concatenate([second, np.zeros(zeros)], at[1])}
    segments = _with_shapes(generator.segments, {core.name: params[core.param].shape for core in ends})
    return generator.with_topology(topology_for(generator.topology, generator.layout, segments), params)


def _with_shapes(segments: tuple[Segment, ...], shapes: dict[str, tuple[int, ...]]) -> tuple[Segment, ...]:
    return tuple(
        replace(s, cores=tuple(replace(c, shape=shapes[c.name]) if c.name in shapes else c for c in s.cores))
        for s in segments
    )


def _merged_gradient(
    generator: Generator, t: int, ends: list[Core], bond: str, gradient: Any
) -> Float[np.ndarray, "..."]:
    """Compute the gradient of the tensor of two cores, with the legs of the first one first."""
    wbar = np.asarray(finite_array("gradient", gradient, TopologyError), np.float64)
    if wbar.shape != generator.shape:
        raise TopologyError(f"Got gradient={shown(gradient)}; expected the shape of the weight, {generator.shape}.")
    a, b = ends
    inds = tuple(i for i in (*a.inds, *b.inds) if i != bond)
    values = [np.asarray(generator.params[core.param], np.float64) for core in ends]
    merged = np.tensordot(*values, axes=(a.inds.index(bond), b.inds.index(bond)))
    core = Core(name=_MERGED, inds=inds, shape=merged.shape, param=_MERGED, kind="core", init="given")
    names = {a.name, b.name}
    own = generator.segments[t]
    segment = replace(own, cores=(*(c for c in own.cores if c.name not in names), core))
    segments = (*generator.segments[:t], segment, *generator.segments[t + 1 :])
    last = generator.segments[-1].activation
    inner = generator.segments[0].activation if len(segments) > 1 else last
    pieces = Networks(pieces=segments, activation=inner, where="all" if last != "identity" else "inner")
    twin = generator.with_topology(pieces, {_MERGED: merged})
    arrays = twin.arrays("numpy:cpu", "float64")
    _, grads = twin.function.vjp(arrays, wbar)
    return np.asarray(grads[_MERGED])
