"""The loss and gradients of a fit as one function of parameters and data, as the scheduler plans it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from autoray import astype, do

from .._typing import Array, Float, Params
from ..backends import Backend, get_backend
from ..calculus import Rows, isometric, isometric_vjp
from ..errors import FitError
from ..generator import Generator
from ..program import MOMENT
from ..schedule import decide
from ..weight import BASE, Consumer, FitExecutable, Materialised, Mode, Projected, Weighting, trusted_relative_square
from ._objective import Objective, TileObjective, ValueAndGrad
from ._options import FitOptions

TASK = "task/"
TARGET = "target"
SCALE, FACTOR, OFFSET = "number/scale", "number/factor", "number/offset"
LOSS_FACTOR, SLOPE_FACTOR = "number/loss_factor", "number/slope_factor"


@dataclass(frozen=True, eq=False, kw_only=True)
class Loss:
    """A compiled loss with its constants.

    Parameters
    ----------
    exact : bool
        Whether the residuals are formed.
    trusted : float
        If they are not formed, the loss below which rounding errors of large sums dominate.
    largest_product : float
        The number of operations of the largest contraction.
    """

    exact: bool
    trusted: float
    largest_product: float
    _function: Callable[..., tuple[Array, Params]]
    _constants: dict[str, Any]

    def __call__(self, params: Params, batch: tuple[Array, ...]) -> tuple[Array, Params]:
        """Evaluate loss and gradients."""
        return self._function(params, self._constants, batch)

    def release(self) -> None:
        """Free the constants before another loss makes its own."""
        self._constants.clear()


def plan_loss(
    generator: Generator,
    objective: Objective,
    backend: Backend,
    device: str,
    options: FitOptions,
    exact: bool = False,
) -> Loss:
    """Plan how a fit evaluates its loss, copy its constants to the device and compile it.

    Parameters
    ----------
    generator : Generator
        The generator, of which only structure and frozen parameters matter.
    objective : Objective
        The objective that is minimised.
    backend, device
        The backend and the device.
    options : FitOptions
        The options, of which ``mode`` and ``memory`` restrict the scheduler.
    exact : bool
        Whether the residuals must be formed.
    """
    half = options.master != options.dtype
    tiles = objective.in_tiles(half)
    mode = None if exact and options.mode == Projected.mode else options.mode
    if tiles is None:
        mode = _whole(mode)
    plan = decide(
        generator,
        "fit",
        device=options.device,
        dtype=options.dtype,
        mode=mode,
        memory=options.memory,
        exact=exact,
        loss="any" if tiles is None else tiles.loss,
    )
    evaluation = plan.fit
    arrays, offset = {**generator.constants(), **objective.constants(generator.weighting)}, 0.0
    scalars = {SCALE: generator.scale}
    if tiles is not None:
        if tiles.is_far:  # the problem divided by the target's norm
            scalars[SCALE] *= tiles.factor
            arrays |= {k: np.asarray(arrays[k], np.float64) * tiles.factor for k in (TARGET, BASE) if k in arrays}
            tiles = replace(tiles, factor=1.0)
        if not evaluation.exact:
            target = arrays[TARGET]
            shifted = target - arrays.pop(BASE) if BASE in arrays else target
            weighted = shifted
            if MOMENT in arrays:
                weighted = _times_moment(generator.weighting, shifted, arrays[MOMENT])
            arrays[TARGET], offset = weighted, 1.0
            if shifted is not target:
                offset = float(np.sum(np.multiply(shifted, weighted, dtype=np.float64))) * tiles.loss_factor
        elif tiles.factor != 1.0:
            scalars[FACTOR] = tiles.factor
        scalars |= {LOSS_FACTOR: tiles.loss_factor, SLOPE_FACTOR: tiles.slope_factor, OFFSET: offset}
    constants = _placed(arrays, scalars, evaluation, tiles, backend=backend, device=device, options=options)
    # a loss that is not compiled has its own pool, which must not outlive the fit
    make = _shared if backend.compiles and tiles is not None else _compiled
    consume: Any = tiles.consume if tiles is not None else None
    whole = objective.bind(backend) if tiles is None else None
    rows = tuple(generator.isometric_rows.items())
    function = make(backend.name, evaluation, consume, whole, options.dtype, options.master, options.clip, rows)
    return Loss(
        exact=evaluation.exact,
        trusted=trusted_relative_square(options.dtype) * offset,
        largest_product=max((c.flops for c in plan.contractions), default=0),
        _function=function,
        _constants=constants,
    )


def _placed(
    arrays: Params,
    scalars: Mapping[str, float],
    evaluation: FitExecutable,
    tiles: TileObjective | None,
    *,
    backend: Backend,
    device: str,
    options: FitOptions,
) -> dict[str, Any]:
    """Copy the constants of a loss to the device, the target and the base as the executable reads them."""
    constants: dict[str, Any] = {}
    for name, x in arrays.items():
        x = np.asarray(x)
        if name == TARGET and tiles is not None:
            x = x if tiles.factor == 1.0 else x * tiles.factor
        if (name == TARGET and tiles is not None) or name == BASE:
            x = evaluation.arrange(x)  # a view if possible
        elif name == MOMENT:
            x = np.ascontiguousarray(evaluation.arrange_moment(x))
        constants[name] = backend.asarray(x, device, options.dtype, copy=False)
    for name, scalar in scalars.items():  # arguments, so that other targets need no compiling
        precision = options.dtype if name in (SCALE, FACTOR) else options.master
        constants[name] = backend.asarray(np.asarray(scalar), device, precision) if backend.compiles else scalar
    return constants


def _times_moment(
    weighting: Weighting, target: Float[np.ndarray, "*shape"], moment: Float[np.ndarray, "n_in n_in"]
) -> Float[np.ndarray, "*shape"]:
    """Multiply a weight by a second moment of its inputs in generated order."""
    rows = weighting.to_generated_order(target)
    return weighting.to_weight_order((rows.reshape(len(rows), -1) @ moment).reshape(rows.shape))


def _whole(mode: Mode | None) -> Mode:
    """Choose the mode of an objective that needs the whole weight."""
    if mode not in (None, Materialised.mode):
        raise FitError(f"Got mode={mode!r}; a task takes the weight as a whole. Use mode='materialise'.")
    return Materialised.mode


def _compiled(
    backend: str,
    evaluation: FitExecutable,
    consume: Callable[[Backend, Array, Params], Consumer] | None,
    whole: ValueAndGrad | None,
    dtype: str,
    master: str,
    clip: float | None,
    rows: tuple[tuple[str, int], ...],
) -> Callable[..., tuple[Array, Params]]:
    there = get_backend(backend)
    function = _LossFunction(
        evaluation=evaluation.on(there),
        consume=consume,
        whole=whole,
        dtype=dtype,
        master=master,
        clip=clip,
        rows=dict(rows),
    )
    return there.compile(function)


_shared = lru_cache(maxsize=64)(_compiled)


@dataclass(frozen=True, eq=False, kw_only=True)
class _LossFunction:
    """A function ``(params, constants, batch) -> (loss, grads)``: the library's adjoint of ``dL/dW``."""

    evaluation: FitExecutable
    consume: Callable[[Backend, Array, Params], Consumer] | None
    whole: ValueAndGrad | None
    dtype: str
    master: str
    clip: float | None
    rows: Rows

    def __call__(self, params: Params, constants: Params, batch: tuple[Array, ...]) -> tuple[Array, Params]:
        dtype, master, given = self.dtype, self.master, params
        params = isometric(params, self.rows) if self.rows else params
        if master != dtype:
            params = {k: astype(x, dtype) for k, x in params.items()}
        arrays = {**constants, **params}
        if self.consume is not None:
            consume = self.consume(self.evaluation.backend, constants[TARGET], constants)
            loss, grads = self._over_tiles(arrays, constants, consume)
        elif self.whole is not None and isinstance(self.evaluation, Materialised):
            loss, grads = self._at_once(self.evaluation, self.whole, arrays, params, constants, batch)
        else:
            raise FitError("A loss needs a consumer of tiles, or a function of the whole weight that is materialised.")
        if master != dtype:
            grads = {k: astype(g, master) for k, g in grads.items()}
        grads = isometric_vjp(given, self.rows, grads) if self.rows else grads
        return loss, _clipped(grads, self.clip)

    def _over_tiles(self, arrays: Params, constants: Params, consume: Consumer) -> tuple[Array, dict[str, Array]]:
        dtype, master, target = self.dtype, self.master, constants[TARGET]

        def zero() -> Array:
            return astype(do("zeros_like", do("reshape", target, (-1,))[0]), master)

        def summed(tile: Array, i: Any, total: Any) -> tuple[Any, Array | None]:
            part, wbar = consume(tile, i, astype(total, dtype) * 0.0 if master != dtype else total)
            return (total + astype(part, master) if master != dtype else part), wbar

        loss, grads = self.evaluation.evaluate(
            arrays, target, summed, zero, scale=constants[SCALE], factor=constants.get(FACTOR)
        )
        slope = constants[SLOPE_FACTOR]
        slope = slope if isinstance(slope, float) or master == dtype else astype(slope, dtype)
        return loss * constants[LOSS_FACTOR] + constants[OFFSET], {k: g * slope for k, g in grads.items()}

    def _at_once(
        self,
        evaluation: Materialised,
        whole: ValueAndGrad,
        arrays: Params,
        params: Params,
        constants: Params,
        batch: tuple[Array, ...],
    ) -> tuple[Array, dict[str, Array]]:
        own = {k.removeprefix(TASK): x for k, x in params.items() if k.startswith(TASK)}

        def loss_of(weight: Array) -> tuple[Any, Array]:
            loss, (wbar, *rest) = whole(weight, own, constants, batch)
            return (loss, rest), wbar

        (loss, rest), grads = evaluation.evaluate_whole(arrays, loss_of, constants[SCALE])
        return loss, grads | ({TASK + k: g for k, g in rest[0].items()} if rest else {})


def _clipped(grads: dict[str, Array], clip: float | None) -> dict[str, Array]:
    if clip is None:
        return grads
    total = sum(do("sum", g * g) for g in grads.values())
    norm = do("sqrt", total)
    factor = do("where", norm > clip, clip / (norm + 1e-30), norm * 0.0 + 1.0)
    return {k: g * factor for k, g in grads.items()}
