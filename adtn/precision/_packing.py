"""Integers of a few bits, packed densely into bytes."""

from __future__ import annotations

import math

import numpy as np

from .._typing import Int


def unit_of(bits: int) -> tuple[int, int]:
    """Return how many bytes and how many integers are a unit of packing: 3 bytes hold eight integers of 3 bits."""
    whole = math.lcm(bits, 8)
    return whole // 8, whole // bits


def packed_bytes(size: int, bits: int) -> int:
    """Return the number of bytes of ``size`` integers; the last unit is filled up with zeros."""
    n_bytes, n_integers = unit_of(bits)
    return -(-size // n_integers) * n_bytes


def packed(integers: Int[np.ndarray, "..."], bits: int) -> Int[np.ndarray, " bytes"]:
    """Convert integers from 0 to ``2**bits - 1`` to bytes, the first ones in the low bits."""
    n_bytes, n_integers = unit_of(bits)
    flat = np.ravel(integers)
    units = np.zeros((packed_bytes(flat.size, bits) // n_bytes, n_integers), np.uint32)
    units.reshape(-1)[: flat.size] = flat
    words = np.bitwise_or.reduce(units << (bits * np.arange(n_integers, dtype=np.uint32)), axis=1)
    return words.astype("<u4").view(np.uint8).reshape(-1, 4)[:, :n_bytes].reshape(-1)
