"""Slices exchanged in pairs, as long as the network then approximates the tensor better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from .._checks import Range
from .._typing import Float, Int
from ._refined import Refined
from ._registry import register_ordering

_NONE = 1e-10  # relative size of singular values, and of gains, that count as none
_PER_SLICE = 2  # exchanges between two fits, unless their number is given
_ONE_BY_ONE = 512  # slices up to which the pair with the largest gain of all is exchanged first


@dataclass(frozen=True, kw_only=True)
class Search(Refined):
    r"""An order that exchanges of pairs of slices improve, the pair with the largest gain first.

    Networks whose legs come axis by axis, such as trains, trees and Tucker forms, span only a part of all directions of
    an axis. The gain is then that of the network whose inner core is fitted again: with orthonormal directions U of the
    places and V of what is in the slices, a core G = Uᵀ X V leaves the squared error :math:`|X|^2 - |G|^2`, and
    exchanging slices i and j changes G by a matrix of rank one. All n² gains follow from inner products of rows of U
    and of X V. Otherwise it is the gain for the approximation as it is.

    Of more than 512 slices, many pairs without a slice in common are exchanged before all gains are computed again;
    each is evaluated exactly for the core at that time.

    Parameters
    ----------
    axes, absorbed, rounds
        See :class:`Refined`.
    exchanges : int, optional
        The largest number of exchanges along an axis between two fits; by default, twice the number of slices.
    """

    exchanges: Annotated[int, Range(1)] | None = None

    def improved(self, rows: Float[np.ndarray, "n rest"], fitted: Float[np.ndarray, "n rest"]) -> Int[np.ndarray, " n"]:
        """Swap pairs until no exchange gains anything."""
        found = Exchanges(rows, fitted)
        most = self.exchanges or _PER_SLICE * len(rows)
        return found.one_by_one(most) if len(rows) <= _ONE_BY_ONE else found.in_passes(most)


class Exchanges:
    """The exchanges of pairs of rows, as long as they gain something.

    Parameters
    ----------
    rows : array
        What is approximated.
    fitted : array
        The approximation.
    """

    def __init__(self, rows: Float[np.ndarray, "n rest"], fitted: Float[np.ndarray, "n rest"]) -> None:
        self.places, self.content, values, self.is_free = _directions(rows, fitted)
        self.core = self.places.T @ self.content if self.is_free else values
        self.order = np.arange(len(rows))
        self._far = _squared_distances(self.places) if self.is_free else 0.0
        self._least = _NONE * float(np.vdot(rows, rows))

    def one_by_one(self, most: int) -> Int[np.ndarray, " n"]:
        """Swap the pair with the largest gain of all, up to ``most`` times."""
        products = self._products()
        for _ in range(most):
            gains = self._all(products)
            i, j = divmod(int(np.argmax(gains)), len(self.order))
            if gains[i, j] <= self._least:
                break
            if self.is_free:
                of_places, of_content = self.places[i] - self.places[j], self.content[j] - self.content[i]
                products += np.outer(self.places @ of_places, self.content @ of_content)
            self._swap(i, j)
            products[:, [i, j]] = products[:, [j, i]]
        return self.order

    def in_passes(self, most: int) -> Int[np.ndarray, " n"]:
        """Swap up to ``most`` pairs, in each pass those without a slice in common, the largest gains first."""
        left = most
        while left > 0:
            pairs = self._disjoint(self._all(self._products()))
            done = sum(self._exchanged(i, j) for i, j in pairs[:left])
            if not done:
                break
            left -= done
        return self.order

    def gain(self, i: int, j: int) -> float:
        """Compute the decrease of the squared error by an exchange of two slices."""
        of_places, of_content = self.places[i] - self.places[j], self.content[j] - self.content[i]
        found = 2.0 * float(of_places @ self.core @ of_content)
        return found + float(of_places @ of_places) * float(of_content @ of_content) if self.is_free else found

    def _products(self) -> Float[np.ndarray, "n n"]:
        return self.places @ self.core @ self.content.T  # of place i and of what is at place j

    def _all(self, products: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
        own = np.diag(products)
        gains = 2.0 * (products + products.T - own[:, None] - own)
        if self.is_free:
            gains += self._far * _squared_distances(self.content)
        return gains

    def _disjoint(self, gains: Float[np.ndarray, "n n"]) -> list[tuple[int, int]]:
        """List pairs without a slice in common: of each slice the best partner, if it is still there."""
        partners, free = np.argmax(gains, axis=1), np.ones(len(gains), bool)
        best = gains[np.arange(len(gains)), partners]
        pairs: list[tuple[int, int]] = []
        for i in np.argsort(-best, kind="stable"):
            j = partners[i]
            if best[i] <= self._least:
                break
            if free[i] and free[j]:
                free[[i, j]] = False
                pairs.append((int(i), int(j)))
        return pairs

    def _exchanged(self, i: int, j: int) -> bool:
        """Swap two slices if this still gains something after the exchanges before."""
        if self.gain(i, j) <= self._least:
            return False
        if self.is_free:
            self.core += np.outer(self.places[i] - self.places[j], self.content[j] - self.content[i])
        self._swap(i, j)
        return True

    def _swap(self, i: int, j: int) -> None:
        self.order[[i, j]], self.content[[i, j]] = self.order[[j, i]], self.content[[j, i]]


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
