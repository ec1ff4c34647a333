"""The metric of a layer's inputs, in which a tensor is ordered and approximated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .._typing import Float, Shape
from ..errors import OrderingError, TopologyError
from ..weight import checked_moment
from ._ordering import Order


@dataclass(frozen=True, kw_only=True, eq=False)
class Metric:
    """A second moment M of the inputs, over all axes but the first, and its symmetric square root.

    The product with the root is a tensor whose plain errors are those of the outputs. A permutation of the inputs
    permutes it likewise, as the symmetric root of a permuted moment is the permuted root: so whatever orders slices can
    order those of this tensor.

    Parameters
    ----------
    moment, root : array
        ``(n_in, n_in)``.
    """

    moment: Float[np.ndarray, "n_in n_in"]
    root: Float[np.ndarray, "n_in n_in"]

    @classmethod
    def of(cls, moment: Any, shape: Shape) -> Metric:
        """Check a moment, and compute its root.

        Raises
        ------
        OrderingError
            If it does not fit a tensor of this shape.
        """
        try:
            given = checked_moment(moment, shape)
        except TopologyError as error:
            raise OrderingError(str(error)) from error
        values, vectors = np.linalg.eigh(given)
        return cls(moment=given, root=(vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T)

    def whiten(self, tensor: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """Multiply with the root."""
        return (tensor.reshape(len(tensor), -1) @ self.root).reshape(tensor.shape)

    def sorted(self, order: Order, shape: Shape) -> Metric:
        """Return the metric of a tensor in another order."""
        places = np.arange(len(self.moment)).reshape(shape[1:])
        inner = order.axes[1:]
        for axis, moved in enumerate(inner):
            places = places if moved is None else np.take(places, moved, axis)
        if all(moved is None for moved in inner):
            return self
        block = np.ix_(places.reshape(-1), places.reshape(-1))
        return Metric(moment=self.moment[block], root=self.root[block])
