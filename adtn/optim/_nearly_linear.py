"""Parameters of a nonlinear network from those of the same network without activations.

An activation with σ(0) = 0 and the slope a = σ'(0) ≠ 0 is nearly linear around zero: σ(ε Z) = a ε Z + O(ε² Z²). A core
of the segment before it is multiplied by ε, one of the segment behind it divided by a ε, and the weight changes by a
relative amount that falls with ε. The largest ε for which it is small is taken, as a smaller one would leave less to
train.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from .._typing import Float
from ..errors import TopologyError
from ..generator import Generator
from ..topology import get_activation

_STEP = 1e-3  # where slopes are measured
_DEVIATION = 1e-2  # relative change of the weight that is allowed
_SMALLEST = 2.0**-40


def slope_of(activation: str) -> float | None:
    """Return the derivative at zero of an activation that is nearly linear there, and ``None`` for others.

    Examples
    --------
    >>> slope_of("silu"), slope_of("relu"), slope_of("softplus")
    (0.5, None, None)
    """
    low, zero, high = (float(x) for x in get_activation(activation).value(np.array([-_STEP, 0.0, _STEP])))
    slope = (high - low) / (2.0 * _STEP)
    bend = max(abs(high - slope * _STEP), abs(low + slope * _STEP))
    return round(slope, 5) if zero == 0.0 and bend < 0.01 * abs(slope) * _STEP else None


def through_activations(
    generator: Generator, params: Mapping[str, Float[np.ndarray, "..."]], linear: Float[np.ndarray, "*shape"]
) -> Generator:
    """Make a nonlinear generator whose weight is nearly that of the linear network with these parameters.

    Parameters
    ----------
    generator : Generator
        A generator whose activations are nearly linear around zero.
    params : mapping of str to array
        Parameters of the same network without activations.
    linear : array
        The weight of that network.

    Raises
    ------
    TopologyError
        If the weights differ by more than 1 % for every size of the states.
    """
    whole = np.linalg.norm(linear)
    epsilon = 1.0
    while epsilon >= _SMALLEST:
        found = generator.with_params(_scaled(generator, params, epsilon))
        away = np.linalg.norm(np.asarray(found.weight(), np.float64) - linear)
        if away <= _DEVIATION * whole:
            return found
        epsilon /= 2.0
    raise TopologyError(
        f"Got {generator.topology}, whose weight stays far from the linear one however small its states are; pass a "
        "generator in float64, or another activation."
    )


def _scaled(generator: Generator, params: Mapping[str, Any], epsilon: float) -> dict[str, np.ndarray]:
    """Return parameters with which the states before activations are ``epsilon`` times those of the linear network."""
    scaled = {name: np.asarray(x, np.float64) for name, x in params.items()}
    for before, behind in pairwise(generator.segments):
        slope = slope_of(before.activation)
        if before.activation == "identity" or slope is None:
            continue
        first, second = (next(c.param for c in s.cores if c.trainable) for s in (before, behind))
        scaled[first] = scaled[first] * epsilon
        scaled[second] = scaled[second] / (slope * epsilon)
    return scaled
