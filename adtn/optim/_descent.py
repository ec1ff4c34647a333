"""Descent of all cores of a linear network together, in the metric of a layer's inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from .._typing import Float
from ..backends import get_backend
from ..calculus import FlatProgram
from ..program import compile_program
from ..topology import Segment
from ._metric import InputMetric

_PAIRS = 20  # steps that are remembered
_WINDOW = 50  # steps over which the gain is measured
_LEAST_GAIN = 1e-3  # relative decrease of the squared error in that many steps, below which they end
_EXACT = 1e-14  # squared relative error


def descend(
    segment: Segment,
    metric: InputMetric,
    target: Float[np.ndarray, "*legs"],
    params: Mapping[str, Float[np.ndarray, "..."]],
    *,
    steps: int,
) -> tuple[dict[str, Float[np.ndarray, "..."]], float]:
    """Improve the cores of a linear network by L-BFGS, until many steps no longer gain.

    Parameters
    ----------
    segment : Segment
        The network.
    metric : InputMetric
        The metric.
    target : numpy.ndarray
        The whitened state to approximate.
    params : mapping of str to numpy.ndarray
        Cores to start from, in whitened coordinates, all of which are trained.
    steps : int
        The largest number of steps; without any, the parameters are returned as they are.

    Returns
    -------
    tuple of dict and float
        The cores, and the relative error in the metric.
    """
    numpy = get_backend("numpy")
    assert numpy.dialect is not None, "it runs straight-line code"
    program, space = FlatProgram(compile_program((segment,)), numpy.dialect), numpy.workspace()
    names = [core.param for core in segment.cores]
    cores = [np.asarray(params[name], dtype=np.float64) for name in names]
    power = float(np.vdot(metric.times_moment(target), target))
    if not power > 0.0:
        return dict(zip(names, cores, strict=True)), 0.0  # no input that occurs has an output
    ends = np.cumsum([core.size for core in cores])[:-1]

    def of_vector(x: Float[np.ndarray, " entries"]) -> dict[str, Float[np.ndarray, "..."]]:
        parts = np.split(x, ends)
        return {name: part.reshape(core.shape) for name, part, core in zip(names, parts, cores, strict=True)}

    def loss(x: Float[np.ndarray, " entries"]) -> tuple[float, Float[np.ndarray, " entries"]]:
        state, tape = program.forward_tape(of_vector(x), space)
        away = np.asarray(state) - target
        bent = metric.times_moment(away) / power
        slopes = program.pullback(tape, 2.0 * bent, space)
        return float(np.vdot(away, bent)), np.concatenate([np.ravel(slopes[name]) for name in names])

    x = np.concatenate([np.ravel(core) for core in (_evened(cores) if steps else cores)])
    if steps:
        x = _minimised(loss, x, steps)
    return of_vector(x), math.sqrt(max(loss(x)[0], 0.0))


def _evened(cores: list[Float[np.ndarray, "..."]]) -> list[Float[np.ndarray, "..."]]:
    """Return cores of equal norms with the same product, as steps of L-BFGS begin along the gradient."""
    norms = [float(np.linalg.norm(core)) for core in cores]
    if 0.0 in norms:
        return cores
    mean = math.exp(math.fsum(map(math.log, norms)) / len(norms))
    return [core * (mean / norm) for core, norm in zip(cores, norms, strict=True)]


def _minimised(loss: Any, x: Float[np.ndarray, " entries"], steps: int) -> Float[np.ndarray, " entries"]:
    from scipy.optimize import OptimizeResult, minimize

    reached: list[float] = []

    def gains(intermediate_result: OptimizeResult) -> None:
        reached.append(float(intermediate_result.fun))
        stalls = len(reached) > _WINDOW and reached[-1] > (1.0 - _LEAST_GAIN) * reached[-1 - _WINDOW]
        if stalls or reached[-1] < _EXACT:
            raise StopIteration

    options = {"maxiter": steps, "maxfun": 2 * steps, "maxcor": _PAIRS, "ftol": 0.0, "gtol": 1e-12}
    return minimize(loss, x, jac=True, method="L-BFGS-B", callback=gains, options=options).x
