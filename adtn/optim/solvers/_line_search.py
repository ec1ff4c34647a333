r"""The line search of Moré and Thuente, for a slope of -1 at the start.

With :math:`\phi(t)` the loss along a direction, relative to the start and scaled so that :math:`\phi'(0) = -1`, it
looks for the strong Wolfe conditions

.. math:: \phi(t) \le -\mu t, \qquad |\phi'(t)| \le \eta

It maintains an interval between the best point so far and, as soon as there is one, a point beyond a minimum. It is
written here because SciPy offers this search only as a part of ``minimize``, whose set-up costs more than the loss of a
small generator.

References
----------
J. J. Moré, D. J. Thuente (1994), "Line search algorithms with guaranteed sufficient decrease".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

_DECREASE, _FLATNESS = 1e-3, 0.9  # μ and η, as in L-BFGS-B
_TRIALS = 20  # as in L-BFGS-B
_RESOLUTION = 0.1  # an interval that is narrower than this share of its far end is not divided further
_NEAREST, _FARTHEST = 1.1, 4.0  # extrapolation, in units of the last step
_SHRINKAGE = 0.66  # the factor by which an interval must shrink in two trials
_LONGEST = 1e10


class Trial(NamedTuple):
    """A trial distance with its value and slope."""

    at: float
    value: float
    slope: float

    def tilted(self, slope: float) -> Trial:
        """Subtract the line through the origin with a slope."""
        return Trial(self.at, self.value - slope * self.at, self.slope - slope)


def search(phi: Callable[[float], tuple[float, float]]) -> bool:
    """Try distances, starting with 1, until one fulfils the strong Wolfe conditions.

    Parameters
    ----------
    phi : callable
        ``distance -> (value, slope)``; value and slope are 0 and -1 at the start.

    Returns
    -------
    bool
        False if 20 trials failed. The last trial is the result; if the interval cannot be divided further, it is the
        best one, and may violate the condition on the slope.
    """
    best = other = Trial(0.0, 0.0, -1.0)
    bracketed, decreases = False, False  # decreases: a trial fulfilled the first condition, with a positive slope
    width, width_before = _LONGEST, 2.0 * _LONGEST
    low, high = 0.0, 1.0 + _FARTHEST
    distance = 1.0
    for _ in range(_TRIALS):
        trial = Trial(distance, *phi(distance))
        enough = trial.value <= -_DECREASE * distance
        decreases = decreases or (enough and trial.slope >= 0.0)
        stuck = bracketed and (not low < distance < high or high - low <= _RESOLUTION * high)
        at_end = distance == _LONGEST and enough and trial.slope <= -_DECREASE
        if stuck or at_end or (enough and abs(trial.slope) <= _FLATNESS):
            return True
        # until then, minimise the loss above the line of the first condition
        tilt = -_DECREASE if not decreases and not enough and trial.value <= best.value else 0.0
        ends = (best.tilted(tilt), other.tilted(tilt), trial.tilted(tilt))
        distance = _next_distance(*ends, bracketed, low, high)
        best, other, bracketed = _interval(*ends, bracketed)
        best, other = best.tilted(-tilt), other.tilted(-tilt)
        if bracketed:
            if abs(other.at - best.at) >= _SHRINKAGE * width_before:
                distance = best.at + 0.5 * (other.at - best.at)
            width_before, width = width, abs(other.at - best.at)
            low, high = min(best.at, other.at), max(best.at, other.at)
        else:
            low = distance + _NEAREST * (distance - best.at)
            high = distance + _FARTHEST * (distance - best.at)
        distance = min(max(distance, 0.0), _LONGEST)
        if bracketed and (not low < distance < high or high - low <= _RESOLUTION * high):
            distance = best.at
    return False


def _next_distance(best: Trial, other: Trial, trial: Trial, bracketed: bool, low: float, high: float) -> float:
    """Choose the next distance by cubic and quadratic interpolation, in the four cases of the paper."""
    if trial.value > best.value:  # there is a minimum between them
        cubic, quadratic = _cubic(best, trial), _quadratic(best, trial)
        nearer = abs(cubic - best.at) < abs(quadratic - best.at)
        return cubic if nearer else cubic + 0.5 * (quadratic - cubic)
    if trial.slope * math.copysign(1.0, best.slope) < 0.0:  # the minimum was passed
        cubic, secant = _cubic(trial, best), _secant(best, trial)
        return cubic if abs(cubic - trial.at) > abs(secant - trial.at) else secant
    if abs(trial.slope) < abs(best.slope):  # the minimum is nearer
        cubic, secant = _cubic_beyond(trial, best, low, high), _secant(best, trial)
        if not bracketed:
            far = cubic if abs(cubic - trial.at) > abs(secant - trial.at) else secant
            return min(max(far, low), high)
        near = cubic if abs(cubic - trial.at) < abs(secant - trial.at) else secant
        limit = trial.at + _SHRINKAGE * (other.at - trial.at)
        return min(limit, near) if trial.at > best.at else max(limit, near)
    if bracketed:
        return _cubic(trial, other)
    return high if trial.at > best.at else low


def _interval(best: Trial, other: Trial, trial: Trial, bracketed: bool) -> tuple[Trial, Trial, bool]:
    """Replace one end of the interval by a trial, so that it still contains a minimum."""
    if trial.value > best.value:
        return best, trial, True
    if trial.slope * math.copysign(1.0, best.slope) < 0.0:
        return trial, best, True
    return trial, other, bracketed


def _cubic_step(a: Trial, b: Trial) -> tuple[float, bool]:
    """Return the step from a to the minimum of their cubic, in units of their distance, and whether it exists.

    It does not if the cubic has no minimum, or only rounding decides where it is.
    """
    theta = 3.0 * (a.value - b.value) / (b.at - a.at) + a.slope + b.slope
    scale = max(abs(theta), abs(a.slope), abs(b.slope))
    radicand = (theta / scale) ** 2 - (a.slope / scale) * (b.slope / scale)
    gamma = math.copysign(scale * math.sqrt(max(radicand, 0.0)), b.at - a.at)
    return (gamma - a.slope + theta) / (2.0 * gamma - a.slope + b.slope), gamma != 0.0


def _cubic(a: Trial, b: Trial) -> float:
    """Return the minimum of the cubic through two points with their slopes."""
    return a.at + _cubic_step(a, b)[0] * (b.at - a.at)


def _cubic_beyond(trial: Trial, best: Trial, low: float, high: float) -> float:
    """Return the minimum of the cubic beyond the trial, or the farthest distance if there is none."""
    step, exists = _cubic_step(trial, best)
    if exists and step < 0.0:
        return trial.at + step * (best.at - trial.at)
    return high if trial.at > best.at else low


def _quadratic(a: Trial, b: Trial) -> float:
    """Return the minimum of the parabola through two points with the slope at the first."""
    chord = (a.value - b.value) / (b.at - a.at)
    return a.at + a.slope / (chord + a.slope) / 2.0 * (b.at - a.at)


def _secant(a: Trial, b: Trial) -> float:
    """Return where the line through two slopes is zero."""
    return b.at + b.slope / (b.slope - a.slope) * (a.at - b.at)
