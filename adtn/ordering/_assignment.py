"""Slices assigned to the places of the current approximation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .._typing import Float, Int
from ._refined import Refined
from ._registry import register_ordering


@dataclass(frozen=True, kw_only=True)
class Assignment(Refined):
    """An order of slices, each at that place of the current approximation that makes all distances smallest.

    For a fixed approximation this is a linear assignment problem, which SciPy solves exactly; the network is then
    fitted again.
    """

    def improved(self, rows: Float[np.ndarray, "n rest"], fitted: Float[np.ndarray, "n rest"]) -> Int[np.ndarray, " n"]:
        """Return the assignment with the largest sum of inner products, which has the smallest distances."""
        from scipy.optimize import linear_sum_assignment

        return np.asarray(linear_sum_assignment(fitted @ rows.T, maximize=True)[1], np.int64)


register_ordering("assignment", Assignment())
