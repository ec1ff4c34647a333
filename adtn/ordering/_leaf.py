"""Slices as the leaves of a tree of clusters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .._typing import Float, Int
from ._ordering import OfSlices, squared_cosines
from ._registry import register_ordering

_MOST = 2048  # the optimal order takes a time of the third power of the number of slices


@dataclass(frozen=True, kw_only=True)
class Leaf(OfSlices):
    """The optimal order of the leaves of a tree of clusters, whose distances are 1 less squared cosines.

    References
    ----------
    Z. Bar-Joseph, D. Gifford, T. Jaakkola (2001), Bioinformatics 17, S22.
    """

    def of_rows(self, rows: Float[np.ndarray, "n rest"]) -> Int[np.ndarray, " n"]:
        """Order rows by SciPy's ``optimal_leaf_ordering`` of the average linkage."""
        from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
        from scipy.spatial.distance import squareform

        if len(rows) < 3:
            return np.arange(len(rows))
        far = 1.0 - squared_cosines(rows, _MOST)
        np.fill_diagonal(far, 0.0)
        pairs = squareform(0.5 * (far + far.T))
        return np.asarray(leaves_list(optimal_leaf_ordering(linkage(pairs, "average"), pairs)), np.int64)


register_ordering("leaf", Leaf())
