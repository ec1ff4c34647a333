"""First values of the cores: seeded, variance-preserving, computed once in NumPy float64 for every backend."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np

from .._errors import TopologyError
from ._adjoint import forward_stage
from ._program import Program
from ._seeded import SeededBase
from ._segment import Core


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


def initial_values(program: Program, seed: int, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Trained parameters such that every segment puts out unit standard deviation.

    The program is run once; each segment's trained cores are rescaled by equal factors before its activation
    is applied (data-free layer-sequential unit variance, after Mishkin and Matas (2016), arXiv:1511.06422).

    Parameters
    ----------
    program : Program
        What to initialise.
    seed : int
        Equal seeds give equal values on every backend.
    given : mapping of str to array
        Frozen numbers.

    Returns
    -------
    dict of str to numpy.ndarray
        float64.
    """
    values = frozen_values(program.cores, given)
    names = {core.param for core in program.cores if core.trainable}
    for core in program.cores:
        if core.trainable and core.param not in values:
            values[core.param] = core_values(core, seed)
    state = None
    for stage in program.stages:
        uses = Counter(core.param for core in stage.cores if core.trainable and core.init != "identity")
        uses = uses or Counter(core.param for core in stage.cores if core.trainable)
        z, _ = forward_stage(stage, state, values, keep=False, activate=False)
        spread = float(np.std(z)) or float(np.sqrt(np.mean(np.square(z))))
        if uses and spread > 0 and np.isfinite(spread):
            for name in uses:
                values[name] = values[name] * spread ** (-1.0 / uses.total())
            z = z / spread
        state = stage.activation.value(z)
    return {name: values[name] for name in names}
