"""The weight in many tiles: no array of its size exists at any time."""

from __future__ import annotations

from typing import Any, ClassVar

from autoray import do

from .._typing import Array, Float, Params
from ._materialised import InTiles
from ._mode import Mode


class Streamed(InTiles):
    """One block of rows of the weight after the other."""

    mode: ClassVar[Mode] = "stream"

    def __call__(self, arrays: Params, x: Float[Array, "batch n_in"]) -> Float[Array, "batch n_out"]:
        """Multiply ``(batch, n_in)`` to ``(batch, n_out)``."""
        backend, weight, weighting = self.backend, self.tiled_weight, self.weighting
        arrays, x = weight.with_base(arrays), weighting.input(x)

        def consume(w: Float[Array, "rows n_in"], i: Any, y: Any) -> tuple[Any, None]:
            return backend.put(y, i, x @ w.mT), None

        some = next(iter(arrays.values()))  # not x, which may have no rows
        zero = do("reshape", do("zeros_like", do("reshape", some, (-1,))[:1]), (1, 1, 1))
        y = zero + do("zeros_like", do("broadcast_to", zero, (self.tiles, x.shape[0], weight.rows)))
        y, _ = weight.run(backend, arrays, consume, y, adjoint=False, space=self.space)
        rows = do("reshape", do("transpose", y, (1, 0, 2)), (x.shape[0], weighting.layout.padded_shape[0]))
        return weighting.output(rows)
