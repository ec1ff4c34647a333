"""Decoding of bytes, with operations that NumPy, PyTorch and JAX share.

An integer minus its zero point has at most 9 bits and a scale in float16 has 11, so that their product is exact in
float32: every framework and device decodes to the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .._typing import Array, Float, Int, Shape
from ._packing import unit_of
from ._precision import Parts, Precision, parts_of


@dataclass(frozen=True)
class Bits:
    """The operations on bits that frameworks call differently.

    Parameters
    ----------
    view : callable
        ``(x, dtype)``: the bits of an array of one axis as numbers of another dtype, ``"float16"`` or ``"float32"``.
    cast : callable
        ``(x, dtype)``: the numbers in another dtype, ``"uint8"``, ``"int32"`` or ``"float32"``.
    join : callable
        ``(arrays, axis)``: the arrays, one behind the other.
    stack : callable
        ``(arrays, axis)``: the arrays along a new axis.
    """

    view: Callable[[Any, str], Any]
    cast: Callable[[Any, str], Any]
    join: Callable[[list[Any], int], Any]
    stack: Callable[[list[Any], int], Any]


def decoded(data: Int[Array, " bytes"], shape: Shape, precision: Precision, bits: Bits) -> Float[Array, "..."]:
    """Decode the bytes of an array of this shape to float32.

    Parameters
    ----------
    data : array
        The bytes, as uint8.
    shape : tuple of int
        The shape of the array.
    precision : Precision
        Its precision.
    bits : Bits
        The functions of the framework.
    """
    parts = parts_of(shape, precision)
    if precision.is_integer:
        entries = _times_scales(data, parts, precision.bits, bits)
    elif precision.format == "bfloat16":  # the upper half of a float32
        halves = bits.cast(data[parts.entries].reshape(-1, 2), "int32")
        entries = bits.view((halves[:, 0] << 16) | (halves[:, 1] << 24), "float32")
    elif parts.exponent is not None:
        entries = bits.cast(bits.view(data[parts.entries], "float16"), "float32") * _power(data, parts.exponent, bits)
    else:
        entries = bits.view(data, "float32")
    return entries.reshape(shape)


def _times_scales(data: Int[Array, " bytes"], parts: Parts, n_bits: int, bits: Bits) -> Float[Array, "rows columns"]:
    assert parts.exponent is not None
    rows, groups, group = parts.rows, parts.groups, parts.group
    scales = bits.cast(bits.view(data[parts.scales], "float16"), "float32") * _power(data, parts.exponent, bits)
    scales = scales.reshape(rows, groups)
    zeros = bits.cast(unpacked(data[parts.zeros], rows * groups, n_bits, bits), "float32").reshape(rows, groups)
    integers = unpacked(data[parts.entries], rows * parts.columns, n_bits, bits).reshape(rows, parts.columns)
    whole = parts.columns // group
    pieces: list[Any] = []
    if whole:
        full = bits.cast(integers[:, : whole * group], "float32").reshape(rows, whole, group)
        full = (full - zeros[:, :whole, None]) * scales[:, :whole, None]
        pieces.append(full.reshape(rows, whole * group))
    if whole < groups:  # the last group is shorter
        rest = bits.cast(integers[:, whole * group :], "float32")
        pieces.append((rest - zeros[:, whole:]) * scales[:, whole:])
    return pieces[0] if len(pieces) == 1 else bits.join(pieces, 1)


def unpacked(data: Int[Array, " bytes"], size: int, n_bits: int, bits: Bits) -> Int[Array, " size"]:
    """Read ``size`` integers of ``n_bits`` bits, as uint8."""
    n_bytes, n_integers = unit_of(n_bits)
    if n_integers == 1:
        return data[:size]
    words = data
    if n_bytes > 1:
        units = bits.cast(data.reshape(-1, n_bytes), "int32")
        words = units[:, 0]
        for k in range(1, n_bytes):
            words = words | (units[:, k] << (8 * k))
    mask = 2**n_bits - 1
    integers = bits.stack([bits.cast((words >> (n_bits * k)) & mask, "uint8") for k in range(n_integers)], 1)
    return integers.reshape(-1)[:size]


def _power(data: Int[Array, " bytes"], place: int, bits: Bits) -> Float[Array, " 1"]:
    """Return the power of two with this exponent: the bits of a float32 without a fraction."""
    return bits.view(bits.cast(data[place : place + 1], "int32") << 23, "float32")
