"""Initial values of the cores: seeded, variance-preserving, computed in NumPy float64 for all backends."""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from .._typing import Float
from ..errors import TopologyError
from ..layout import Layout
from ..program import Program, Stage, compile_program
from ..topology import Core, Pieces, SeededBase, Topology, sizes_of
from ._adjoint import forward_stage
from ._isometric import isometric
from ._moments import Moments, entries_at_random, sampled_moments, segment_moments

_DIRECT = 1 << 18  # entries of a weight that is simply computed: 2 MiB
_STATE = 1 << 20  # entries of a state: 8 MiB
_WINDOW = 1 << 18  # entries of a state of a part
_PART = 20  # a state may have one in this many entries of the weight
_PIECE = 32  # and a state of a part one in this many
_SAMPLES = 1 << 14


def _identity(core: Core) -> Float[np.ndarray, "*core"]:
    outgoing = core.size // core.fan_in
    return np.eye(outgoing, core.fan_in).reshape(core.shape)


def _isometry(normal: Float[np.ndarray, "*core"]) -> Float[np.ndarray, "*core"]:
    """Orthonormalise rows or columns, whichever are shorter; entries have unit variance."""
    matrix = normal.reshape(normal.shape[0] if normal.ndim else 1, -1)
    is_wide = matrix.shape[0] <= matrix.shape[1]
    q, r = np.linalg.qr(matrix.T if is_wide else matrix)
    q = q * np.where(np.diag(r) < 0.0, -1.0, 1.0)  # so that all isometries are equally likely
    return np.sqrt(max(matrix.shape)) * np.ascontiguousarray(q.T if is_wide else q).reshape(normal.shape)


def _bumps(n: int, d: int, width: float) -> Float[np.ndarray, "n d"]:
    spacing = d / n
    centres = (np.arange(n) + 0.5) * spacing - 0.5
    return np.exp(-0.5 * ((centres[:, None] - np.arange(d)) / (width * spacing)) ** 2)


def core_values(core: Core, seed: int) -> Float[np.ndarray, "*core"]:
    """Compute the values of one core before rescaling; they depend on the name of its parameter, not its position."""
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
        values = _identity(core) + core.noise * normal
        return isometric({core.param: values}, {core.param: core.fan_in})[core.param] if core.isometric else values
    if core.init == "normal":
        return normal / np.sqrt(core.fan_in)
    if core.init == "isometric":
        return _isometry(normal) / np.sqrt(core.fan_in)
    raise TopologyError(
        f"Core {core.name!r} has no rule for its initial values; pass params that contain {core.param!r}."
    )


def frozen_values(
    cores: Iterable[Core], given: Mapping[str, Float[np.ndarray, "..."]]
) -> dict[str, Float[np.ndarray, "..."]]:
    """Collect the values of all frozen cores, from ``given`` or rebuilt from their rule."""
    return {
        core.param: np.asarray(given[core.param]) if core.param in given else core_values(core, 0)
        for core in cores
        if not core.trainable
    }


def initial_values(
    program: Program, layout: Layout, seed: int, given: Mapping[str, Float[np.ndarray, "..."]], topology: Topology
) -> tuple[dict[str, Float[np.ndarray, "..."]], bool]:
    """Initialise the trained parameters so that the output of every segment has unit standard deviation.

    The trained cores of each segment are rescaled by equal factors before its activation is applied (data-free
    layer-sequential unit variance, after Mishkin and Matas (2016), arXiv:1511.06422). The weight is not computed for
    this: the output of a segment is measured directly if it is small, and otherwise by networks without open legs
    (see :mod:`adtn.calculus._moments`), which is exact if the incoming state is small.

    Parameters
    ----------
    program : Program
        The program to initialise.
    layout : Layout
        The layout of the weight; padding does not count.
    seed : int
        Equal seeds give equal values on every backend.
    given : mapping of str to array
        Values of frozen cores.
    topology : Topology
        The topology, which can split the network when its states are too large to compute.

    Returns
    -------
    tuple of dict of str to numpy.ndarray and bool
        Values in float64, and whether the standard deviation of the weight is exact. If a state before the last
        segment has more than a twentieth of the entries of the weight, the standard deviation is estimated from
        :meth:`Topology.parts`, or from seeded samples.
    """
    values = frozen_values(program.cores, given)
    names = {core.param for core in program.cores if core.trainable}
    for core in program.cores:
        if core.trainable and core.param not in values:
            values[core.param] = core_values(core, seed)
    largest_state = max(_STATE, math.prod(layout.padded_shape) // _PART)
    *before, _ = program.stages
    exact = all(_largest(stage) <= largest_state for stage in before)
    size = math.prod(layout.padded_shape)
    pieces = [] if exact else topology.parts(layout, min(_WINDOW, size // _PIECE))
    spreads = (
        _Parts(pieces) if pieces else _Whole(layout, sizes_of(s.segment for s in program.stages), largest_state, seed)
    )
    for t, stage in enumerate(program.stages):
        free = [core for core in stage.cores if core.trainable and not core.isometric]
        uses = Counter(core.param for core in free if core.init != "identity")
        uses = uses or Counter(core.param for core in free)
        spread = spreads.measure(t, stage, values, last=stage is program.stages[-1])
        if not (uses and spread > 0 and math.isfinite(spread)):
            spread = 1.0
        for name in uses:
            values[name] = np.asarray(values[name] * spread ** (-1.0 / uses.total()))
        if stage is not program.stages[-1]:
            spreads.activate(stage, spread, values)
    return {name: values[name] for name in names}, exact


def _largest(stage: Stage) -> int:
    """Return the number of entries of the largest intermediate of a stage."""
    return max([math.prod(stage.out_shape), *(step.entries for step in stage.steps)])


class _Whole:
    """The measurement of the program itself, segment by segment."""

    def __init__(self, layout: Layout, sizes: Mapping[str, int], most: int, seed: int) -> None:
        self.layout, self.sizes, self.most, self.seed = layout, sizes, most, seed
        self.state: Float[np.ndarray, "*legs"] | Moments | None = None
        self.z: Float[np.ndarray, "*legs"] | Moments = np.zeros(0)

    def measure(self, t: int, stage: Stage, values: Mapping[str, Float[np.ndarray, "..."]], *, last: bool) -> float:
        """Compute the standard deviation of ``Z``."""
        del t
        if not isinstance(self.state, Moments) and _largest(stage) <= (_DIRECT if last else self.most):
            self.z = np.asarray(forward_stage(stage, self.state, values, keep=False, activate=False)[0])
            padded = last and self.layout.padding > 1
            return sampled_moments(self.layout.from_legs(self.z) if padded else self.z).spread
        self.z = segment_moments(stage.segment, self.sizes, values, self.state, self.layout if last else None)
        return self.z.spread

    def activate(self, stage: Stage, spread: float, values: Mapping[str, Float[np.ndarray, "..."]]) -> None:
        """Continue with the state itself, or with its moments, from entries of a first segment or normal samples."""
        z, value, self.z = self.z, stage.activation.value, np.zeros(0)
        if not isinstance(z, Moments):
            z /= spread  # in place: nothing else refers to it
            self.state = value(z)
        elif self.state is None:
            self.state = sampled_moments(value(entries_at_random(stage.segment, values, _SAMPLES, self.seed)))
        else:
            key = np.array([self.seed, _SAMPLES], dtype=np.uint64)
            normal = np.random.Generator(np.random.Philox(key=key)).standard_normal(_SAMPLES)
            self.state = sampled_moments(value(z.mean / spread + normal))


class _Parts:
    """The measurement of small networks with the same parameters, as the product of their standard deviations."""

    def __init__(self, pieces: Pieces) -> None:
        self.programs = [(power, compile_program(segments)) for power, segments in pieces]
        self.states: list[Any] = [None] * len(pieces)
        self.spreads = [1.0] * len(pieces)

    def measure(self, t: int, stage: Stage, values: Mapping[str, Float[np.ndarray, "..."]], *, last: bool) -> float:
        """Compute the product of the standard deviations of all parts."""
        del stage, last
        for n, (_, program) in enumerate(self.programs):
            self.states[n], _ = forward_stage(program.stages[t], self.states[n], values, keep=False, activate=False)
            self.spreads[n] = sampled_moments(self.states[n]).spread or 1.0
        return math.prod(s**power for s, (power, _) in zip(self.spreads, self.programs, strict=True))

    def activate(self, stage: Stage, spread: float, values: Mapping[str, Float[np.ndarray, "..."]]) -> None:
        """Normalise every part to unit standard deviation, as that of the whole network, and apply the activation."""
        del spread, values
        self.states = [stage.activation.value(z / s) for z, s in zip(self.states, self.spreads, strict=True)]
