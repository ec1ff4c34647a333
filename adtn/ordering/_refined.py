"""Orders that follow from the network: refits in turns with improvements of the order."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from .._checks import Range
from .._typing import Float, Int
from ._leaf import Leaf
from ._norm import Norm
from ._ordering import Approximate, OfSlices, Order, relative_error, rows_along
from ._spectral import Spectral

_LEAST_GAIN = 1e-4  # relative decrease of the error in a round, below which rounds end
_MOST_TO_COMPARE = 1024  # slices up to which starts that compare all pairs are tried


@dataclass(frozen=True, kw_only=True)
class Refined(OfSlices):
    """An order that is improved for a network, which is then fitted again.

    It starts from the best of no order, norms, the Fiedler vector and the optimal leaf order.

    Parameters
    ----------
    axes, absorbed
        See :class:`OfSlices`.
    rounds : int
        The largest number of rounds; they end when the error no longer decreases.
    """

    rounds: Annotated[int, Range(1)] = 8
    refines: ClassVar[bool] = True

    def order(self, tensor: Float[np.ndarray, "*shape"], approximate: Approximate) -> Order:
        """Improve the order of one axis after the other, and fit the network again."""
        axes, fit = self.ordered(tensor), _Fit(approximate)
        begun = [(self._error(one, tensor, fit), k, one) for k, one in enumerate(self._begun(tensor))]
        least, _, orders = min(begun, key=lambda one: one[:2])
        best = orders
        for _ in range(self.rounds):
            for k in axes:
                order = self.found(orders, tensor.ndim)
                better = self.improved(rows_along(order.sort(tensor), k), rows_along(fit(order), k))
                orders = {**orders, k: orders[k][better]}
            error = self._error(orders, tensor, fit)
            gained = error < (1.0 - _LEAST_GAIN) * least
            if error < least:
                best, least = orders, error
            if not gained:
                break
        return self.found(best, tensor.ndim)

    def starts(self, tensor: Float[np.ndarray, "*shape"]) -> list[Order]:
        """Return the orders that are improved."""
        return [self.found(orders, tensor.ndim) for orders in self._begun(tensor)]

    @abstractmethod
    def improved(self, rows: Float[np.ndarray, "n rest"], fitted: Float[np.ndarray, "n rest"]) -> Int[np.ndarray, " n"]:
        """Order rows so that the network, which is near ``fitted``, approximates them better."""

    def _begun(self, tensor: Float[np.ndarray, "*shape"]) -> Sequence[dict[int, Int[np.ndarray, " n"]]]:
        axes = self.ordered(tensor)
        ways: list[OfSlices] = [Norm()]
        if all(tensor.shape[k] <= _MOST_TO_COMPARE for k in axes):
            ways += [Spectral(), Leaf()]
        found = [{k: way.of_rows(rows_along(tensor, k)) for k in axes} for way in ways]
        return [{k: np.arange(tensor.shape[k]) for k in axes}, *found]

    def _error(
        self, orders: dict[int, Int[np.ndarray, " n"]], tensor: Float[np.ndarray, "*shape"], approximate: Approximate
    ) -> float:
        order = self.found(orders, tensor.ndim)
        return relative_error(approximate(order), order.sort(tensor))


class _Fit:
    """A fit that remembers the last order, which an error and an improvement need one after the other."""

    def __init__(self, approximate: Approximate) -> None:
        self._approximate = approximate
        self._last: tuple[Order, np.ndarray] | None = None

    def __call__(self, order: Order) -> Float[np.ndarray, "*shape"]:
        """Return the fit, computed only if the order is another one."""
        if self._last is None or not _are_equal(self._last[0], order):
            self._last = order, self._approximate(order)
        return self._last[1]


def _are_equal(one: Order, other: Order) -> bool:
    pairs = zip(one.axes, other.axes, strict=True)
    return all(a is b or (a is not None and b is not None and np.array_equal(a, b)) for a, b in pairs)
