"""Fits: one call for every backend, objective and optimizer."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np

from .._checks import Count, NotNegative, Positive, Seed, checked
from .._files import check_writable
from ..backends import check_device
from ..device import Memory
from ..errors import FitError
from ..generator import Generator
from ..weight import Mode
from ._checkpoint import Checkpoint, read_checkpoint
from ._decompose import decompose
from ._fingerprint import FORMER
from ._loop import Loop
from ._loss import TASK, Loss, plan_loss
from ._mark import mark_of, old_mark_of
from ._objective import DataAwareReconstruction, Objective, Reconstruction, as_objective
from ._observer import Observer, Snapshot
from ._optimizer import Optimizer, OptimizerName, Problem, get_optimizer
from ._options import Callback, FitOptions, Momentum
from ._progress import ProgressBar
from ._run import Run
from ._schedules import ScheduleArgument
from ._solution import Solution, Status

_FAR = 1e8  # ratio of a target's scale to the generator's, beyond which the latter is changed


@checked(FitError)
def fit(
    generator: Generator,
    target: Any,
    *,
    device: str = "numpy:cpu",
    dtype: str | None = None,
    optimizer: OptimizerName = "adam",
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
    callbacks: Sequence[Callback | Observer] = (),
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
        The generator, whose parameters are the starting point.
    target : array, Objective or callable
        A weight to reconstruct, of any framework and on any device, an objective, or a function of the weight (see
        :class:`adtn.Task`). If the weight is more than 1e8 times larger or smaller than the generator's scale, the
        solution has the scale of the weight.
    device : str
        The device, such as ``"numpy:cpu"``, ``"torch:cuda:0"``, ``"jax:cpu"``.
    dtype : str, optional
        The dtype of the computation; by default, that of the generator. With half precisions, parameters and moments
        are float32.
    optimizer : str
        ``"adam"``, ``"adamw"`` and ``"sgd"`` come from torch.optim, optax or quimb. ``"lbfgs"`` is L-BFGS with the line
        search of SciPy, in float64 on the host. ``"lm"`` is Levenberg-Marquardt for reconstructions by at most 2048
        parameters: its matrix is computed from a sample of the entries, on the device, and solved on the host. From
        random initial values, L-BFGS was better after equal wall time in nearly all measurements; where L-BFGS stalls,
        it continues (a linear TTN: 0.0076, then 0.0011; ``bench/results/optimizers.json``). Others are added by
        :func:`adtn.register_optimizer`.
    steps : int
        The number of steps (iterations for ``"lbfgs"`` and ``"lm"``).
    lr : float
        The largest learning rate; not used by ``"lbfgs"`` and ``"lm"``.
    schedule : {"constant", "cosine", "onecycle"} or callable
        See :func:`make_schedule`.
    clip : float, optional
        The largest norm of the gradient over all parameters; not for ``"lbfgs"`` and ``"lm"``.
    momentum : float
        The momentum of ``"sgd"``.
    weight_decay : float
        The decoupled weight decay of ``"adamw"``.
    lr_factors : mapping of str to float, optional
        Learning rates of single parameters relative to ``lr``; ``"task/"`` stands for all parameters of a task.
    seed : int
        The seed of the order of a task's data; step ``i`` always has the same data.
    start : {"generator", "decomposition"}
        The start: the generator's own parameters, or a decomposition of the target, in the metric of the objective.
    tolerance : float
        The relative error of a reconstruction at which to stop.
    patience : int, optional
        The number of steps without a lower loss after which to stop.
    time_limit : float, optional
        Seconds after which to stop.
    callbacks : sequence of callable or Observer
        ``callback(step, loss)`` is called after every evaluation; a true result stops the fit. Observers, such as
        :class:`adtn.bondspace.Evolution`, see the generator at every so many steps.
    progress : bool, optional
        Whether to show a progress bar on standard error; by default only on a terminal.
    checkpoint : path, optional
        A file that is written every ``checkpoint_every`` steps and at the end. If it exists, the fit continues
        from it, and ends with the parameters of an uninterrupted one. Ctrl-C ends a fit like a limit: the checkpoint
        is written, and the best parameters so far are returned with ``Status.INTERRUPTED``.
    checkpoint_every : int
        The number of steps between checkpoints.
    mode : {"materialise", "stream", "factored"}, optional
        The mode of execution; by default, the scheduler chooses it.

        - ``"materialise"``: the weight is generated as a whole
        - ``"stream"``: the weight is generated tile by tile
        - ``"factored"``: the target is projected on the factors of the last product, without generating the weight; for
          reconstructions of weights and of outputs in single and double precision by networks without an activation at
          the end. If the error becomes so small that large sums cancel, the fit continues in another mode.
    memory : str or int, optional
        The largest additional memory in bytes, or a string such as ``"512MiB"``.

    Returns
    -------
    Solution

    Raises
    ------
    FitError
        If an option is not valid, or options contradict each other.
    ScheduleError
        If the memory limit is too small; the message names the smallest one that works.
    DeviceError, MissingDependencyError
        If the device or dtype is not available.
    OutputError
        If the checkpoint cannot be written; a disk that becomes full later only causes a warning.
    FileFormatError
        If the file of the checkpoint is not a checkpoint, or is damaged.

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
        device=device,
        dtype=generator.dtype if dtype is None else dtype,
        optimizer=optimizer,
        steps=steps,
        lr=lr,
        schedule=schedule,
        clip=clip,
        momentum=momentum,
        weight_decay=weight_decay,
        lr_factors=dict(lr_factors or {}),
        seed=seed,
        tolerance=tolerance,
        patience=patience,
        time_limit=time_limit,
        callbacks=tuple(callbacks),
        progress=progress,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        mode=mode,
        memory=memory,
    )
    objective = as_objective(target)
    objective.check(generator.shape)
    generator = _of_the_size_of(generator, objective)
    if start == "decomposition":
        if not isinstance(objective, Reconstruction):
            raise FitError("start='decomposition' needs a weight to decompose; pass an array or a Reconstruction.")
        moment = objective.second_moment if isinstance(objective, DataAwareReconstruction) else None
        generator = decompose(generator, objective.target, moment=moment)
    return run_fit(generator, objective, options)


def _of_the_size_of(generator: Generator, objective: Objective) -> Generator:
    """Give a generator the scale of a target that is too much larger or smaller to be reached by steps."""
    if not isinstance(objective, Reconstruction) or generator.base is not None:
        return generator
    spread = objective.norm / math.sqrt(generator.layout.size)
    if 1.0 / _FAR < spread / (abs(generator.scale) or 1.0) < _FAR:
        return generator
    return Generator(
        generator.shape,
        generator.topology,
        layout=generator.layout,
        scale=spread,
        dtype=generator.dtype,
        params=generator.stored,
        permutations=generator.permutations or None,
    )


def run_fit(generator: Generator, objective: Objective, options: FitOptions) -> Solution:
    """Run :func:`fit` with checked arguments."""
    began = time.monotonic()
    optimizer = get_optimizer(options.optimizer)
    run = _prepared(generator, objective, options, optimizer, began)
    largest = math.inf if optimizer.solves_matrices else run.loss.largest_product
    with run.bar, run.backend.threads(largest):
        try:
            status = Loop(run, optimizer(_problem(generator, run))).minimise()
        except KeyboardInterrupt:  # the state is that of the last complete step; a second interrupt ends the program
            status = Status.INTERRUPTED
    run.save()
    best = run.state.best
    return Solution(
        generator=_trained(generator, best),
        loss=run.state.best_loss,
        status=status,
        history=np.asarray(run.state.history),
        steps=run.state.step,
        seconds=time.monotonic() - began,
        params={k.removeprefix(TASK): x for k, x in best.items() if k.startswith(TASK)},
        is_relative_square=objective.is_relative_square,
    )


def _trained(generator: Generator, params: Mapping[str, np.ndarray]) -> Generator:
    """Return the generator with its parameters, without those of a task."""
    return generator.with_params({k: x for k, x in params.items() if not k.startswith(TASK)})


def _snapshot(generator: Generator, step: int, loss: float, params: Mapping[str, np.ndarray]) -> Snapshot:
    return Snapshot(step=step, loss=loss, generators={"weight": _trained(generator, params)})


def _prepared(
    generator: Generator, objective: Objective, options: FitOptions, optimizer: type[Optimizer], began: float
) -> Run:
    """Prepare the fit before its first step, or from its checkpoint."""
    backend, device = check_device(options.device, options.dtype)
    state, mark = _state(generator, objective, options)

    def planned(exact: bool) -> Loss:
        return plan_loss(generator, objective, backend, device, options, exact)

    return Run(
        backend=backend,
        device=device,
        objective=objective,
        options=options,
        on_host=optimizer.on_host,
        loss=planned(state.exact),
        exact=lambda: planned(True),
        state=state,
        snapshot=partial(_snapshot, generator),
        mark=mark,
        bar=ProgressBar(options.progress, options.steps, state.step, f"fit {type(generator.topology).__name__}"),
        deadline=began + options.time_limit if options.time_limit is not None else math.inf,
    )


def _state(generator: Generator, objective: Objective, options: FitOptions) -> tuple[Checkpoint, str]:
    """Return the initial state of the fit, and the fingerprint of its checkpoints."""
    mark = ""
    if options.checkpoint is not None:
        check_writable(options.checkpoint, "checkpoint", "file")
        mark = mark_of(generator, objective, options)
        state = read_checkpoint(
            options.checkpoint,
            mark,
            lambda: mark_of(generator, objective, options, FORMER),
            lambda: old_mark_of(generator, objective, options),
        )
        if state is not None:
            del state.history[state.step :]  # a step that was evaluated but not taken is evaluated again
            return state, mark
    params = {**generator.params, **{TASK + k: x for k, x in objective.params.items()}}
    params = {k: np.asarray(x) for k, x in params.items()}
    state = Checkpoint(step=0, params=params, best=params, moments={}, history=[], best_loss=math.inf, best_step=0)
    return state, mark


def _problem(generator: Generator, run: Run) -> Problem:
    """Describe the fit for the optimizer."""
    options = run.options
    return Problem(
        generator=generator,
        objective=run.objective,
        backend=run.backend,
        device=run.device,
        dtype=options.master,
        seed=options.seed,
        momentum=options.momentum,
        weight_decay=options.weight_decay,
        rate_factors=_rate_factors(sorted(run.state.params), options.lr_factors),
        has_batches=run.has_batches,
        evaluate=run.evaluate,
    )


def _rate_factors(names: Sequence[str], factors: Mapping[str, float]) -> dict[str, float]:
    """Return the learning rates of all parameters relative to the schedule.

    Raises
    ------
    FitError
        If a factor is for a parameter that does not exist.
    """
    unknown = [k for k in factors if k not in names and k != TASK]
    if unknown:
        raise FitError(f"Got lr_factors for {unknown}; the parameters are {list(names)}.")
    of_task = factors.get(TASK, 1.0)
    return {name: factors.get(name, of_task if name.startswith(TASK) else 1.0) for name in names}
