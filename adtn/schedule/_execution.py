"""What a plan runs: a weight tile by tile, a layer without its weight, and the adjoints of both."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from autoray import do

from .._backend import Backend, Workspace
from .._typing import Array, Params, Shape
from ..network import (
    BASE,
    BASE_SCALE,
    Core,
    Layout,
    Path,
    Program,
    Segment,
    Tiled,
    compile_program,
    forward,
    forward_tape,
    frontier,
    frontier_pullback,
    pullback,
    walk,
)

INPUT = "x/input"
_BATCH = "x/batch"
KEPT_BYTES = 32 << 20  # what a function that makes weights keeps between calls

Consumer = Callable[[Array, Any, Any], "tuple[Any, Array | None]"]


@dataclass(frozen=True)
class Weighting:
    """How a generated state becomes a weight: ``base_scale * base + scale * crop(reshape(X_T))``."""

    layout: Layout
    scale: float
    has_base: bool = False
    trains_base_scale: bool = False


@dataclass(frozen=True, eq=False)
class TiledWeight:
    """A weight in tiles: blocks of rows, or blocks of legs in any order.

    Parameters
    ----------
    tiled : Tiled
        The program.
    weighting : Weighting
        What makes it a weight.
    positions : tuple of int
        Where the layout has each of ``tiled.legs``.
    by_rows : bool
        Tiles are ``(rows, ...)`` of the weight; otherwise they are flat, in the order of ``tiled.legs``.
    """

    tiled: Tiled
    weighting: Weighting
    positions: tuple[int, ...]
    by_rows: bool = True

    @property
    def rows(self) -> int:
        """Rows of a tile, padding included."""
        return self.weighting.layout.padded_shape[0] // self.tiled.tiles

    @property
    def tile_shape(self) -> Shape:
        """Shape of the tiles that a consumer gets."""
        layout = self.weighting.layout
        return (self.rows, *layout.shape[1:]) if self.by_rows else (math.prod(self.tiled.shape),)

    @property
    def masked(self) -> bool:
        """Whether tiles hold entries that are not of the weight."""
        layout = self.weighting.layout
        return layout.padded_shape[0] != layout.shape[0] if self.by_rows else layout.padding > 1

    def arrange(self, weight: Array) -> Array:
        """An array of the weight's shape as ``(tiles, *tile_shape)``; a view where that is possible."""
        layout, tiles = self.weighting.layout, self.tiled.tiles
        if not self.by_rows:
            legs = do("transpose", layout.to_legs(weight), self.positions)
            return do("reshape", legs, (tiles, *self.tile_shape))
        missing = layout.padded_shape[0] - layout.shape[0]
        if missing:
            weight = _pad(weight, 0, missing)
        return do("reshape", weight, (tiles, *self.tile_shape))

    def pad_rows(self, wbar: Array) -> Array:
        """An adjoint of the weight as one of the single tile: zeros for rows that are padding."""
        layout = self.weighting.layout
        missing = layout.padded_shape[0] - layout.shape[0]
        return _pad(wbar, 0, missing) if missing else wbar

    def mask(self, like: Array) -> Array:
        """Ones where a tile holds entries of the weight, arranged; ``like`` is any array of the device."""
        layout = self.weighting.layout
        one = do("reshape", do("zeros_like", do("reshape", like, (-1,))[:1]) + 1.0, (1,) * len(layout.shape))
        if not self.by_rows:
            return self.arrange(do("broadcast_to", one, layout.shape))
        column = do("broadcast_to", one, (layout.shape[0], *(1 for _ in layout.shape[1:])))
        column = _pad(column, 0, layout.padded_shape[0] - layout.shape[0])
        return do("reshape", column, (self.tiled.tiles, self.rows, *(1 for _ in layout.shape[1:])))

    def run(
        self,
        backend: Backend,
        arrays: Params,
        consume: Consumer,
        carry: Any,
        *,
        adjoint: bool,
        factor: float = 1.0,
        space: Workspace | None = None,
    ) -> tuple[Any, dict[str, Array]]:
        """Generate ``factor * W`` and hand every tile to ``consume``.

        Parameters
        ----------
        backend : Backend
            Of the arrays.
        arrays : mapping of str to array
            Numbers of the cores; ``"base"``, where there is one, arranged.
        consume : callable
            ``(tile, number, carry) -> (carry, adjoint of the tile)``; it may overwrite the tile.
        carry : any
            What it accumulates.
        adjoint : bool
            Whether adjoints of the parameters are wanted.
        factor : float
            Of the weight that the consumer gets.
        space : Workspace, optional
            Where intermediates go; one for this call when not given.

        Returns
        -------
        tuple of any and dict of str to array
            The last carry, and the adjoints of the trained parameters.
        """
        space = space if space is not None else backend.workspace()
        tape = frontier(self.tiled, arrays, space)
        weighting = self.weighting
        base, masks = arrays.get(BASE), self.mask(tape.blocks[0]) if self.masked else None
        trains_base = weighting.trains_base_scale and adjoint
        start = do("zeros_like", do("sum", tape.blocks[0])) if trains_base else None

        def on_tile(tile: Array, i: Any, state: Any) -> tuple[Any, Array | None]:
            inner, slope = state
            w = self._crop(tile)
            part = None
            if weighting.has_base and base is not None:
                part = backend.take(base, i)
                part = part * factor if factor != 1.0 else part
                w = w + (part * arrays[BASE_SCALE] if weighting.trains_base_scale else part)
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
            self.tiled, tape.blocks, backend, space, on_tile, (carry, start),
            scale=weighting.scale * factor, adjoint=adjoint,
        )  # fmt: skip
        inner, slope = state
        if not adjoint:
            return inner, {}
        grads = frontier_pullback(self.tiled, arrays, tape, bars, space)
        if slope is not None:
            grads[BASE_SCALE] = slope
        return inner, grads

    def _crop(self, tile: Array) -> Array:
        layout = self.weighting.layout
        if not self.by_rows:
            return do("reshape", tile, self.tile_shape)
        tile = do("reshape", tile, (self.rows, *layout.padded_shape[1:]))
        if layout.padded_shape[1:] == layout.shape[1:]:
            return tile
        return tile[(slice(None), *(slice(0, n) for n in layout.shape[1:]))]

    def _uncrop(self, wbar: Array) -> Array:
        layout = self.weighting.layout
        if self.by_rows:
            for axis, (n, p) in enumerate(zip(layout.shape, layout.padded_shape, strict=True)):
                if axis and p > n:
                    wbar = _pad(wbar, axis, p - n)
        return do("reshape", wbar, self.tiled.shape)


def _pad(x: Array, axis: int, thickness: int) -> Array:
    shape = list(x.shape)
    shape[axis] = thickness
    zero = do("zeros_like", do("reshape", x, (-1,))[:1])
    slab = do("broadcast_to", do("reshape", zero, (1,) * len(shape)), tuple(shape))
    return do("concatenate", (x, slab), axis=axis)


def generate(weight: TiledWeight, backend: Backend, arrays: Params, space: Workspace | None = None) -> Array:
    """The whole weight of a program with one tile."""
    whole, _ = weight.run(
        backend, _with_base(weight, arrays), lambda w, i, c: (w, None), None, adjoint=False, space=space
    )
    return whole[: weight.weighting.layout.shape[0]] if weight.masked else whole


def squared_distance(backend: Backend, arranged: Array) -> Consumer:
    """The consumer of a reconstruction: adds ``‖W - target‖²``, and half of its adjoint is the residual."""

    def consume(tile: Array, i: Any, total: Any) -> tuple[Any, Array]:
        residual = backend.subtract(tile, backend.take(arranged, i))
        flat = do("reshape", residual, (-1,))
        return total + do("matmul", flat, flat), residual

    return consume


class MaterialisedApply:
    """``y = x Wᵀ`` and its adjoint with the weight generated at every call.

    Parameters
    ----------
    weight : TiledWeight
        With one tile.
    backend : Backend
        Of the arrays.
    """

    def __init__(self, weight: TiledWeight, backend: Backend) -> None:
        self.weight = weight
        self.backend = backend
        self.space = backend.workspace()

    def __call__(self, arrays: Params, x: Array) -> Array:
        """``(batch, n_in)`` to ``(batch, n_out)``."""
        return do("matmul", x, do("transpose", generate(self.weight, self.backend, arrays), (1, 0)))

    def vjp(self, arrays: Params, x: Array, ybar: Array) -> tuple[dict[str, Array], Array]:
        """Adjoints of the parameters and of ``x``; the weight is generated again."""
        missing = self.weight.weighting.layout.padded_shape[0] - ybar.shape[1]
        if missing:
            ybar = _pad(ybar, 1, missing)

        def consume(w: Array, i: Any, carry: Any) -> tuple[Any, Array]:
            return do("matmul", ybar, w), do("matmul", do("transpose", ybar, (1, 0)), x)

        xbar, grads = self.weight.run(
            self.backend, _with_base(self.weight, arrays), consume, None, adjoint=True, space=self.space
        )
        return grads, xbar


class StreamedApply:
    """``y = x Wᵀ`` and its adjoint, one block of rows of W after the other.

    Parameters
    ----------
    weight : TiledWeight
        By rows.
    backend : Backend
        Of the arrays.
    """

    def __init__(self, weight: TiledWeight, backend: Backend) -> None:
        self.weight = weight
        self.backend = backend
        self.space = backend.workspace()

    def __call__(self, arrays: Params, x: Array) -> Array:
        """``(batch, n_in)`` to ``(batch, n_out)``."""
        backend, weight = self.backend, self.weight
        layout, tiles = weight.weighting.layout, weight.tiled.tiles
        arrays = _with_base(weight, arrays)

        def consume(w: Array, i: Any, y: Any) -> tuple[Any, None]:
            return backend.put(y, i, do("matmul", x, do("transpose", w, (1, 0)))), None

        zero = do("reshape", do("zeros_like", do("reshape", x, (-1,))[:1]), (1, 1, 1))
        y = zero + do("zeros_like", do("broadcast_to", zero, (tiles, x.shape[0], weight.rows)))
        y, _ = weight.run(backend, arrays, consume, y, adjoint=False, space=self.space)
        y = do("reshape", do("transpose", y, (1, 0, 2)), (x.shape[0], layout.padded_shape[0]))
        return y[:, : layout.shape[0]] if layout.shape[0] != layout.padded_shape[0] else y

    def vjp(self, arrays: Params, x: Array, ybar: Array) -> tuple[dict[str, Array], Array]:
        """Adjoints of the parameters and of ``x``; tiles are generated again."""
        backend, weight = self.backend, self.weight
        layout, tiles = weight.weighting.layout, weight.tiled.tiles
        missing = layout.padded_shape[0] - layout.shape[0]
        if missing:
            ybar = _pad(ybar, 1, missing)
        by_tile = do("transpose", do("reshape", ybar, (x.shape[0], tiles, weight.rows)), (1, 0, 2))

        def consume(w: Array, i: Any, xbar: Any) -> tuple[Any, Array]:
            yb = backend.take(by_tile, i)
            return backend.add(xbar, do("matmul", yb, w)), do("matmul", do("transpose", yb, (1, 0)), x)

        xbar, grads = weight.run(
            backend, _with_base(weight, arrays), consume, do("zeros_like", x), adjoint=True, space=self.space
        )
        return grads, xbar


def _with_base(weight: TiledWeight, arrays: Params) -> Params:
    return {**arrays, BASE: weight.arrange(arrays[BASE])} if weight.weighting.has_base else arrays


class FactoredApply:
    """``y = x Wᵀ`` and its adjoint with x as one more tensor of the last segment; W never exists.

    Parameters
    ----------
    segments : tuple of Segment
        Of the generator.
    paths : tuple of path
        Contraction orders, the last one of the segment :func:`with_input`.
    weighting : Weighting
        What makes it a weight.
    backend : Backend
        Of the arrays.
    """

    def __init__(
        self, segments: tuple[Segment, ...], paths: tuple[Path, ...], weighting: Weighting, backend: Backend
    ) -> None:
        self.segments = segments
        self.paths = paths
        self.weighting = weighting
        self.space = backend.workspace()
        self.program = lru_cache(maxsize=16)(self._program)

    def _program(self, batch: int) -> Program:
        """For so many rows of ``x``."""
        segments = with_input(self.segments, self.weighting.layout, batch)
        return compile_program(segments, self.paths, free_states=True)

    def __call__(self, arrays: Params, x: Array) -> Array:
        """``(batch, n_in)`` to ``(batch, n_out)``."""
        program = self.program(x.shape[0])
        return self._finish(forward(program, self._inputs(arrays, x), self.space), arrays, x)

    def vjp(self, arrays: Params, x: Array, ybar: Array) -> tuple[dict[str, Array], Array]:
        """Adjoints of the parameters and of ``x``."""
        layout, scale = self.weighting.layout, self.weighting.scale
        program = self.program(x.shape[0])
        _, tape = forward_tape(program, self._inputs(arrays, x), self.space)
        missing = layout.padded_shape[0] - layout.shape[0]
        full = _pad(ybar, 1, missing) if missing else ybar
        grads = pullback(program, tape, do("reshape", full * scale, program.stages[-1].out_shape), self.space)
        xbar = do("reshape", grads.pop(INPUT), (x.shape[0], layout.padded_shape[1]))[:, : layout.shape[1]]
        if self.weighting.has_base:
            base = arrays[BASE]
            through = do("matmul", ybar, base)
            if self.weighting.trains_base_scale:
                grads[BASE_SCALE] = do("sum", do("matmul", x, do("transpose", base, (1, 0))) * ybar)
                through = through * arrays[BASE_SCALE]
            xbar = xbar + through
        return grads, xbar

    def _inputs(self, arrays: Params, x: Array) -> Params:
        layout = self.weighting.layout
        missing = layout.padded_shape[1] - layout.shape[1]
        return {**arrays, INPUT: _pad(x, 1, missing) if missing else x}

    def _finish(self, state: Array, arrays: Params, x: Array) -> Array:
        layout = self.weighting.layout
        y = do("reshape", state, (x.shape[0], layout.padded_shape[0]))
        if layout.shape[0] != layout.padded_shape[0]:
            y = y[:, : layout.shape[0]]
        y = y * self.weighting.scale  # a new array: the state lies in the workspace
        if not self.weighting.has_base:
            return y
        base = do("matmul", x, do("transpose", arrays[BASE], (1, 0)))
        return y + (base * arrays[BASE_SCALE] if self.weighting.trains_base_scale else base)


def with_input(segments: tuple[Segment, ...], layout: Layout, batch: int) -> tuple[Segment, ...]:
    """The segments with ``x``, of shape ``(batch, n_in)``, as one more tensor of the last one."""
    last = segments[-1]
    by_axis: list[list[tuple[int, str]]] = [[], []]
    for name, (axis, k) in zip(last.outputs, layout.leg_axes, strict=True):
        by_axis[axis].append((k, name))
    rows, columns = (tuple(name for _, name in sorted(legs)) for legs in by_axis)
    x = Core(INPUT, (_BATCH, *columns), (batch, *layout.factors[1]), INPUT, "input", init="given")
    return (*segments[:-1], replace(last, cores=(*last.cores, x), outputs=(_BATCH, *rows)))
