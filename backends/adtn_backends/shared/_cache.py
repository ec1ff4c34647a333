"""Caches that cannot grow without bound."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")

MOST = 64
"""Entries of the caches of one weight: plans and functions by device, dtype, mode and batch rounded up to a power of
two, so that a program that trains and infers on one device needs about 20."""


def remember(cache: MutableMapping[K, V], key: K, value: V, most: int = MOST) -> V:
    """Put an entry into a cache, whose oldest entries leave when it is full.

    Reading stays a plain look-up, which costs nothing more in every call of a layer.

    Parameters
    ----------
    cache : dict
        In the order in which entries came.
    key, value
        Of the entry.
    most : int
        Entries that the cache may have.

    Returns
    -------
    object
        ``value``.

    Examples
    --------
    >>> cache = {}
    >>> [remember(cache, n, n * n, most=2) for n in range(3)], cache
    ([0, 1, 4], {1: 1, 2: 4})
    """
    for oldest in list(cache)[: max(len(cache) - most + 1, 0)]:
        cache.pop(oldest, None)
    cache[key] = value
    return value
