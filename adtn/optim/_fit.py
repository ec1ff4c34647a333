"""The fit: one loop for every backend, objective and optimizer."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from .._arrays import host_array
from .._backend import Backend, check_device
from .._checks import Count, NotNegative, Positive, Seed, checked
from .._errors import FitError, OutputWarning
from .._files import check_writable
from .._typing import Array, Params
from ..generator import Generator
from ..schedule import Memory
from ..weight import Mode
from ._checkpoint import Checkpoint, first_fingerprint, read_checkpoint, write_checkpoint
from ._decompose import decompose
from ._fingerprint import fingerprint
from ._first_order import run_first_order
from ._lbfgs import run_lbfgs
from ._lm import plan_curvature, run_lm
from ._loss import TASK, Loss, plan_loss
from ._objective import Objective, Reconstruction, as_objective
from ._options import Callback, FitOptions, Momentum, Name
from ._progress import ProgressBar
from ._schedules import ScheduleArgument
from ._solution import Solution, Status

_FAR = 1e8  # ratio of a target's size to the generator's, beyond which that is changed


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
    loss : Loss
        With gradients, compiled.
    exact : callable
        Makes the loss that takes its place when it is no longer exact.
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
    loss: Loss
    exact: Callable[[], Loss]
    state: Checkpoint
    save: Callable[[], None]
    bar: ProgressBar
    deadline: float

    def loss_and_grads(self, params: Params, batch: tuple[Array, ...]) -> tuple[Array, Params]:
        """Evaluate; a loss that lost too many digits to cancellation is evaluated anew, and so are all that follow."""
        if not self.loss.exact:
            loss, grads = self.loss(params, batch)
            if not float(loss) < self.loss.trusted:
                return loss, grads
            self.state.exact = True
            self.loss.release()
            self.loss = self.exact()
        return self.loss(params, batch)

    def to_device(self, params: Mapping[str, np.ndarray]) -> dict[str, Array]:
        """Parameters as arrays of the device, in the dtype of the optimizer."""
        return {k: self.backend.asarray(x, self.device, self.options.master) for k, x in params.items()}

    def to_host(self, params: Params) -> dict[str, np.ndarray]:
        """Parameters as NumPy arrays."""
        return {k: self.backend.to_numpy(x) for k, x in params.items()}

    def batch(self, step: int) -> tuple[Array, ...]:
        """The data of a step; floating-point arrays take the dtype of the fit."""
        arrays = self.objective.batch(_draws(self.options.seed, step))
        return tuple(self._asarray(x) for x in arrays or ())

    def _asarray(self, x: Any) -> Array:
        x = host_array("batches", x, FitError)
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


@checked(FitError)
def fit(
    generator: Generator,
    target: Any,
    *,
    device: str = "numpy:cpu",
    dtype: str | None = None,
    optimizer: Name = "adam",
    steps: Count = 1000,
    lr: Positive = 1e-2,
    schedule: ScheduleArgument = "cosine",
    clip: Positive | None = None,
    momentum: Momentum = 0.9,
    weight_decay: NotNegative = 0.0,
    lr_factors: Mapping[str, NotNegative] | None = None,
    seed: Seed = 0,
    start: Literal["generator", "decomposition"] = "generator",
    tolerance: NotNegative = 0.0,
    patience: Count | None = None,
    time_limit: NotNegative | None = None,
    callbacks: Sequence[Callback] = (),
    progress: bool | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: Count = 100,
    mode: Mode | None = None,
    memory: Memory = None,
) -> Solution:
    """Train a generator's parameters.

    Parameters
    ----------
    generator : Generator
        Where to start.
    target : array, Objective or callable
        A weight to reconstruct, of any framework and on any device, an objective, or a function of the weight (see
        :class:`adtn.Task`). Where the weight is more than 1e8 times larger or smaller than the generator's scale, the
        solution has the scale of the weight.
    device : str
        Such as ``"numpy:cpu"``, ``"torch:cuda:0"``, ``"jax:cpu"``.
    dtype : str, optional
        Of the computation; that of the generator when not given. Half precisions keep parameters and moments
        in float32.
    optimizer : {"adam", "adamw", "sgd", "lbfgs", "lm"}
        The first three come from torch.optim, optax or quimb, ``"lbfgs"`` from SciPy, in float64 on the host.
        ``"lm"`` is Levenberg-Marquardt for reconstructions by at most 2048 numbers: its matrix is made of a sample of
        the entries, on the device, and solved on the host. From random numbers L-BFGS was better after equal wall
        time in nearly all that was measured; from where L-BFGS stalls, it goes on (a linear TTN: 0.0076, then 0.0011;
        ``bench/results/optimizers.json``).
    steps : int
        Number of steps (iterations for ``"lbfgs"`` and ``"lm"``).
    lr : float
        Largest learning rate; not used by ``"lbfgs"`` and ``"lm"``.
    schedule : {"constant", "cosine", "onecycle"} or callable
        See :func:`make_schedule`.
    clip : float, optional
        Largest norm of the gradient over all parameters; not for ``"lbfgs"`` and ``"lm"``.
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
        from there and ends with the numbers of an uninterrupted one. Ctrl-C ends a fit as a limit does: the checkpoint
        is written, and the best parameters so far come back with ``Status.INTERRUPTED``.
    checkpoint_every : int
        Steps between checkpoints; ``"lbfgs"`` forgets its curvature there.
    mode : {"materialise", "stream", "factored"}, optional
        The scheduler chooses when not given.

        - ``"materialise"``: the weight exists as a whole
        - ``"stream"``: it passes by in tiles
        - ``"factored"``: the target is projected on the factors of the last product, and no tile of the weight is
          made; for reconstructions of single and double precision by networks without an activation at the end. When
          the error becomes so small that the digits of large sums cancel, the fit goes on in another mode.
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
    OutputError
        If no checkpoint can be written where it was asked for. A disk that is full later is a warning.
    FileFormatError
        If there is a file that is no checkpoint, or a damaged one.

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
        device, generator.dtype if dtype is None else dtype, optimizer, steps, lr, schedule, clip, momentum,
        weight_decay, dict(lr_factors or {}), seed, tolerance, patience, time_limit, tuple(callbacks), progress,
        checkpoint, checkpoint_every, mode, memory,
    )  # fmt: skip
    objective = as_objective(target)
    objective.check(generator.shape)
    generator = _of_the_size_of(generator, objective)
    if start == "decomposition":
        if not isinstance(objective, Reconstruction):
            raise FitError("start='decomposition' needs a weight to decompose; pass an array or a Reconstruction.")
        generator = decompose(generator, objective.target)
    return run_fit(generator, objective, options)


def _of_the_size_of(generator: Generator, objective: Objective) -> Generator:
    """With the scale of a target that is so much larger or smaller that no step would lead there."""
    if not isinstance(objective, Reconstruction) or generator.base is not None:
        return generator
    spread = objective.norm / math.sqrt(generator.layout.size)
    if 1.0 / _FAR < spread / (abs(generator.scale) or 1.0) < _FAR:
        return generator
    return Generator(
        generator.shape, generator.topology, layout=generator.layout, scale=spread, dtype=generator.dtype,
        params=generator.stored, permutations=generator.permutations,
    )  # fmt: skip


def run_fit(generator: Generator, objective: Objective, options: FitOptions) -> Solution:
    """:func:`fit` with its arguments checked and packed."""
    began = time.monotonic()
    backend, device = check_device(options.device, options.dtype)
    mark, state = "", None
    if options.checkpoint is not None:
        check_writable(options.checkpoint, "checkpoint", "file")
        mark = _mark(generator, objective, options)
        state = read_checkpoint(options.checkpoint, mark, lambda: _old_mark(generator, objective, options))
    if state is not None:  # a step that was judged but not taken is judged again
        del state.history[state.step :]
    else:
        params = {**generator.params, **{TASK + k: x for k, x in objective.params.items()}}
        params = {k: np.asarray(x) for k, x in params.items()}
        state = Checkpoint(0, params, params, {}, [], math.inf, 0)

    def save() -> None:
        if options.checkpoint is None:
            return
        try:
            write_checkpoint(options.checkpoint, state, mark)
        except OSError as error:
            text = f"Cannot write checkpoint={str(options.checkpoint)!r} ({error}); the fit goes on without."
            warnings.warn(text, OutputWarning, stacklevel=2)

    def planned(exact: bool) -> Loss:
        return plan_loss(generator, objective, backend, device, options, exact)

    run = Run(
        backend,
        device,
        objective,
        options,
        planned(state.exact),
        lambda: planned(True),
        state,
        save,
        ProgressBar(options.progress, options.steps, state.step, f"fit {type(generator.topology).__name__}"),
        began + options.time_limit if options.time_limit is not None else math.inf,
    )
    # the matrices of Levenberg-Marquardt are larger than any product of the network
    largest = math.inf if options.optimizer == "lm" else run.loss.largest_product
    with run.bar, backend.threads(largest):
        try:
            if options.optimizer == "lm":
                curvature = plan_curvature(generator, objective, backend, device, options.master, options.seed)
                status = run_lm(run, curvature)
            else:
                status = run_lbfgs(run) if options.optimizer == "lbfgs" else run_first_order(run)
        except KeyboardInterrupt:  # the state is that of the last whole step; a second one ends the program
            status = Status.INTERRUPTED
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


def _mark(generator: Generator, objective: Objective, options: FitOptions) -> str:
    """What a resumed fit must have in common with the interrupted one."""
    every = max(options.steps // 64, 1)
    rates = [float(options.schedule(n)) for n in range(0, options.steps, every)] if callable(options.schedule) else []
    first = [objective.batch(_draws(options.seed, step)) for step in range(2)]
    return fingerprint(
        repr(generator.topology),
        repr(generator.layout),
        generator.scale,
        repr(options.mark()),
        tuple(rates),
        generator.params,
        generator.constants(),
        objective,
        first,
    )


def _old_mark(generator: Generator, objective: Objective, options: FitOptions) -> str | None:
    """That of the first format, which says nothing of functions."""
    if not isinstance(objective, Reconstruction) or callable(options.schedule):
        return None
    constants = {**generator.constants(), **objective.constants(generator.weighting)}
    numbers = {**generator.params, **constants, **objective.params}
    return first_fingerprint(
        generator.topology,
        generator.layout,
        generator.scale,
        *options.mark(),
        *numbers,
        *map(np.asarray, numbers.values()),
    )


def _draws(seed: int, step: int) -> np.random.Generator:
    """For the data of a step."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, step], dtype=np.uint64)))
