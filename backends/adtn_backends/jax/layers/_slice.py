"""A part of a generated weight as the weight of one layer, for layers that share a generator."""

from __future__ import annotations

from collections.abc import Generator as Generated
from collections.abc import Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
from adtn._typing import Float, Int, Params
from adtn.errors import LayoutError
from adtn.weight import Materialised, Mode
from flax import nnx

from ...shared._slices import check_slice
from ._places import modules_of
from ._weight import GeneratedWeight

_MADE: ContextVar[Mapping[int, jax.Array]] = ContextVar("made", default={})  # noqa: B039 (never written to)
"""The weights by the id of their module inside :func:`shared_once`, in this thread."""
_WHOLE = "whole"  # the name of such a weight among the arrays of a slice


@dataclass(frozen=True)
class _Cut:
    """The way in which a slice is applied: the whole weight is generated."""

    makes_weight: bool = True
    merges_batch: bool = False


class GeneratedSlice(nnx.Module):
    """A block of a generated matrix as the weight of one layer.

    Slices of the same :class:`GeneratedWeight` have the same parameters, whose gradients are the sums of those of all
    slices. Under :func:`jax.jit`, the whole weight is generated once for all of them, as XLA merges equal computations;
    their gradients are computed one by one, except in the training of :func:`adtn.compress`.

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

    def order_for(self, x: Float[jax.Array, "*batch n_in"]) -> None:
        """Return ``None``: a slice has no order of its own."""
        return

    def arrays(self, *, in_groups: bool = False) -> dict[str, jax.Array]:
        """Return the cores of the whole weight, or inside :func:`shared_once` the weight itself."""
        made = _MADE.get().get(id(self.whole))
        return self.whole.arrays(in_groups=in_groups) if made is None else {_WHOLE: made}

    def __call__(self, arrays: Params | None = None) -> Float[jax.Array, "*shape"]:
        """Compute the slice from the module's cores, or from other ones."""
        arrays = self.arrays() if arrays is None else arrays
        whole = arrays[_WHOLE] if _WHOLE in arrays else self.whole(arrays)
        return whole[self.start : self.start + self.shape[0], : self.columns].reshape(self.shape)

    def rows(self, index: Int[jax.Array, " n"], arrays: Params | None = None) -> Float[jax.Array, " n *inner"]:
        """Compute rows of the slice by their indices, without generating the others."""
        arrays, index = self.arrays() if arrays is None else arrays, index + self.start
        rows = arrays[_WHOLE][index] if _WHOLE in arrays else self.whole.rows(index, arrays)
        return rows[:, : self.columns].reshape(-1, *self.shape[1:])

    def layer(self, rows: jax.Array, mode: Mode | None) -> tuple[_Cut, Any]:
        """Return how the slice is applied, and the differentiable ``(arrays, x) -> y``.

        Raises
        ------
        LayoutError
            If the mode needs another weight than a whole one.
        """
        if mode not in (None, Materialised.mode):
            raise LayoutError(f"Got mode={mode!r} for a slice of a generated weight; expected 'materialise' or None.")
        return _Cut(), lambda arrays, x: x @ self(arrays).T


Weight: TypeAlias = GeneratedWeight | GeneratedSlice
"""What a layer reads its weight from."""


@contextmanager
def shared_once(model: nnx.Module) -> Generated[None, None, None]:
    """Generate every weight of which layers have slices once inside this block, also for gradients."""
    wholes = {id(m.whole): m.whole for _, m in modules_of(model) if isinstance(m, GeneratedSlice)}
    token = _MADE.set({key: weight() for key, weight in wholes.items()})
    try:
        yield
    finally:
        _MADE.reset(token)
