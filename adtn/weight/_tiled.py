"""A weight tile by tile, and its adjoint."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from autoray import do

from .._typing import Array, Factor, Float, Params, Shape
from ..backends import Backend, Workspace
from ..calculus import Consumer, frontier, frontier_pullback, project, squared_norm, walk
from ..errors import ScheduleError
from ..program import Stage, Tiled
from ._weighting import BASE, BASE_SCALE, Weighting

CACHED_BYTES = 32 << 20  # the memory that a function that generates weights holds between calls


@dataclass(frozen=True, kw_only=True, eq=False)
class TiledWeight:
    """A weight in tiles: blocks of rows, or blocks of legs in any order.

    Parameters
    ----------
    tiled : Tiled
        The program.
    weighting : Weighting
        The formula that converts the state to a weight.
    positions : tuple of int
        Positions of ``tiled.legs`` in the layout.
    by_rows : bool
        Tiles are ``(rows, ...)`` of the weight; otherwise they are flat, in the order of ``tiled.legs``.
    norm : Stage or None
        The last segment closed with its own copy, for :meth:`project`.
    moment_axes : tuple of int
        If it is closed over a second moment: the permutation of the axes of its legs, inputs before their copies.
    """

    tiled: Tiled
    weighting: Weighting
    positions: tuple[int, ...]
    by_rows: bool
    norm: Stage | None = None
    moment_axes: tuple[int, ...] = ()

    @property
    def rows(self) -> int:
        """The number of rows of a tile, padding included."""
        return self.weighting.layout.padded_shape[0] // self.tiled.tiles

    @property
    def tile_shape(self) -> Shape:
        """The shape of the tiles that a consumer receives."""
        layout = self.weighting.layout
        return (self.rows, *layout.shape[1:]) if self.by_rows else (math.prod(self.tiled.shape),)

    @property
    def masked(self) -> bool:
        """Whether tiles contain entries that do not belong to the weight."""
        layout = self.weighting.layout
        return layout.padded_shape[0] != layout.shape[0] if self.by_rows else layout.padding > 1

    def arrange(self, weight: Float[Array, "*shape"]) -> Float[Array, " tiles *tile"]:
        """Arrange an array of the weight's shape as ``(tiles, *tile_shape)``; a view if possible."""
        return self._cut(self.weighting.to_generated_order(weight))

    def _cut(self, ordered: Float[Array, "*shape"]) -> Float[Array, " tiles *tile"]:
        layout, tiles = self.weighting.layout, self.tiled.tiles
        if not self.by_rows:
            legs = do("transpose", layout.to_legs(ordered), self.positions)
            return do("reshape", legs, (tiles, *self.tile_shape))
        return do("reshape", self.weighting.pad_rows(ordered), (tiles, *self.tile_shape))

    def from_single(self, tile: Float[Array, " padded_out *inner"]) -> Float[Array, " n_out *inner"]:
        """Convert a single tile to the weight."""
        n = self.weighting.layout.shape[0]
        return self.weighting.to_weight_order(tile[:n] if self.masked else tile)

    def to_single(self, wbar: Float[Array, " n_out *inner"]) -> Float[Array, " padded_out *inner"]:
        """Convert an adjoint of the weight to that of a single tile."""
        return self.weighting.pad_rows(self.weighting.to_generated_order(wbar))

    def mask(self, like: Float[Array, "..."]) -> Float[Array, "tiles ..."]:
        """Return ones at the entries of the weight and zeros elsewhere; ``like`` is any array on the device."""
        layout = self.weighting.layout
        one = do("reshape", do("zeros_like", do("reshape", like, (-1,))[:1]) + 1.0, (1,) * len(layout.shape))
        if not self.by_rows:
            return self._cut(do("broadcast_to", one, layout.shape))
        column = do("broadcast_to", one, (layout.shape[0], *(1 for _ in layout.shape[1:])))
        column = self.weighting.pad_rows(column)
        return do("reshape", column, (self.tiled.tiles, self.rows, *(1 for _ in layout.shape[1:])))

    def with_base(self, arrays: Params) -> Params:
        """Replace the base in the arrays by one arranged in tiles."""
        if not self.weighting.has_base:
            return arrays
        return {**arrays, BASE: self.arrange(self.weighting.base(arrays))}

    def run(
        self,
        backend: Backend,
        arrays: Params,
        consume: Consumer,
        carry: Any,
        *,
        adjoint: bool,
        scale: Factor | None = None,
        factor: Factor | None = None,
        space: Workspace | None = None,
    ) -> tuple[Any, dict[str, Float[Array, "..."]]]:
        """Generate ``factor * W`` and pass every tile to ``consume``.

        Parameters
        ----------
        backend : Backend
            The backend of the arrays.
        arrays : mapping of str to array
            Parameters of the cores; the ``"base"``, if there is one, as :meth:`arrange` returns it.
        consume : callable
            ``(tile, number, carry) -> (carry, adjoint of the tile)``; it may overwrite the tile.
        carry : any
            The initial value of what the consumer accumulates.
        adjoint : bool
            Whether to compute adjoints of the parameters.
        scale : float or array, optional
            The scale of the generated part; that of :attr:`weighting` when not given.
        factor : float or array, optional
            A factor of the weight that the consumer receives; 1 when not given.
        space : Workspace, optional
            Memory for intermediates; a new workspace when not given.

        Returns
        -------
        tuple of any and dict of str to array
            The final carry, and the adjoints of the trained parameters.
        """
        space = space if space is not None else backend.workspace()
        tape = frontier(self.tiled, arrays, space)
        weighting = self.weighting
        factors = (weighting.scale if scale is None else scale) * (1.0 if factor is None else factor)
        base, masks = arrays.get(BASE), self.mask(tape.blocks[0]) if self.masked else None
        trains_base = weighting.trains_base_scale and adjoint
        start = do("zeros_like", do("sum", tape.blocks[0])) if trains_base else None

        def on_tile(tile: Float[Array, "..."], i: Any, state: Any) -> tuple[Any, Float[Array, "..."] | None]:
            inner, slope = state
            w = self._crop(tile)
            part = None
            if weighting.has_base and base is not None:
                part = backend.take(base, i)
                part = part if factor is None else part * factor
                w = w + weighting.scaled(part, arrays)
            if masks is not None:
                w = w * backend.take(masks, i)
            inner, wbar = consume(w, i, inner)
            if wbar is None:
                return (inner, slope), None
            if masks is not None:
                wbar = wbar * backend.take(masks, i)
            if trains_base and part is not None:
                slope = slope + do("sum", wbar * part)
            return (inner, slope), self._uncrop(wbar)

        state, bars = walk(
            self.tiled,
            tape.blocks,
            backend,
            space,
            on_tile,
            (carry, start),
            scale=factors,
            adjoint=adjoint,
        )
        inner, slope = state
        if not adjoint:
            return inner, {}
        grads = frontier_pullback(self.tiled, arrays, tape, bars, space)
        if slope is not None:
            grads[BASE_SCALE] = slope
        return inner, grads

    def project(
        self,
        backend: Backend,
        arrays: Params,
        arranged: Float[Array, " tiles *tile"],
        space: Workspace,
        scale: Factor | None = None,
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, "..."]]]:
        """Compute ``‖W‖² - 2 ⟨target, W⟩`` and half of its gradient without generating W, see :func:`project`.

        If the norm is closed over a second moment C, which is among the arrays, this is ``tr W C Wᵀ - 2 ⟨target, W⟩``.

        Parameters
        ----------
        backend : Backend
            The backend of the arrays.
        arrays : mapping of str to array
            Parameters of the cores.
        arranged : array
            The target, arranged, minus the base if there is one.
        space : Workspace
            Memory for intermediates.
        scale : float or array, optional
            The scale of the generated part; that of :attr:`weighting` when not given.
        """
        if self.norm is None:
            raise ScheduleError("Got tiles without the norm of their weight; make them with adtn.weight.projecting.")
        tape, factor = frontier(self.tiled, arrays, space), self.weighting.scale if scale is None else scale
        square, others = squared_norm(self.norm, tape.state, arrays, factor * factor, space)
        overlap, bars = project(self.tiled, tape.blocks, backend, space, arranged, -factor)
        grads = frontier_pullback(self.tiled, arrays, tape, bars, space, others)
        return square + 2.0 * overlap, grads

    def _crop(self, tile: Float[Array, "..."]) -> Float[Array, "*tile"]:
        return self.weighting.crop_rows(tile) if self.by_rows else do("reshape", tile, self.tile_shape)

    def _uncrop(self, wbar: Float[Array, "*tile"]) -> Float[Array, "..."]:
        return do("reshape", self.weighting.pad_columns(wbar) if self.by_rows else wbar, self.tiled.shape)
