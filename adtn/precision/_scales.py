"""Scales and zero points of groups: those with the smallest squared error, not those that hold the extremes."""

from __future__ import annotations

import numpy as np

from .._typing import Float

UNIT = 2.0**14
"""Scales are stored times this number, in an array whose largest entry is from 1/2 to 1: none overflows."""
_LEAST = {4: 0.5, 3: 0.35, 2: 0.2}  # how much of the range is kept at least
_CANDIDATES = 14
_REFINEMENTS = 2
_ENTRIES = 1 << 18  # of a slice, so that its intermediates stay in the cache


def group_scales(
    values: Float[np.ndarray, "n group"], weights: Float[np.ndarray, " group"] | None, n_bits: int
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Find the scale and the zero point of every group.

    Parameters
    ----------
    values : array
        The groups, ``(n, group)``, with entries of at most about 1.
    weights : array, optional
        The weight of the squared error of each column.
    n_bits : int
        The number of bits of an entry.

    Returns
    -------
    tuple of array
        Scales, which float16 holds after multiplication with :data:`UNIT`, and zero points.
    """
    n, width = values.shape
    scales, zeros = np.empty(n, np.float32), np.empty(n, np.float32)
    step = max(_ENTRIES // max(width, 1), 1)
    for at in range(0, n, step):
        part = slice(at, at + step)
        x = np.asarray(values[part], np.float32)
        scales[part], zeros[part] = _searched(x, None if weights is None else np.asarray(weights, np.float32), n_bits)
    return scales, zeros


def _searched(x: np.ndarray, weights: np.ndarray | None, n_bits: int) -> tuple[np.ndarray, np.ndarray]:
    top = 2**n_bits - 1
    low, high = np.minimum(x.min(1), 0), np.maximum(x.max(1), 0)  # zero is among the values
    best = _Best(x, weights, top)
    if n_bits == 8:  # the whole range costs little
        best.offer(*_over(low, high, top))
    elif n_bits > 2:
        for kept in np.linspace(1.0, _LEAST[n_bits], _CANDIDATES, dtype=np.float32):
            best.offer(*_over(low * kept, high * kept, top))
    else:
        # zero points in half steps up to the middle; a negative scale is as good as one behind the middle
        for zero in (1.5, 1.0, 0.5, 0.0):
            for sign, below, above in ((1, -low, high), (-1, high, -low)):
                widest = np.maximum(above / (top - zero), below / zero if zero else 0)
                for kept in np.linspace(1.0, _LEAST[n_bits], _CANDIDATES // 2, dtype=np.float32):
                    best.offer(rounded_scales(sign * kept * widest), np.full(len(x), zero, np.float32))
    for _ in range(_REFINEMENTS if n_bits < 8 else 0):
        # the scale that fits these integers best in the sense of least squares
        levels = best.levels(best.scale, best.zero)
        weighted = levels if weights is None else levels * weights
        above, below = np.einsum("ng,ng->n", weighted, x), np.einsum("ng,ng->n", weighted, levels)
        fitted = above / np.where(below > 0, below, 1)
        best.offer(rounded_scales(np.where(fitted * best.scale > 0, fitted, best.scale)), best.zero)
    return best.scale, best.zero


def _over(low: np.ndarray, high: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the scale and the integer zero point of a range."""
    scale = rounded_scales((high - low) / np.float32(top))
    return scale, np.clip(np.rint(-low * inverse(scale)), 0, top)


class _Best:
    """The best scale and zero point so far of every group."""

    def __init__(self, x: np.ndarray, weights: np.ndarray | None, top: int) -> None:
        self.x, self.weights, self.top = x, weights, top
        self.error = np.full(len(x), np.inf, np.float32)
        self.scale, self.zero = np.zeros(len(x), np.float32), np.zeros(len(x), np.float32)

    def levels(self, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
        """Return the nearest integers less their zero points."""
        levels = self.x * inverse(scale)[:, None]
        levels += zero[:, None]
        np.clip(np.rint(levels, out=levels), 0, self.top, out=levels)
        levels -= zero[:, None]
        return levels

    def offer(self, scale: np.ndarray, zero: np.ndarray) -> None:
        """Take what is better."""
        away = self.levels(scale, zero)
        away *= scale[:, None]
        away -= self.x
        error = np.einsum("ng,ng->n", away, away if self.weights is None else away * self.weights)
        better = error < self.error
        self.error = np.where(better, error, self.error)
        self.scale, self.zero = np.where(better, scale, self.scale), np.where(better, zero, self.zero)


def rounded_scales(scale: np.ndarray) -> np.ndarray:
    """Round scales to those that are stored."""
    return (np.clip(scale, -2.0, 2.0) * np.float32(UNIT)).astype(np.float16).astype(np.float32) / np.float32(UNIT)


def inverse(scale: np.ndarray) -> np.ndarray:
    """Return 1 / scale, and 0 where the scale is 0: all entries are then stored as zero."""
    return np.divide(1.0, scale, out=np.zeros_like(scale), where=scale != 0)
