"""How many parameters can influence the weight, by numerical rank and not by a formula."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import numpy as np

from ..errors import TopologyError
from ..layout import Layout
from ..program import Program, compile_program
from ..topology import Core, Segment, Topology, cores_of, sizes_of
from ._adjoint import forward_tape, pullback
from ._initial import frozen_values

_TOLERANCE = 1e-9
_OVERSAMPLE = 4
# above this size a core's rank would take more probes than it is worth: its entries that move anything are counted
_LARGEST = 1024
_MOST = 10_000
_BUDGET = 2e9  # operations: a second or two
_PER_ENTRY = 30  # operations that an activation and its derivative are worth
_LARGEST_STATE = 1 << 22
_WINDOW = 1 << 10


def _probe_program(segments: tuple[Segment, ...]) -> Program:
    """The program closed with one frozen vector per physical leg, where the last segment is multilinear.

    Products of vectors span all cotangents, so random ones lose no rank, and the weight is never formed.
    """
    last = segments[-1]
    if last.activation != "identity":
        return compile_program(segments)
    sizes = sizes_of(segments)
    probes = tuple(
        Core(f"probe{q}", (i,), (sizes[i],), f"probe{q}", "probe", trainable=False) for q, i in enumerate(last.outputs)
    )
    return compile_program((*segments[:-1], replace(last, cores=(*last.cores, *probes), outputs=())))


def jacobian_rows(
    segments: tuple[Segment, ...], n: int, given: dict[str, np.ndarray], largest: int | None = None
) -> dict[str, np.ndarray]:
    """Products of ``n`` random cotangents with the Jacobian of the weight, at generic parameters.

    Parameters
    ----------
    segments : tuple of Segment
        The network.
    n : int
        Number of rows.
    given : dict of str to numpy.ndarray
        Frozen numbers that have no rule.
    largest : int, optional
        Of parameters with more entries only two rows are kept.

    Returns
    -------
    dict of str to numpy.ndarray
        Per parameter an array ``(n, size)``.
    """
    rng = np.random.default_rng(0)
    program = _probe_program(segments)
    arrays = frozen_values(cores_of(segments), given)
    for core in program.cores:
        if core.trainable and core.param not in arrays:
            arrays[core.param] = rng.standard_normal(core.shape) / np.sqrt(core.fan_in)
    probes = [core for core in program.cores if core.kind == "probe"]
    rows: dict[str, list[np.ndarray]] = {}
    for _ in range(n):
        for probe in probes:
            arrays[probe.param] = rng.standard_normal(probe.shape)
        state, tape = forward_tape(program, arrays)
        cotangent = np.ones(()) if probes else rng.standard_normal(state.shape)
        for name, grad in pullback(program, tape, cotangent).items():
            found = rows.setdefault(name, [])
            if largest is None or np.size(grad) <= largest or len(found) < 2:
                found.append(np.ravel(grad))
    return {name: np.stack(found) for name, found in rows.items()}


def _rank(rows: np.ndarray) -> int:
    # rows of very different length would hide directions: their directions are what counts
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = rows / np.where(norms > 0, norms, 1.0)
    values = np.linalg.svd(rows, compute_uv=False)
    return int(np.sum(values > _TOLERANCE * max(values[0], 1e-300)))


def active_parameters(topology: Topology, layout: Layout, given: dict[str, np.ndarray]) -> dict[str, int]:
    """Rank of the weight's Jacobian with respect to each parameter alone.

    It is smaller than the parameter's size when some of its entries, or combinations of them, meet only zeros:
    in the first column of a brick wall with a fixed boundary, for instance. The work is bounded: where ranks of the
    whole network cost too much they are those in :meth:`Topology.parts`, or entries with a derivative are counted,
    as they are for cores with more than 1024 entries; where even a single pass would make too large a state, all
    entries count.
    """
    segments = topology.segments(layout)
    ruled = all(core.init != "given" for s in segments for core in s.cores)
    return dict(_by_structure(topology, layout)) if ruled else _active(topology, layout, given)


@lru_cache(maxsize=1024)  # models have many layers of few shapes
def _by_structure(topology: Topology, layout: Layout) -> dict[str, int]:
    return _active(topology, layout, {})


def _active(topology: Topology, layout: Layout, given: dict[str, np.ndarray]) -> dict[str, int]:
    segments = topology.segments(layout)
    if _cost(segments) <= _BUDGET:
        return _ranks(segments, given)
    window = max(_WINDOW, 4 * _probes(_sizes(segments)))  # ranks must not be those of a small window
    if pieces := topology.parts(layout, window):
        found: dict[str, int] = {}
        for _, own in pieces:
            for name, rank in _ranks(own, given).items():
                found[name] = max(rank, found.get(name, 0))
        return found
    sizes = _sizes(segments)
    if max(math.prod(stage.out_shape) for stage in _probe_program(segments).stages) > _LARGEST_STATE:
        return sizes
    return {name: _moving(rows) for name, rows in jacobian_rows(segments, 2, given).items()}


def _ranks(segments: tuple[Segment, ...], given: dict[str, np.ndarray]) -> dict[str, int]:
    sizes = _sizes(segments)
    rows = jacobian_rows(segments, _probes(sizes), given, _LARGEST)
    return {name: _rank(found) if sizes[name] <= _LARGEST else _moving(found) for name, found in rows.items()}


def _sizes(segments: tuple[Segment, ...]) -> dict[str, int]:
    return {core.param: core.size for s in segments for core in s.cores if core.trainable}


def _probes(sizes: dict[str, int]) -> int:
    largest = max((n for n in sizes.values() if n <= _LARGEST), default=0)
    return largest + _OVERSAMPLE if largest else 2


def _cost(segments: tuple[Segment, ...]) -> float:
    """Operations of all probes, forward and back."""
    program = _probe_program(segments)
    passes = sum(math.prod(stage.out_shape) for stage in program.stages)
    return _probes(_sizes(segments)) * (3.0 * program.flops + _PER_ENTRY * passes)


def _moving(rows: np.ndarray) -> int:
    return int(np.any(rows != 0, axis=0).sum())


def degrees_of_freedom(segments: tuple[Segment, ...], given: dict[str, np.ndarray]) -> int:
    """Rank of the whole Jacobian: the dimension of the set of weights, with gauge freedom taken out.

    Raises
    ------
    TopologyError
        For more than 10,000 parameters.
    """
    sizes = {core.param: core.size for s in segments for core in s.cores if core.trainable}
    if sum(sizes.values()) > _MOST:
        raise TopologyError(
            f"Got {sum(sizes.values())} parameters; the rank of the whole Jacobian is for at most {_MOST}."
        )
    rows = jacobian_rows(segments, sum(sizes.values()) + _OVERSAMPLE, given)
    # each parameter gets the same weight, whatever its scale
    blocks = [found / (np.linalg.norm(found) or 1.0) for found in rows.values()]
    return _rank(np.concatenate(blocks, axis=1))
