"""The gauge of cores before they are rounded."""

from __future__ import annotations

from typing import Literal

import numpy as np

from ..generator import Generator
from ..optim import balanced

Gauge = Literal["none", "cores", "bonds"]
_SWEEPS = 3


def fixed(generator: Generator, gauge: Gauge) -> Generator:
    """Rescale cores so that they lose less when they are rounded, without changing the weight.

    Parameters
    ----------
    generator : Generator
    gauge : {"none", "cores", "bonds"}
        - ``"none"``: as the decomposition left them
        - ``"cores"``: equal norms of all cores of a segment, see :func:`adtn.optim.balanced`
        - ``"bonds"``: for every value of a bond between two cores, equal norms of the two slices, then ``"cores"``
    """
    if gauge == "none" or generator.isometric_rows:  # isometries leave no choice
        return generator
    if gauge == "bonds":
        generator = _even_bonds(generator)
    return balanced(generator)


def _even_bonds(generator: Generator) -> Generator:
    params = {name: np.asarray(x, np.float64) for name, x in generator.params.items()}
    for segment in generator.segments:
        cores = [core for core in segment.cores if core.trainable]
        ends: dict[str, list[tuple[str, int]]] = {}
        for core in cores:
            for axis, ind in enumerate(core.inds):
                ends.setdefault(ind, []).append((core.param, axis))
        inner = [pair for ind, pair in ends.items() if len(pair) == 2 and ind not in segment.outputs]
        for _ in range(_SWEEPS):  # scaling one bond changes the norms at the next one
            for (a, i), (b, j) in inner:
                if a == b:
                    continue
                of_a, of_b = _norms(params[a], i), _norms(params[b], j)
                both = (of_a > 0.0) & (of_b > 0.0)
                factor = np.sqrt(np.where(both, of_b, 1.0) / np.where(both, of_a, 1.0))
                params[a] = params[a] * _along(factor, params[a].ndim, i)
                params[b] = params[b] / _along(factor, params[b].ndim, j)
    return generator.with_params(params)


def _norms(x: np.ndarray, axis: int) -> np.ndarray:
    return np.linalg.norm(np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1), axis=1)


def _along(x: np.ndarray, ndim: int, axis: int) -> np.ndarray:
    return x.reshape([-1 if k == axis else 1 for k in range(ndim)])
