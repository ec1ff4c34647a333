"""Slices exchanged in pairs, as long as the network then approximates the tensor better."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .._typing import Float, Int
from ._refined import Refined
from ._registry import register_ordering

_NONE = 1e-10  # relative size of singular values, and of gains, that count as none
_PER_SLICE = 2  # exchanges between two fits


@dataclass(frozen=True, kw_only=True)
class Search(Refined):
    r"""An order that exchanges of pairs of slices improve, the pair with the largest gain first.

    Networks whose legs come axis by axis, such as trains, trees and Tucker forms, span only a part of all directions of
    an axis. The gain is then that of the network whose inner core is fitted again: with orthonormal directions U of the
    places and V of what is in the slices, a core G = Uᵀ X V leaves the squared error :math:`|X|^2 - |G|^2`, and
    exchanging slices i and j changes G by a matrix of rank one. All n² gains follow from inner products of rows of U
    and of X V. Otherwise it is the gain for the approximation as it is.
    """

    def improved(self, rows: Float[np.ndarray, "n rest"], fitted: Float[np.ndarray, "n rest"]) -> Int[np.ndarray, " n"]:
        """Swap pairs until no exchange gains anything."""
        places, content, values, is_free = _directions(rows, fitted)
        order = np.arange(len(rows))
        core = places.T @ content if is_free else values
        products = places @ core @ content.T  # of place i and of what is at place j
        far_places = _squared_distances(places) if is_free else 0.0
        least = _NONE * float(np.vdot(rows, rows))
        for _ in range(_PER_SLICE * len(rows)):
            own = np.diag(products)
            gains = 2.0 * (products + products.T - own[:, None] - own)
            if is_free:
                gains += far_places * _squared_distances(content)
            i, j = divmod(int(np.argmax(gains)), len(rows))
            if gains[i, j] <= least:
                break
            if is_free:
                of_places, of_content = places[i] - places[j], content[j] - content[i]
                products += np.outer(places @ of_places, content @ of_content)
            swap = [j, i]
            order[[i, j]], content[[i, j]], products[:, [i, j]] = order[swap], content[swap], products[:, swap]
        return order


def _directions(
    rows: Float[np.ndarray, "n rest"], fitted: Float[np.ndarray, "n rest"]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
    """Return the directions of the places, the rows in those of the content, and whether the core between is free."""
    left, values, right = np.linalg.svd(fitted, full_matrices=False)
    rank = int(np.sum(values > _NONE * max(float(values[0]), 1e-300)))
    is_free = rank < min(fitted.shape)  # otherwise a free core could make everything
    return left[:, :rank], rows @ right[:rank].T, np.diag(values[:rank]), is_free


def _squared_distances(x: Float[np.ndarray, "n r"]) -> Float[np.ndarray, "n n"]:
    norms = np.einsum("ij,ij->i", x, x)
    return np.maximum(norms[:, None] + norms - 2.0 * (x @ x.T), 0.0)


register_ordering("search", Search())
