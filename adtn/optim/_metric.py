"""The metric of a layer's inputs on the legs of a layout."""

from __future__ import annotations

import math

import numpy as np

from .._typing import Float, Shape
from ..weight import Weighting, padded_moment

_LEAST_OF_LEG = 1e-6  # least eigenvalue of the moment of one leg, relative to the largest
_LEAST = 1e-10  # added to the whitened moment, so that no direction is free


class InputMetric:
    """The second moment of inputs on the input legs of a layout, and square roots of its marginals.

    A linear change of coordinates on every input leg, ``whiten``, makes the marginal of the moment on that leg the
    identity. What is left is the ``moment`` in these coordinates, which is the identity where the moment is a product
    over the legs.

    Parameters
    ----------
    weighting : Weighting
        The layout, with the permutations of the axes.
    moment : numpy.ndarray
        ``(n_in, n_in)`` in weight order, symmetric.
    """

    def __init__(self, weighting: Weighting, moment: Float[np.ndarray, "n_in n_in"]) -> None:
        layout = weighting.layout
        legs = sorted(range(layout.ndim_legs), key=lambda q: layout.leg_axes[q])
        self.outer = [q for q in legs if layout.leg_axes[q][0] == 0]
        self.inner = [q for q in legs if layout.leg_axes[q][0] > 0]
        self.dims = layout.dims
        moment = padded_moment(layout, np.asarray(weighting.moment_to_generated_order(moment)))
        self.roots: dict[int, np.ndarray] = {}
        self.inverse_roots: dict[int, np.ndarray] = {}
        for position, q in enumerate(self.inner):
            self.roots[q], self.inverse_roots[q] = roots(self._marginal(moment, position), _LEAST_OF_LEG)
        # a single leg is whitened as a whole, up to what the least eigenvalue adds
        self.moment = self._whitened(moment) if len(self.inner) > 1 else np.eye(len(moment))

    @property
    def inner_dims(self) -> Shape:
        """The dimensions of the input legs, in the order of the axes."""
        return tuple(self.dims[q] for q in self.inner)

    def whiten(self, state: Float[np.ndarray, "*legs"]) -> Float[np.ndarray, "*legs"]:
        """Convert a state to the coordinates of :attr:`moment`."""
        for q, root in self.roots.items():
            state = along(root, state, q)
        return state

    def times_moment(self, state: Float[np.ndarray, "*legs"]) -> Float[np.ndarray, "*legs"]:
        """Multiply a whitened state by the moment over its input legs."""
        order = (*self.outer, *self.inner)
        rows = np.transpose(state, order)
        product = (rows.reshape(-1, len(self.moment)) @ self.moment).reshape(rows.shape)
        return np.transpose(product, np.argsort(order))

    def _marginal(self, moment: Float[np.ndarray, "n n"], position: int) -> Float[np.ndarray, "leg leg"]:
        before, d = math.prod(self.inner_dims[:position]), self.inner_dims[position]
        split = moment.reshape(before, d, -1, before, d, len(moment) // (before * d))
        return np.einsum("aibajb->ij", split) * (d / np.trace(moment))

    def _whitened(self, moment: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
        tensor = moment.reshape(self.inner_dims * 2)
        for position, q in enumerate(self.inner):
            for side in (0, len(self.inner)):
                tensor = along(self.inverse_roots[q], tensor, side + position)
        matrix = tensor.reshape(moment.shape)
        spread = np.trace(matrix) / len(matrix)
        return (matrix + matrix.T) * (0.5 / spread) + _LEAST * np.eye(len(matrix))


def along(matrix: Float[np.ndarray, "m n"], tensor: Float[np.ndarray, "..."], axis: int) -> Float[np.ndarray, "..."]:
    """Multiply a matrix with one axis of a tensor."""
    return np.moveaxis(np.tensordot(matrix, tensor, axes=(1, axis)), 0, axis)


def roots(moment: Float[np.ndarray, "n n"], least: float) -> tuple[Float[np.ndarray, "n n"], Float[np.ndarray, "n n"]]:
    """Return the square root of a moment and its inverse, with eigenvalues of at least ``least`` times the largest."""
    values, vectors = np.linalg.eigh(moment)
    scale = np.sqrt(np.maximum(values, least * values[-1]))
    return (vectors * scale) @ vectors.T, (vectors / scale) @ vectors.T
