"""Factorise one axis into legs: mixed radix near a target size, with little padding."""

from __future__ import annotations

import math
from functools import lru_cache

from .._typing import Shape

# One log-unit of padding costs as much as this many log-units of mean unevenness of the legs. Padding costs
# every entry that is generated and discarded; unevenness only changes core sizes slightly.
_PADDING_WEIGHT = 16.0
_MAX_FACTORS = 64
_MAX_TRIES = 4096  # padded lengths to try; lengths with small factors are far denser than that
# legs may be four times the target size, and always up to this, so that a prime has a neighbour
_SMALL = 16


@lru_cache(maxsize=4096)
def _factorisations(n: int, largest: int) -> tuple[Shape, ...]:
    """List all ways to write ``n`` as a descending product of factors in ``2..largest``."""
    if n == 1:
        return ((),)
    products: list[Shape] = []
    for f in range(min(n, largest), 1, -1):
        if n % f == 0:
            products.extend((f, *rest) for rest in _factorisations(n // f, f))
    return tuple(products)


def _unevenness(factors: Shape, leg: int) -> float:
    """Return the mean distance of the legs from the target size, in log-units."""
    return sum(abs(math.log(f / leg)) for f in factors) / len(factors)


@lru_cache(maxsize=4096)
def factorise(n: int, leg: int) -> Shape:
    """Choose legs of about size ``leg`` whose product is ``n`` or slightly more.

    Parameters
    ----------
    n : int
        Length of the axis, at least 1.
    leg : int
        Target size of a leg, at least 2.

    Returns
    -------
    tuple of int
        Leg sizes in descending order; their product exceeds ``n`` by the padding. Empty for ``n == 1``.

    Examples
    --------
    >>> factorise(4096, 8), factorise(784, 5), factorise(127, 4), factorise(10, 4)
    ((8, 8, 8, 8), (7, 7, 4, 4), (4, 4, 4, 2), (5, 2))
    """
    if n == 1:
        return ()
    largest = max(4 * leg, _SMALL)
    best: tuple[float, Shape] | None = None
    for padded in range(n, n + min(max(n // 2, 2), _MAX_TRIES) + 1):
        cost_of_padding = _PADDING_WEIGHT * math.log(padded / n)
        if best is not None and cost_of_padding >= best[0]:
            break
        for factors in _factorisations(padded, largest):
            cost = cost_of_padding + _unevenness(factors, leg)
            if best is None or cost < best[0] - 1e-12:
                best = (cost, factors)
    return best[1] if best is not None else uniform(n, leg)


def uniform(n: int, leg: int) -> Shape:
    """Choose the fewest legs of exactly size ``leg`` that hold ``n`` entries.

    Examples
    --------
    >>> uniform(10, 2), uniform(8, 2)
    ((2, 2, 2, 2), (2, 2, 2))
    """
    factors: list[int] = []
    capacity = 1
    while capacity < n and len(factors) < _MAX_FACTORS:
        factors.append(leg)
        capacity *= leg
    return tuple(factors)
