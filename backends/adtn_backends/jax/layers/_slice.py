"""A part of a generated weight as the weight of one layer, for layers that share a generator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
from adtn._typing import Float, Int, Params
from adtn.errors import LayoutError
from adtn.weight import Mode
from flax import nnx

from ...shared._slices import check_slice
from ._weight import GeneratedWeight


@dataclass(frozen=True)
class _Cut:
    """The way in which a slice is applied: the whole weight is generated."""

    makes_weight: bool = True
    merges_batch: bool = False


class GeneratedSlice(nnx.Module):
    """A block of a generated matrix as the weight of one layer.

    Slices of the same :class:`GeneratedWeight` have the same parameters, whose gradients are the sums of those of all
    slices. Under :func:`jax.jit`, XLA merges the equal computations of the whole weight.

    Parameters
    ----------
    whole : GeneratedWeight
        The matrix, ``(rows, columns)``.
    start : int
        The first row of the slice.
    shape : tuple of int
        The shape of the slice, ``(n_out, ...)``: ``n_out`` rows, of whose columns the first ones are the other axes.

    Raises
    ------
    LayoutError
        If the slice is not inside the matrix.

    Examples
    --------
    >>> import adtn
    >>> whole = GeneratedWeight(adtn.Generator((96, 32), adtn.TTN(bond=2)))
    >>> GeneratedSlice(whole, 64, (16, 3, 3, 3))().shape
    (16, 3, 3, 3)
    """

    def __init__(self, whole: GeneratedWeight, start: int, shape: tuple[int, ...]) -> None:
        self.columns = check_slice(whole.shape, start, shape)
        self.whole, self.start, self.shape = whole, start, shape

    @property
    def dtype(self) -> Any:
        """The dtype of the weight."""
        return self.whole.dtype

    def arrays(self) -> dict[str, jax.Array]:
        """Return the cores of the whole weight."""
        return self.whole.arrays()

    def __call__(self, arrays: Params | None = None) -> Float[jax.Array, "*shape"]:
        """Compute the slice from the module's cores, or from other ones."""
        whole = self.whole(arrays)
        return whole[self.start : self.start + self.shape[0], : self.columns].reshape(self.shape)

    def rows(self, index: Int[jax.Array, " n"], arrays: Params | None = None) -> Float[jax.Array, " n *inner"]:
        """Compute rows of the slice by their indices, without generating the others."""
        rows = self.whole.rows(index + self.start, arrays)
        return rows[:, : self.columns].reshape(-1, *self.shape[1:])

    def layer(self, rows: jax.Array, mode: Mode | None) -> tuple[_Cut, Any]:
        """Return how the slice is applied, and the differentiable ``(arrays, x) -> y``.

        Raises
        ------
        LayoutError
            If the mode needs another weight than a whole one.
        """
        if mode not in (None, "materialise"):
            raise LayoutError(f"Got mode={mode!r} for a slice of a generated weight; expected 'materialise' or None.")
        return _Cut(), lambda arrays, x: x @ self(arrays).T


Weight: TypeAlias = GeneratedWeight | GeneratedSlice
"""What a layer reads its weight from."""
