"""The fit: one loop for every backend, objective and optimizer."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from autoray import astype, do

from .._backend import OPTIMIZERS, Backend, check_device
from .._errors import FitError
from .._typing import Array, Params
from ..generator import Generator
from ..network import BASE
from ..schedule import TiledWeight, decide
from ._checkpoint import Checkpoint, fingerprint, read_checkpoint, write_checkpoint
from ._decompose import decompose
from ._lbfgs import run_lbfgs
from ._objective import Objective, Reconstruction, TileObjective, ValueAndGrad, as_objective
from ._progress import ProgressBar
from ._schedules import Schedule, ScheduleName, make_schedule
from ._solution import Solution, Status

TASK = "task/"
TARGET = "target"
_KEEP_EVERY = 20  # steps between copies to fall back on when a task with batches diverges
Callback = Callable[[int, float], "bool | None"]
Name = Literal["adam", "adamw", "sgd", "lbfgs"]


@dataclass(frozen=True)
class FitOptions:
    """Everything about a fit that is neither generator nor objective; see :func:`fit`."""

    device: str = "numpy:cpu"
    dtype: str = "float32"
    optimizer: Name = "adam"
    steps: int = 1000
    lr: float = 1e-2
    schedule: ScheduleName | Schedule = "cosine"
    clip: float | None = None
    momentum: float = 0.9
    weight_decay: float = 0.0
    lr_factors: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    tolerance: float = 0.0
    patience: int | None = None
    time_limit: float | None = None
    callbacks: Sequence[Callback] = ()
    progress: bool | None = None
    checkpoint: str | os.PathLike[str] | None = None
    checkpoint_every: int = 100
    mode: str | None = None
    memory: str | int | None = None

    def __post_init__(self) -> None:
        known = (*OPTIMIZERS, "lbfgs")
        if self.optimizer not in known:
            raise FitError(f"Got optimizer={self.optimizer!r}; expected one of {', '.join(known)}.")
        if self.steps < 1 or self.checkpoint_every < 1:
            raise FitError(
                f"Got steps={self.steps}, checkpoint_every={self.checkpoint_every}; both must be at least 1."
            )
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise FitError(f"Got lr={self.lr}; expected a positive number.")
        if self.clip is not None and not self.clip > 0:
            raise FitError(f"Got clip={self.clip}; expected a positive norm, or None.")
        if self.clip is not None and self.optimizer == "lbfgs":
            raise FitError("Got clip with 'lbfgs', whose line search needs the gradient as it is; leave clip out.")
        if self.weight_decay and self.optimizer != "adamw":
            raise FitError(
                f"Got weight_decay={self.weight_decay} with {self.optimizer!r}; only 'adamw' decays weights."
            )

    @property
    def master(self) -> str:
        """Dtype of parameters and moments: half precisions lose small updates, and Adam's epsilon is zero there."""
        return self.dtype if self.dtype in ("float64", "float32") else "float32"

    def mark(self) -> tuple[object, ...]:
        """What a resumed fit must have in common with the interrupted one."""
        schedule = self.schedule if isinstance(self.schedule, str) else "function"
        return (
            self.dtype, self.optimizer, self.steps, self.lr, schedule, self.clip, self.momentum,
            self.weight_decay, sorted(self.lr_factors.items()), self.seed,
        )  # fmt: skip


@dataclass
class Run:
    """A fit under way.

    Parameters
    ----------
    backend, device
        Where it runs.
    objective : Objective
        What is minimised.
    options : FitOptions
        How.
    value_and_grad : callable
        ``(params, constants, batch) -> (loss, grads)``, compiled.
    constants : dict of str to array
        Frozen numbers, the base and the objective's own, on the device.
    state : Checkpoint
        Where it stands; NumPy copies of the parameters are current only at checkpoints.
    save : callable
        Writes the checkpoint, if there is one.
    bar : ProgressBar
        Shows the loss.
    deadline : float
        ``time.monotonic()`` at which to stop.
    """

    backend: Backend
    device: str
    objective: Objective
    options: FitOptions
    value_and_grad: Callable[[Params, Params, tuple[Array, ...]], tuple[Array, Params]]
    constants: Params
    state: Checkpoint
    save: Callable[[], None]
    bar: ProgressBar
    deadline: float

    def to_device(self, params: Mapping[str, np.ndarray]) -> dict[str, Array]:
        """Parameters as arrays of the device, in the dtype of the optimizer."""
        return {k: self.backend.asarray(x, self.device, self.options.master) for k, x in params.items()}

    def to_host(self, params: Params) -> dict[str, np.ndarray]:
        """Parameters as NumPy arrays."""
        return {k: self.backend.to_numpy(x) for k, x in params.items()}

    def batch(self, step: int) -> tuple[Array, ...]:
        """The data of a step; floating-point arrays take the dtype of the fit."""
        key = np.array([self.options.seed, step], dtype=np.uint64)
        arrays = self.objective.batch(np.random.Generator(np.random.Philox(key=key)))
        return tuple(self._asarray(x) for x in arrays or ())

    def _asarray(self, x: np.ndarray) -> Array:
        x = np.asarray(x)
        return self.backend.asarray(x, self.device, self.options.dtype if np.issubdtype(x.dtype, np.floating) else None)

    def record(self, step: int, loss: float) -> Status | None:
        """Note a loss; says when to stop."""
        options, state = self.options, self.state
        state.history.append(loss)
        self.bar.update(step + 1, loss)
        asked = [callback(step, loss) for callback in options.callbacks]  # all of them see every step
        if any(asked):
            return Status.STOPPED
        if self.objective.is_relative_square and loss <= options.tolerance**2:
            return Status.REACHED
        if options.patience is not None and step - state.best_step >= options.patience:
            return Status.STALLED
        if time.monotonic() > self.deadline:
            return Status.TIME
        return None


def fit(
    generator: Generator,
    target: Any,
    *,
    device: str = "numpy:cpu",
    dtype: str | None = None,
    optimizer: Name = "adam",
    steps: int = 1000,
    lr: float = 1e-2,
    schedule: ScheduleName | Schedule = "cosine",
    clip: float | None = None,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    lr_factors: Mapping[str, float] | None = None,
    seed: int = 0,
    start: Literal["generator", "decomposition"] = "generator",
    tolerance: float = 0.0,
    patience: int | None = None,
    time_limit: float | None = None,
    callbacks: Sequence[Callback] = (),
    progress: bool | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 100,
    mode: Literal["materialise", "stream"] | None = None,
    memory: str | int | None = None,
) -> Solution:
    """Train a generator's parameters.

    Parameters
    ----------
    generator : Generator
        Where to start.
    target : array, Objective or callable
        A weight to reconstruct, an objective, or a function of the weight (see :class:`adtn.Task`).
    device : str
        Such as ``"numpy:cpu"``, ``"torch:cuda:0"``, ``"jax:cpu"``.
    dtype : str, optional
        Of the computation; that of the generator when not given. Half precisions keep parameters and moments
        in float32.
    optimizer : {"adam", "adamw", "sgd", "lbfgs"}
        The first three come from torch.optim, optax or quimb, ``"lbfgs"`` from SciPy, in float64 on the host.
    steps : int
        Number of steps (iterations for ``"lbfgs"``).
    lr : float
        Largest learning rate; not used by ``"lbfgs"``.
    schedule : {"constant", "cosine", "onecycle"} or callable
        See :func:`make_schedule`.
    clip : float, optional
        Largest norm of the gradient over all parameters; not for ``"lbfgs"``.
    momentum : float
        For ``"sgd"``.
    weight_decay : float
        For ``"adamw"``, decoupled.
    lr_factors : mapping of str to float, optional
        Learning rate of single parameters relative to ``lr``; ``"task/"`` stands for all parameters of a task.
    seed : int
        Of the data order of a task; step ``i`` always sees the same data.
    start : {"generator", "decomposition"}
        From the generator's own parameters, or from a truncated decomposition of the target.
    tolerance : float
        Stop when a reconstruction's relative error is this small.
    patience : int, optional
        Stop when the loss has not fallen for so many steps.
    time_limit : float, optional
        Seconds after which to stop.
    callbacks : sequence of callable
        ``callback(step, loss)`` after every evaluation; a true result stops the fit.
    progress : bool, optional
        Progress bar on standard error; by default only on a terminal.
    checkpoint : path, optional
        File that is written every ``checkpoint_every`` steps and at the end. When it exists, the fit goes on
        from there and ends with the numbers of an uninterrupted one.
    checkpoint_every : int
        Steps between checkpoints; ``"lbfgs"`` forgets its curvature there.
    mode : {"materialise", "stream"}, optional
        Whether the weight exists as a whole or passes by in tiles; the scheduler chooses when not given.
    memory : str or int, optional
        Largest extra memory in bytes, or such as ``"512MiB"``.

    Returns
    -------
    Solution

    Raises
    ------
    FitError
        For options that cannot work.
    ScheduleError
        If the memory limit is too small; the message says the smallest that works.
    DeviceError, MissingDependencyError
        If the device or dtype is not available.

    Examples
    --------
    >>> import adtn, numpy as np
    >>> W = np.add.outer(np.sin(np.arange(64) / 9), np.cos(np.arange(64) / 7))
    >>> gen = adtn.Generator((64, 64), adtn.TTN(bond=3), layout=adtn.Layout.of((64, 64), leg=8))
    >>> sol = adtn.fit(gen, W, steps=300, lr=0.03)
    >>> sol.relative_error < 0.2
    True
    """
    options = FitOptions(
        device, dtype or generator.dtype, optimizer, steps, lr, schedule, clip, momentum, weight_decay,
        dict(lr_factors or {}), seed, tolerance, patience, time_limit, tuple(callbacks), progress,
        checkpoint, checkpoint_every, mode, memory,
    )  # fmt: skip
    objective = as_objective(target)
    objective.check(generator.shape)
    if start == "decomposition":
        if not isinstance(objective, Reconstruction):
            raise FitError("start='decomposition' needs a weight to decompose; pass an array or a Reconstruction.")
        generator = decompose(generator, objective.target)
    elif start != "generator":
        raise FitError(f"Got start={start!r}; expected 'generator' or 'decomposition'.")
    return run_fit(generator, objective, options)


def run_fit(generator: Generator, objective: Objective, options: FitOptions) -> Solution:
    """:func:`fit` with its arguments checked and packed."""
    began = time.monotonic()
    backend, device = check_device(options.device, options.dtype)
    mark = _mark(generator, objective, options) if options.checkpoint is not None else ""
    state = read_checkpoint(options.checkpoint, mark) if options.checkpoint is not None else None
    if state is None:
        params = {**generator.params, **{TASK + k: x for k, x in objective.params.items()}}
        params = {k: np.asarray(x) for k, x in params.items()}
        state = Checkpoint(0, params, params, {}, [], math.inf, 0)

    def save() -> None:
        if options.checkpoint is not None:
            write_checkpoint(options.checkpoint, state, mark)

    step, constants = _compiled(generator, objective, backend, device, options)
    run = Run(
        backend,
        device,
        objective,
        options,
        step,
        constants,
        state,
        save,
        ProgressBar(options.progress, options.steps, state.step, f"fit {type(generator.topology).__name__}"),
        began + options.time_limit if options.time_limit is not None else math.inf,
    )
    with run.bar:
        status = run_lbfgs(run) if options.optimizer == "lbfgs" else _run_first_order(run)
    save()
    best = state.best
    return Solution(
        generator.with_params({k: x for k, x in best.items() if not k.startswith(TASK)}),
        state.best_loss,
        status,
        np.asarray(state.history),
        state.step,
        time.monotonic() - began,
        {k.removeprefix(TASK): x for k, x in best.items() if k.startswith(TASK)},
        objective.is_relative_square,
    )


def fit_step(
    generator: Generator, objective: Objective, options: FitOptions
) -> tuple[Callable[..., tuple[Array, Params]], dict[str, Array], dict[str, Array]]:
    """One evaluation of loss and gradients as :func:`fit` does it: the function, parameters and constants."""
    backend, device = check_device(options.device, options.dtype)
    step, constants = _compiled(generator, objective, backend, device, options)
    params = {k: backend.asarray(x, device, options.master) for k, x in generator.params.items()}
    return step, params, constants


def _compiled(
    generator: Generator, objective: Objective, backend: Backend, device: str, options: FitOptions
) -> tuple[Callable[..., tuple[Array, Params]], dict[str, Array]]:
    task = _tiled_task(generator, objective, backend, options)
    return backend.compile(_loss_and_grads(task, backend, options)), task.constants(backend, device, options.dtype)


def _mark(generator: Generator, objective: Objective, options: FitOptions) -> str:
    """What a resumed fit must have in common with the interrupted one."""
    numbers = {**generator.params, **generator.constants(), **objective.constants(), **objective.params}
    return fingerprint(
        generator.topology,
        generator.layout,
        generator.scale,
        *options.mark(),
        *numbers,
        *map(np.asarray, numbers.values()),
    )


@dataclass(frozen=True)
class _TiledTask:
    """A generator and an objective, as a loss over the tiles of a plan.

    Parameters
    ----------
    generator : Generator
    objective : Objective
    weight : TiledWeight
        From the plan.
    tiles : TileObjective or None
        The loss as a sum over tiles, ``None`` for one that takes the weight as a whole.
    whole : callable or None
        That one.
    """

    generator: Generator
    objective: Objective
    weight: TiledWeight
    tiles: TileObjective | None
    whole: ValueAndGrad | None

    def constants(self, backend: Backend, device: str, dtype: str) -> dict[str, Array]:
        """Frozen numbers on the device; those of the weight's shape arranged in tiles, without a copy if possible."""
        numbers = {**self.generator.constants(), **self.objective.constants()}
        out: dict[str, Array] = {}
        for name, x in numbers.items():
            x = np.asarray(x)
            if name == TARGET and self.tiles is not None:
                x = self.weight.arrange(x if self.tiles.factor == 1.0 else x * self.tiles.factor)
            elif name == BASE:
                x = self.weight.arrange(x)
            out[name] = backend.asarray(x, device, dtype, copy=False)
        return out


def _tiled_task(generator: Generator, objective: Objective, backend: Backend, options: FitOptions) -> _TiledTask:
    tiles = objective.in_tiles(backend, options.master != options.dtype)
    mode = options.mode
    if tiles is None:
        if mode not in (None, "materialise"):
            raise FitError(f"Got mode={mode!r}; a task takes the weight as a whole. Use mode='materialise'.")
        mode = "materialise"
    plan = decide(
        generator, "fit", device=options.device, dtype=options.dtype, mode=mode, memory=options.memory,
        only_rows=tiles is None or tiles.whole_rows,
    )  # fmt: skip
    if plan.weight is None:
        raise FitError(f"Got mode={mode!r}; a fit needs the weight: use 'materialise' or 'stream'.")
    return _TiledTask(generator, objective, plan.weight, tiles, objective.bind(backend) if tiles is None else None)


def _loss_and_grads(task: _TiledTask, backend: Backend, options: FitOptions) -> Callable[..., Any]:
    """Loss and all gradients as one function: the library's own adjoint around the objective's ``dL/dW``."""
    weight, tiles, whole = task.weight, task.tiles, task.whole
    dtype, master, clip = options.dtype, options.master, options.clip
    space = backend.workspace()

    def over_tiles(arrays: Params, constants: Params, tiles: TileObjective) -> tuple[Array, dict[str, Array]]:
        consume = tiles.consume(constants[TARGET], constants)
        zero = astype(do("zeros_like", do("reshape", constants[TARGET], (-1,))[0]), master)

        def summed(tile: Array, i: Any, total: Any) -> tuple[Any, Array | None]:
            part, wbar = consume(tile, i, astype(total, dtype) * 0.0 if master != dtype else total)
            return (total + astype(part, master) if master != dtype else part), wbar

        loss, grads = weight.run(backend, arrays, summed, zero, adjoint=True, factor=tiles.factor, space=space)
        return loss * tiles.loss_factor, {k: g * tiles.slope_factor for k, g in grads.items()}

    def at_once(
        arrays: Params, params: Params, constants: Params, batch: tuple[Array, ...], whole: ValueAndGrad
    ) -> tuple[Array, dict[str, Array]]:
        own = {k.removeprefix(TASK): x for k, x in params.items() if k.startswith(TASK)}
        rows = weight.weighting.layout.shape[0]

        def consume(tile: Array, i: Any, carry: Any) -> tuple[Any, Array]:
            loss, (wbar, *rest) = whole(tile[:rows] if weight.masked else tile, own, constants, batch)
            return (loss, rest), weight.pad_rows(wbar)

        (loss, rest), grads = weight.run(backend, arrays, consume, None, adjoint=True, space=space)
        return loss, grads | ({TASK + k: g for k, g in rest[0].items()} if rest else {})

    def loss_and_grads(params: Params, constants: Params, batch: tuple[Array, ...]) -> tuple[Array, Params]:
        if master != dtype:
            params = {k: astype(x, dtype) for k, x in params.items()}
        arrays = {**constants, **params}
        if tiles is not None:
            loss, grads = over_tiles(arrays, constants, tiles)
        else:
            assert whole is not None
            loss, grads = at_once(arrays, params, constants, batch, whole)
        if master != dtype:
            grads = {k: astype(g, master) for k, g in grads.items()}
        return loss, _clipped(grads, clip)

    return loss_and_grads


def _clipped(grads: dict[str, Array], clip: float | None) -> dict[str, Array]:
    if clip is None:
        return grads
    total = sum(do("sum", g * g) for g in grads.values())
    norm = do("sqrt", total)
    factor = do("where", norm > clip, clip / (norm + 1e-30), norm * 0.0 + 1.0)
    return {k: g * factor for k, g in grads.items()}


def _run_first_order(run: Run) -> Status:
    options, state, backend = run.options, run.state, run.backend
    hyper = {"momentum": options.momentum} if options.optimizer == "sgd" else {}
    if options.optimizer == "adamw":
        hyper = {"weight_decay": options.weight_decay}
    schedule = make_schedule(options.schedule, options.lr, options.steps)
    params: Params = run.to_device(state.params)
    groups = [
        _Group(names, factor, backend.optimizer(options.optimizer, **hyper))
        for factor, names in _by_factor(params, options.lr_factors).items()
    ]
    for n, group in enumerate(groups):
        group.load(params, {k.partition(":")[2]: x for k, x in state.moments.items() if k.startswith(f"{n}:")})
    stochastic = bool(run.batch(0))
    best: Params = run.to_device(state.best)
    status = Status.FINISHED
    while state.step < options.steps:
        step = state.step
        loss_array, grads = run.value_and_grad(params, run.constants, run.batch(step))
        loss = float(loss_array)
        if not math.isfinite(loss):
            status = Status.DIVERGED
            break
        if loss < state.best_loss:
            state.best_step = step
        if (loss < state.best_loss and not stochastic) or (stochastic and step % _KEEP_EVERY == 0):
            best = {}
            for group in groups:
                best |= group.optimizer.snapshot({k: params[k] for k in group.names})
        state.best_loss = min(loss, state.best_loss)
        stop = run.record(step, loss)
        if stop is not None:
            status = stop
            break
        for group in groups:
            params = group.step(params, grads, schedule(step))
        state.step = step + 1
        if state.step % options.checkpoint_every == 0 and options.checkpoint is not None:
            _gather(run, params, best, groups)
            run.save()
    if status is Status.FINISHED:
        # the parameters after the last step have not been judged yet
        loss = float(run.value_and_grad(params, run.constants, run.batch(options.steps))[0])
        if math.isfinite(loss) and (stochastic or loss < state.best_loss):
            best, state.best_loss = params, loss
    elif stochastic and status is not Status.DIVERGED:
        best, state.best_loss = params, state.history[-1]
    _gather(run, params, best, groups)
    return status


def _gather(run: Run, params: Params, best: Params, groups: list[_Group]) -> None:
    """Bring the state to the host."""
    run.state.params, run.state.best = run.to_host(params), run.to_host(best)
    run.state.moments = {f"{n}:{k}": x for n, group in enumerate(groups) for k, x in group.dump().items()}


def _by_factor(params: Params, factors: Mapping[str, float]) -> dict[float, list[str]]:
    """Parameter names by their learning-rate factor."""
    unknown = [k for k in factors if k not in params and k != TASK]
    if unknown:
        raise FitError(f"Got lr_factors for {unknown}; the parameters are {sorted(params)}.")
    groups: dict[float, list[str]] = {}
    for name in sorted(params):
        group = factors.get(TASK, 1.0) if name.startswith(TASK) else 1.0
        groups.setdefault(factors.get(name, group), []).append(name)
    return groups


class _Group:
    """Parameters with one learning rate, and their optimizer."""

    def __init__(self, names: list[str], factor: float, optimizer: Any) -> None:
        self.names = names
        self.factor = factor
        self.optimizer = optimizer
        self.state: Any = None

    def load(self, params: Params, moments: dict[str, np.ndarray]) -> None:
        own = {k: params[k] for k in self.names}
        self.state = self.optimizer.import_state(own, moments) if moments else self.optimizer.init(own)

    def dump(self) -> dict[str, np.ndarray]:
        return self.optimizer.export_state(self.state)

    def step(self, params: Params, grads: Params, lr: float) -> dict[str, Array]:
        own, slopes = {k: params[k] for k in self.names}, {k: grads[k] for k in self.names}
        new, self.state = self.optimizer.step(own, slopes, self.state, lr * self.factor)
        return {**params, **new}
