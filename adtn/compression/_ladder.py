"""The choices of one weight with their expected errors: a curve per family, corrected by what was computed.

Errors of a family are computed at a few sizes, and interpolated between them: the logarithm of the squared error over
the logarithm of the size. A low-rank pair needs one singular value decomposition for all sizes, and rounding adds about
the same squared error to all sizes of a family.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..optim import low_rank_errors as low_rank_errors
from ..precision import Precision
from ._choice import Choice, Family, Unit

RATIO = 1.02
"""The least ratio of neighbouring sizes on a ladder."""
_PER_BIT = 4.5  # growth of the squared error of rounding per bit less, measured from 4 to 2 bits
_CODED = 0.3  # bits per entry that integers of a fixed length need more than entropy codes, without their scales
_FLOOR = 1e-12  # squared errors below it are equal


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The squared error of a family as a function of its number of parameters.

    Parameters
    ----------
    family : Family
    errors : mapping of int to float
        Squared relative errors by number of parameters, where they are known.
    exact : Curve, optional
        The curve of the same family without rounding.
    """

    family: Family
    errors: Mapping[int, float]
    exact: Curve | None = None

    def at(self, params: int) -> float:
        """Return the known or interpolated squared error."""
        if params in self.errors:
            return self.errors[params]
        if self.exact is not None:
            nearest = min(self.errors, key=lambda n: abs(math.log(n / params)))
            added = max(self.errors[nearest] - self.exact.at(nearest), 0.0)
            return min(self.exact.at(params) + added, 1.0)
        sizes = sorted(self.errors)
        known = [math.log(max(self.errors[n], _FLOOR)) for n in sizes]
        logs = [math.log(n) for n in sizes]
        x = math.log(params)
        if len(sizes) == 1:
            return min(self.errors[sizes[0]] * sizes[0] / params, 1.0)
        k = min(max(int(np.searchsorted(logs, x)), 1), len(sizes) - 1)
        slope = min((known[k] - known[k - 1]) / (logs[k] - logs[k - 1]), 0.0)  # a larger member is not worse
        return min(math.exp(known[k - 1] + slope * (x - logs[k - 1])), 1.0)

    def corrected(self, params: int, error2: float) -> Curve:
        """Return the curve with one more known error."""
        return replace(self, errors={**self.errors, params: error2})


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """The choices of one weight.

    Parameters
    ----------
    name : str
        Of the weight.
    layer : str
        The name of its layer.
    entries : int
    fixed : mapping of Choice to float
        Squared errors of choices without a size, such as the dense weight.
    curves : sequence of Curve
    measured : mapping of float to float
        What the model's outputs lose by squared error of this weight's layer, where that was measured; otherwise it is
        interpolated, and proportional to the squared error beyond.
    """

    name: str
    layer: str
    entries: int
    fixed: Mapping[Choice, float] = field(default_factory=dict)
    curves: Sequence[Curve] = ()
    measured: Mapping[float, float] = field(default_factory=dict)

    @property
    def sensitivity(self) -> float:
        """The loss of the model's outputs per squared error, at the smallest error for which it was measured."""
        return min(self.measured.items())[1] / min(self.measured) if self.measured else 1.0

    def loss(self, error2: float) -> float:
        """Return what the model's outputs are expected to lose."""
        if error2 <= 0.0 or not self.measured:
            return error2
        known = sorted(self.measured)
        k = bisect_left(known, error2)
        if k == 0 or k == len(known):
            at = known[min(k, len(known) - 1)]
            return self.measured[at] * error2 / at
        low, high = known[k - 1], known[k]
        share = math.log(error2 / low) / math.log(high / low)
        return math.exp((1.0 - share) * math.log(self.measured[low]) + share * math.log(self.measured[high]))

    def options(self, unit: Unit, largest_error: float = math.inf) -> list[tuple[Choice, float]]:
        """Return choices with their expected squared errors, without those that cost more than a better one."""
        found = list(self.fixed.items())
        for curve in self.curves:
            for choice in thinned(curve.family.members(self.entries)):
                found.append((choice, curve.at(choice.params)))
        found = sorted(
            ((c, e) for c, e in found if e <= largest_error**2), key=lambda option: (option[0].cost(unit), option[1])
        )
        best: list[tuple[Choice, float]] = []
        for choice, error2 in found:
            if not best or error2 < best[-1][1]:
                best.append((choice, error2))
        return best

    def expected(self, choice: Choice) -> float:
        """Return the squared error of a choice."""
        if choice in self.fixed:
            return self.fixed[choice]
        return next(curve.at(choice.params) for curve in self.curves if curve.family == choice.family)

    def corrected(self, choice: Choice, error2: float) -> Ladder:
        """Return the ladder with the computed squared error of a choice."""
        curves = [c.corrected(choice.params, error2) if c.family == choice.family else c for c in self.curves]
        return replace(self, curves=curves)


def with_exact(ladder: Ladder) -> Ladder:
    """Return the ladder with curves of rounded families that refer to those of the same families without rounding.

    Where no error of a rounded family is known, those of another precision are taken, times ``4.5`` per bit; curves of
    which still nothing is known are left out.
    """
    known = [curve for curve in ladder.curves if curve.errors]
    exact = {replace(c.family, precision=None): c for c in known if c.family.precision is None}
    rounded = {replace(c.family, precision=None): c for c in known if c.family.precision is not None}

    def referring(curve: Curve) -> Curve:
        kind = replace(curve.family, precision=None)
        own, other, precision = exact.get(kind), rounded.get(kind), curve.family.precision
        if precision is None or own is None:
            return curve
        if not curve.errors and other is not None and other.family.precision is not None:
            factor = _PER_BIT ** (_exactness(other.family.precision) - _exactness(precision))
            added = {n: factor * max(e - own.at(n), 0.0) for n, e in other.errors.items()}
            return replace(curve, exact=own, errors={n: min(own.at(n) + e, 1.0) for n, e in added.items()})
        return replace(curve, exact=own)

    curves = [referring(curve) for curve in ladder.curves]
    return replace(ladder, curves=[curve for curve in curves if curve.errors])


def with_points(ladders: Sequence[Ladder], found: Mapping[str, tuple[float, float]]) -> list[Ladder]:
    """Add measured points to ladders; layers without any have a typical sensitivity."""
    finite = [loss for _, loss in found.values() if math.isfinite(loss)]
    most = max(finite, default=1.0)
    floor = 1e-3 * max((loss / error2 for error2, loss in found.values() if math.isfinite(loss)), default=1.0)
    points = {  # even if the outputs do not change, a smaller error is better
        layer: (error2, min(max(loss, floor * error2, 1e-12), 10.0 * most)) for layer, (error2, loss) in found.items()
    }
    typical = float(np.median([loss / error2 for error2, loss in points.values()])) if points else 1.0
    added: list[Ladder] = []
    for ladder in ladders:
        if ladder.layer in points:
            error2, loss = points[ladder.layer]
            added.append(replace(ladder, measured={**ladder.measured, error2: loss}))
        else:
            added.append(ladder if ladder.measured else replace(ladder, measured={1.0: typical}))
    return added


def _exactness(precision: Precision) -> float:
    """Return the bits of integers of a fixed length with about the same error."""
    return precision.bits + (_CODED if precision.is_coded else 0.0)


def thinned(choices: Sequence[Choice]) -> list[Choice]:
    """Return choices of which each is at least 1.02 times as large as the one before."""
    found: list[Choice] = []
    for choice in choices:
        if not found or choice.params >= RATIO * found[-1].params:
            found.append(choice)
    return found
