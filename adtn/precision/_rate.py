"""Rounding to a number of bits per entry, which entropy codes take.

At high rates the error of a matrix in a metric is smallest for its length if the columns are rounded one after the
other with error feedback, each with a step such that all steps over the conditional deviations of their inputs are
equal: columns then contribute equally to the error (reverse water-filling), and what remains above the bound is a
quarter of a bit per entry, as for any scalar quantiser with entropy codes (Gish and Pierce 1968). Integers of a fixed
length lose more: half a bit for the range of their groups, and the bits of the scales.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from .._typing import Float, Int
from ._coded import HEADER, LARGEST, RANGE, SHIFTS, Stepped, bits_of_exponents, encode, length_of, levels_of, steps_of
from ._descent import descend
from ._feedback import Feedback, ToLevel
from ._logistic import PER_OCTAVE
from ._scales import inverse

_SWEEPS = 2  # of descent after error feedback
_TRIES = 5
_ENOUGH = 0.997  # of the bits that are allowed, from which a smaller step is not tried
_SMALL = 1 << 16  # entries up to which steps per column are compared with a single one
_LARGEST_PART = 0.2  # of all bits, for the steps of columns
_LARGER = 2.0 ** (1 / 64)
_AIM = 0.9985  # of the bits that are allowed
_ROOM = 0.5  # octaves above the step with which the largest integer has 16 bits, for error feedback
_SHIFT = 0.05  # of magnitudes at 2 bits, in steps
_PER_BIT = 2.2  # times the shift for each bit less
_LARGEST_SHIFT = 0.15
_BLANK = Stepped(integers=np.zeros((1, 1), np.int64), step=1.0, exponents=np.zeros(1, np.int64))


def with_rate(
    x: Float[np.ndarray, "rows columns"],
    nbytes: int,
    of_columns: Float[np.ndarray, "columns columns"] | None = None,
    of_rows: Float[np.ndarray, "rows rows"] | None = None,
) -> Stepped:
    """Round a matrix so that it takes at most so many bytes.

    Parameters
    ----------
    x : array
        The matrix, with entries of at most about 1.
    nbytes : int
        See :func:`coded_bytes`.
    of_columns, of_rows : array, optional
        The second moment of what the columns, or the rows, are multiplied with.
    """
    uniform = np.zeros(x.shape[1], int)
    shift = _shift(8.0 * (nbytes - HEADER) / x.size)
    if of_columns is None:
        nearest = _nearest(x, shift) if of_rows is None else _by_rows(x, of_rows, shift)
        return _searched(x, nbytes, replace(_BLANK, exponents=uniform, shift=shift), nearest)
    feedback = Feedback.of(of_columns)
    wanted = -0.5 * PER_OCTAVE * np.log2(feedback.importance)
    exponents = np.clip(np.rint(wanted - wanted.mean()), -RANGE, RANGE).astype(int)
    if bits_of_exponents(exponents) > _LARGEST_PART * 8 * nbytes:
        exponents = uniform
    own = replace(_BLANK, exponents=exponents, shift=shift)
    rounding = _by_columns(x, feedback, of_columns, shift)
    best = _searched(x, nbytes, own, rounding)
    if x.size > _SMALL:
        return best
    flat, metric = replace(own, exponents=uniform), of_columns.astype(np.float32)
    others = [_searched(x, nbytes, flat, rounding), _searched(x, nbytes, flat, _nearest(x, shift))]

    def error(found: Stepped) -> float:
        away = found.decode() - x
        return float(np.vdot(away @ metric, away))

    return min([best, *others], key=error)


_Round = Callable[[Float[np.ndarray, " columns"]], np.ndarray]
"""Integers for steps."""


def _shift(rate: float) -> int:
    """Return the best shift of magnitudes, and of the ends of intervals, measured on trained weights."""
    return round(SHIFTS * min(_SHIFT * _PER_BIT ** (2.0 - rate), _LARGEST_SHIFT))


def _nearest(x: np.ndarray, shift: int) -> _Round:
    return lambda steps: _integers(x * inverse(steps), shift)


def _integers(values: np.ndarray, shift: int) -> np.ndarray:
    """Round values in units of their steps; intervals begin later than halfway, as small integers are cheap."""
    magnitudes = np.minimum(np.floor(np.abs(values) + np.float32(0.5 - shift / SHIFTS)), LARGEST)
    return np.copysign(magnitudes, values)


def _to_level(shift: int) -> ToLevel:
    return lambda values, k: levels_of(_integers(values, shift), shift)


def _of_levels(levels: np.ndarray) -> np.ndarray:
    return np.sign(levels) * np.ceil(np.abs(levels))


def _by_columns(x: np.ndarray, feedback: Feedback, moment: np.ndarray, shift: int) -> _Round:
    turned, to_level = np.ascontiguousarray(x.T), _to_level(shift)

    def rounded(steps: np.ndarray) -> np.ndarray:
        scales = np.ascontiguousarray(np.broadcast_to(steps[:, None], turned.shape))
        levels = feedback.rounded(turned, scales, to_level)
        return _of_levels(descend(turned, moment, levels, scales, to_level, _SWEEPS).T)

    return rounded


def _by_rows(x: np.ndarray, moment: np.ndarray, shift: int) -> _Round:
    feedback = Feedback.of(moment)
    return lambda steps: _of_levels(feedback.rounded(x, np.broadcast_to(steps, x.shape), _to_level(shift)))


@dataclass
class _Try:
    """A step with what it leads to."""

    log: float
    matrix: Stepped
    bits: float


def _searched(x: np.ndarray, nbytes: int, start: Stepped, rounding: _Round) -> Stepped:
    """Find the smallest step with which a matrix takes at most so many bytes."""
    most = 8.0 * (nbytes - HEADER)

    def tried(log: float) -> _Try:
        step = float(np.float32(2.0**log))
        matrix = replace(start, integers=rounding(steps_of(step, start.exponents)).astype(np.int64), step=step)
        return _Try(log, matrix, length_of(matrix))

    if not x.any():
        return replace(start, integers=np.zeros(x.shape, np.int64), step=1.0, exponents=0 * start.exponents)
    relative = np.abs(x).max(0) / steps_of(1.0, start.exponents)
    lowest = math.log2(float(relative.max()) / LARGEST) + _ROOM  # where integers have 16 bits
    log, slope = _start(x, most, start)
    best: _Try | None = None
    last: _Try | None = None
    for _ in range(_TRIES):
        log = max(log, lowest)
        now = tried(log)
        if now.bits <= most and (best is None or now.log < best.log):
            best = now
        if best is not None and (best.bits >= _ENOUGH * most or best.log == lowest):
            break
        if last is not None and abs(now.log - last.log) > 1e-6:
            found = (now.bits - last.bits) / (now.log - last.log)
            slope = found if found < 0.0 else slope
        last = now
        log += (_AIM * most - now.bits) / slope
    while best is None or encode(best.matrix, nbytes) is None:  # the ideal length is nearly that of the coder
        log = (log if best is None else best.log) + 1.0 / 64.0
        best = now if (now := tried(log)).bits <= most else None
    return best.matrix


def _start(x: np.ndarray, most: float, start: Stepped) -> tuple[float, float]:
    """Return the logarithm of the step with which the nearest integers have this length, and the derivative."""
    rows = x
    if x.size > _SMALL:
        rows = x[np.random.default_rng(0).permutation(len(x))[: max(_SMALL // x.shape[1], 1)]]
    aim = most * rows.size / x.size
    nearest = _nearest(rows, start.shift)
    deviation = math.sqrt(float(np.mean(np.square(x / steps_of(1.0, start.exponents)))))

    def bits(log: float) -> float:
        step = float(np.float32(2.0**log))
        integers = nearest(steps_of(step, start.exponents)).astype(np.int64)
        return length_of(replace(start, integers=integers, step=step))

    low, high = math.log2(deviation) - 7.0, math.log2(deviation) + 5.0
    for _ in range(10):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if bits(middle) > aim else (low, middle)
    slope = (bits(high + 0.1) - bits(high - 0.1)) / 0.2 * x.size / rows.size
    return high, min(slope, -0.05 * x.size)


def fitted(x: Float[np.ndarray, "rows columns"], start: Stepped, nbytes: int) -> Int[np.ndarray, " nbytes"]:
    """Return the bytes of the nearest integers for the steps of a matrix, or for the next larger ones that fit."""
    while True:
        integers = _nearest(x, start.shift)(steps_of(start.step, start.exponents)).astype(np.int64)
        data = encode(replace(start, integers=integers), nbytes)
        if data is not None:
            return data
        start = replace(start, step=float(np.float32(start.step * _LARGER)))
