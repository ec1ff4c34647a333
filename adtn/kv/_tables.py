"""Probabilities of quantised coefficients, the same to the last bit on every machine.

A coefficient of mean magnitude b that is divided by the step Δ has the density 0.97 Laplace(r) + 0.03 Laplace(4 r) with
r = b / Δ. Values of r lie on a grid, ``r = 2^(i / 8)``, and so do steps, so the table of a coefficient follows from
integers. Exponentials are those of the decimal module, which rounds correctly, and everything else is a product or a
sum in a fixed order.
"""

from __future__ import annotations

import decimal
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .._typing import Float

PER_OCTAVE = 8
"""Grid points per factor of two."""
ROUNDING = 0.42
"""What is added before magnitudes are rounded down; less than one half, as small coefficients are cheap as zeros."""
FIRST = -3 * PER_OCTAVE
"""Index of the smallest ratio that is coded; coefficients below it are taken as zero."""
LAST = 12 * PER_OCTAVE
"""Index of the largest ratio; larger ones use its table."""

_WIDE_PART = 0.03  # of coefficients in the wide component
_WIDTH = 4.0  # of the wide component
_TAIL = 3000.0  # inverse probability of the wide component beyond the last symbol
_MOST = 1 << 13  # symbols on one side
_LEAST = 2.0**-20  # probability of the symbol for everything beyond


@dataclass(frozen=True, kw_only=True)
class Table:
    """The symbols of coefficients of one ratio of magnitude and step.

    Parameters
    ----------
    most : int
        The largest magnitude that has a symbol.
    probabilities : array, (2 most + 2,), float32
        Of -most .. most, and of everything beyond.
    centre : float
        Difference of a reconstructed magnitude, in steps, and its symbol: the mean of the density in the interval.
    """

    most: int
    probabilities: Float[np.ndarray, " n"]
    centre: float

    @property
    def bits(self) -> Float[np.ndarray, " n"]:
        """The ideal lengths of the codes of all symbols."""
        return -np.log2(self.probabilities.astype(np.float64) / float(np.sum(self.probabilities, dtype=np.float64)))


def grid_index(x: Float[np.ndarray, "*shape"]) -> np.ndarray:
    """Return the nearest grid points of positive values, as int16; those of zeros are far below all others."""
    with np.errstate(divide="ignore"):
        logs = np.log2(np.asarray(x, np.float64))
    return np.rint(np.clip(PER_OCTAVE * logs, -(2.0**14), 2.0**14)).astype(np.int16)


def grid_value(i: int) -> float:
    """Return the value of a grid point, ``2^(i / 8)``."""
    return float(_power(i))


def _power(i: int) -> decimal.Decimal:
    with decimal.localcontext(decimal.Context(prec=40)):
        return (decimal.Decimal(2).ln() * i / PER_OCTAVE).exp()


def _decay(x: decimal.Decimal) -> float:
    with decimal.localcontext(decimal.Context(prec=40)):
        return float((-x).exp())


@lru_cache(maxsize=LAST - FIRST + 1)
def table(i: int) -> Table:
    """Return the table of the ratio ``2^(i / 8)``, for ``FIRST <= i <= LAST``."""
    r = _power(i)
    most = min(math.ceil(1.0 - ROUNDING + _WIDTH * float(r) * math.log(_TAIL)), _MOST)
    narrow = _side(r, most)
    wide = _side(r * int(_WIDTH), most)
    side = (1.0 - _WIDE_PART) * narrow + _WIDE_PART * wide
    zero, ones, beyond = side[0], side[1:-1], max(side[-1], _LEAST)
    probabilities = np.concatenate((0.5 * ones[::-1], [zero], 0.5 * ones, [beyond]))
    inverse = float(1 / r)
    # the mean of an exponential density in an interval of length one, from its beginning
    mean = float(r) - 1.0 / math.expm1(inverse) if inverse < 30.0 else float(r)
    return Table(most=most, probabilities=probabilities.astype(np.float32), centre=round(mean - ROUNDING, 6))


def _side(r: decimal.Decimal, most: int) -> Float[np.ndarray, " n"]:
    """Return the probabilities of magnitudes 0 .. most, and beyond, of a Laplace density."""
    first, decay = _decay(decimal.Decimal(str(1.0 - ROUNDING)) / r), _decay(1 / r)
    beyond = first * np.cumprod(np.concatenate(([1.0], np.full(most, decay))))  # P(magnitude > k)
    return np.concatenate(([1.0 - first], beyond[:-1] - beyond[1:], beyond[-1:]))
