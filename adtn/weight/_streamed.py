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

    def write(self, arrays: Params, out: Float[Array, "*shape"], scale: float) -> None:
        """Write the weight into an array, block by block; executables of fits serve all scales."""
        weight, weighting = self.tiled_weight, self.weighting
        first, *others = weighting.permutations or (None,) * len(out.shape)
        place = None if first is None else do("index_on", out, first, True)

        def consume(w: Float[Array, " rows *inner"], i: int, carry: None) -> tuple[None, None]:
            rows = slice(i * weight.rows, min((i + 1) * weight.rows, out.shape[0]))
            w = w[: max(rows.stop - rows.start, 0)]  # without padding
            for axis, p in enumerate(others, 1):
                w = w if p is None else p.permute(w, axis)
            out[rows if place is None else place[rows]] = w
            return None, None

        arrays = weight.with_base(arrays)
        weight.run(self.backend, arrays, consume, None, adjoint=False, scale=scale, space=self.space)
