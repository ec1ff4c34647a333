"""Second moments of the inputs of a weight, checked and padded."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from autoray import do

from .._arrays import finite_array
from .._typing import Array, Float, Shape
from ..errors import TopologyError
from ..layout import Layout, pad


def checked_moment(moment: Any, shape: Shape) -> Float[np.ndarray, "n_in n_in"]:
    """Convert a second moment of the inputs of a weight of that shape to float64.

    Raises
    ------
    TopologyError
        If its shape does not fit, or it is not symmetric, or zero.
    """
    n_in = math.prod(shape[1:])
    found = np.asarray(finite_array("moment", moment, TopologyError), dtype=np.float64)
    if found.shape != (n_in, n_in):
        raise TopologyError(
            f"Got a moment of shape {found.shape} for a weight of {shape}; expected {(n_in, n_in)}, the mean of x xᵀ "
            "over the inputs."
        )
    largest = float(np.abs(found).max())
    if not np.trace(found) > 0.0:
        raise TopologyError("Got a moment of inputs that are all zero; check that they were collected.")
    if not np.allclose(found, found.T, rtol=1e-4, atol=1e-6 * largest):
        raise TopologyError("Got a moment that is not symmetric; expected x.T @ x / n of the layer's inputs.")
    return (found + found.T) * (0.5 / largest)


def padded_moment(layout: Layout, moment: Float[Array, "n_in n_in"]) -> Float[Array, "padded_in padded_in"]:
    """Append zeros to a moment in generated order for the padding of the input axes."""
    inner, padded = layout.shape[1:], layout.padded_shape[1:]
    if inner == padded:
        return moment
    square = do("reshape", moment, inner * 2)
    for axis, (n, p) in enumerate(zip(inner * 2, padded * 2, strict=True)):
        square = pad(square, axis, p - n)
    return do("reshape", square, (math.prod(padded), math.prod(padded)))
