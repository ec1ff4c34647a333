"""Slices by the Fiedler vector of their similarity."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .._typing import Float, Int
from ._ordering import OfSlices, squared_cosines
from ._registry import register_ordering

_MOST = 4096


@dataclass(frozen=True, kw_only=True)
class Spectral(OfSlices):
    """The order of slices by the Fiedler vector of a graph whose weights are squared cosines between slices.

    It minimises the sum of weights times squared distances among all real numbers of unit norm, so that similar slices
    come near each other.

    References
    ----------
    J. Atkins, E. Boman, B. Hendrickson (1998), SIAM J. Comput. 28, 297.
    """

    def of_rows(self, rows: Float[np.ndarray, "n rest"]) -> Int[np.ndarray, " n"]:
        """Order rows by the second eigenvector of the normalised Laplacian."""
        similar = squared_cosines(rows, _MOST)
        np.fill_diagonal(similar, 0.0)
        degrees = np.maximum(similar.sum(1), 1e-300)
        root = 1.0 / np.sqrt(degrees)
        # the largest eigenvalues of this matrix are the smallest ones of the normalised Laplacian
        vectors = np.linalg.eigh(root[:, None] * similar * root)[1]
        fiedler = vectors[:, -2] * root if len(rows) > 1 else vectors[:, 0]
        # eigenvectors have no sign of their own
        return np.argsort(fiedler * np.copysign(1.0, fiedler[np.argmax(np.abs(fiedler))]), kind="stable")


register_ordering("spectral", Spectral())
