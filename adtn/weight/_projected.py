"""The squared distance of a generated weight from a target: of a tile, or without the weight."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from autoray import do

from .._typing import Array, Factor, Float, Params
from ..backends import Backend
from ..calculus import Consumer
from ..program import Path, closed, default_path, plan_stage, product_order, tile_program
from ..topology import Segment, sizes_of
from ._executable import ListedStep
from ._mode import Mode
from ._of_tiles import OfTiles
from ._tiled import TiledWeight
from ._weighting import Weighting

# the distance without the weight is trusted down to this many rounding errors of the square of the target's norm
TRUSTED_ROUNDINGS = 1e4


class Projected(OfTiles):
    """The target projected on the factors of the last product: no tile of the weight is made.

    The difference of large sums loses digits: down to which error it is good says :func:`trusted_relative_square`.

    Parameters
    ----------
    weight : TiledWeight
        From :func:`projecting`.
    backend : Backend
        Of the arrays.
    """

    mode: ClassVar[Mode] = "factored"
    exact: ClassVar[bool] = False
    reads_base: ClassVar[bool] = False

    @property
    def label(self) -> str:
        """Name the mode and the tiles of the target."""
        return self.mode if self.tiles == 1 else super().label

    def steps(self) -> Iterator[ListedStep]:
        """List the steps; two products that project take the place of the last one."""
        *others, (segment, times, root) = super().steps()
        yield from others
        yield segment, 2 * times, root

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
        """Give ``‖W - target‖² - ‖target‖²`` and half of its gradient; the target is without the base."""
        return self.tiled_weight.project(self.backend, arrays, target, self.space, scale)


def squared_distance(backend: Backend, arranged: Float[Array, " tiles *tile"]) -> Consumer:
    """The consumer of a reconstruction: adds ``‖W - target‖²``, and half of its adjoint is the residual."""

    def consume(tile: Float[Array, "*tile"], i: Any, total: Any) -> tuple[Any, Float[Array, "*tile"]]:
        residual = backend.subtract(tile, backend.take(arranged, i))
        flat = do("reshape", residual, (-1,))
        return total + do("matmul", flat, flat), residual

    return consume


def trusted_relative_square(dtype: str) -> float:
    """Down to which ``‖W - target‖² / ‖target‖²`` :meth:`TiledWeight.project` is as good as the residual itself.

    Above 1 for half precisions: they cannot use it.
    """
    return TRUSTED_ROUNDINGS * (float(np.finfo(dtype).eps) if dtype in ("float64", "float32") else 1.0)


def projecting(
    segments: tuple[Segment, ...],
    paths: tuple[Path | None, ...],
    weighting: Weighting,
    tiles: int,
    norm_path: Path | None = None,
) -> TiledWeight:
    """A weight in tiles on which a target is projected, see :meth:`TiledWeight.project`.

    Parameters
    ----------
    segments : tuple of Segment
        Of the generator.
    paths : tuple of (path or None)
        Contraction order of each segment; ``None`` for the default.
    weighting : Weighting
        Without padding.
    tiles : int
        How many.
    norm_path : path, optional
        Contraction order of the last segment closed with its own copy.
    """
    sizes, last = sizes_of(segments), segments[-1]
    paths = tuple(default_path(s, sizes) if p is None else p for s, p in zip(segments, paths, strict=True))
    order = product_order(last, paths[-1], sizes, tiles)
    tiled = tile_program(segments, paths, order, tiles, keep_last=True)
    made = tiled.last.segment.inputs
    if set(made) == set(last.inputs):  # no leg of the weight that the state carries is cut in two
        last = replace(last, inputs=made)
    square = closed(last, sizes)
    norm = plan_stage(square, sizes | sizes_of([square]), tiled.last.need_state, norm_path)
    return TiledWeight(
        tiled=tiled,
        weighting=weighting,
        positions=tuple(last.outputs.index(i) for i in order),
        by_rows=False,
        norm=norm,
    )


def why_not_factored(segments: tuple[Segment, ...], weighting: Weighting, dtype: str) -> str:
    """Return why :meth:`TiledWeight.project` is not possible; empty where it is."""
    if segments[-1].activation != "identity":
        return "there is an activation after the last segment"
    if weighting.layout.padding > 1:
        return "the layout has padding"
    if weighting.trains_base_scale:
        return "the scale of the base is trained"
    if trusted_relative_square(dtype) > 0.1:
        return f"{dtype} loses the difference of two large sums"
    if len(segments[-1].cores) + bool(segments[-1].inputs) < 2:
        return "the last segment is a single tensor"
    return ""
