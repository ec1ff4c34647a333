"""The common part of executables that read a weight in tiles."""

from __future__ import annotations

from collections.abc import Iterator

from .._typing import Array, Float, Shape
from ..backends import Backend
from ._executable import FitExecutable, ListedStep
from ._tiled import TiledWeight
from ._weighting import Weighting


class OfTiles(FitExecutable):
    """An executable of a weight in tiles.

    Parameters
    ----------
    weight : TiledWeight
        The weight in tiles.
    backend : Backend
        The backend of the arrays.
    """

    def __init__(self, weight: TiledWeight, backend: Backend) -> None:
        super().__init__(backend)
        self.tiled_weight = weight
        self.tiles = weight.tiled.tiles
        self.by_rows = weight.by_rows
        self.tile_shape: Shape = weight.tile_shape

    @property
    def weighting(self) -> Weighting:
        """The formula that converts a state to a weight."""
        return self.tiled_weight.weighting

    def steps(self) -> Iterator[ListedStep]:
        """List the steps that are computed once, then those of every tile."""
        tiled = self.tiled_weight.tiled
        stages = (*tiled.head.stages, tiled.last)
        for t, stage in enumerate(stages):
            yield from ((t, 1, step) for step in stage.steps)
        yield from ((len(stages) - 1, tiled.tiles, step) for step in tiled.steps)

    def arrange(self, weight: Float[Array, "*shape"]) -> Float[Array, " tiles *tile"]:
        """Arrange an array of the weight's shape in tiles."""
        return self.tiled_weight.arrange(weight)
