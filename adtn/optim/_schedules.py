"""Learning-rate schedules as closed forms of the step, so that every backend takes the same steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Literal

from .._checks import Count, Positive, checked, number
from ..errors import FitError

ScheduleName = Literal["constant", "cosine", "onecycle"]
Schedule = Callable[[int], float]
ScheduleArgument = Annotated[ScheduleName | Schedule, "'constant', 'cosine', 'onecycle' or a function of the step"]

_WARM = 0.3
_START = 1.0 / 25.0
_END = 1e-4


def _cosine(a: float, b: float, t: float) -> float:
    """Interpolate from ``a`` at ``t=0`` to ``b`` at ``t=1`` along half a cosine."""
    return b + (a - b) * 0.5 * (1.0 + math.cos(math.pi * t))


@checked(FitError)
def make_schedule(schedule: ScheduleArgument, lr: Positive, steps: Count) -> Schedule:
    """Make a function that returns the learning rate of each step.

    Parameters
    ----------
    schedule : {"constant", "cosine", "onecycle"} or callable
        - ``"constant"``: ``lr``
        - ``"cosine"``: from ``lr`` to 0 along half a cosine
        - ``"onecycle"``: up from ``lr / 25`` over the first 30 % of the steps, then down to ``lr / 10000``
        - a function of the step (from 0) that returns the learning rate
    lr : float
        The largest learning rate.
    steps : int
        The number of steps.

    Returns
    -------
    callable

    Raises
    ------
    FitError
        If the name is unknown.

    References
    ----------
    I. Loshchilov, F. Hutter (2016), arXiv:1608.03983; L. Smith, N. Topin (2017), arXiv:1708.07120.

    Examples
    --------
    >>> rate = make_schedule("cosine", 0.1, 100)
    >>> round(rate(0), 3), round(rate(50), 3), round(rate(100), 3)
    (0.1, 0.05, 0.0)
    """
    if callable(schedule):
        return lambda step: number("schedule(step)", schedule(step), FitError)
    if schedule == "constant":
        return lambda step: lr
    if schedule == "cosine":
        return lambda step: _cosine(lr, 0.0, min(step / max(steps, 1), 1.0))
    top = max(_WARM * steps, 1.0)

    def onecycle(step: int) -> float:
        if step < top:
            return _cosine(lr * _START, lr, step / top)
        return _cosine(lr, lr * _END, min((step - top) / max(steps - top, 1.0), 1.0))

    return onecycle
