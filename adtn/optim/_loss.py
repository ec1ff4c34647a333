"""Loss and gradients of a fit as one function of parameters and data, as the scheduler plans it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from autoray import astype, do

from .._backend import Backend, Workspace
from .._errors import FitError
from .._typing import Array, Params
from ..generator import Generator
from ..network import BASE
from ..schedule import MODES, Plan, TiledWeight, decide, trusted_relative_square
from ._objective import Objective, TileObjective, ValueAndGrad
from ._options import FitOptions

TASK = "task/"
TARGET = "target"


@dataclass(frozen=True, eq=False)
class Loss:
    """A compiled loss with everything it reads that does not change.

    Parameters
    ----------
    mode : str
        Of the plan.
    trusted : float
        In mode ``"factored"``: below this loss, rounding errors of the large sums that cancel are seen.
    """

    mode: str
    trusted: float
    _function: Callable[..., tuple[Array, Params]]
    _constants: dict[str, Array]

    def __call__(self, params: Params, batch: tuple[Array, ...]) -> tuple[Array, Params]:
        """Loss and gradients."""
        return self._function(params, self._constants, batch)

    def release(self) -> None:
        """Let go of the constants before another loss makes its own."""
        self._constants.clear()


def plan_loss(
    generator: Generator,
    objective: Objective,
    backend: Backend,
    device: str,
    options: FitOptions,
    modes: tuple[str, ...] = MODES,
) -> Loss:
    """Decide how a fit evaluates its loss, put its constants on the device and compile it.

    Parameters
    ----------
    generator : Generator
        Only its structure and frozen numbers matter.
    objective : Objective
        What is minimised.
    backend, device
        Where.
    options : FitOptions
        ``mode`` and ``memory`` bind the scheduler.
    modes : tuple of str
        What else it may choose from.
    """
    tiles = objective.in_tiles(backend, options.master != options.dtype)
    mode = options.mode if options.mode in modes else None
    if tiles is None:
        if mode not in (None, "materialise"):
            raise FitError(f"Got mode={mode!r}; a task takes the weight as a whole. Use mode='materialise'.")
        mode = "materialise"
    plan = decide(
        generator, "fit", device=options.device, dtype=options.dtype, mode=mode, memory=options.memory, modes=modes,
        only_rows=tiles is None or not tiles.plain,
    )  # fmt: skip
    numbers = {**generator.constants(), **objective.constants()}
    function = _LossFunction(plan, objective.bind(backend) if tiles is None else None, tiles, options, backend)
    if tiles is not None and plan.mode == "factored":
        function.offset = 1.0
        if BASE in numbers:
            target = numbers[TARGET] = numbers[TARGET] - numbers.pop(BASE)
            function.offset = float(np.sum(np.square(target, dtype=np.float64))) * tiles.loss_factor
    constants = {name: function.constant(name, np.asarray(x), device) for name, x in numbers.items()}
    trusted = trusted_relative_square(options.dtype) * function.offset
    return Loss(plan.mode, trusted, backend.compile(function), constants)


class _LossFunction:
    """``(params, constants, batch) -> (loss, grads)``: the library's own adjoint around the objective's ``dL/dW``."""

    def __init__(
        self, plan: Plan, whole: ValueAndGrad | None, tiles: TileObjective | None, options: FitOptions, backend: Backend
    ) -> None:
        assert plan.weight is not None
        self.mode = plan.mode
        self.weight: TiledWeight = plan.weight
        self.whole = whole
        self.tiles = tiles
        self.options = options
        self.backend = backend
        self.space: Workspace = backend.workspace()
        self.offset = 0.0  # ‖target‖², in units of the loss, where the weight is never made

    def constant(self, name: str, x: np.ndarray, device: str) -> Array:
        """A frozen array on the device; those of the weight's shape arranged in tiles, without a copy if possible."""
        if name == TARGET and self.tiles is not None:
            x = self.weight.arrange(x if self.tiles.factor == 1.0 else x * self.tiles.factor)
        elif name == BASE:
            x = self.weight.arrange(x)
        return self.backend.asarray(x, device, self.options.dtype, copy=False)

    def __call__(self, params: Params, constants: Params, batch: tuple[Array, ...]) -> tuple[Array, Params]:
        dtype, master = self.options.dtype, self.options.master
        if master != dtype:
            params = {k: astype(x, dtype) for k, x in params.items()}
        arrays = {**constants, **params}
        if self.tiles is not None:
            loss, grads = self._over_tiles(arrays, constants, self.tiles)
        else:
            assert self.whole is not None
            loss, grads = self._at_once(arrays, params, constants, batch, self.whole)
        if master != dtype:
            grads = {k: astype(g, master) for k, g in grads.items()}
        return loss, _clipped(grads, self.options.clip)

    def _over_tiles(self, arrays: Params, constants: Params, tiles: TileObjective) -> tuple[Array, dict[str, Array]]:
        dtype, master = self.options.dtype, self.options.master
        if self.mode == "factored":
            loss, grads = self.weight.project(self.backend, arrays, constants[TARGET], self.space)
        else:
            zero = astype(do("zeros_like", do("reshape", constants[TARGET], (-1,))[0]), master)
            consume = tiles.consume(constants[TARGET], constants)

            def summed(tile: Array, i: Any, total: Any) -> tuple[Any, Array | None]:
                part, wbar = consume(tile, i, astype(total, dtype) * 0.0 if master != dtype else total)
                return (total + astype(part, master) if master != dtype else part), wbar

            loss, grads = self.weight.run(
                self.backend, arrays, summed, zero, adjoint=True, factor=tiles.factor, space=self.space
            )
        return loss * tiles.loss_factor + self.offset, {k: g * tiles.slope_factor for k, g in grads.items()}

    def _at_once(
        self, arrays: Params, params: Params, constants: Params, batch: tuple[Array, ...], whole: ValueAndGrad
    ) -> tuple[Array, dict[str, Array]]:
        own = {k.removeprefix(TASK): x for k, x in params.items() if k.startswith(TASK)}
        weight, rows = self.weight, self.weight.weighting.layout.shape[0]

        def consume(tile: Array, i: Any, carry: Any) -> tuple[Any, Array]:
            loss, (wbar, *rest) = whole(tile[:rows] if weight.masked else tile, own, constants, batch)
            return (loss, rest), weight.pad_rows(wbar)

        (loss, rest), grads = weight.run(self.backend, arrays, consume, None, adjoint=True, space=self.space)
        return loss, grads | ({TASK + k: g for k, g in rest[0].items()} if rest else {})


def _clipped(grads: dict[str, Array], clip: float | None) -> dict[str, Array]:
    if clip is None:
        return grads
    total = sum(do("sum", g * g) for g in grads.values())
    norm = do("sqrt", total)
    factor = do("where", norm > clip, clip / (norm + 1e-30), norm * 0.0 + 1.0)
    return {k: g * factor for k, g in grads.items()}
