"""The gain of an order beside that of the same search on noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import mean, stdev

import numpy as np

from .._typing import Float
from ._solve import Request, gain, solve


@dataclass(frozen=True, kw_only=True)
class Control:
    """The gain of an order, and those of the same search on Gaussian tensors of the same shape.

    A gain is the part of the relative error that the order saves at equal bytes. A search finds something on noise as
    well, so that only the difference says anything about the tensor.

    Parameters
    ----------
    gain : float
        The gain on the tensor.
    gaussian : tuple of float
        The gains on Gaussian tensors, one per seed.

    Examples
    --------
    >>> control = Control(gain=0.05, gaussian=(0.02, 0.01, 0.03))
    >>> round(control.difference, 6), round(control.standard_error, 4)
    (0.03, 0.0058)
    """

    gain: float
    gaussian: tuple[float, ...]

    @property
    def difference(self) -> float:
        """The gain less the mean gain on noise."""
        return self.gain - mean(self.gaussian)

    @property
    def standard_error(self) -> float:
        """The standard error of that mean."""
        return self.spread / math.sqrt(len(self.gaussian))

    @property
    def spread(self) -> float:
        """The standard deviation of the gain of a single search on noise, beside which a difference is large or not."""
        return stdev(self.gaussian)

    def __str__(self) -> str:
        return (
            f"{self.gain:+.2%} of the error, {mean(self.gaussian):+.2%} on noise: {self.difference:+.2%} "
            f"± {self.standard_error:.2%} over {len(self.gaussian)} seeds"
        )


def control(tensor: Float[np.ndarray, "*shape"], request: Request, error: float) -> Control:
    """Repeat a search on noise, in the metric of the same inputs if there is one."""
    gains: list[float] = []
    for k in range(request.controls):
        noise = np.random.default_rng([request.seed, k]).standard_normal(tensor.shape)
        gains.append(gain(noise, request, solve(noise, request).score))
    return Control(gain=gain(tensor, request, error), gaussian=tuple(gains))
