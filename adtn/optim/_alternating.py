"""Alternating least squares for linear networks, in the metric of a layer's inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from .._typing import Float, Inds
from ..layout import Layout
from ..topology import Segment
from ._block import MOMENT, PULLED, Block
from ._metric import InputMetric

_REACH = 2.0  # largest factor of an extrapolation
_WINDOW = 3  # sweeps over which the gain is measured, as one without extrapolation gains less
_LEAST_GAIN = 1.5e-3  # relative decrease of the error in that many sweeps, below which they end


def alternate(
    segment: Segment,
    layout: Layout,
    metric: InputMetric,
    target: Float[np.ndarray, "*legs"],
    params: Mapping[str, Float[np.ndarray, "..."]],
    *,
    sweeps: int,
    least_gain: float = _LEAST_GAIN,
) -> dict[str, Float[np.ndarray, "..."]]:
    """Improve the cores one after the other, each to its best value, until a sweep no longer gains.

    Parameters
    ----------
    segment : Segment
        The network.
    layout : Layout
        The layout of the weight.
    metric : InputMetric
        The metric.
    target : numpy.ndarray
        The whitened state to approximate.
    params : mapping of str to numpy.ndarray
        Cores to start from, in whitened coordinates, and frozen ones.
    sweeps : int
        The largest number of sweeps.
    least_gain : float
        The relative decrease of the error in three sweeps, below which they end.

    Notes
    -----
    Between two sweeps, the cores are extrapolated along their last change, by a factor that grows as in Nesterov's
    method. If this makes the next sweep worse, it is repeated without. On matrix product operators, this halves the
    number of sweeps.
    """
    outer, inner = (tuple(layout.leg_names[q] for q in side) for side in (metric.outer, metric.inner))
    moment = metric.moment.reshape(metric.inner_dims * 2)
    if len(inner) == 1:  # whitened as a whole
        outer, inner, moment = (*outer, *inner), (), np.ones(())
    blocks = _blocks(segment, outer, inner, tuple(zip(layout.leg_names, layout.dims, strict=True)))
    pulled = metric.times_moment(target)
    power = float(np.vdot(pulled, target))
    if not power > 0.0:
        return dict(params)  # no input that occurs has an output
    now = {name: np.asarray(x, dtype=np.float64) for name, x in params.items()}
    before, errors, age, reach = None, [math.inf], 0, _REACH
    order = blocks[::-1]  # a decomposition leaves the norm to the last core
    for _ in range(sweeps):
        start = now
        if before is not None and age > 1:
            factor = min(2.0 * (age - 1) / (age + 2), reach)
            start = {name: x + factor * (x - before[name]) for name, x in now.items()}
        found, reached = _swept(order, dict(start), pulled, moment, power, errors[-1])
        if not reached <= errors[-1] and start is not now:
            age, reach = 0, 0.5 * reach
            found, reached = _swept(order, dict(now), pulled, moment, power, math.inf)
        if not reached < errors[-1]:
            break
        before, now, age, reach = now, found, age + 1, min(1.2 * reach, _REACH)
        errors.append(reached)
        if len(errors) > _WINDOW + 1 and reached > (1.0 - least_gain) * errors[-1 - _WINDOW]:
            break
    return now


@lru_cache(maxsize=64)
def _blocks(segment: Segment, outer: Inds, inner: Inds, legs: tuple[tuple[str, int], ...]) -> tuple[Block, ...]:
    """Plan the problems of all trained cores, once per structure; they hold no arrays."""
    return tuple(Block(segment.cores, core, outer, inner, dict(legs)) for core in segment.cores if core.trainable)


def _swept(
    blocks: tuple[Block, ...],
    params: dict[str, Float[np.ndarray, "..."]],
    pulled: Float[np.ndarray, "*legs"],
    moment: Float[np.ndarray, "..."],
    power: float,
    most: float,
) -> tuple[dict[str, Float[np.ndarray, "..."]], float]:
    """Solve for all cores in order; give up if the error after the first exceeds ``most``."""
    error = math.inf
    for k, block in enumerate(blocks):
        params[block.core.param], decrease = block.solve({**params, PULLED: pulled, MOMENT: moment})
        error = math.sqrt(max(power - decrease, 0.0) / power)
        if k == 0 and error > most:
            break
    return params, error
