"""Integers with entropy codes: the bytes of a weight whose columns have steps of their own.

An entry is ``sign(q) (|q| - b) d_c`` with an integer ``q`` of 16 bits, the step ``d_c = d 2^(k_c / 4)`` of its column,
and a small shift ``b``, as an entry is more likely on that side of the middle of its interval where zero is. Integers
have the density of :mod:`._logistic` at the scale ``r_r + c_c`` of their row and column, and their symbols follow each
other by scale. Those of large scales have a few low bits as they are; those beyond all symbols follow at the end. The
exponents ``k``, ``r`` and ``c`` are symbols, too, or left out where all are equal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .._typing import Float, Int
from ..errors import PrecisionError
from ._logistic import BEYOND, FIRST, LAST, MOST, PER_OCTAVE, lengths, probabilities
from ._symbols import Reader, Writer

HEADER = 12
"""Bytes before the words: the step, centre and scale of the three sequences of exponents, unit and shift."""
RANGE = 40
"""The largest exponent of a column, in quarter octaves."""
SHIFTS = 256
"""Shifts per step."""
LARGEST = 2**15 - 1
"""The largest magnitude of an integer."""

_WORD = 4
_ABSENT = -128
_FAR = 64  # exponents from which float32 may overflow
_FINITE = float(np.finfo(np.float32).max)
_LARGEST = LAST + 8 * PER_OCTAVE  # of scales, with low bits
_RAW = 16  # bits of an integer beyond all symbols
_LEAST = 6  # words, in which zeros fit
_SLACK = 2  # words that the last state of the coder takes beyond the ideal length
_VARIANCE = math.pi**2 / 3.0  # of a logistic density of scale 1
_QUARTERS = np.array([1.0, 1.189207115002721, 1.4142135623730951, 1.681792830507429])  # 2^(k / 4)
_MANTISSA = 2.0**11  # as in float16


@dataclass(frozen=True, kw_only=True)
class Stepped:
    """A matrix as integers, with a step per column.

    Parameters
    ----------
    integers : array, (rows, columns)
        Of 16 bits.
    step : float
        The step of columns of exponent 0, a float32.
    exponents : array, (columns,)
        The logarithms of the steps of the columns over that, in quarter octaves.
    shift : int
        What magnitudes are smaller than their integers, in 256ths.
    unit : int
        The exponent of a common power of two, from -128 to 127.
    """

    integers: Int[np.ndarray, "rows columns"]
    step: float
    exponents: Int[np.ndarray, " columns"]
    shift: int = 0
    unit: int = 0

    @property
    def steps(self) -> Float[np.ndarray, " columns"]:
        """The steps of the columns, with the digits of a float16."""
        return np.ldexp(steps_of(self.step, self.exponents), self.unit)

    def decode(self) -> Float[np.ndarray, "rows columns"]:
        """Return the values as float32."""
        values = levels_of(self.integers, self.shift) * steps_of(self.step, self.exponents)
        if abs(self.unit) < _FAR:
            return np.ldexp(values, self.unit)
        return np.clip(np.ldexp(values.astype(np.float64), self.unit), -_FINITE, _FINITE).astype(np.float32)


def levels_of(integers: Int[np.ndarray, "*shape"], shift: int) -> Float[np.ndarray, "*shape"]:
    """Return values in units of the steps, as float32."""
    return integers.astype(np.float32) - np.sign(integers).astype(np.float32) * np.float32(shift / SHIFTS)


def steps_of(step: float, exponents: Int[np.ndarray, " columns"]) -> Float[np.ndarray, " columns"]:
    """Return the steps of columns, as float32."""
    octaves, quarters = np.divmod(np.asarray(exponents, np.int64), PER_OCTAVE)
    mantissa, exponent = np.frexp(float(np.float32(step)) * _QUARTERS[quarters])
    return np.ldexp(np.rint(mantissa * _MANTISSA) / _MANTISSA, exponent + octaves).astype(np.float32)


def coded_bytes(size: int, rate: float) -> int:
    """Return the number of bytes of ``size`` entries: the header, and whole words of 32 bits, but for tiny arrays."""
    return HEADER + _WORD * max(math.ceil(rate * size / (8 * _WORD)), _LEAST)


@dataclass(frozen=True, kw_only=True)
class _Scales:
    """The scales of the integers of a matrix: the exponents of rows and columns, and the bits of all symbols."""

    rows: Int[np.ndarray, " rows"]
    columns: Int[np.ndarray, " columns"]
    bits: float


def bits_of_exponents(exponents: Int[np.ndarray, " n"]) -> float:
    """Return the bits of a sequence of exponents but for its centre and its scale."""
    away = exponents - _centre_of(exponents)
    return float(lengths()[:, away + MOST].sum(1).min()) if away.any() else 0.0


def length_of(matrix: Stepped) -> float:
    """Return the bits of a matrix with the best scales, those of the exponents and the end of the coder included."""
    return _best_scales(matrix.integers).bits + bits_of_exponents(matrix.exponents) + 8 * _WORD * _SLACK


def encode(matrix: Stepped, nbytes: int) -> Int[np.ndarray, " nbytes"] | None:
    """Return a matrix as so many bytes, filled up with zeros; ``None`` if they are too few."""
    scales, writer = _best_scales(matrix.integers), Writer()
    integers = matrix.integers.reshape(-1).astype(np.int64)
    runs = [(i, *_split(integers[at], i), integers[at]) for i, at in _runs(scales.rows, scales.columns)]
    beyond = np.concatenate([own[symbols == BEYOND] for _, symbols, _, own in runs]) + LARGEST + 1
    for part in (beyond & 255, beyond >> 8):
        writer.push(part, _uniform(8))
    for i, symbols, low, _ in reversed(runs):
        writer.push(low, _uniform(_low_bits(i)))
        writer.push(symbols, probabilities(_table(i)))
    header = [_pushed(part, writer) for part in (scales.columns, scales.rows, matrix.exponents)]
    words = writer.words
    if HEADER + words.nbytes > nbytes:
        return None
    data = np.zeros(nbytes, np.uint8)
    data[:4] = np.array([matrix.step], "<f4").view(np.uint8)
    data[4:10] = np.array(header[::-1], np.int8).reshape(-1).view(np.uint8)
    data[10] = np.array(matrix.unit, np.int8).view(np.uint8)
    data[11] = matrix.shift
    data[HEADER : HEADER + words.nbytes] = words.astype("<u4").view(np.uint8)
    return data


def decode(data: Int[np.ndarray, " nbytes"], rows: int, columns: int) -> Stepped:
    """Return the matrix that :func:`encode` stored.

    Raises
    ------
    PrecisionError
        If the bytes are not those of a matrix of this size.
    """
    raw = data.tobytes()
    step = float(np.frombuffer(raw[:4], "<f4")[0])
    if step == 0.0:
        return Stepped(integers=np.zeros((rows, columns), np.int16), step=0.0, exponents=np.zeros(columns, np.int64))
    if not 0.0 < step < math.inf:
        raise PrecisionError(f"Got coded entries with the step {step}; get the file again.")
    header = np.frombuffer(raw[4:10], np.int8).astype(int).reshape(3, 2).tolist()
    unit, shift = int(np.frombuffer(raw[10:11], np.int8)[0]), raw[11]
    reader = Reader(np.frombuffer(raw[HEADER:], "<u4").astype(np.uint32))
    sizes = (columns, rows, columns)
    sequences = [_popped(n, centre, table, reader) for n, (centre, table) in zip(sizes, header, strict=True)]
    exponents, of_rows, of_columns = sequences
    integers, far = np.empty(rows * columns, np.int64), []
    for i, at in _runs(of_rows, of_columns):
        symbols = reader.pop(len(at), probabilities(_table(i))).astype(np.int64)
        low = reader.pop(len(at), _uniform(_low_bits(i)))
        integers[at] = ((symbols - MOST) << _low_bits(i)) + low - _half(i)
        far.append(at[symbols == BEYOND])
    beyond = np.concatenate(far)
    high, low = (reader.pop(len(beyond), _uniform(8)).astype(np.int64) for _ in range(2))
    integers[beyond] = (high << 8) + low - LARGEST - 1
    if not reader.is_empty:
        raise PrecisionError("Got coded entries that do not end with the last one; get the file again.")
    integers = integers.reshape(rows, columns).astype(np.int16)
    return Stepped(integers=integers, step=step, exponents=exponents, shift=shift, unit=unit)


def _low_bits(i: int) -> int:
    """Return how many low bits of the integers of a scale are stored as they are."""
    return max(-(-(i - LAST) // PER_OCTAVE), 0)


def _half(i: int) -> int:
    return (1 << _low_bits(i)) >> 1


def _table(i: int) -> int:
    """Return the scale of the rest, without low bits."""
    return i - PER_OCTAVE * _low_bits(i)


def _split(integers: Int[np.ndarray, " n"], i: int) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Return the symbols and the low bits of integers of one scale."""
    moved = integers + _half(i)
    high = moved >> _low_bits(i)
    return np.where(np.abs(high) > MOST, BEYOND, high + MOST), moved & ((1 << _low_bits(i)) - 1)


@lru_cache(maxsize=16)
def _uniform(n_bits: int) -> Float[np.ndarray, " n"]:
    return np.full(1 << n_bits, 0.5**n_bits, np.float32)


def _runs(rows: np.ndarray, columns: np.ndarray) -> list[tuple[int, Int[np.ndarray, " k"]]]:
    """Return the scales of the entries of a matrix that occur, in order, with the places of their entries."""
    scales = _sum(rows, columns).reshape(-1)
    at = np.argsort(scales, kind="stable")
    counts = np.bincount(scales - FIRST, minlength=_LARGEST - FIRST + 1)
    return [(FIRST + k, part) for k, part in enumerate(np.split(at, np.cumsum(counts)[:-1])) if len(part)]


def _sum(rows: np.ndarray, columns: np.ndarray) -> Int[np.ndarray, "rows columns"]:
    return np.clip(np.add.outer(rows, columns), FIRST, _LARGEST).astype(np.int16)


def _best_scales(integers: Int[np.ndarray, "rows columns"]) -> _Scales:
    """Return the best scales among those with and without exponents of rows and of columns."""
    power = np.square(integers, dtype=np.float32)
    of_rows, of_columns = _index(power.mean(1, dtype=np.float64)), _index(power.mean(0, dtype=np.float64))
    centre = float(_index(power.mean(dtype=np.float64)[None])[0])
    rows, columns = np.rint(of_rows - centre).astype(int), np.rint(of_columns - centre).astype(int)
    choices = [(r, c) for r in (0 * rows, rows) for c in (0 * columns, columns)]
    best = min((_with_scales(integers, r + round(centre), c) for r, c in choices), key=lambda found: found.bits)
    for shift in (-1, 1):
        while (found := _with_scales(integers, best.rows + shift, best.columns)).bits < best.bits:
            best = found
    return best


def _with_scales(integers: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> _Scales:
    scales = _sum(rows, columns)
    if int(scales.max()) > LAST:
        at = np.arange(FIRST, _LARGEST + 1)
        n_low, half, table = (np.array([f(int(i)) for i in at], np.int32) for f in (_low_bits, _half, _table))
        place = scales - FIRST
        high = (integers + half[place]) >> n_low[place]
        raw, scales = float(n_low[place].sum()), table[place]
    else:
        high, raw = integers, 0.0
    symbols = np.where(np.abs(high) > MOST, BEYOND, high + MOST)
    bits = raw + float(lengths()[scales - FIRST, symbols].sum(dtype=np.float64))
    bits += _RAW * float((symbols == BEYOND).sum())
    return _Scales(rows=rows, columns=columns, bits=bits + bits_of_exponents(rows) + bits_of_exponents(columns))


def _index(power: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Return the scale of integers of this mean square: rounding adds 1/12 to that of the density."""
    least = 2.0 ** (2.0 * FIRST / PER_OCTAVE)
    return np.minimum(PER_OCTAVE * 0.5 * np.log2(np.maximum((power - 1.0 / 12.0) / _VARIANCE, least)), _LARGEST)


def _centre_of(exponents: Int[np.ndarray, " n"]) -> int:
    return int(np.median(exponents))


def _pushed(exponents: Int[np.ndarray, " n"], writer: Writer) -> tuple[int, int]:
    """Push a sequence of exponents, and return its centre and its scale."""
    centre = _centre_of(exponents)
    away = exponents - centre
    if not away.any():
        return centre, _ABSENT
    table = FIRST + int(np.argmin(lengths()[:, away + MOST].sum(1)))
    writer.push(away + MOST, probabilities(table))
    return centre, table


def _popped(n: int, centre: int, table: int, reader: Reader) -> Int[np.ndarray, " n"]:
    if table == _ABSENT:
        return np.full(n, centre)
    if not FIRST <= table <= LAST:
        raise PrecisionError(f"Got coded entries with the scale {table}, which does not exist; get the file again.")
    return reader.pop(n, probabilities(table)).astype(np.int64) - MOST + centre
