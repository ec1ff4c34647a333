"""Caches of bounded size."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")

MOST = 64
"""The size of the caches of one weight. They hold plans and functions by device, dtype, mode and batch size, which is
rounded up to a power of two: a program that trains and infers on one device needs about 20 entries."""


def remember(cache: MutableMapping[K, V], key: K, value: V, most: int = MOST) -> V:
    """Insert an entry into a cache, and evict the oldest entries when the cache is full.

    Reading remains a plain look-up, so calls of a layer cost nothing more.

    Parameters
    ----------
    cache : dict
        The cache, in the order of insertion.
    key, value
        The entry.
    most : int
        The number of entries that the cache may have.

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
