"""Counts of the parameters that can change the weight, by numerical rank instead of a formula."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import numpy as np

from .._typing import Float
from ..errors import TopologyError
from ..layout import Layout
from ..program import Program, compile_program
from ..topology import Core, Segment, Topology, cores_of, sizes_of
from ._adjoint import forward_tape, pullback
from ._initial import frozen_values
from ._isometric import isometric, isometric_rows, isometric_vjp

_TOLERANCE = 1e-9
_OVERSAMPLE = 4
# above this size the rank of a core would take too many probes; its entries with a derivative are counted instead
_LARGEST = 1024
_MOST = 10_000
_BUDGET = 2e9  # operations: a second or two
_PER_ENTRY = 30  # operations that an activation and its derivative count as
_LARGEST_STATE = 1 << 22
_WINDOW = 1 << 10


def _probe_program(segments: tuple[Segment, ...]) -> Program:
    """Compile the network, contracted with one frozen vector per physical leg if the last segment is multilinear.

    Products of vectors span all cotangents, so random ones lose no rank, and the weight is never computed.
    """
    last = segments[-1]
    if last.activation != "identity":
        return compile_program(segments)
    sizes = sizes_of(segments)
    probes = tuple(
        Core(name=f"probe{q}", inds=(i,), shape=(sizes[i],), param=f"probe{q}", kind="probe", trainable=False)
        for q, i in enumerate(last.outputs)
    )
    return compile_program((*segments[:-1], replace(last, cores=(*last.cores, *probes), outputs=())))


def jacobian_rows(
    segments: tuple[Segment, ...], n: int, given: dict[str, Float[np.ndarray, "..."]], largest: int | None = None
) -> dict[str, Float[np.ndarray, "rows size"]]:
    """Multiply ``n`` random cotangents by the Jacobian of the weight, at generic parameters.

    Parameters
    ----------
    segments : tuple of Segment
        The network.
    n : int
        Number of rows.
    given : dict of str to numpy.ndarray
        Values of frozen cores that have no rule.
    largest : int, optional
        Keep only two rows of parameters with more entries than this.

    Returns
    -------
    dict of str to numpy.ndarray
        An array ``(n, size)`` per parameter.
    """
    rng = np.random.default_rng(0)
    program = _probe_program(segments)
    arrays = frozen_values(cores_of(segments), given)
    for core in program.cores:
        if core.trainable and core.param not in arrays:
            arrays[core.param] = rng.standard_normal(core.shape) / np.sqrt(core.fan_in)
    constrained = isometric_rows(program.cores)
    parameters, arrays = arrays, isometric(arrays, constrained)
    probes = [core for core in program.cores if core.kind == "probe"]
    rows: dict[str, list[np.ndarray]] = {}
    for _ in range(n):
        for probe in probes:
            arrays[probe.param] = rng.standard_normal(probe.shape)
        state, tape = forward_tape(program, arrays)
        cotangent = np.ones(()) if probes else rng.standard_normal(state.shape)
        grads = pullback(program, tape, cotangent)
        for name, grad in isometric_vjp(parameters, constrained, grads).items():
            products = rows.setdefault(name, [])
            if largest is None or np.size(grad) <= largest or len(products) < 2:
                products.append(np.ravel(grad))
    return {name: np.stack(products) for name, products in rows.items()}


def _rank(rows: Float[np.ndarray, "n size"]) -> int:
    # normalise the rows: large differences in length would hide directions
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = rows / np.where(norms > 0, norms, 1.0)
    values = np.linalg.svd(rows, compute_uv=False)
    return int(np.sum(values > _TOLERANCE * max(values[0], 1e-300)))


def active_parameters(topology: Topology, layout: Layout, given: dict[str, Float[np.ndarray, "..."]]) -> dict[str, int]:
    """Compute the rank of the Jacobian of the weight with respect to each parameter alone.

    The rank is smaller than the size of the parameter if some of its entries, or combinations of them, only multiply
    zeros, for instance in the first column of a brick wall with a fixed boundary. The work is bounded: if ranks of
    the whole network are too expensive, those in :meth:`Topology.parts` are used, or entries with a nonzero
    derivative are counted, as they always are for cores with more than 1024 entries. If even a single pass would need
    too large a state, all entries count.
    """
    segments = topology.segments(layout)
    ruled = all(core.init != "given" for s in segments for core in s.cores)
    return dict(_by_structure(topology, layout)) if ruled else _active(topology, layout, given)


@lru_cache(maxsize=1024)  # models have many layers of few shapes
def _by_structure(topology: Topology, layout: Layout) -> dict[str, int]:
    return _active(topology, layout, {})


def _active(topology: Topology, layout: Layout, given: dict[str, Float[np.ndarray, "..."]]) -> dict[str, int]:
    segments = topology.segments(layout)
    if _cost(segments) <= _BUDGET:
        return _ranks(segments, given)
    window = max(_WINDOW, 4 * _probes(_sizes(segments)))  # a window that is too small would limit the ranks
    if pieces := topology.parts(layout, window):
        ranks: dict[str, int] = {}
        for _, part in pieces:
            for name, rank in _ranks(part, given).items():
                ranks[name] = max(rank, ranks.get(name, 0))
        return ranks
    sizes = _sizes(segments)
    if max(math.prod(stage.out_shape) for stage in _probe_program(segments).stages) > _LARGEST_STATE:
        return sizes
    return {name: _moving(rows) for name, rows in jacobian_rows(segments, 2, given).items()}


def _ranks(segments: tuple[Segment, ...], given: dict[str, Float[np.ndarray, "..."]]) -> dict[str, int]:
    sizes = _sizes(segments)
    rows = jacobian_rows(segments, _probes(sizes), given, _LARGEST)
    return {name: _rank(products) if sizes[name] <= _LARGEST else _moving(products) for name, products in rows.items()}


def _sizes(segments: tuple[Segment, ...]) -> dict[str, int]:
    return {core.param: core.size for s in segments for core in s.cores if core.trainable}


def _probes(sizes: dict[str, int]) -> int:
    largest = max((n for n in sizes.values() if n <= _LARGEST), default=0)
    return largest + _OVERSAMPLE if largest else 2


def _cost(segments: tuple[Segment, ...]) -> float:
    """Estimate the operations of all probes, forward and backward."""
    program = _probe_program(segments)
    passes = sum(math.prod(stage.out_shape) for stage in program.stages)
    return _probes(_sizes(segments)) * (3.0 * program.flops + _PER_ENTRY * passes)


def _moving(rows: Float[np.ndarray, "n size"]) -> int:
    return int(np.any(rows != 0, axis=0).sum())


def degrees_of_freedom(segments: tuple[Segment, ...], given: dict[str, Float[np.ndarray, "..."]]) -> int:
    """Compute the rank of the whole Jacobian: the dimension of the set of weights, without gauge freedom.

    Raises
    ------
    TopologyError
        If there are more than 10,000 parameters.
    """
    sizes = {core.param: core.size for s in segments for core in s.cores if core.trainable}
    if sum(sizes.values()) > _MOST:
        raise TopologyError(
            f"Got {sum(sizes.values())} parameters; degrees of freedom can be computed for at most {_MOST}."
        )
    rows = jacobian_rows(segments, sum(sizes.values()) + _OVERSAMPLE, given)
    # weight all parameters equally, whatever their scale
    blocks = [products / (np.linalg.norm(products) or 1.0) for products in rows.values()]
    return _rank(np.concatenate(blocks, axis=1))
