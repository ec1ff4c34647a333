"""Coefficients as integers, with the prediction of tokens by earlier ones of the same id.

All arithmetic is in float32 and on the host, token by token in one order, so that encoder and decoder agree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from .._typing import Float, Int
from ._nearness import buckets_of
from ._order import CLASSES, Order
from ._tables import FIRST, LAST, ROUNDING, grid_index, grid_value, table


@dataclass(frozen=True, kw_only=True)
class Magnitudes:
    """The expected magnitudes of the coefficients of a group, by class of token.

    Parameters
    ----------
    indices : array, (classes, coefficients), int16
        Mean magnitudes of what is not predicted, as points of the grid of :mod:`._tables`.
    parts : array, (classes, coefficients), int8
        The parts of the mean of earlier tokens of the same id that predict the next, in units of 1 / 127.
    shifts : array, (buckets,), int8
        How much coarser the step of tokens is by their distance from the end, in points of the grid.
    least : int
        Index of the smallest ratio that has symbols.
    """

    indices: Int[np.ndarray, "classes coefficients"]
    parts: Int[np.ndarray, "classes coefficients"]
    shifts: Int[np.ndarray, " buckets"]
    least: int = FIRST

    def tables(self, order: Order, steps: Int[np.ndarray, " tokens"]) -> Int[np.ndarray, "tokens coefficients"]:
        """Return the index of the table of every coefficient, ``FIRST - 1`` for those without symbols."""
        return self._with_symbols(self.indices.astype(np.int64)[order.classes] - steps[:, None])

    def tables_of_classes(self, step: int) -> Int[np.ndarray, "classes coefficients"]:
        """Return the tables of tokens of every class that have one step."""
        return self._with_symbols(self.indices.astype(np.int64) - step)

    def _with_symbols(self, ratios: Int[np.ndarray, "n coefficients"]) -> Int[np.ndarray, "n coefficients"]:
        return np.where(ratios < self.least, FIRST - 1, np.minimum(ratios, LAST))

    def steps(self, step: int, tokens: int) -> Int[np.ndarray, " tokens"]:
        """Return the steps of the last tokens of a prefix, which are finer near its end."""
        return step + self.shifts.astype(np.int64)[buckets_of(tokens)]

    def encode(
        self,
        c: Float[np.ndarray, "new coefficients"],
        order: Order,
        steps: Int[np.ndarray, " tokens"],
        earlier: Float[np.ndarray, "earlier coefficients"] | None = None,
    ) -> tuple[Int[np.ndarray, "new coefficients"], Float[np.ndarray, "new coefficients"]]:
        """Quantise coefficients, and return the symbols with what they decode to.

        Tokens whose coefficients were decoded ``earlier`` come first in the order.
        """
        units, tables, first = _units(steps), self.tables(order, steps), _length(earlier)
        symbols = np.zeros(c.shape, np.int32)

        def residual(at: Int[np.ndarray, " n"], predicted: Float[np.ndarray, "n m"]) -> Float[np.ndarray, "n m"]:
            x = c[at - first] - predicted
            q = np.where(tables[at] >= FIRST, np.floor(np.abs(x) / units[at] + np.float32(ROUNDING)), 0.0)
            own = symbols[at - first] = np.copysign(q, x).astype(np.int32)
            return _reconstructed(own, tables[at], units[at])

        return symbols, self._in_order(order, residual, earlier)

    def decode(
        self,
        symbols: Int[np.ndarray, "new coefficients"],
        order: Order,
        steps: Int[np.ndarray, " tokens"],
        earlier: Float[np.ndarray, "earlier coefficients"] | None = None,
    ) -> Float[np.ndarray, "new coefficients"]:
        """Return the coefficients that symbols stand for, after those that were decoded ``earlier``."""
        units, tables, first = _units(steps), self.tables(order, steps), _length(earlier)

        def residual(at: Int[np.ndarray, " n"], predicted: Float[np.ndarray, "n m"]) -> Float[np.ndarray, "n m"]:
            return _reconstructed(symbols[at - first], tables[at], units[at])

        return self._in_order(order, residual, earlier)

    def _in_order(
        self,
        order: Order,
        residual: Callable[[Int[np.ndarray, " n"], Float[np.ndarray, "n m"]], Float[np.ndarray, "n m"]],
        earlier: Float[np.ndarray, "earlier coefficients"] | None,
    ) -> Float[np.ndarray, "new coefficients"]:
        shape, first = (len(order.counts), self.indices.shape[1]), _length(earlier)
        parts = self.parts.astype(np.float32) / np.float32(127.0)
        found, means = np.empty(shape, np.float32), np.zeros(shape, np.float32)
        if earlier is not None:
            found[:first] = earlier
        for count, at in enumerate(order.rounds):
            before = means[order.previous[at]] if count else np.zeros((len(at), shape[1]), np.float32)
            n = int(np.searchsorted(at, first))
            predicted = parts[min(count, CLASSES - 1)] * before[n:]
            found[at[n:]] = predicted + residual(at[n:], predicted)
            means[at] = before + (found[at] - before) / np.float32(count + 1)
        return found[first:]


def _length(earlier: Float[np.ndarray, "earlier coefficients"] | None) -> int:
    return 0 if earlier is None else len(earlier)


def _units(steps: Int[np.ndarray, " tokens"]) -> Float[np.ndarray, "tokens 1"]:
    values, at = np.unique(steps, return_inverse=True)
    return np.array([grid_value(int(i)) for i in values], np.float32)[at][:, None]


def _reconstructed(
    symbols: Int[np.ndarray, "n m"], tables: Int[np.ndarray, "n m"], units: Float[np.ndarray, "n 1"]
) -> Float[np.ndarray, "n m"]:
    centres = _centres()[tables - (FIRST - 1)]
    return (np.sign(symbols) * (np.abs(symbols) + centres) * units).astype(np.float32)


@cache
def _centres() -> Float[np.ndarray, " tables"]:
    return np.array([0.0, *(table(i).centre for i in range(FIRST, LAST + 1))], np.float32)


class Sums:
    """The sums over calibration texts, from which :class:`Magnitudes` follow.

    Parameters
    ----------
    coefficients : int
    """

    def __init__(self, coefficients: int) -> None:
        shape = (CLASSES, coefficients)
        self._products, self._squares, self._magnitudes = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        self._tokens = np.zeros((CLASSES, 1))

    def add_predictions(
        self, c: Float[np.ndarray, "tokens m"], means: Float[np.ndarray, "tokens m"], order: Order
    ) -> None:
        """Add coefficients, and the mean of those of earlier tokens of the same id."""
        for k in range(1, CLASSES):
            own = order.classes == k
            self._products[k] += np.einsum("tm,tm->m", c[own], means[own])
            self._squares[k] += np.einsum("tm,tm->m", means[own], means[own])

    @property
    def parts(self) -> Int[np.ndarray, "classes coefficients"]:
        """The parts of the means that predict coefficients best."""
        best = self._products / np.maximum(self._squares, np.finfo(np.float64).tiny)
        return np.rint(127.0 * np.clip(best, 0.0, 1.0)).astype(np.int8)

    def add_magnitudes(self, residuals: Float[np.ndarray, "tokens m"], order: Order) -> None:
        """Add what is not predicted."""
        for k in range(CLASSES):
            own = order.classes == k
            self._magnitudes[k] += np.abs(residuals[own]).sum(0)
            self._tokens[k] += int(own.sum())

    @property
    def indices(self) -> Int[np.ndarray, "classes coefficients"]:
        """The mean magnitudes, as points of the grid."""
        return grid_index(self._magnitudes / np.maximum(self._tokens, 1.0))


def earlier_means(c: Float[np.ndarray, "tokens m"], order: Order) -> Float[np.ndarray, "tokens m"]:
    """Return the means of the coefficients of earlier tokens of the same id; zeros for the first."""
    found, means = np.zeros_like(c), np.zeros_like(c)
    for count, at in enumerate(order.rounds):
        if count:
            found[at] = means[order.previous[at]]
        means[at] = found[at] + (c[at] - found[at]) / np.float32(count + 1)
    return found
