"""The weight as a whole, and the common base of executables that generate it in tiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from autoray import do

from .._typing import Array, Factor, Float, Params
from ..backends import Workspace
from ..calculus import Consumer
from ._executable import Layer, Matrix, Tape
from ._mode import Mode
from ._of_tiles import OfTiles
from ._tiled import CACHED_BYTES


class InTiles(Layer, OfTiles):
    """A weight that is generated tile by tile, and again in the backward pass.

    Parameters
    ----------
    weight : TiledWeight
        The weight in tiles.
    backend : Backend
        The backend of the arrays.
    """

    def pullback(
        self,
        tape: Tape,
        arrays: Params,
        x: Float[Array, "batch n_in"],
        ybar: Float[Array, "batch n_out"],
        *,
        need_x: bool = True,
    ) -> tuple[dict[str, Float[Array, "..."]], Float[Array, "batch n_in"] | None]:
        """Compute the adjoints of the parameters from that of the product, and that of ``x`` if ``need_x``."""
        backend, weight, weighting = self.backend, self.tiled_weight, self.weighting
        x, ybar = weighting.input(x), weighting.output_adjoint(ybar)
        by_tile = do("transpose", do("reshape", ybar, (x.shape[0], self.tiles, weight.rows)), (1, 0, 2))

        def consume(w: Float[Array, "rows n_in"], i: Any, xbar: Any) -> tuple[Any, Float[Array, "rows n_in"]]:
            yb = backend.take(by_tile, i)
            xbar = backend.add(xbar, yb @ w) if need_x else None
            return xbar, yb.mT @ x

        start = do("zeros_like", x) if need_x else None
        xbar, grads = weight.run(backend, weight.with_base(arrays), consume, start, adjoint=True, space=self.space)
        return grads, xbar if xbar is None else weighting.input_adjoint(xbar)

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
        """Pass every tile to ``consume``."""
        return self.tiled_weight.run(
            self.backend, arrays, consume, start(), adjoint=True, scale=scale, factor=factor, space=self.space
        )


class Materialised(InTiles):
    """The weight as a whole: generated in every call, or once for parameters that stay the same."""

    mode: ClassVar[Mode] = "materialise"
    makes_weight: ClassVar[bool] = True

    def weight(self, arrays: Params) -> Float[Array, "*shape"]:
        """Compute the weight."""
        return self._made(arrays, self.backend.workspace(CACHED_BYTES))

    def weight_adjoint(self, arrays: Params, wbar: Float[Array, "*shape"]) -> dict[str, Float[Array, "..."]]:
        """Compute the adjoints of the parameters from that of the weight; intermediates are recomputed."""
        weight = self.tiled_weight
        tile_bar = weight.to_single(wbar)
        _, grads = weight.run(
            self.backend, weight.with_base(arrays), lambda w, i, carry: (carry, tile_bar), None, adjoint=True
        )
        return grads

    def __call__(self, arrays: Params, x: Float[Array, "batch n_in"]) -> Float[Array, "batch n_out"]:
        """Multiply ``(batch, n_in)`` to ``(batch, n_out)``."""
        return x @ self._made(arrays, self.space).mT

    def _made(self, arrays: Params, space: Workspace) -> Float[Array, "*shape"]:
        weight = self.tiled_weight
        whole, _ = weight.run(
            self.backend, weight.with_base(arrays), lambda w, i, carry: (w, None), None, adjoint=False, space=space
        )
        return weight.from_single(whole)

    def fixed(
        self, arrays: Callable[[], Params], weight: Callable[[], Matrix], batch: int | None = None
    ) -> Callable[[Float[Array, "batch n_in"]], Float[Array, "batch n_out"]]:
        """Return the product with a weight that is generated once."""
        made = weight()
        if (
            self.backend.compiles and batch == 1
        ):  # XLA is faster with the rows of the matrix for one row, with its columns for more
            product = self.backend.compile(lambda x, w: do("tensordot", x, w, axes=((1,), (1,))))
            return lambda x: product(x, made)
        transposed = do("transpose", made, (1, 0))
        return lambda x: do("matmul", x, transposed)

    def evaluate_whole(
        self,
        arrays: Params,
        loss: Callable[[Float[Array, "*shape"]], tuple[Any, Float[Array, "*shape"]]],
        scale: Factor | None = None,
    ) -> tuple[Any, dict[str, Float[Array, "..."]]]:
        """Evaluate ``loss(W) -> (value, dL/dW)`` and the adjoints of the parameters."""
        weight = self.tiled_weight

        def consume(tile: Float[Array, "*tile"], i: Any, carry: Any) -> tuple[Any, Float[Array, "*tile"]]:
            value, wbar = loss(weight.from_single(tile))
            return value, weight.to_single(wbar)

        return weight.run(self.backend, arrays, consume, None, adjoint=True, scale=scale, space=self.space)
