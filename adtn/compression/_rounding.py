"""Rounding of closed forms in the metric of the data."""

from __future__ import annotations

import math

import numpy as np

from .._typing import Float
from ..generator import Generator
from ..optim import has_decomposition, is_linear, round_cores
from ..precision import Precision
from ..topology import Dense

PASSES = 12
"""The largest number of passes over the cores."""


def rounded_in_metric(
    generator: Generator,
    precision: Precision,
    weight: Float[np.ndarray, "*shape"],
    moment: Float[np.ndarray, "columns columns"] | None,
    passes: int = PASSES,
) -> Generator:
    """Round a generator so that the outputs of its layer change little.

    Parameters
    ----------
    generator : Generator
    precision : Precision
    weight : numpy.ndarray
        The dense weight that it approximates.
    moment : numpy.ndarray or None
        The second moment of the inputs of its layer.
    passes : int
        The largest number of passes over the cores; a few are enough to compare choices.
    """
    if isinstance(generator.topology, Dense):
        core = generator.params["weight"]  # without axes of length 1
        if (
            moment is None
            or core.ndim < 2
            or core.shape[0] != generator.shape[0]
            or core.size != math.prod(generator.shape)
        ):
            return generator.rounded(precision)
        own = generator.weighting.moment_to_generated_order(np.asarray(moment, np.float64))
        return generator.rounded(precision, {"weight": np.asarray(own)})
    if not (has_decomposition(generator) and is_linear(generator)):
        return generator.rounded(precision)
    return round_cores(generator, precision, weight, moment, passes=passes)
