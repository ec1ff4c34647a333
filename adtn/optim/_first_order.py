"""Adam, AdamW and SGD: the loop around the backend's optimizer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .._errors import FitError
from .._typing import Array, Params
from ._loss import TASK
from ._schedules import make_schedule
from ._solution import Status

if TYPE_CHECKING:
    from ._fit import Run

_KEEP_EVERY = 20  # steps between copies to fall back on when a task with batches diverges


def run_first_order(run: Run) -> Status:
    """Step until something says to stop; leaves the best parameters in the state."""
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
    kept, whole = state.step, True  # the step of what the state holds; whether no update is under way
    try:
        while state.step < options.steps:
            step = state.step
            loss_array, grads = run.loss_and_grads(params, run.batch(step))
            loss = float(loss_array)
            if not math.isfinite(loss):
                status = Status.DIVERGED
                break
            if loss < state.best_loss:
                state.best_step = step
            if (loss < state.best_loss and not stochastic) or (stochastic and step % _KEEP_EVERY == 0):
                best = _copy(groups, params)
            state.best_loss = min(loss, state.best_loss)
            stop = run.record(step, loss)
            if stop is not None:
                status = stop
                break
            rate, whole = schedule(step), False
            for group in groups:
                params = group.step(params, grads, rate)
            state.step, whole = step + 1, True
            if state.step % options.checkpoint_every == 0 and options.checkpoint is not None:
                _gather(run, params, best, groups)
                kept = state.step
                run.save()
        if status is Status.FINISHED:
            # the parameters after the last step have not been judged yet
            loss = float(run.loss_and_grads(params, run.batch(options.steps))[0])
            if math.isfinite(loss) and (stochastic or loss < state.best_loss):
                best, state.best_loss = params, loss
    except KeyboardInterrupt:
        status = Status.INTERRUPTED
        if not whole:  # in the middle of an update: a later call goes on from what was last brought to the host
            state.best, state.step = run.to_host(best), kept
            return status
    if stochastic and state.history and status not in (Status.DIVERGED, Status.FINISHED):
        best, state.best_loss = params, state.history[-1]
    _gather(run, params, best, groups)
    return status


def _copy(groups: list[_Group], params: Params) -> Params:
    """The parameters as they are now, whatever later steps do in place."""
    found: Params = {}
    for group in groups:
        found = {**found, **group.optimizer.snapshot({k: params[k] for k in group.names})}
    return found


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
