"""Permutations of entries that are blocks of equal sizes, such as the channels of heads.

A permutation is an index array: the entry ``index[i]`` comes to place ``i``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from adtn._typing import Int


def divisors(n: int) -> list[int]:
    """List the divisors of a number, ascending."""
    return [d for d in range(1, n + 1) if n % d == 0]


def moved_blocks(index: Int[np.ndarray, " n"], size: int) -> Int[np.ndarray, " blocks"] | None:
    """Return which block comes to each place, ``None`` if entries of different blocks are mixed."""
    blocks = index.reshape(-1, size) // size
    return blocks[:, 0] if bool((blocks == blocks[:, :1]).all()) else None


def of_blocks(order: Int[np.ndarray, " blocks"], size: int) -> Int[np.ndarray, " n"]:
    """Return the permutation of the entries of blocks that move as a whole."""
    return (order[:, None] * size + np.arange(size)).reshape(-1)


def apart(index: Int[np.ndarray, " n"], size: int) -> list[Int[np.ndarray, " size"]] | None:
    """Return the permutation of each part, such as queries, keys and values, ``None`` if entries of parts are mixed."""
    parts = index.reshape(-1, size) - size * np.arange(len(index) // size)[:, None]
    return None if bool(((parts < 0) | (parts >= size)).any()) else list(parts)


def joined(parts: Sequence[Int[np.ndarray, " size"]]) -> Int[np.ndarray, " n"]:
    """Return the permutation of entries whose parts are permuted one by one, the inverse of :func:`apart`."""
    return np.concatenate([part + k * len(part) for k, part in enumerate(parts)])


def spread(index: Int[np.ndarray, " n"], size: int, times: int) -> Int[np.ndarray, " m"] | None:
    """Return the permutation where every block occurs several times in a row, as key-value heads of grouped queries."""
    blocks = moved_blocks(index, size)
    if blocks is None:
        return None
    inner = index.reshape(-1, 1, size) % size
    return ((blocks[:, None] * times + np.arange(times))[..., None] * size + inner).reshape(-1)


def gathered(index: Int[np.ndarray, " m"], size: int, times: int) -> Int[np.ndarray, " n"] | None:
    """Invert :func:`spread`, ``None`` if the copies of a block are not permuted alike."""
    first = index.reshape(-1, times, size)[:, 0]
    short = (first // (size * times) * size + first % size).reshape(-1)
    if not same(np.sort(short), np.arange(len(short))):
        return None
    whole = spread(short, size, times)
    return short if whole is not None and same(whole, index) else None


def pairs_in_blocks(index: Int[np.ndarray, " n"], size: int) -> Int[np.ndarray, " half"] | None:
    """Return the order of rotary pairs if it is the same in all blocks, ``None`` if pairs are torn.

    Channels ``j`` and ``j + size / 2`` are a pair, or channels ``2 j`` and ``2 j + 1``.
    """
    rows = index.reshape(-1, size) - size * np.arange(len(index) // size)[:, None]
    inner, half = rows[0], size // 2
    if size % 2 or not bool((rows == inner).all()) or bool(((inner < 0) | (inner >= size)).any()):
        return None
    if same(inner[half:], inner[:half] + half):
        return inner[:half]
    if same(inner[1::2], inner[::2] + 1) and not (inner[::2] % 2).any():
        return inner[::2] // 2
    return None


def same(a: Int[np.ndarray, " n"], b: Int[np.ndarray, " m"]) -> bool:
    """Return whether two index arrays are equal."""
    return bool(np.array_equal(a, b))
