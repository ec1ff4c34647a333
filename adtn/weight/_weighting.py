r"""The one formula by which a generated state becomes a weight, and everything that follows from it.

With the state :math:`X` of a program, a layout, and permutations :math:`P_k` of the axes,

.. math:: G = \mathrm{crop}(\mathrm{reshape}(X)), \qquad
   W_{i_0 i_1 \dots} = s\, G_{P_0(i_0)\, P_1(i_1) \dots} + b\, B_{i_0 i_1 \dots}

with the scale :math:`s`, the base :math:`B` and its factor :math:`b`. ``G`` is in *generated order*; ``W``, ``B``, the
inputs and the outputs of a layer are in *weight order*. Tiles are in generated order: a product :math:`y = x W^\top`
permutes the input and the output, not the weight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from autoray import do

from .._typing import Array, Float, Int, Params
from ..errors import LayoutError
from ..layout import Layout, Permutation, pad

OneHot: TypeAlias = Callable[[Int[Array, " rows"], int], Float[Array, "rows n"]]
"""Index and number of columns to rows of an identity."""

BASE = "base"
BASE_SCALE = "base.scale"


@dataclass(frozen=True, kw_only=True)
class Weighting:
    """The map from a generated state to a weight: ``base.scale * base + scale * permute(crop(reshape(X)))``.

    Parameters
    ----------
    layout : Layout
        The layout of the weight.
    scale : float
        The standard deviation of the weight of a state with unit variance.
    has_base : bool
        Whether there is a frozen ``"base"``.
    trains_base_scale : bool
        Whether the factor ``"base.scale"`` of the base is trained; otherwise it is 1.
    identity : float, optional
        The base of a matrix is this multiple of the identity, cropped to shape: batches need no product with it, and
        the arrays need not hold it.
    permutations : tuple of (Permutation or None)
        One per axis, or none at all.

    Raises
    ------
    LayoutError
        If a permutation does not fit its axis.
    """

    layout: Layout
    scale: float
    has_base: bool = False
    trains_base_scale: bool = False
    identity: float | None = None
    permutations: tuple[Permutation | None, ...] = ()

    def __post_init__(self) -> None:
        shape = self.layout.shape
        if self.permutations and len(self.permutations) != len(shape):
            raise LayoutError(
                f"Got {len(self.permutations)} permutations for {len(shape)} axes; expected one per axis, None where "
                "an axis keeps its order."
            )
        for axis, (n, p) in enumerate(zip(shape, self.permutations or (None,) * len(shape), strict=True)):
            if p is not None and len(p) != n:
                raise LayoutError(f"Got a permutation of {len(p)} entries for axis {axis}, which has {n}.")

    # orders

    def to_weight_order(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Permute an array in generated order, shaped as the weight: ``W[i, j] = G[P_0[i], P_1[j]]``."""
        for axis, p in enumerate(self.permutations):
            x = x if p is None else p.permute(x, axis)
        return x

    def to_generated_order(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Invert :meth:`to_weight_order`; also its adjoint."""
        for axis, p in enumerate(self.permutations):
            x = x if p is None else p.restore(x, axis)
        return x

    def moment_to_generated_order(self, moment: Float[Array, "n_in n_in"]) -> Float[Array, "n_in n_in"]:
        """Convert a matrix over all axes but the first, such as a second moment of inputs, to generated order."""
        if not any(p is not None for p in self.permutations[1:]):
            return moment
        inner = self.layout.shape[1:]
        square = do("reshape", moment, (*inner, *inner))
        for axis, p in enumerate(self.permutations[1:]):
            if p is not None:
                square = p.restore(p.restore(square, axis), axis + len(inner))
        return do("reshape", square, tuple(moment.shape))

    # the whole weight

    def from_state(self, state: Float[Array, "*legs"], arrays: Params) -> Float[Array, "*shape"]:
        """Compute the weight.

        Parameters
        ----------
        state : array
            ``layout.dims``.
        arrays : mapping of str to array
            A mapping that contains the base, if there is one.

        Returns
        -------
        array
            ``layout.shape``.
        """
        weight = self.to_weight_order(self.layout.from_legs(state)) * self.scale
        return weight if not self.has_base else weight + self.scaled(self.base(arrays), arrays)

    def state_adjoint(self, wbar: Float[Array, "*shape"]) -> Float[Array, "*legs"]:
        """Compute the adjoint of the state from that of the weight."""
        return self.layout.to_legs(self.to_generated_order(wbar)) * self.scale

    def base_scale_adjoint(self, wbar: Float[Array, "*shape"], arrays: Params) -> Float[Array, ""]:
        """Compute the adjoint of the factor of the base from that of the weight."""
        return do("sum", wbar * self.base(arrays))

    def to_state(self, weight: Float[Array, "*shape"]) -> Float[Array, "*legs"]:
        """Compute the state of a weight, with zeros for padding; the base is not subtracted."""
        return self.layout.to_legs(self.to_generated_order(weight)) / self.scale

    def base(self, arrays: Params) -> Float[Array, "*shape"]:
        """Return the base as a dense array; an identity is built if the arrays do not contain it."""
        if BASE in arrays or self.identity is None:
            return arrays[BASE]
        n_out, n_in = self.layout.shape
        n = min(n_out, n_in)
        # n entries with n zeros behind each: cut into rows of n, they are the diagonal
        entry = do("reshape", arrays[BASE_SCALE] * 0.0 + self.identity, (1, 1))
        flat = do("reshape", pad(do("broadcast_to", entry, (n, 1)), 1, n), (-1,))
        return pad(pad(do("reshape", flat[: n * n], (n, n)), 0, n_out - n), 1, n_in - n)

    def scaled(self, base: Float[Array, "*any"], arrays: Params) -> Float[Array, "*any"]:
        """Multiply the base, or a product with it, by its factor."""
        return base * arrays[BASE_SCALE] if self.trains_base_scale else base

    # tiles and rows

    def crop_rows(self, state: Float[Array, "..."]) -> Float[Array, " rows *inner"]:
        """Read ``(rows, ...)`` of a state as rows of the weight in generated order, without padding of other axes."""
        padded, inner = self.layout.padded_shape[1:], self.layout.shape[1:]
        rows = do("reshape", state, (-1, *padded))
        return rows if padded == inner else rows[(slice(None), *(slice(0, n) for n in inner))]

    def pad_columns(self, rows: Float[Array, " rows *inner"]) -> Float[Array, " rows *padded_inner"]:
        """Invert :meth:`crop_rows` with zeros; also its adjoint."""
        for axis, (n, p) in enumerate(zip(self.layout.shape, self.layout.padded_shape, strict=True)):
            rows = pad(rows, axis, p - n) if axis else rows
        return rows

    def pad_rows(self, x: Float[Array, " n_out *inner"]) -> Float[Array, " padded_out *inner"]:
        """Append zeros for the rows that are padding."""
        return pad(x, 0, self.layout.padded_shape[0] - self.layout.shape[0])

    def rows(self, state: Float[Array, "..."]) -> Float[Array, " rows *inner"]:
        """Convert the generated rows of :meth:`generated_index` to rows of the weight without its base.

        Parameters
        ----------
        state : array
            ``(n, *padded_shape[1:])``, or with its legs.
        """
        rows = self.crop_rows(state) * self.scale
        for axis, p in enumerate(self.permutations):
            rows = rows if p is None or not axis else p.permute(rows, axis)
        return rows

    def tangent(
        self, changes: Float[Array, "parameters rows padded_entries"], *, whole_rows: bool
    ) -> Float[Array, "parameters rows entries"]:
        """Convert changes of the state to changes of the weight, in generated order and without the base.

        Parameters
        ----------
        changes : array
            ``(parameters, rows, entries)``.
        whole_rows : bool
            Entries are all legs of the other axes, with their padding, which is cropped; otherwise a sample.

        Returns
        -------
        array
            ``(parameters, rows, entries)``.
        """
        if whole_rows:
            changes = do("reshape", self.crop_rows(changes), (*tuple(changes.shape[:2]), -1))
        return changes * self.scale

    def generated_index(self, index: Int[Array, " rows"]) -> Int[Array, " rows"]:
        """Return the indices in generated order of the rows ``index`` of the weight, ``(n,)``."""
        p = self.permutations[0] if self.permutations else None
        return index if p is None else do("index_on", index, p, False)[index]

    def base_rows(self, arrays: Params, index: Int[Array, " rows"], one_hot: OneHot) -> Float[Array, " rows *inner"]:
        """Return rows of the base, ``(n, *shape[1:])``; those of an identity are built."""
        width = self.layout.shape[-1]
        if self.identity is None:
            return do("reshape", arrays[BASE], self.layout.shape)[index]
        return one_hot(index % width, width) * (index < width)[:, None] * self.identity

    # inputs and outputs of a layer

    def input(self, x: Float[Array, "batch n_in"]) -> Float[Array, "batch n_in"]:
        """Convert an input, ``(batch, n_in)``, to generated order."""
        p = self.permutations[1] if self.permutations else None
        return x if p is None else p.restore(x, 1)

    def input_adjoint(self, xbar: Float[Array, "batch n_in"]) -> Float[Array, "batch n_in"]:
        """Convert the adjoint of an input from generated to weight order."""
        p = self.permutations[1] if self.permutations else None
        return xbar if p is None else p.permute(xbar, 1)

    def output(self, y: Float[Array, "batch padded_out"]) -> Float[Array, "batch n_out"]:
        """Convert an output in generated order, with its padding, to ``(batch, n_out)`` in weight order."""
        n, padded = self.layout.shape[0], self.layout.padded_shape[0]
        y = y if n == padded else y[:, :n]
        p = self.permutations[0] if self.permutations else None
        return y if p is None else p.permute(y, 1)

    def output_adjoint(self, ybar: Float[Array, "batch n_out"]) -> Float[Array, "batch padded_out"]:
        """Convert the adjoint of an output, ``(batch, n_out)``, to generated order, with zeros for padding."""
        p = self.permutations[0] if self.permutations else None
        ybar = ybar if p is None else p.restore(ybar, 1)
        return pad(ybar, 1, self.layout.padded_shape[0] - self.layout.shape[0])

    def pad_input(self, x: Float[Array, "batch n_in"]) -> Float[Array, "batch padded_in"]:
        """Convert an input to generated order, and pad it for a contraction with the legs of all axes but the first."""
        shape, padded = self.layout.shape, self.layout.padded_shape
        if len(shape) == 2:
            return pad(self.input(x), 1, padded[1] - shape[1])
        x = do("reshape", x, (x.shape[0], *shape[1:]))
        for axis in range(1, len(shape)):
            p = self.permutations[axis] if self.permutations else None
            x = pad(x if p is None else p.restore(x, axis), axis, padded[axis] - shape[axis])
        return do("reshape", x, (x.shape[0], -1))

    def pad_input_adjoint(self, xbar: Float[Array, "batch ..."]) -> Float[Array, "batch n_in"]:
        """Convert the adjoint of the result of :meth:`pad_input`, with any legs, to ``(batch, n_in)``."""
        rows = do("reshape", xbar, (xbar.shape[0], self.layout.padded_shape[1]))
        return self.input_adjoint(rows[:, : self.layout.shape[1]])

    def product_from_state(
        self, state: Float[Array, "..."], arrays: Params, x: Float[Array, "batch n_in"]
    ) -> Float[Array, "batch n_out"]:
        """Compute ``y = x Wᵀ`` from a contraction with the result of :meth:`pad_input`, with any legs."""
        y = self.output(do("reshape", state, (x.shape[0], self.layout.padded_shape[0])))
        y = y * self.scale  # a new array: the state is in the workspace
        return y if not self.has_base else y + self.scaled(self.base_product(arrays, x), arrays)

    def base_product(self, arrays: Params, x: Float[Array, "batch n_in"]) -> Float[Array, "batch n_out"]:
        """Multiply an input by the base: ``x Bᵀ``."""
        return self._times_base(arrays, x, 1)

    def base_product_adjoint(self, arrays: Params, ybar: Float[Array, "batch n_out"]) -> Float[Array, "batch n_in"]:
        """Multiply the adjoint of an output by the base: ``ybar B``."""
        return self._times_base(arrays, ybar, 0)

    def _times_base(self, arrays: Params, x: Float[Array, "batch n"], axis: int) -> Float[Array, "batch m"]:
        if self.identity is None:
            base = do("reshape", arrays[BASE], (self.layout.shape[0], -1))
            return x @ (base.mT if axis else base)
        n = self.layout.shape[1 - axis]
        return pad(x[:, :n] * self.identity, 1, max(n - x.shape[1], 0))
