"""Probabilities of quantised weights, the same to the last bit on every machine.

The integers of a quantised weight are those of a density ``0.98 logistic(s) + 0.02 logistic(3 s)``, which on trained
weights costs about 0.01 bit per entry more than the best mixture of normal densities, and 0.05 bit less than a Laplace
density. Scales are ``s = 2^(i / 4)``. Exponentials are those of the decimal module, which rounds correctly, and
everything else is a product or a sum in a fixed order.
"""

from __future__ import annotations

import decimal
from functools import lru_cache

import numpy as np

from .._typing import Float

PER_OCTAVE = 4
"""Scales per factor of two."""
FIRST = -18
"""Index of the smallest scale, at which one symbol of 40,000 is not zero."""
LAST = 12
"""Index of the largest scale; at it, the largest symbol is 16 times the scale."""
MOST = 127
"""The largest magnitude that has a symbol."""
BEYOND = 2 * MOST + 1
"""The symbol of everything beyond."""

_WIDE_PART = 0.02  # of symbols in the wide component
_WIDTH = 3  # of the wide component
_LEAST = 2.0**-20  # probability of a symbol
_LARGEST = 600  # exponents beyond which the tail is taken as zero


@lru_cache(maxsize=LAST - FIRST + 1)
def probabilities(i: int) -> Float[np.ndarray, " symbols"]:
    """Return the probabilities of -127 .. 127 and of everything beyond at the scale ``2^(i / 4)``, as float32.

    Examples
    --------
    >>> p = probabilities(0)
    >>> p.shape, round(float(p.sum()), 6), bool(p[127] > p[128] > p[129])
    ((256,), 1.0, True)
    """
    scale = scale_of(i)
    side = (1.0 - _WIDE_PART) * _side(scale) + _WIDE_PART * _side(scale * _WIDTH)
    whole = np.maximum(np.concatenate((side[:0:-1], [2.0 * side[0]], side[1:], [0.0])), _LEAST)
    return (whole / float(np.sum(whole))).astype(np.float32)


@lru_cache(maxsize=1)
def lengths() -> Float[np.ndarray, "scales symbols"]:
    """Return the ideal lengths of all symbols at all scales, in bits."""
    return np.stack([-np.log2(probabilities(i).astype(np.float64)) for i in range(FIRST, LAST + 1)]).astype(np.float32)


def scale_of(i: int) -> decimal.Decimal:
    """Return ``2^(i / 4)``."""
    with decimal.localcontext(decimal.Context(prec=40)):
        return (decimal.Decimal(2).ln() * i / PER_OCTAVE).exp()


def _side(scale: decimal.Decimal) -> Float[np.ndarray, " symbols"]:
    """Return half the probability of zero, and the probabilities of 1 .. 127; the last one has the tail."""
    with decimal.localcontext(decimal.Context(prec=40)):
        edges = [(decimal.Decimal(2 * k + 1) / 2) / scale for k in range(MOST)]
        beyond = [float(1 / (1 + x.exp())) if x < _LARGEST else 0.0 for x in edges]
    tail = np.array([0.5, *beyond])
    return np.concatenate((tail[:-1] - tail[1:], tail[-1:]))
