"""Unequal ranks and bonds for a number of parameters, from the spectra of a weight."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

import numpy as np

from .._arrays import finite_array
from .._checks import Range, checked
from .._typing import Float
from ..errors import TopologyError
from ..generator import Generator
from ..layout import Layout
from ..topology import TT, LowRank, TensorRing, Topology, TopologyArgument, Tucker, hosvd
from ..weight import Weighting, checked_moment
from ._decompose import decompose
from ._metric import InputMetric, roots

_LEAST = 1e-10  # least eigenvalue of a moment, relative to the largest
_TRIAL = 2  # sweeps to compare choices by


@checked(TopologyError)
def best_within(
    topology: TopologyArgument,
    layout: Layout,
    weight: Any,
    moment: Any,
    most_params: Annotated[int, Range(0)],
) -> Topology | None:
    """Choose the ranks with which a topology of at most ``most_params`` parameters approximates a weight best.

    Ranks follow from spectra: for Tucker, all combinations are compared by what truncating the HOSVD leaves; for TT and
    MPO, bonds are lowered from full size, that with the smallest increase of the error for each saved parameter first.
    With a moment, the spectra are those of the weight that is whitened leg by leg, and of that times the square root of
    the moment. Neither is exact, so both choices and the one with ranks in the given proportions are tried in a few
    sweeps of :func:`adtn.decompose`.

    Parameters
    ----------
    topology : Topology
        LowRank, Tucker, TT or MPO. Only the proportions of its ranks matter; legs to which Tucker gives ``None`` keep
        their dimension. In the result, ``None`` also stands for legs whose best rank is their dimension.
    layout : Layout
        The layout of the weight.
    weight : array
        The weight.
    moment : array or None
        The second moment of the inputs, see :func:`adtn.decompose`.
    most_params : int
        The largest number of parameters.

    Returns
    -------
    Topology or None
        The topology, ``None`` if even the smallest has more parameters.

    Raises
    ------
    TopologyError
        If the topology has no ranks to choose, or arrays do not fit.

    Examples
    --------
    >>> import adtn, numpy as np
    >>> weight = np.random.default_rng(0).standard_normal((16, 2, 3, 3)) * np.arange(16).reshape(-1, 1, 1, 1) ** 4
    >>> shape = adtn.Layout.whole(weight.shape)
    >>> best_within(adtn.Tucker(bond=(1, 1, None, None)), shape, weight, None, 150)
    Tucker(bond=(4, None, None, None))
    """
    state = np.asarray(finite_array("weight", weight, TopologyError), dtype=np.float64)
    if state.shape != layout.shape:
        raise TopologyError(f"Got a weight of shape {state.shape} for a layout of {layout.shape}; expected that.")
    if isinstance(topology, LowRank):
        size = sum(math.prod(layout.dims[q] for q in side) for side in topology.sides(layout))
        rank = min(most_params // size, topology.grown(2**20).rank(layout))
        return topology.grown(rank) if rank else None
    if not isinstance(topology, Tucker | TT) or isinstance(topology, TensorRing):
        raise TopologyError(f"Got {topology}; expected LowRank, Tucker, TT or MPO, whose ranks follow from spectra.")
    if moment is None or math.prod(layout.shape[1:]) == 1:
        return _from_spectra(topology, layout, layout.to_legs(state), most_params)
    second = checked_moment(moment, layout.shape)
    rows = state.reshape(len(state), -1) @ roots(second, _LEAST)[0]
    whitened = (
        InputMetric(Weighting(layout=layout, scale=1.0), second).whiten(layout.to_legs(state)),
        layout.to_legs(rows.reshape(state.shape)),
    )
    choices = [_from_spectra(topology, layout, one, most_params) for one in whitened]
    found = list(dict.fromkeys(one for one in (*choices, _equal(topology, layout, most_params)) if one is not None))
    if len(found) < 2:
        return found[0] if found else None
    return min(found, key=lambda one: _error(one, layout, state, second))


def _from_spectra(
    topology: Tucker | TT, layout: Layout, state: Float[np.ndarray, "*legs"], most: int
) -> Topology | None:
    if isinstance(topology, Tucker):
        return _best_tucker(topology, layout, state, most)
    return _best_chain(topology, layout, state, most)


def _equal(topology: Tucker | TT, layout: Layout, most: int) -> Topology | None:
    """Return the largest with ranks in the given proportions."""

    def size(rank: int) -> int:
        return sum(core.size for segment in topology.grown(rank).segments(layout) for core in segment.cores)

    sizes = range(1, max(layout.padded_shape) + 1)
    rank = bisect_right(sizes, most, key=size)
    return topology.grown(rank) if rank else None


def _error(
    topology: Topology, layout: Layout, weight: Float[np.ndarray, "*shape"], moment: Float[np.ndarray, "n_in n_in"]
) -> float:
    """Compute the squared error of the outputs after a few sweeps."""
    gen = Generator(layout.shape, topology, layout=layout, scale=1.0, dtype="float64")
    away = decompose(gen, weight, moment=moment, sweeps=_TRIAL).weight() - weight
    rows = np.asarray(away).reshape(len(away), -1)
    return float(np.vdot(rows @ moment, rows))


def _best_tucker(topology: Tucker, layout: Layout, state: Float[np.ndarray, "*legs"], most: int) -> Tucker | None:
    dims = layout.dims
    options = [
        [(None, d)] if rank is None else [*((r, r) for r in range(1, min(d, state.size // d) + 1) if r < d), (None, d)]
        for rank, d in zip(topology.ranks(layout), dims, strict=True)
    ]
    core, _ = hosvd(
        state, [None if own[:-1] == [] else min(d, state.size // d) for own, d in zip(options, dims, strict=True)]
    )
    kept, sizes, factors = core**2, np.ones((1,) * core.ndim), np.zeros((1,) * core.ndim)
    for axis, (own, d) in enumerate(zip(options, dims, strict=True)):
        last = kept.shape[axis] - 1
        kept = np.take(np.cumsum(kept, axis=axis), [last if r is None else r - 1 for r, _ in own], axis=axis)
        side = tuple(-1 if k == axis else 1 for k in range(core.ndim))
        sizes = sizes * np.reshape([size for _, size in own], side)
        factors = factors + np.reshape([0 if r is None else r * d for r, _ in own], side)
    kept = np.where(sizes + factors <= most, kept, -1.0)
    best = np.unravel_index(int(np.argmax(kept)), kept.shape)
    if kept[best] < 0.0:
        return None
    bonds = [own[k][0] for own, k in zip(options, best, strict=True)]
    if not isinstance(topology.bond, int) and len(topology.bond) > len(bonds):  # one per axis, of any length
        position = {axis: q for q, (axis, _) in enumerate(layout.leg_axes)}
        bonds = [bonds[position[axis]] if axis in position else None for axis in range(len(layout.shape))]
    return replace(topology, bond=tuple(bonds))


def _best_chain(topology: TT, layout: Layout, state: Float[np.ndarray, "*legs"], most: int) -> TT | None:
    sites = topology.sites(layout)
    dims = [math.prod(layout.dims[q] for q in site) for site in sites]
    flat = np.transpose(state, [q for site in sites for q in site]).reshape(-1)
    tails = [_tail(flat.reshape(math.prod(dims[: k + 1]), -1)) for k in range(len(dims) - 1)]

    def size(bonds: Sequence[int]) -> int:
        return sum(a * d * b for a, d, b in zip((1, *bonds), dims, (*bonds, 1), strict=True))

    bonds = [len(tail) - 1 for tail in tails]
    while (total := size(bonds)) > most:
        steps: list[tuple[float, int, int]] = []
        for k, bond in enumerate(bonds):
            if bond > 1:
                less = bond - max(1, bond // 16)  # large bonds in large steps
                saved = total - size([*bonds[:k], less, *bonds[k + 1 :]])
                steps.append(((tails[k][less] - tails[k][bond]) / saved, k, less))
        if not steps:
            return None
        _, k, less = min(steps)
        bonds[k] = less
    while True:  # what the large steps left
        fitting = [
            (tails[k][b] - tails[k][b + 1], k)
            for k, b in enumerate(bonds)
            if b + 1 < len(tails[k]) and size([*bonds[:k], b + 1, *bonds[k + 1 :]]) <= most
        ]
        if not fitting:
            return topology.grown(1) if not bonds else replace(topology, bond=tuple(bonds))
        bonds[max(fitting)[1]] += 1


def _tail(matrix: Float[np.ndarray, "m n"]) -> Float[np.ndarray, " rank"]:
    """Return the squared error of every rank, from 0 to the smaller dimension."""
    small = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    values = np.maximum(np.linalg.eigvalsh(small @ small.T), 0.0)
    return np.concatenate([[0.0], np.cumsum(values)])[::-1]
