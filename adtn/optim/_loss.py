"""Loss and gradients of a fit as one function of parameters and data, as the scheduler plans it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from autoray import astype, do

from .._backend import Backend, Workspace, get_backend
from .._errors import FitError
from .._typing import Array, Params
from ..generator import Generator
from ..network import BASE
from ..schedule import MODES, Consumer, TiledWeight, decide, trusted_relative_square
from ._objective import Objective, ValueAndGrad
from ._options import FitOptions

TASK = "task/"
TARGET = "target"
SCALE, FACTOR, OFFSET = "number/scale", "number/factor", "number/offset"
LOSS_FACTOR, SLOPE_FACTOR = "number/loss_factor", "number/slope_factor"


@dataclass(frozen=True, eq=False)
class Loss:
    """A compiled loss with everything it reads that does not change.

    Parameters
    ----------
    mode : str
        Of the plan.
    trusted : float
        In mode ``"factored"``: below this loss, rounding errors of the large sums that cancel are seen.
    largest_product : float
        Operations of the largest contraction.
    """

    mode: str
    trusted: float
    largest_product: float
    _function: Callable[..., tuple[Array, Params]]
    _constants: dict[str, Any]

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
    half = options.master != options.dtype
    tiles = objective.in_tiles(half)
    mode = options.mode if options.mode in modes else None
    if tiles is None:
        if mode not in (None, "materialise"):
            raise FitError(f"Got mode={mode!r}; a task takes the weight as a whole. Use mode='materialise'.")
        mode = "materialise"
    plan = decide(
        generator, "fit", device=options.device, dtype=options.dtype, mode=mode, memory=options.memory, modes=modes,
        only_rows=tiles is None or not tiles.plain,
    )  # fmt: skip
    assert plan.weight is not None
    arrays, offset = {**generator.constants(), **objective.constants(generator.weighting)}, 0.0
    numbers = {SCALE: generator.scale}
    if tiles is not None:
        if tiles.is_far:  # the problem divided by the target's norm
            numbers[SCALE] *= tiles.factor
            arrays |= {k: np.asarray(arrays[k], np.float64) * tiles.factor for k in (TARGET, BASE) if k in arrays}
            tiles = replace(tiles, factor=1.0)
        if plan.mode == "factored":
            offset = 1.0
            if BASE in arrays:
                target = arrays[TARGET] = arrays[TARGET] - arrays.pop(BASE)
                offset = float(np.sum(np.square(target, dtype=np.float64))) * tiles.loss_factor
        elif tiles.factor != 1.0:
            numbers[FACTOR] = tiles.factor
        numbers |= {LOSS_FACTOR: tiles.loss_factor, SLOPE_FACTOR: tiles.slope_factor, OFFSET: offset}
    constants: dict[str, Any] = {}
    for name, x in arrays.items():
        x = np.asarray(x)
        if name == TARGET and tiles is not None:
            x = x if tiles.factor == 1.0 else x * tiles.factor
        if (name == TARGET and tiles is not None) or name == BASE:
            x = plan.weight.arrange(x)  # a view where that is possible
        constants[name] = backend.asarray(x, device, options.dtype, copy=False)
    for name, number in numbers.items():  # arguments, so that fits of other targets need nothing compiled
        precision = options.dtype if name in (SCALE, FACTOR) else options.master
        constants[name] = backend.asarray(np.asarray(number), device, precision) if backend.compiles else number
    # what is not compiled has a pool of its own, which must not outlive the fit
    make = _shared if backend.compiles and tiles is not None else _compiled
    whole, consume = (objective.bind(backend), None) if tiles is None else (None, tiles.consume)
    function = make(backend.name, plan.weight, plan.mode, consume, whole, options.dtype, options.master, options.clip)
    largest = max((c.flops for c in plan.contractions), default=0)
    return Loss(plan.mode, trusted_relative_square(options.dtype) * offset, largest, function, constants)


def _compiled(
    backend: str,
    weight: TiledWeight,
    mode: str,
    consume: Callable[[Backend, Array, Params], Consumer] | None,
    whole: ValueAndGrad | None,
    dtype: str,
    master: str,
    clip: float | None,
) -> Callable[..., tuple[Array, Params]]:
    found = get_backend(backend)
    function = _LossFunction(found, found.workspace(), weight, mode, consume, whole, dtype, master, clip)
    return found.compile(function)


_shared = lru_cache(maxsize=64)(_compiled)


@dataclass(frozen=True, eq=False)
class _LossFunction:
    """``(params, constants, batch) -> (loss, grads)``: the library's own adjoint around the objective's ``dL/dW``."""

    backend: Backend
    space: Workspace
    weight: TiledWeight
    mode: str
    consume: Callable[[Backend, Array, Params], Consumer] | None
    whole: ValueAndGrad | None
    dtype: str
    master: str
    clip: float | None

    def __call__(self, params: Params, constants: Params, batch: tuple[Array, ...]) -> tuple[Array, Params]:
        dtype, master = self.dtype, self.master
        if master != dtype:
            params = {k: astype(x, dtype) for k, x in params.items()}
        arrays = {**constants, **params}
        if self.consume is not None:
            loss, grads = self._over_tiles(arrays, constants, self.consume(self.backend, constants[TARGET], constants))
        else:
            assert self.whole is not None
            loss, grads = self._at_once(arrays, params, constants, batch, self.whole)
        if master != dtype:
            grads = {k: astype(g, master) for k, g in grads.items()}
        return loss, _clipped(grads, self.clip)

    def _over_tiles(self, arrays: Params, constants: Params, consume: Consumer) -> tuple[Array, dict[str, Array]]:
        dtype, master, scale = self.dtype, self.master, constants[SCALE]
        if self.mode == "factored":
            loss, grads = self.weight.project(self.backend, arrays, constants[TARGET], self.space, scale)
        else:
            zero = astype(do("zeros_like", do("reshape", constants[TARGET], (-1,))[0]), master)

            def summed(tile: Array, i: Any, total: Any) -> tuple[Any, Array | None]:
                part, wbar = consume(tile, i, astype(total, dtype) * 0.0 if master != dtype else total)
                return (total + astype(part, master) if master != dtype else part), wbar

            loss, grads = self.weight.run(
                self.backend, arrays, summed, zero, adjoint=True, scale=scale, factor=constants.get(FACTOR),
                space=self.space,
            )  # fmt: skip
        slope = constants[SLOPE_FACTOR]
        slope = slope if isinstance(slope, float) or master == dtype else astype(slope, dtype)
        return loss * constants[LOSS_FACTOR] + constants[OFFSET], {k: g * slope for k, g in grads.items()}

    def _at_once(
        self, arrays: Params, params: Params, constants: Params, batch: tuple[Array, ...], whole: ValueAndGrad
    ) -> tuple[Array, dict[str, Array]]:
        own = {k.removeprefix(TASK): x for k, x in params.items() if k.startswith(TASK)}
        weight = self.weight

        def consume(tile: Array, i: Any, carry: Any) -> tuple[Any, Array]:
            loss, (wbar, *rest) = whole(weight.from_single(tile), own, constants, batch)
            return (loss, rest), weight.to_single(wbar)

        (loss, rest), grads = weight.run(
            self.backend, arrays, consume, None, adjoint=True, scale=constants[SCALE], space=self.space
        )
        return loss, grads | ({TASK + k: g for k, g in rest[0].items()} if rest else {})


def _clipped(grads: dict[str, Array], clip: float | None) -> dict[str, Array]:
    if clip is None:
        return grads
    total = sum(do("sum", g * g) for g in grads.values())
    norm = do("sqrt", total)
    factor = do("where", norm > clip, clip / (norm + 1e-30), norm * 0.0 + 1.0)
    return {k: g * factor for k, g in grads.items()}
