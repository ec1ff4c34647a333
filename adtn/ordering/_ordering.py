"""The base class of ways of ordering, and the order that they find."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from .._checks import check_fields
from .._typing import Float, Int
from ..errors import OrderingError
from ..layout import Permutation
from ._bits import bits_of_permutation


@dataclass(frozen=True, kw_only=True)
class Order:
    """An order of a tensor, either of the slices along its axes or of all its entries.

    Parameters
    ----------
    axes : tuple of (array or None)
        For every axis, which slice of the tensor comes to each place, ``None`` if they stay in place.
    entries : array or None
        Which entry of the flattened tensor comes to each place.
    bits : float
        What it costs to store.
    """

    axes: tuple[Int[np.ndarray, " n"] | None, ...] = ()
    entries: Int[np.ndarray, " size"] | None = None
    bits: float = 0.0

    @property
    def is_flat(self) -> bool:
        """Whether entries are ordered instead of slices."""
        return self.entries is not None

    def sort(self, tensor: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "..."]:
        """Permute a tensor to this order; that of entries returns a vector."""
        if self.entries is not None:
            return tensor.reshape(-1)[self.entries]
        for axis, order in enumerate(self.axes):
            tensor = tensor if order is None else np.take(tensor, order, axis)
        return tensor

    @property
    def permutations(self) -> tuple[Permutation | None, ...]:
        """The permutations of a generator that makes the sorted tensor, so that it makes the original one."""
        if self.entries is not None:
            return (Permutation(np.argsort(self.entries)),)
        return tuple(None if order is None else Permutation(np.argsort(order)) for order in self.axes)


Approximate = Callable[[Order], Float[np.ndarray, "*shape"]]
"""A fit of a network of fixed ranks to the tensor in an order, ``approximate(order)``, in that order."""


@dataclass(frozen=True, kw_only=True)
class Ordering:
    """A way to order a tensor before it is approximated; the base class of all of them.

    A new one is a frozen dataclass with a method :meth:`order`, registered with
    :func:`adtn.ordering.register_ordering` if it shall have a name.
    """

    refines: ClassVar[bool] = False
    """Whether the order depends on the network, which is then chosen with the orders of :meth:`starts`."""
    is_flat: ClassVar[bool] = False
    """Whether entries are ordered instead of slices."""

    def __post_init__(self) -> None:
        check_fields(self, OrderingError)

    @abstractmethod
    def bits(self, tensor: Float[np.ndarray, "*shape"]) -> float:
        """Return the largest number of bits that the order of this tensor can cost."""

    @abstractmethod
    def order(self, tensor: Float[np.ndarray, "*shape"], approximate: Approximate) -> Order:
        """Order a tensor, with a fit of the network that will approximate it.

        With a moment of the inputs, the tensor and what the fit returns are multiplied with the root of it.
        """

    def starts(self, tensor: Float[np.ndarray, "*shape"]) -> list[Order]:
        """Return the orders with which a network is chosen, the order itself if it does not depend on that."""

        def nothing(order: Order) -> Float[np.ndarray, "*shape"]:
            raise OrderingError(f"Got {self}, which needs an approximation; expected a class variable refines=True.")

        return [self.order(tensor, nothing)]


@dataclass(frozen=True, kw_only=True)
class OfSlices(Ordering):
    """An order of the slices along axes, one permutation per axis.

    Parameters
    ----------
    axes : tuple of int, optional
        The axes that are ordered; by default, all with more than two entries.
    absorbed : tuple of int
        Axes whose order costs nothing, as a neighbouring layer takes it over.
    """

    axes: tuple[int, ...] | None = None
    absorbed: tuple[int, ...] = ()

    def bits(self, tensor: Float[np.ndarray, "*shape"]) -> float:
        """Return the bits of one permutation per axis that is not absorbed."""
        return sum(bits_of_permutation(tensor.shape[k]) for k in self.ordered(tensor) if k not in self.absorbed)

    def ordered(self, tensor: Float[np.ndarray, "*shape"]) -> tuple[int, ...]:
        """Return the axes that are ordered.

        Raises
        ------
        OrderingError
            If the tensor lacks one of them.
        """
        named = (*(self.axes or ()), *self.absorbed)
        if any(not 0 <= k < tensor.ndim for k in named):
            raise OrderingError(f"Got axes {named} for a tensor of shape {tensor.shape}; count its axes from 0.")
        if self.axes is not None:
            return self.axes
        return tuple(k for k, n in enumerate(tensor.shape) if n > 2)

    def found(self, orders: dict[int, Int[np.ndarray, " n"]], ndim: int) -> Order:
        """Make the order of orders by axis; those that change nothing cost nothing."""
        moved = {k: order for k, order in orders.items() if not np.array_equal(order, np.arange(len(order)))}
        bits = sum(bits_of_permutation(len(order)) for k, order in moved.items() if k not in self.absorbed)
        return Order(axes=tuple(moved.get(k) for k in range(ndim)), bits=bits)

    def order(self, tensor: Float[np.ndarray, "*shape"], approximate: Approximate) -> Order:
        """Order every axis by its slices."""
        del approximate
        axes = self.ordered(tensor)
        return self.found({k: self.of_rows(rows_along(tensor, k)) for k in axes}, tensor.ndim)

    def of_rows(self, rows: Float[np.ndarray, "n rest"]) -> Int[np.ndarray, " n"]:
        """Order the rows of a matrix, which are the slices along an axis."""
        raise NotImplementedError

    def for_axes_of(self, other: OfSlices) -> OfSlices:
        """Return this way of ordering for the axes of another one."""
        return replace(self, axes=other.axes, absorbed=other.absorbed)


def rows_along(tensor: Float[np.ndarray, "*shape"], axis: int) -> Float[np.ndarray, "n rest"]:
    """Return the slices along an axis as the rows of a matrix."""
    return np.moveaxis(tensor, axis, 0).reshape(tensor.shape[axis], -1)


def squared_cosines(rows: Float[np.ndarray, "n rest"], most: int) -> Float[np.ndarray, "n n"]:
    """Compare all pairs of rows, whatever their signs and norms: 1 for parallel ones.

    Raises
    ------
    OrderingError
        If there are too many rows to compare all pairs.
    """
    if len(rows) > most:
        raise OrderingError(
            f"Got an axis of {len(rows):,} slices, whose pairs are compared up to {most:,}; use ordering='norm', or "
            "split the tensor."
        )
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = rows / np.where(norms > 0.0, norms, 1.0)
    return np.minimum((unit @ unit.T) ** 2, 1.0)


def relative_error(found: Float[np.ndarray, "..."], wanted: Float[np.ndarray, "..."]) -> float:
    """Compute the norm of the difference over that of what is wanted, 0 for two arrays of zeros."""
    norm = math.sqrt(float(np.vdot(wanted, wanted)))
    away = float(np.linalg.norm((found - wanted).reshape(-1)))
    return away / norm if norm > 0.0 else away
