"""Estimates of the errors of rounding, for the choice of formats; what is chosen is then computed exactly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .._typing import Float
from ..precision import Precision, round_to

_ROWS = 48
"""Rows that are rounded for an estimate; rows do not depend on each other."""


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
    rows = np.asarray(weight).reshape(len(weight), -1)
    # columns of one array are one row when it is rounded, so a single row is as it is
    if len(rows) > _ROWS:
        rows = rows[np.random.default_rng(0).permutation(len(rows))[:_ROWS]]
    metric = None if moment is None else np.asarray(moment, np.float64)

    def power(x: np.ndarray) -> float:
        return float(np.vdot(x if metric is None else x @ metric, x))

    whole = power(rows.astype(np.float64))
    if whole <= 0.0:
        return [0.0 for _ in precisions]
    return [max(power(round_to(rows, p, metric).decode() - rows), 0.0) / whole for p in precisions]
