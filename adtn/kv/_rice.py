"""Symbols as bits: Golomb-Rice codes, plane by plane, with trees of zeros.

The table of a coefficient says how large its symbols are, so no parameters are stored. Magnitudes are split into low
bits, stored as they are, and a rest in unary, of which all first bits are stored before all second bits, and so on.
Where most symbols are zero, one bit stands for a block of zeros; other blocks are split into halves.

References
----------
Golomb (1966), Run-length encodings; Rice (1979), Some practical universal noiseless coding techniques.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from .._typing import Bool, Int
from ..errors import FileFormatError
from ._ans import Coded, runs
from ._tables import PER_OCTAVE, table

_PLANES = 24  # of the unary part; what is larger is stored in 32 bits
_LARGEST_BLOCK = 64
_RAW = 32

Bits = Bool[np.ndarray, " n"]
Read = Callable[[int], Bits]


def encode_symbols(symbols: Int[np.ndarray, " n"], tables: Int[np.ndarray, " n"]) -> Coded:
    """Encode symbols, each with the table of its index; those without a table are zero."""
    bits: list[Bits] = []
    for i, at in runs(tables):
        _write(symbols[at], i, bits.append)
    flat = np.concatenate([*bits, np.zeros(0, bool)])
    padded = np.concatenate((flat, np.zeros(-len(flat) % 32, bool)))
    return Coded(words=np.packbits(padded).view(">u4").astype(np.uint32), beyond=np.empty(0, np.int32))


def decode_symbols(coded: Coded, tables: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Return the symbols, zero where there is no table.

    Raises
    ------
    FileFormatError
        If the words are not those of symbols with these tables.
    """
    bits = np.unpackbits(coded.words.astype(">u4").view(np.uint8)).astype(bool)
    used = 0

    def read(n: int) -> Bits:
        nonlocal used
        used += n
        if used > len(bits):
            raise FileFormatError("The coded cache was modified: it ends before its last symbol.")
        return bits[used - n : used]

    symbols = np.zeros(tables.shape, np.int32)
    for i, at in runs(tables):
        symbols[at] = _read(len(at), i, read)
    if len(coded.beyond) or len(bits) - used >= 32 or bits[used:].any():
        raise FileFormatError("The coded cache was modified: its words do not end with its last symbol.")
    return symbols


def _low_bits(i: int) -> int:
    """Return how many low bits a table's magnitudes have: about half of the rests are then zero."""
    return max(round(i / PER_OCTAVE + math.log2(math.log(2.0))), 0)


def _block(i: int) -> int:
    """Return the size of blocks of which about half are zeros."""
    found = table(i)
    zero = float(found.probabilities[found.most])
    if _low_bits(i) or zero <= 0.6:
        return 1
    return min(2 ** max(round(math.log2(math.log(0.5) / math.log(zero))), 0), _LARGEST_BLOCK)


def _write(symbols: Int[np.ndarray, " n"], i: int, emit: Callable[[Bits], object]) -> None:
    k = _low_bits(i)
    magnitudes = np.abs(symbols)
    rest = magnitudes >> k
    _write_map(rest > 0, _block(i), emit)
    left = rest[rest > 0]
    for plane in range(1, _PLANES):
        emit(left > plane)
        left = left[left > plane]
    emit(_to_bits(left, _RAW))
    emit(_to_bits(magnitudes & ((1 << k) - 1), k))
    emit(symbols[symbols != 0] < 0)


def _read(n: int, i: int, read: Read) -> Int[np.ndarray, " n"]:
    k = _low_bits(i)
    found = np.flatnonzero(_read_map(n, _block(i), read))
    rest = np.zeros(n, np.int64)
    rest[found] = 1
    for plane in range(1, _PLANES):
        found = found[read(len(found))]
        rest[found] = plane + 1
    rest[found] = _from_bits(read(_RAW * len(found)), _RAW)
    magnitudes = (rest << k) + _from_bits(read(k * n), k) if k else rest
    negative = np.zeros(n, bool)
    other = magnitudes != 0
    negative[other] = read(int(other.sum()))
    return np.where(negative, -magnitudes, magnitudes).astype(np.int32)


def _write_map(x: Bits, block: int, emit: Callable[[Bits], object]) -> None:
    """Write which symbols are not zero: blocks first, then halves of the blocks that are not."""
    padded = np.concatenate((x, np.zeros(-len(x) % block, bool)))
    parents = padded.reshape(len(padded) // block, block)
    filled: Bits = np.any(parents, axis=1)
    emit(filled)
    parents = parents[filled]
    while parents.shape[1] > 1:
        halves: Bits = np.any(parents.reshape(len(parents), 2, parents.shape[1] // 2), axis=2)
        emit(halves[:, 0])
        emit(halves[halves[:, 0], 1])  # if the first half is zero, the other one is not
        parents = parents.reshape(2 * len(parents), parents.shape[1] // 2)[halves.ravel()]


def _read_map(n: int, block: int, read: Read) -> Bits:
    x = np.zeros(-(-n // block) * block, bool)
    starts, size = np.flatnonzero(read(len(x) // block)) * block, block
    while size > 1:
        size //= 2
        halves = np.ones((len(starts), 2), bool)
        halves[:, 0] = read(len(starts))
        halves[halves[:, 0], 1] = read(int(halves[:, 0].sum()))
        starts = (starts[:, None] + size * np.arange(2))[halves]
    x[starts] = True
    return x[:n]


def _to_bits(x: Int[np.ndarray, " n"], k: int) -> Bits:
    return ((x[:, None] >> np.arange(k)) & 1).astype(bool).ravel()


def _from_bits(bits: Bits, k: int) -> Int[np.ndarray, " n"]:
    return (bits.reshape(-1, k).astype(np.int64) << np.arange(k)).sum(1)
