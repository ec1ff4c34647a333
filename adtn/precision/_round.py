"""Arrays are rounded to a precision."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from .._checks import shown
from .._typing import Float, Int, Shape
from ..errors import PrecisionError
from ._coded import encode
from ._codes import Codes
from ._descent import descend
from ._feedback import Feedback, Rounded, clipped, nearest, with_feedback, with_row_feedback
from ._order import column_order
from ._packing import packed
from ._precision import Parts, Precision, matrix_of, parts_of, stored_bytes
from ._rate import fitted, with_rate
from ._scales import UNIT, inverse

_LARGEST = float(np.finfo(np.float32).max)
_SWEEPS = 2  # of descent after error feedback
_BIAS = 127  # of the exponent of a float32
_HALF = 128


def round_to(
    x: Float[np.ndarray, "..."],
    precision: Precision,
    hessian: Float[np.ndarray, "columns columns"] | None = None,
    *,
    row_hessian: Float[np.ndarray, "rows rows"] | None = None,
    order: Int[np.ndarray, " columns"] | None = None,
) -> Codes:
    """Round an array to a precision.

    Integers have the scale and the zero point for which the squared error of their group is smallest among several
    fractions of its range; those of 8 bits hold the whole range.

    Parameters
    ----------
    x : array
        The array; its first axis is the rows of a matrix, the others its columns.
    precision : Precision
        The precision.
    hessian : array, optional
        The second moment ``(columns, columns)`` of what the columns are multiplied with, up to a factor. Integers are
        then found with error feedback (GPTQ), in each row in which that has a smaller error in this metric than the
        nearest ones; those of less than 8 bits are rounded again twice, each with all others as they are.
    row_hessian : array, optional
        The second moment ``(rows, rows)`` of what the rows are multiplied with instead, such as that of the output
        factor of a product of two matrices, whose rows are the rank.
    order : array, optional
        The columns of the first group, of the second and so on, for an ordered precision only; by default, columns of
        similar entries come together (our choice: by fourth moments over importance, then exchanged).

    Returns
    -------
    Codes

    Raises
    ------
    PrecisionError
        If an entry is not finite, or too large for float32, or a moment or an order does not fit, or both moments are
        given.

    Examples
    --------
    >>> import numpy as np
    >>> from adtn.precision import Precision, round_to
    >>> x = np.random.default_rng(0).standard_normal((64, 128)).astype("float32")
    >>> codes = round_to(x, Precision("int4", group=64))
    >>> bool(np.linalg.norm(codes.decode() - x) < 0.1 * np.linalg.norm(x))
    True
    """
    x = _checked("x", x)
    largest = float(np.abs(x).max())
    if largest > _LARGEST:
        raise PrecisionError(
            f"Got an array with an entry of {largest:.3g}; expected at most {_LARGEST:.3g}. Divide it."
        )
    parts = parts_of(x.shape, precision)
    order = _checked_order(order, parts)
    if not precision.is_coarse:
        return Codes(x.shape, precision, _floats(x, precision.format, largest))
    # in units in which the largest entry is from 1/2 to 1, nothing overflows
    unit = int(np.frexp(largest)[1]) if largest else 0
    matrix = np.ascontiguousarray(matrix_of(np.ldexp(x, -unit), parts), np.float32)
    if hessian is not None and row_hessian is not None:
        raise PrecisionError("Got a hessian and a row_hessian; expected one of them.")
    if precision.is_coded:
        unit = min(max(unit, -_HALF), _HALF - 1)
        matrix = np.ascontiguousarray(matrix_of(np.ldexp(x, -unit), parts), np.float32)
        return _coded(x.shape, precision, matrix, unit, hessian, row_hessian)
    within, between = (row_hessian, hessian) if parts.turned else (hessian, row_hessian)  # a row of the matrix
    names = ("hessian", "columns"), ("row_hessian", "rows")
    of_columns = None if within is None else _moment(within, parts.columns, *names[parts.turned])
    of_rows = None if between is None else _moment(between, parts.rows, *names[not parts.turned])
    of_columns, of_rows = (None if m is None or not m.any() else m for m in (of_columns, of_rows))
    feedback = None if of_columns is None else Feedback.of(of_columns)
    if parts.is_ordered:
        importance = None if feedback is None else feedback.importance
        order = column_order(matrix, importance, parts.group) if order is None else order
        matrix = np.ascontiguousarray(matrix[:, order])
        of_columns = None if of_columns is None else of_columns[np.ix_(order, order)]
        feedback = None if feedback is None else feedback.permuted(order)
    rounded = nearest(matrix, parts.group, precision.n_bits)
    if of_columns is not None and feedback is not None:
        fed = with_feedback(matrix, feedback, parts.group, precision.n_bits)
        rounded = _descended(matrix, of_columns, _better(matrix, of_columns, rounded, fed), precision.n_bits)
    elif of_rows is not None:
        fed = with_row_feedback(matrix, of_rows, rounded, precision.n_bits)
        rounded = _better_columns(matrix, of_rows, rounded, fed)
    exponent = max(unit - int(np.log2(UNIT)), 1 - _BIAS)
    scales = np.ldexp(rounded.scales * np.float32(UNIT), unit - int(np.log2(UNIT)) - exponent)
    return _encoded(x.shape, precision, rounded.integers, rounded.zeros, scales, exponent, order)


def order_of(
    x: Float[np.ndarray, "..."], precision: Precision, hessian: Float[np.ndarray, "columns columns"] | None = None
) -> Int[np.ndarray, " columns"]:
    """Find the order in which :func:`round_to` groups the columns of an array.

    Parameters
    ----------
    x : array
        The array.
    precision : Precision
        A precision with groups of integers.
    hessian : array, optional
        The second moment of what the columns are multiplied with.

    Returns
    -------
    array
        The columns of the first group, of the second and so on.

    Raises
    ------
    PrecisionError
        If an entry is not finite, or the moment does not fit, or groups run along the rows.

    Examples
    --------
    >>> import numpy as np
    >>> from adtn.precision import Precision, order_of
    >>> order_of(np.array([[1.0, 0.1, 0.9, 0.2], [0.9, 0.2, 1.0, 0.1]]), Precision("int4", group=2)).tolist()
    [0, 2, 1, 3]
    """
    x = _checked("x", x)
    parts = parts_of(x.shape, precision)
    if parts.turned or not precision.is_integer:
        raise PrecisionError(f"Got an array of shape {x.shape} in {precision}, which has no groups of columns.")
    moment = None if hessian is None else _moment(hessian, parts.columns, "hessian", "columns")
    importance = None if moment is None or not moment.any() else Feedback.of(moment).importance
    return column_order(matrix_of(x, parts) / (np.abs(x).max() or 1.0), importance, parts.group)


def _checked_order(order: Any, parts: Parts) -> Int[np.ndarray, " columns"] | None:
    """Return an order in which columns of one group are in their order in the matrix, as only groups are stored."""
    if order is None:
        return None
    if not parts.precision.ordered:
        raise PrecisionError(f"Got an order for {parts.precision}; pass a precision with ordered=True.")
    given = np.asarray(order)
    if given.shape != (parts.columns,) or not np.array_equal(np.sort(given), np.arange(parts.columns)):
        raise PrecisionError(
            f"Got order={shown(order)}; expected each number from 0 to {parts.columns - 1} exactly once."
        )
    return np.concatenate([np.sort(given[at : at + parts.group]) for at in range(0, parts.columns, parts.group)])


def _coded(
    shape: Shape,
    precision: Precision,
    matrix: Float[np.ndarray, "rows columns"],
    unit: int,
    hessian: Any,
    row_hessian: Any,
) -> Codes:
    """Round a matrix in units of a power of two to entropy codes."""
    rows, columns = matrix.shape
    of_columns = None if hessian is None else _moment(hessian, columns, "hessian", "columns")
    of_rows = None if row_hessian is None else _moment(row_hessian, rows, "row_hessian", "rows")
    of_columns, of_rows = (None if m is None or not m.any() else m for m in (of_columns, of_rows))
    found = with_rate(matrix, stored_bytes(shape, precision), of_columns, of_rows)
    data = encode(replace(found, unit=unit), stored_bytes(shape, precision))
    assert data is not None
    return Codes(shape, precision, data)


def with_step(x: Float[np.ndarray, "..."], start: Codes, gain: float) -> Codes:
    """Round an array to entropy codes with the steps of other ones times a factor, or larger ones to have their size.

    Parameters
    ----------
    x : array
        The array.
    start : Codes
        Entropy codes of an array of this shape.
    gain : float

    Raises
    ------
    PrecisionError
        If an entry is not finite.
    """
    x, old = _checked("x", x), start.stepped()
    step = float(np.float32(old.step * abs(gain)))
    if step == 0.0:  # all were zero
        return round_to(x, start.precision)
    parts = parts_of(x.shape, start.precision)
    matrix = np.asarray(matrix_of(np.ldexp(np.asarray(x, np.float64), -old.unit), parts), np.float32)
    return Codes(x.shape, start.precision, fitted(matrix, replace(old, step=step), start.nbytes))


def with_scales(x: Float[np.ndarray, "..."], start: Codes, scales: Float[np.ndarray, "rows groups"]) -> Codes:
    """Round an array to the nearest integers with given scales, and with the zero points of other codes.

    Parameters
    ----------
    x : array
        The array.
    start : Codes
        Codes of an array of this shape, in an integer format.
    scales : array
        The scale of every group.

    Raises
    ------
    PrecisionError
        If an entry or a scale is not finite.
    """
    x, scales = _checked("x", x), _checked("scales", scales)
    precision, zeros, parts = start.precision, start.zeros, parts_of(x.shape, start.precision)
    # the same unit, unless float16 cannot hold the largest scale in it
    largest = int(np.frexp(np.abs(scales).max())[1])
    exponent = max(int(start.data[parts.exponent]) - _BIAS, largest - 15)
    halves = np.ldexp(scales.astype(np.float64), -exponent).astype(np.float16).astype(np.float32)
    place, order = np.arange(parts.columns) // parts.group, start.order
    # the integers of the given scales, as those of the stored ones differ where an entry is between two integers
    steps = np.asarray(scales, np.float32)[:, place]
    levels = matrix_of(np.asarray(x, np.float32), parts)[:, order] * inverse(steps) + zeros[:, place]
    integers = np.clip(np.rint(levels), 0, 2**precision.n_bits - 1)
    return _encoded(x.shape, precision, integers, zeros, halves, exponent, order)


def round_symmetric(x: Float[np.ndarray, "..."]) -> Codes:
    """Round an array to 8 bits, with a scale per row by its largest entry: to round the result again changes nothing.

    Parameters
    ----------
    x : array
        The array; its first axis is the rows.

    Raises
    ------
    PrecisionError
        If an entry is not finite.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((64, 128)).astype("float32")
    >>> once = round_symmetric(x).decode()
    >>> bool((round_symmetric(once).decode() == once).all()), bool(np.abs(once - x).max() < 0.02)
    (True, True)
    """
    x, precision = _checked("x", x), Precision("int8")
    parts = parts_of(x.shape, precision)
    matrix = matrix_of(np.asarray(x, np.float32), parts)
    most = np.float32(_HALF - 1)
    scales = np.abs(matrix).max(1, keepdims=True) / most
    largest = scales.max().astype(np.float64) * (1 + 2.0**-12)  # which may be rounded up to a power of two
    exponent = max(int(np.frexp(largest)[1]) - 15, 1 - _BIAS)
    halves, integers = np.full_like(scales, np.inf), np.zeros_like(matrix)
    found = np.ldexp(scales, -exponent).astype(np.float16).astype(np.float32)
    while (found < halves).any():  # again only for rows of far smaller entries, whose scales have few digits
        halves = found
        integers = np.clip(np.rint(matrix * inverse(np.ldexp(halves, exponent))), -most, most)
        found = (np.abs(integers).max(1, keepdims=True) * halves / most).astype(np.float16).astype(np.float32)
    integers += _HALF
    return _encoded(x.shape, precision, integers, np.full_like(halves, _HALF), halves, exponent)


def _encoded(
    shape: Shape,
    precision: Precision,
    integers: np.ndarray,
    zeros: np.ndarray,
    scales: np.ndarray,
    exponent: int,
    order: Int[np.ndarray, " columns"] | None = None,
) -> Codes:
    """Return the codes of integers in the order of their columns, with scales in units of a power of two."""
    parts = parts_of(shape, precision)
    planes = np.zeros(0, np.uint8)
    if parts.is_ordered:
        assert order is not None, "columns are put in order before they are rounded"
        groups = np.empty(parts.columns, np.int64)
        groups[order] = np.arange(parts.columns) // parts.group
        bits = range((parts.groups - 1).bit_length())
        planes = np.concatenate([packed((groups >> k) & 1, 1) for k in bits])
    data = np.concatenate(
        [
            np.ascontiguousarray(scales, "<f2").reshape(-1).view(np.uint8),
            packed((zeros / precision.zero_step).astype(np.uint8), precision.n_bits),
            packed(integers.astype(np.uint8), precision.n_bits),
            planes,
            np.array([exponent + _BIAS], np.uint8),
        ]
    )
    return Codes(shape, precision, data)


def _better(x: np.ndarray, moment: np.ndarray, one: Rounded, other: Rounded) -> Rounded:
    """Take each row from the one that has the smaller error in the metric."""
    metric = moment.astype(np.float32)

    def errors(rounded: Rounded) -> np.ndarray:
        away = rounded.decode() - x
        return np.einsum("rc,rc->r", away @ metric, away)

    first = (errors(one) <= errors(other))[:, None]
    return Rounded(
        integers=np.where(first, one.integers, other.integers),
        scales=np.where(first, one.scales, other.scales),
        zeros=np.where(first, one.zeros, other.zeros),
        group=one.group,
    )


def _descended(x: np.ndarray, moment: np.ndarray, rounded: Rounded, n_bits: int) -> Rounded:
    if n_bits == 8:  # where nearly nothing is left to gain
        return rounded
    place = np.arange(x.shape[1]) // rounded.group
    scales, zeros = (np.ascontiguousarray(every[:, place].T) for every in (rounded.scales, rounded.zeros))
    levels = rounded.integers.T - zeros
    found = descend(x.T, moment, levels, scales, clipped(zeros, n_bits), _SWEEPS)
    return replace(rounded, integers=(found + zeros).T)


def _better_columns(x: np.ndarray, moment: np.ndarray, one: Rounded, other: Rounded) -> Rounded:
    """Take each column from the one that has the smaller error in the metric; both have the same scales."""
    metric = moment.astype(np.float32)

    def errors(rounded: Rounded) -> np.ndarray:
        away = rounded.decode() - x
        return np.einsum("rc,rc->c", metric @ away, away)

    return replace(one, integers=np.where(errors(one) <= errors(other), one.integers, other.integers))


def _floats(x: np.ndarray, format: str, largest: float) -> Int[np.ndarray, " bytes"]:
    flat = np.ascontiguousarray(x, np.float64).reshape(-1)
    if format == "float32":
        return flat.astype("<f4").view(np.uint8)
    if format == "bfloat16":
        words = flat.astype("<f4").view("<u4")
        halves = (words + 0x7FFF + ((words >> 16) & 1)) >> 16  # to nearest even
        # the largest numbers would become infinite
        halves = np.where((halves & 0x7FFF) == 0x7F80, halves - 1, halves)
        return halves.astype("<u2").view(np.uint8)
    exponent = min(max((int(np.frexp(largest)[1]) if largest else 0) - 15, 1 - _BIAS), _BIAS)
    halves = np.minimum(np.maximum(np.ldexp(flat, -exponent), -65504.0), 65504.0).astype("<f2")
    return np.concatenate([halves.view(np.uint8), np.array([exponent + _BIAS], np.uint8)])


def _moment(hessian: Any, n: int, name: str, what: str) -> Float[np.ndarray, "n n"]:
    moment = _checked(name, hessian).astype(np.float64)
    if moment.shape != (n, n):
        raise PrecisionError(
            f"Got a {name} of shape {moment.shape} for {n} {what}; expected ({n}, {n}), the second moment of what the "
            f"{what} are multiplied with."
        )
    diagonal = np.diagonal(moment)
    if not np.allclose(moment, moment.T, rtol=1e-3, atol=1e-5 * float(np.abs(moment).max())):
        raise PrecisionError(f"Got a {name} that is not symmetric; expected a second moment.")
    if (diagonal < 0).any():
        raise PrecisionError(f"Got a {name} with negative diagonal entries; expected a second moment.")
    largest = float(diagonal.max())
    return (moment + moment.T) * (0.5 / largest) if largest else np.zeros_like(moment)


def _checked(name: str, x: Any) -> np.ndarray:
    array = np.asarray(x)
    if array.dtype.kind not in "fiub":
        raise PrecisionError(f"Got {name}={shown(x)} of dtype {array.dtype}; expected an array of real numbers.")
    if not array.size:
        raise PrecisionError(f"Got {name}={shown(x)}, which has no entries; expected some.")
    if not np.isfinite(array).all():
        raise PrecisionError(f"Got {name}={shown(x)} with entries that are NaN or infinite; expected finite numbers.")
    return array if array.dtype.kind == "f" else array.astype(np.float64)
