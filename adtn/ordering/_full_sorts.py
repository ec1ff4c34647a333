"""Full sorts: of all entries, or of those of each row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .._typing import Float
from ._bits import bits_of_permutation
from ._ordering import Approximate, Order, Ordering
from ._registry import register_ordering


@dataclass(frozen=True, kw_only=True)
class Entries(Ordering):
    """All entries in ascending order, which costs ``log2(N!)`` bits."""

    is_flat: ClassVar[bool] = True

    def bits(self, tensor: Float[np.ndarray, "*shape"]) -> float:
        """Return the bits of a permutation of all entries."""
        return bits_of_permutation(tensor.size)

    def order(self, tensor: Float[np.ndarray, "*shape"], approximate: Approximate) -> Order:
        """Sort everything."""
        del approximate
        return Order(entries=np.argsort(tensor.reshape(-1), kind="stable"), bits=self.bits(tensor))


@dataclass(frozen=True, kw_only=True)
class Rows(Ordering):
    """The entries of each row, along the last axis, in ascending order: ``log2(m!)`` bits per row of ``m``."""

    is_flat: ClassVar[bool] = True

    def bits(self, tensor: Float[np.ndarray, "*shape"]) -> float:
        """Return the bits of one permutation per row."""
        m = tensor.shape[-1]
        return tensor.size // m * bits_of_permutation(m)

    def order(self, tensor: Float[np.ndarray, "*shape"], approximate: Approximate) -> Order:
        """Sort every row."""
        del approximate
        m = tensor.shape[-1]
        within = np.argsort(tensor.reshape(-1, m), axis=1, kind="stable")
        return Order(entries=(within + m * np.arange(len(within))[:, None]).reshape(-1), bits=self.bits(tensor))


register_ordering("entries", Entries())
register_ordering("rows", Rows())
