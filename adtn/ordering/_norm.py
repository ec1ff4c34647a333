"""Slices by their norms."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .._typing import Float, Int
from ._ordering import OfSlices
from ._registry import register_ordering


@dataclass(frozen=True, kw_only=True)
class Norm(OfSlices):
    """The descending order of slices by their norms, that is, of their second moments."""

    def of_rows(self, rows: Float[np.ndarray, "n rest"]) -> Int[np.ndarray, " n"]:
        """Order rows by their norms; equal ones keep their order."""
        return np.argsort(-np.einsum("ij,ij->i", rows, rows), kind="stable")


register_ordering("norm", Norm())
