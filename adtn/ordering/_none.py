"""No order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .._typing import Float
from ._ordering import Approximate, Order, Ordering
from ._registry import register_ordering


@dataclass(frozen=True, kw_only=True)
class Unordered(Ordering):
    """The order in which the tensor is given."""

    def bits(self, tensor: Float[np.ndarray, "*shape"]) -> float:
        """Return zero."""
        del tensor
        return 0.0

    def order(self, tensor: Float[np.ndarray, "*shape"], approximate: Approximate) -> Order:
        """Keep everything in place."""
        del approximate
        return Order(axes=(None,) * tensor.ndim)


register_ordering("none", Unordered())
