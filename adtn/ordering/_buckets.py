"""A coarse sort of all entries."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar

import numpy as np

from .._checks import Range
from .._typing import Float
from ..errors import OrderingError
from ._bits import bits_of_multinomial
from ._ordering import Approximate, Order, Ordering


@dataclass(frozen=True, kw_only=True)
class Buckets(Ordering):
    """An order of entries by ``k`` buckets of ascending values and equal sizes, in their own order within each.

    It costs the logarithm of a multinomial coefficient, about ``log2(k)`` bits per entry: what a sort is worth of which
    only the beginning is done. A step function of the buckets is a quantiser of the same rate.

    Parameters
    ----------
    k : int
        The number of buckets, from 2 to that of the entries.
    """

    k: Annotated[int, Range(2)] = 2
    is_flat: ClassVar[bool] = True

    def bits(self, tensor: Float[np.ndarray, "*shape"]) -> float:
        """Return the bits that say which entries are in which bucket."""
        return bits_of_multinomial(self._sizes(tensor.size))

    def order(self, tensor: Float[np.ndarray, "*shape"], approximate: Approximate) -> Order:
        """Sort by bucket."""
        del approximate
        sizes = self._sizes(tensor.size)
        bucket = np.empty(tensor.size, np.int64)
        bucket[np.argsort(tensor.reshape(-1), kind="stable")] = np.repeat(np.arange(self.k), sizes)
        return Order(entries=np.argsort(bucket, kind="stable"), bits=self.bits(tensor))

    def _sizes(self, size: int) -> list[int]:
        if self.k > size:
            raise OrderingError(f"Got {self.k} buckets for {size} entries; expected at most one per entry.")
        ends = [size * b // self.k for b in range(self.k + 1)]
        return [stop - start for start, stop in pairwise(ends)]
