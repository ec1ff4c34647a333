"""The learning rate of a training for which none was given."""

from __future__ import annotations

from collections.abc import Callable

TRIED = (1e-2, 3e-3)
"""Rates of Adam that are tried, from large to small; measured in ``bench/compress/settings.py``."""
SMALLEST_RATE = 1e-3
"""What is taken if none of them is good, without a trial."""
SHORTEST = 50
"""Steps of a training below which trials of a tenth of them say nothing."""


def largest_good_rate(loss_after: Callable[[float], float], before: float) -> float:
    """Return the largest rate that leaves a model better after a few steps.

    The best rate of a few steps is smaller than that of many, so that trials are not compared with each other.

    Parameters
    ----------
    loss_after : callable
        The loss on other data after a few steps with a rate; infinite if it is not finite.
    before : float
        The loss without any.

    Examples
    --------
    >>> largest_good_rate({1e-2: 1.5, 3e-3: 0.98}.get, before=1.04)
    0.003
    """
    return next((rate for rate in TRIED if loss_after(rate) <= before), SMALLEST_RATE)
