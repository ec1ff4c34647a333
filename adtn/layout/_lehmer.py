"""Permutations as few bytes: the Lehmer code, in groups of digits that are one number each."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator

from ..errors import LayoutError
from ._permutation import Permutation

_GROUP = 64
"""Digits per number: less than one byte per group is wasted, and numbers remain short."""


def encode_permutation(permutation: Permutation) -> bytes:
    """Write a permutation of n entries in about ``log2(n!) / 8`` bytes, at most one more for every 64 entries.

    Digit ``i`` of the Lehmer code is the number of smaller entries among those that follow, one of ``n - i`` values.

    References
    ----------
    D. H. Lehmer (1960), Teaching combinatorial tricks to a computer, Proc. Sympos. Appl. Math. 10, 179.

    Examples
    --------
    >>> import numpy as np
    >>> data = encode_permutation(Permutation.random(384))
    >>> len(data), 384 * 2, np.array_equal(decode_permutation(data, 384).array, Permutation.random(384).array)
    (346, 768, True)
    """
    rest = list(range(len(permutation)))
    digits: list[int] = []
    for entry in permutation.array.tolist():
        digits.append(bisect_left(rest, entry))
        del rest[digits[-1]]
    parts: list[bytes] = []
    for start, radices, size in _groups(len(permutation)):
        number = 0
        for digit, radix in zip(digits[start : start + len(radices)], radices, strict=True):
            number = number * radix + digit
        parts.append(number.to_bytes(size, "little"))
    return b"".join(parts)


def decode_permutation(data: bytes, n: int) -> Permutation:
    """Read a permutation of n entries.

    Raises
    ------
    LayoutError
        If the bytes are none of such a permutation.
    """
    digits: list[int] = []
    at = 0
    for _, radices, size in _groups(n):
        number, found = int.from_bytes(data[at : at + size], "little"), list[int]()
        for radix in reversed(radices):
            number, digit = divmod(number, radix)
            found.append(digit)
        if number:
            raise LayoutError(f"Got bytes that are not a permutation of {n} entries; get the file again.")
        digits += reversed(found)
        at += size
    if at != len(data):
        raise LayoutError(f"Got {len(data)} bytes for a permutation of {n} entries; expected {at}.")
    rest = list(range(n))
    return Permutation([rest.pop(digit) for digit in digits])


def _groups(n: int) -> Iterator[tuple[int, list[int], int]]:
    """Yield the first digit of every group, the numbers of values of its digits, and its bytes."""
    for start in range(0, n, _GROUP):
        radices = [n - i for i in range(start, min(start + _GROUP, n))]
        yield start, radices, ((math.prod(radices) - 1).bit_length() + 7) // 8
