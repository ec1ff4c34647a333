"""Low-rank pairs of stacked weights whose rows count differently."""

from __future__ import annotations

import numpy as np

from .._typing import Float
from ..generator import Generator
from ..optim import decompose
from ..precision import Precision
from ._rounding import rounded_in_metric


def weighted_pair(
    pair: Generator,
    weight: Float[np.ndarray, "rows columns"],
    moment: Float[np.ndarray, "columns columns"] | None,
    scale: Float[np.ndarray, " rows"],
    precision: Precision | None,
) -> Generator:
    """Return the pair for which the errors of all rows, times their scales, are smallest in the metric of the inputs.

    Rounding in the metric solves for both factors again, and knows no scales. So a pair that is rounded is the better
    of that and of the nearest values to the exact one.

    Parameters
    ----------
    pair : Generator
        A low-rank pair over whole axes, whose parameters are ignored.
    weight : numpy.ndarray
    moment : numpy.ndarray or None
    scale : numpy.ndarray
    precision : Precision or None
        The precision to which it is rounded.
    """
    found = decompose(pair, weight * scale[:, None], moment=moment)
    left = np.asarray(found.params["left"])
    left = left / scale.reshape(-1, *(1,) * (left.ndim - 1))
    exact = found.with_params({**found.params, "left": left}).balanced()
    if precision is None:
        return exact
    options = [exact.rounded(precision), rounded_in_metric(exact, precision, weight, moment)]
    return min(options, key=lambda one: _error2(one, weight, moment, scale))


def _error2(
    pair: Generator,
    weight: Float[np.ndarray, "rows columns"],
    moment: Float[np.ndarray, "columns columns"] | None,
    scale: Float[np.ndarray, " rows"],
) -> float:
    away = (np.asarray(pair.weight(), np.float64) - weight) * scale[:, None]
    return float(np.vdot(away if moment is None else away @ moment, away))
