"""The squared distance of a generated weight, or of its outputs, from a target: of a tile, or without the weight."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from autoray import do

from .._typing import Array, Factor, Float, Inds, Params
from ..backends import Backend
from ..calculus import Consumer
from ..program import MOMENT, Path, closed, copy_of, default_path, plan_stage, product_order, tile_program
from ..topology import Segment, sizes_of
from ._executable import ListedStep
from ._mode import Mode
from ._moment import padded_moment
from ._of_tiles import OfTiles
from ._tiled import TiledWeight
from ._weighting import Weighting

# the distance without the weight is trusted down to this many rounding errors of the square of the target's norm
TRUSTED_ROUNDINGS = 1e4


class Projected(OfTiles):
    """The target projected on the factors of the last product: no tile of the weight is made.

    The difference of large sums loses digits; :func:`trusted_relative_square` is the smallest error that it resolves.

    Parameters
    ----------
    weight : TiledWeight
        The weight, made by :func:`projecting`.
    backend : Backend
        The backend of the arrays.
    """

    mode: ClassVar[Mode] = "factored"
    exact: ClassVar[bool] = False
    reads_base: ClassVar[bool] = False

    @property
    def label(self) -> str:
        """Name the mode and the tiles of the target."""
        return self.mode if self.tiles == 1 else super().label

    def steps(self) -> Iterator[ListedStep]:
        """List the steps, with two projections in place of the last product."""
        *others, (segment, times, root) = super().steps()
        yield from others
        if self.tiled_weight.norm is not None:
            yield from ((segment, 1, step) for step in self.tiled_weight.norm.steps)
        yield segment, 2 * times, root

    def arrange_moment(self, moment: Float[Array, "n_in n_in"]) -> Float[Array, "*legs"]:
        """Arrange a second moment of inputs in generated order: padded, and in the order of its first contraction."""
        layout = self.weighting.layout
        dims = tuple(d for factors in layout.factors[1:] for d in factors)
        square = do("reshape", padded_moment(layout, moment), dims * 2)
        return do("transpose", square, self.tiled_weight.moment_axes)

    def evaluate(
        self,
        arrays: Params,
        target: Float[Array, " tiles *tile"],
        consume: Consumer,
        start: Callable[[], Any],
        *,
        scale: Factor | None = None,
        factor: Factor | None = None,
    ) -> tuple[Any, dict[str, Float[Array, "..."]]]:
        """Return the distance less that of a weight of zero, and half of its gradient.

        The target is that without the base; for a distance of outputs, it is multiplied by their second moment, which
        is among the arrays.
        """
        return self.tiled_weight.project(self.backend, arrays, target, self.space, scale)


def squared_distance(backend: Backend, arranged: Float[Array, " tiles *tile"]) -> Consumer:
    """Return the consumer of a reconstruction, which adds ``‖W - target‖²``; half of its adjoint is the residual."""

    def consume(tile: Float[Array, "*tile"], i: Any, total: Any) -> tuple[Any, Float[Array, "*tile"]]:
        residual = backend.subtract(tile, backend.take(arranged, i))
        flat = do("reshape", residual, (-1,))
        return total + do("matmul", flat, flat), residual

    return consume


def output_distance(backend: Backend, arranged: Float[Array, " tiles *tile"], moment: Float[Array, "..."]) -> Consumer:
    """Return the consumer of rows that adds ``tr R C Rᵀ`` of the residual R; half of its adjoint is ``R C``.

    The moment C is ``(n_in, n_in)``, unless no tile will be consumed.
    """

    def consume(tile: Float[Array, "*tile"], i: Any, total: Any) -> tuple[Any, Float[Array, "*tile"]]:
        shape = tuple(tile.shape)
        residual = do("reshape", backend.subtract(tile, backend.take(arranged, i)), (shape[0], -1))
        weighted = do("matmul", residual, moment)
        return total + do("sum", weighted * residual), do("reshape", weighted, shape)

    return consume


def trusted_relative_square(dtype: str) -> float:
    """Return the smallest ``‖W - target‖² / ‖target‖²`` that :meth:`TiledWeight.project` resolves as residuals would.

    It is above 1 for half precisions, which cannot use the projection.
    """
    return TRUSTED_ROUNDINGS * (float(np.finfo(dtype).eps) if dtype in ("float64", "float32") else 1.0)


def projecting(
    segments: tuple[Segment, ...],
    paths: tuple[Path | None, ...],
    weighting: Weighting,
    tiles: int,
    norm_path: Path | None = None,
    weighted: bool = False,
) -> TiledWeight:
    """Make a weight in tiles on which a target can be projected, see :meth:`TiledWeight.project`.

    Parameters
    ----------
    segments : tuple of Segment
        The segments of the generator.
    paths : tuple of (path or None)
        Contraction order of each segment; ``None`` for the default.
    weighting : Weighting
        The formula of the weight; its layout has no padding.
    tiles : int
        The number of tiles.
    norm_path : path, optional
        Contraction order of the last segment closed with its own copy.
    weighted : bool
        Whether it is closed over a second moment of inputs.
    """
    sizes, last = sizes_of(segments), segments[-1]
    paths = tuple(default_path(s, sizes) if p is None else p for s, p in zip(segments, paths, strict=True))
    order = product_order(last, paths[-1], sizes, tiles)
    tiled = tile_program(segments, paths, order, tiles, keep_last=True)
    made = tiled.last.segment.inputs
    if set(made) == set(last.inputs):  # no leg of the weight that the state carries is cut in two
        last = replace(last, inputs=made)
    columns = input_legs(last, weighting) if weighted else ()
    square = closed(last, sizes, columns)
    norm = plan_stage(square, sizes | sizes_of([square]), tiled.last.need_state, norm_path)
    both = (*columns, *map(copy_of, columns))
    moment_axes = tuple(both.index(i) for core in norm.cores if core.param == MOMENT for i in core.inds)
    return TiledWeight(
        tiled=tiled,
        weighting=weighting,
        positions=tuple(last.outputs.index(i) for i in order),
        by_rows=False,
        norm=norm,
        moment_axes=moment_axes,
    )


def input_legs(segment: Segment, weighting: Weighting) -> Inds:
    """List the outputs of the last segment that belong to inputs of the weight, in the order of a second moment."""
    legs = sorted(zip(weighting.layout.leg_axes, segment.outputs, strict=True))
    return tuple(name for (axis, _), name in legs if axis)


def why_not_factored(segments: tuple[Segment, ...], weighting: Weighting, dtype: str, weighted: bool = False) -> str:
    """Return why :meth:`TiledWeight.project` is not possible; empty where it is."""
    layout = weighting.layout
    if segments[-1].activation != "identity":
        return "there is an activation after the last segment"
    # a second moment is zero at the padding of inputs
    if layout.padded_shape[0] > layout.shape[0] if weighted else layout.padding > 1:
        return "the layout has padding"
    if weighting.trains_base_scale:
        return "the scale of the base is trained"
    if trusted_relative_square(dtype) > 0.1:
        return f"{dtype} loses the difference of two large sums"
    if len(segments[-1].cores) + bool(segments[-1].inputs) < 2:
        return "the last segment is a single tensor"
    return ""
