"""First values of the cores: seeded, variance-preserving, computed once in NumPy float64 for every backend."""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..errors import TopologyError
from ..layout import Layout
from ..program import Program, Stage, compile_program
from ..topology import Core, Pieces, SeededBase, Topology, sizes_of
from ._adjoint import forward_stage
from ._moments import Moments, entries_at_random, sampled_moments, segment_moments

_DIRECT = 1 << 18  # entries that are made without another thought: 2 MiB
_STATE = 1 << 20  # of a state: 8 MiB
_WINDOW = 1 << 18  # of a state of a piece
_PART = 20  # a state may be this part of the weight
_PIECE = 32  # and that of a piece this one
_SAMPLES = 1 << 14


def _identity(core: Core) -> np.ndarray:
    outgoing = core.size // core.fan_in
    return np.eye(outgoing, core.fan_in).reshape(core.shape)


def _bumps(n: int, d: int, width: float) -> np.ndarray:
    spacing = d / n
    centres = (np.arange(n) + 0.5) * spacing - 0.5
    return np.exp(-0.5 * ((centres[:, None] - np.arange(d)) / (width * spacing)) ** 2)


def core_values(core: Core, seed: int) -> np.ndarray:
    """Values of one core before the variance is set; they depend on its parameter's name, not on its position."""
    if core.init == "seeded":
        return SeededBase(core.seed).values(core.shape).astype(np.float64)
    if core.init == "basis":
        values = np.zeros(core.shape)
        values.flat[0] = 1.0
        return values
    if core.init == "bumps":
        n, d = core.shape
        return _bumps(n, d, core.width)
    key = np.array([seed, zlib.crc32(core.param.encode())], dtype=np.uint64)
    normal = np.random.Generator(np.random.Philox(key=key)).standard_normal(core.shape)
    if core.init == "identity":
        return _identity(core) + core.noise * normal
    if core.init == "normal":
        return normal / np.sqrt(core.fan_in)
    raise TopologyError(
        f"Core {core.name!r} has no rule for its first values; pass params that contain {core.param!r}."
    )


def frozen_values(cores: Iterable[Core], given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Numbers of all cores that are not trained: rebuilt from their rule, or taken from ``given``."""
    return {
        core.param: np.asarray(given[core.param]) if core.param in given else core_values(core, 0)
        for core in cores
        if not core.trainable
    }


def initial_values(
    program: Program, layout: Layout, seed: int, given: Mapping[str, np.ndarray], topology: Topology
) -> tuple[dict[str, np.ndarray], bool]:
    """Trained parameters such that every segment puts out unit standard deviation.

    Each segment's trained cores are rescaled by equal factors before its activation is applied (data-free
    layer-sequential unit variance, after Mishkin and Matas (2016), arXiv:1511.06422). The weight is not made for it:
    what a segment puts out is measured as it is where it is small, else by closed networks (see
    :mod:`adtn.calculus._moments`), which is exact while the state before is small.

    Parameters
    ----------
    program : Program
        What to initialise.
    layout : Layout
        Entries of the weight that are padding do not count.
    seed : int
        Equal seeds give equal values on every backend.
    given : mapping of str to array
        Frozen cores.
    topology : Topology
        Knows pieces of the network for states that are too large to be made.

    Returns
    -------
    tuple of dict of str to numpy.ndarray and bool
        Values in float64, and whether the standard deviation of the weight is exact. Where a state before the last
        segment has more than a twentieth of the weight's entries, it is estimated from :meth:`Topology.parts`, or
        from seeded samples.
    """
    values = frozen_values(program.cores, given)
    names = {core.param for core in program.cores if core.trainable}
    for core in program.cores:
        if core.trainable and core.param not in values:
            values[core.param] = core_values(core, seed)
    most = max(_STATE, math.prod(layout.padded_shape) // _PART)
    *before, _ = program.stages
    exact = all(_largest(stage) <= most for stage in before)
    size = math.prod(layout.padded_shape)
    pieces = [] if exact else topology.parts(layout, min(_WINDOW, size // _PIECE))
    measured = _Pieces(pieces) if pieces else _Whole(layout, sizes_of(s.segment for s in program.stages), most, seed)
    for t, stage in enumerate(program.stages):
        uses = Counter(core.param for core in stage.cores if core.trainable and core.init != "identity")
        uses = uses or Counter(core.param for core in stage.cores if core.trainable)
        spread = measured.put_out(t, stage, values, last=stage is program.stages[-1])
        if not (uses and spread > 0 and math.isfinite(spread)):
            spread = 1.0
        for name in uses:
            values[name] = values[name] * spread ** (-1.0 / uses.total())
        if stage is not program.stages[-1]:
            measured.activate(stage, spread, values)
    return {name: values[name] for name in names}, exact


def _largest(stage: Stage) -> int:
    """Entries of what is made on the way."""
    return max([math.prod(stage.out_shape), *(step.entries for step in stage.steps)])


class _Whole:
    """The program itself, segment by segment."""

    def __init__(self, layout: Layout, sizes: Mapping[str, int], most: int, seed: int) -> None:
        self.layout, self.sizes, self.most, self.seed = layout, sizes, most, seed
        self.state: np.ndarray | Moments | None = None
        self.z: np.ndarray | Moments = np.zeros(0)

    def put_out(self, t: int, stage: Stage, values: Mapping[str, np.ndarray], *, last: bool) -> float:
        """The spread of ``Z``."""
        del t
        if not isinstance(self.state, Moments) and _largest(stage) <= (_DIRECT if last else self.most):
            self.z = np.asarray(forward_stage(stage, self.state, values, keep=False, activate=False)[0])
            padded = last and self.layout.padding > 1
            return sampled_moments(self.layout.from_legs(self.z) if padded else self.z).spread
        self.z = segment_moments(stage.segment, self.sizes, values, self.state, self.layout if last else None)
        return self.z.spread

    def activate(self, stage: Stage, spread: float, values: Mapping[str, np.ndarray]) -> None:
        """Go on with the state: itself, or what entries of a first segment or of a normal distribution say."""
        z, value, self.z = self.z, stage.activation.value, np.zeros(0)
        if not isinstance(z, Moments):
            z /= spread  # nobody else has it
            self.state = value(z)
        elif self.state is None:
            self.state = sampled_moments(value(entries_at_random(stage.segment, values, _SAMPLES, self.seed)))
        else:
            key = np.array([self.seed, _SAMPLES], dtype=np.uint64)
            normal = np.random.Generator(np.random.Philox(key=key)).standard_normal(_SAMPLES)
            self.state = sampled_moments(value(z.mean / spread + normal))


class _Pieces:
    """Small networks that read the same parameters; their spreads multiply."""

    def __init__(self, pieces: Pieces) -> None:
        self.programs = [(power, compile_program(segments)) for power, segments in pieces]
        self.states: list[Any] = [None] * len(pieces)
        self.spreads = [1.0] * len(pieces)

    def put_out(self, t: int, stage: Stage, values: Mapping[str, np.ndarray], *, last: bool) -> float:
        """The product over all pieces."""
        del stage, last
        for n, (_, program) in enumerate(self.programs):
            self.states[n], _ = forward_stage(program.stages[t], self.states[n], values, keep=False, activate=False)
            self.spreads[n] = sampled_moments(self.states[n]).spread or 1.0
        return math.prod(s**power for s, (power, _) in zip(self.spreads, self.programs, strict=True))

    def activate(self, stage: Stage, spread: float, values: Mapping[str, np.ndarray]) -> None:
        """Every piece at the spread that the whole has, which is 1."""
        del spread, values
        self.states = [stage.activation.value(z / s) for z, s in zip(self.states, self.spreads, strict=True)]
