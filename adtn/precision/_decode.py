"""Decoding of bytes, with operations that NumPy, PyTorch and JAX share.

An integer minus its zero point has at most 8 bits and a scale in float16 has 11, so that their product is exact in
float32: every framework and device decodes to the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .._typing import Array, Float, Int
from ._packing import packed_bytes, unit_of
from ._precision import Parts, array_of


@dataclass(frozen=True, kw_only=True)
class Bits:
    """The operations on bits that frameworks call differently.

    Parameters
    ----------
    view : callable
        ``(x, dtype)``: the bits of int16 as ``"float16"``, or of int32 as ``"float32"``.
    cast : callable
        ``(x, dtype)``: the numbers in another dtype, ``"uint8"``, ``"int16"``, ``"int32"`` or ``"float32"``.
    join : callable
        ``(arrays, axis)``: the arrays, one behind the other.
    stack : callable
        ``(arrays, axis)``: the arrays along a new axis.
    count : callable
        ``(n, like)``: the integers from 0 to below ``n`` as int32, on the device of another array.
    sort : callable
        ``(x, end)``: the indices that sort integers from 0 to below ``end``; equal ones keep their order.
    invert : callable
        ``(indices,)``: the inverse of a permutation.
    take : callable
        ``(x, indices)``: the columns of a matrix with these indices.
    """

    view: Callable[[Any, str], Any]
    cast: Callable[[Any, str], Any]
    join: Callable[[list[Any], int], Any]
    stack: Callable[[list[Any], int], Any]
    count: Callable[[int, Any], Any]
    sort: Callable[[Any, int], Any]
    invert: Callable[[Any], Any]
    take: Callable[[Any, Any], Any]


def decoded(data: Int[Array, " bytes"], parts: Parts, bits: Bits) -> Float[Array, "..."]:
    """Decode the bytes of an array to float32.

    Parameters
    ----------
    data : array
        The bytes, as uint8.
    parts : Parts
        The places of its parts.
    bits : Bits
        The functions of the framework.
    """
    precision, entries = parts.precision, data[parts.entries]
    if precision.is_integer:
        values = in_groups(data, parts, bits)
        if parts.is_ordered:
            values = bits.take(values, positions(data, parts, bits))
    elif precision.format == "bfloat16":  # the upper half of a float32
        values = bits.view(_words(entries, 2, "int32", bits) << 16, "float32")
    elif precision.format == "float16":
        values = bits.cast(bits.view(_words(entries, 2, "int16", bits), "float16"), "float32")
        values = values * _power(data, parts, bits)
    else:
        values = bits.view(_words(entries, 4, "int32", bits), "float32")
    return array_of(values, parts)


def in_groups(data: Int[Array, " bytes"], parts: Parts, bits: Bits) -> Float[Array, "rows columns"]:
    """Decode integers to a matrix whose columns come group by group, in :func:`order_in_groups`."""
    rows, groups, group, n_bits = parts.rows, parts.groups, parts.group, parts.precision.n_bits
    scales = scales_of(data, parts, bits)
    zeros = bits.cast(unpacked(data[parts.zeros], rows * groups, n_bits, bits), "float32").reshape(rows, groups)
    zeros = zeros * parts.precision.zero_step
    integers = unpacked(data[parts.entries], rows * parts.columns, n_bits, bits).reshape(rows, parts.columns)
    whole = parts.columns // group
    full = bits.cast(integers[:, : whole * group], "float32").reshape(rows, whole, group)
    full = full - zeros[:, :whole, None]  # in two steps, each of which frees what it was made of
    full = (full * scales[:, :whole, None]).reshape(rows, whole * group)
    if whole == groups:
        return full
    rest = bits.cast(integers[:, whole * group :], "float32")  # the last group is shorter
    return bits.join([full, (rest - zeros[:, whole:]) * scales[:, whole:]], 1)


def order_in_groups(data: Int[Array, " bytes"], parts: Parts, bits: Bits) -> Int[Array, " columns"]:
    """Read the columns of the first group, of the second and so on; any bytes make a permutation."""
    width, eight = packed_bytes(parts.columns, 1), bits.count(8, data)
    planes = bits.cast(data[parts.order], "int32").reshape(-1, width, 1)
    n = planes.shape[0]
    ones = ((planes >> eight) & 1).reshape(n, -1)[:, : parts.columns]
    groups = (ones << bits.count(n, data)[:, None]).sum(0)
    return bits.sort(groups, 1 << n)


def positions(data: Int[Array, " bytes"], parts: Parts, bits: Bits) -> Int[Array, " columns"]:
    """Read where each column is among the stored ones, which come group by group."""
    return bits.invert(order_in_groups(data, parts, bits))


def scales_of(data: Int[Array, " bytes"], parts: Parts, bits: Bits) -> Float[Array, "rows groups"]:
    """Read the scales."""
    halves = bits.view(_words(data[parts.scales], 2, "int16", bits), "float16")
    return (bits.cast(halves, "float32") * _power(data, parts, bits)).reshape(parts.rows, parts.groups)


def unpacked(data: Int[Array, " bytes"], size: int, n_bits: int, bits: Bits) -> Int[Array, " size"]:
    """Read ``size`` integers of ``n_bits`` bits, as uint8."""
    n_bytes, n_integers = unit_of(n_bits)
    if n_integers == 1:
        return data[:size]
    words = data if n_bytes == 1 else _words(data, n_bytes, "int32", bits)
    mask = 2**n_bits - 1
    integers = bits.stack([bits.cast((words >> (n_bits * k)) & mask, "uint8") for k in range(n_integers)], 1)
    return integers.reshape(-1)[:size]


def _words(data: Int[Array, " bytes"], n_bytes: int, dtype: str, bits: Bits) -> Int[Array, " words"]:
    """Join bytes to integers, the first ones being the low ones; a view would need aligned memory."""
    units = bits.cast(data.reshape(-1, n_bytes), dtype)
    words = units[:, 0]
    for k in range(1, n_bytes):
        words = words | (units[:, k] << (8 * k))
    return words


def _power(data: Int[Array, " bytes"], parts: Parts, bits: Bits) -> Float[Array, " 1"]:
    """Return the power of two with the common exponent: the bits of a float32 without a fraction."""
    assert parts.exponent is not None
    return bits.view(bits.cast(data[parts.exponent : parts.exponent + 1], "int32") << 23, "float32")
