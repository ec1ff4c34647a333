"""Rounding with error feedback, as in GPTQ (Frantar et al. 2022, arXiv:2210.17323).

Columns are rounded one after the other, and the columns that are still to come make up for the error of each: with
the second moment ``H`` of what the columns are multiplied with, the error of a row is ``e H e^T``, and the best change
of the later columns follows from the Cholesky factor of the inverse of ``H``.

Unlike there, all scales are found before the first column is rounded. Columns can then come in any order whatever the
groups are, and by descending diagonal the error was up to 40 percent smaller than in the order of the groups, with
scales that are found when a group begins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from .._typing import Float, Int
from ._scales import group_scales, inverse

_DAMPING = 0.01
_BLOCK = 128


@dataclass(frozen=True, kw_only=True)
class Rounded:
    """A matrix as integers.

    Parameters
    ----------
    integers : array
        ``(rows, columns)``, from 0 to ``2**bits - 1``.
    scales, zeros : array
        ``(rows, groups)``.
    group : int
        The number of columns of a group.
    """

    integers: Float[np.ndarray, "rows columns"]
    scales: Float[np.ndarray, "rows groups"]
    zeros: Float[np.ndarray, "rows groups"]
    group: int

    def decode(self) -> Float[np.ndarray, "rows columns"]:
        """Return the values."""
        place = _groups(self.integers.shape[1], self.group)
        return (self.integers - self.zeros[:, place]) * self.scales[:, place]


def nearest(x: Float[np.ndarray, "rows columns"], group: int, n_bits: int) -> Rounded:
    """Round every entry to the nearest value of its group."""
    rows, columns = x.shape
    groups = -(-columns // group)
    padded = x
    if groups * group > columns:  # zeros change neither the range nor the error of a group
        padded = np.zeros((rows, groups * group), x.dtype)
        padded[:, :columns] = x
    grouped = padded.reshape(rows * groups, group)
    scales, zeros = group_scales(grouped, None, n_bits)
    integers = np.rint(grouped * inverse(scales)[:, None] + zeros[:, None])
    np.clip(integers, 0, 2**n_bits - 1, out=integers)
    return Rounded(
        integers=integers.reshape(rows, -1)[:, :columns],
        scales=scales.reshape(rows, groups),
        zeros=zeros.reshape(rows, groups),
        group=group,
    )


def with_feedback(x: Float[np.ndarray, "rows columns"], feedback: Feedback, group: int, n_bits: int) -> Rounded:
    """Round the columns one after the other with error feedback.

    Parameters
    ----------
    x : array
        The matrix, with entries of at most 1.
    feedback : Feedback
        For the second moment of what its columns are multiplied with.
    group : int
        The number of columns of a group.
    n_bits : int
        The number of bits of an entry.
    """
    scales, zeros = _scales_of(x, feedback.importance, group, n_bits)
    place = _groups(x.shape[1], group)
    zero = zeros[place]
    levels = feedback.rounded(x.T, scales[place], clipped(zero, n_bits))
    return Rounded(integers=(levels + zero).T, scales=scales.T, zeros=zeros.T, group=group)


def with_row_feedback(
    x: Float[np.ndarray, "rows columns"], moment: Float[np.ndarray, "rows rows"], rounded: Rounded, n_bits: int
) -> Rounded:
    """Round the rows one after the other with error feedback, with the scales of ``rounded``.

    Parameters
    ----------
    x : array
        The matrix, with entries of at most 1.
    moment : array
        The second moment of what its rows are multiplied with.
    rounded : Rounded
        The nearest integers and their scales.
    n_bits : int
        The number of bits of an entry.
    """
    place = _groups(x.shape[1], rounded.group)
    zero = rounded.zeros[:, place]
    levels = Feedback.of(moment).rounded(x, rounded.scales[:, place], clipped(zero, n_bits))
    return replace(rounded, integers=levels + zero)


ToLevel = Callable[[Float[np.ndarray, " width"], int], Float[np.ndarray, " width"]]
"""Maps entries of a row in units of their steps to the nearest ones that can be stored, given the number of the row."""


def clipped(zeros: Float[np.ndarray, "n width"], n_bits: int) -> ToLevel:
    """Return the rounding to integers from 0 to ``2**n_bits - 1`` less their zero points."""
    top = np.float32(2**n_bits - 1)

    def to_level(values: np.ndarray, k: int) -> np.ndarray:
        return np.clip(np.rint(values + zeros[k]), 0, top) - zeros[k]

    return to_level


def _groups(columns: int, group: int) -> np.ndarray:
    """Return the group of every column."""
    return np.arange(columns) // group


@dataclass(frozen=True)
class Feedback:
    """The order in which the rows of a matrix are rounded, and how later ones answer to the error of each.

    Parameters
    ----------
    order : array of int
        The rows, those that matter most first.
    factor : array
        The factor of the inverse of the moment, in this order.
    """

    order: np.ndarray
    factor: Float[np.ndarray, "n n"]

    @classmethod
    def of(cls, moment: Float[np.ndarray, "n n"]) -> Feedback:
        """Find the order and the factor for the second moment of what the rows are multiplied with."""
        # those that matter most first, as the others, which can make up for them, are then still free
        order = np.argsort(-np.diagonal(moment), kind="stable")
        return cls(order, inverse_factor(moment[np.ix_(order, order)]))

    def permuted(self, order: Int[np.ndarray, " n"]) -> Feedback:
        """Return the same for the rows in this order."""
        return replace(self, order=np.argsort(order)[self.order])

    @property
    def importance(self) -> Float[np.ndarray, " n"]:
        """The cost of an error in each row, after the best answer to it."""
        diagonal = np.diagonal(self.factor)
        importance = np.empty(len(self.order))
        importance[self.order] = (diagonal.min() / diagonal) ** 2
        return importance

    def rounded(
        self,
        x: Float[np.ndarray, "n width"],
        scales: Float[np.ndarray, "n width"],
        to_level: ToLevel,
    ) -> Float[np.ndarray, "n width"]:
        """Round the first row of the order, change the others by the best answer to its error, and so on.

        Returns values in units of the scales.
        """
        n, width = x.shape
        relative = (self.factor / np.diagonal(self.factor)[:, None]).astype(np.float32)
        left = np.array(x[self.order], np.float32, order="C")
        levels = np.empty((n, width), np.float32)
        for start in range(0, n, _BLOCK):
            stop = min(start + _BLOCK, n)
            errors = np.empty((stop - start, width), np.float32)
            for i in range(start, stop):
                k = self.order[i]
                levels[k] = to_level(left[i] * inverse(scales[k]), k)
                error = np.subtract(left[i], levels[k] * scales[k], out=errors[i - start])
                left[i + 1 : stop] -= relative[i, i + 1 : stop, None] * error
            left[stop:] -= relative[start:stop, stop:].T @ errors
        return levels


def _scales_of(
    x: Float[np.ndarray, "rows columns"], importance: Float[np.ndarray, " columns"], group: int, n_bits: int
) -> tuple[Float[np.ndarray, "groups rows"], Float[np.ndarray, "groups rows"]]:
    """Find the scales and zero points of all groups."""
    found = [
        group_scales(x[:, at : at + group], importance[at : at + group], n_bits) for at in range(0, x.shape[1], group)
    ]
    return np.stack([scale for scale, _ in found]), np.stack([zero for _, zero in found])


def inverse_factor(moment: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """Return the upper factor ``U`` of the inverse of the damped moment, ``U^T U``."""
    diagonal = np.diagonal(moment)
    mean = float(diagonal.mean())
    # columns that are never used are damped as well, and so rounded to the nearest
    damped = moment / (mean or 1.0)
    n = len(damped)
    damping = _DAMPING
    while True:
        try:
            # reversed in both axes, the inverse of a lower factor is the upper factor of the inverse
            lower = np.linalg.cholesky(damped[::-1, ::-1] + damping * np.eye(n))
            return _inverse_of_lower(lower)[::-1, ::-1]
        except np.linalg.LinAlgError:  # the moment has negative eigenvalues, by rounding
            damping *= 10


def _inverse_of_lower(lower: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    n = len(lower)
    if n <= _BLOCK:
        return np.tril(np.linalg.inv(lower))
    half = n // 2
    first, last = _inverse_of_lower(lower[:half, :half]), _inverse_of_lower(lower[half:, half:])
    out = np.zeros_like(lower)
    out[:half, :half], out[half:, half:] = first, last
    out[half:, :half] = -last @ (lower[half:, :half] @ first)
    return out
