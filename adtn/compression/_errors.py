"""Estimates of the errors of rounding, for the choice of formats; what is chosen is then computed exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .._typing import Float
from ..precision import Precision, order_of, round_to

_ROWS = 48
"""Rows that are rounded for an estimate; rows do not depend on each other."""
_CODED_ROWS = 192
"""Rows that have entropy codes for an estimate; those of few rows need more bits for the steps of columns."""
_RATES = 1.75, 3.5
"""Rates for which errors are estimated; between them and beyond, their logarithms are linear."""


def rounding_errors(
    weight: Float[np.ndarray, "*shape"],
    moment: Float[np.ndarray, "n_in n_in"] | None,
    precisions: Sequence[Precision],
) -> list[float]:
    """Estimate the squared relative errors of the outputs of a layer if its weight is rounded.

    Parameters
    ----------
    weight : array
    moment : array or None
        The second moment of the inputs; without it, the errors are those of the weight.
    precisions : sequence of Precision

    Examples
    --------
    >>> weight = np.random.default_rng(0).standard_normal((64, 32))
    >>> four, eight = rounding_errors(weight, None, [Precision("int4"), Precision("int8")])
    >>> bool(100 * eight < four < 0.02)
    True
    """
    every = np.asarray(weight).reshape(len(weight), -1)
    drawn = np.random.default_rng(0).permutation(len(every))
    metric = None if moment is None else np.asarray(moment, np.float64)

    def power(x: np.ndarray) -> float:
        return float(np.vdot(x if metric is None else x @ metric, x))

    def error(precision: Precision) -> float:
        # columns of one array are one row when it is rounded, so a single row is as it is
        n = _CODED_ROWS if precision.is_coded else _ROWS
        rows = every[drawn[:n]] if len(every) > n else every
        whole, order = power(rows.astype(np.float64)), None
        if precision.ordered:  # which few rows would choose for themselves
            precision = replace(precision, along="rows")
            order = order_of(every, precision, metric)
        found = round_to(rows, precision, metric, order=order).decode()
        return max(power(found - rows), 0.0) / whole if whole > 0.0 else 0.0

    coded = [error(Precision("coded", rate=rate)) for rate in _RATES] if any(p.is_coded for p in precisions) else []
    return [_between(coded, p.bits) if p.is_coded else error(p) for p in precisions]


def _between(errors: Sequence[float], rate: float) -> float:
    """Interpolate the squared errors of entropy codes."""
    if min(errors) <= 0.0:
        return 0.0
    (low, high), (first, last) = _RATES, (math.log(e) for e in errors)
    return min(math.exp(first + (last - first) * (rate - low) / (high - low)), 1.0)
