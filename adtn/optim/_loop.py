"""The loop of every fit: evaluate, record the best parameters, stop or step, write checkpoints."""

from __future__ import annotations

import math
from contextlib import nullcontext
from functools import partial
from typing import Any

from .._typing import Params
from ..errors import FitError
from ._optimizer import Evaluation, Iterate, Optimizer
from ._run import Run
from ._schedules import make_schedule
from ._solution import Status

_KEEP_EVERY = 20  # steps between copies that are used if a task with batches diverges


class Loop:
    """The loop of a fit, with the current and the best parameters.

    Parameters
    ----------
    run : Run
        The fit; its state becomes current when the loop ends and at checkpoints.
    optimizer : Optimizer
        The optimizer that takes the steps.
    """

    def __init__(self, run: Run, optimizer: Optimizer) -> None:
        options, state = run.options, run.state
        self._run = run
        self._optimizer = optimizer
        self._has_batches = run.has_batches
        self._schedule = make_schedule(options.schedule, options.lr, options.steps)
        is_scoped = optimizer.needs_scope and not run.on_host
        self._scope = partial(run.backend.scope, options.master) if is_scoped else nullcontext
        self._params: Params = run.given(state.params)
        self._best: Params = run.given(state.best)
        with self._scope():
            moments = state.moments  # none before the first step, or with optimizers without a state
            self._memory: Any = (
                optimizer.import_state(self._params, moments) if moments else optimizer.init(self._params)
            )
        self._known: Evaluation | None = None  # of the current parameters, if the optimizer has evaluated them
        self._gathered = state.step  # the step at which the state was current
        self._is_whole = True  # no update is in progress

    def minimise(self) -> Status:
        """Run steps until the fit ends, and leave the best parameters in the state."""
        state = self._run.state
        try:
            status = self._steps()
            if status is Status.FINISHED:
                self._judge_last()
        except KeyboardInterrupt:
            status = Status.INTERRUPTED
            if not self._is_whole:  # a later call continues from the last state on the host
                state.best, state.step = self._run.to_host(self._best), self._gathered
                return status
        if self._has_batches and state.history and status not in (Status.DIVERGED, Status.FINISHED):
            self._best, state.best_loss = self._params, state.history[-1]
        self._gather()
        return status

    def _steps(self) -> Status:
        run, options, state = self._run, self._run.options, self._run.state
        while state.step < options.steps:
            at = run.evaluate(self._params) if self._known is None else self._known
            status = self._judge(at)
            if status is not None:
                return status
            if not self._advance(at):
                return Status.STALLED
            if state.step % options.checkpoint_every == 0 and options.checkpoint is not None:
                self._gather()
                run.save()
        return Status.FINISHED

    def _judge(self, at: Evaluation) -> Status | None:
        """Record the loss and the best parameters, and return whether to stop."""
        state, loss = self._run.state, at.loss
        if not math.isfinite(loss):
            return Status.DIVERGED
        is_best = loss < state.best_loss
        # losses of different data cannot be compared
        if is_best if not self._has_batches else state.step % _KEEP_EVERY == 0:
            self._best = self._optimizer.snapshot(at.params)
        if is_best:
            state.best_loss, state.best_step = loss, state.step
        return self._run.record(loss, at.params)

    def _judge_last(self) -> None:
        """Evaluate the parameters after the last step."""
        state = self._run.state
        at = self._run.evaluate(self._params) if self._known is None else self._known
        self._run.observe(at.loss, at.params)
        if math.isfinite(at.loss) and (self._has_batches or at.loss < state.best_loss):
            self._best, state.best_loss = at.params, at.loss

    def _advance(self, at: Evaluation) -> bool:
        """Take a step; return false if the optimizer finds none."""
        state = self._run.state
        iterate = Iterate(params=at.params, loss=at.loss, grads=at.grads, step=state.step, schedule=self._schedule)
        self._is_whole = self._run.on_host  # backends may update in place
        with self._scope():
            reached, memory = self._optimizer.step(iterate, self._memory)
        self._is_whole = False
        if reached is not None:
            self._known = reached if isinstance(reached, Evaluation) else None
            params = reached.params if isinstance(reached, Evaluation) else reached
            if params.keys() != self._params.keys():
                raise FitError(
                    f"Got parameters {sorted(params)} from step() of {type(self._optimizer).__name__}; expected "
                    f"{sorted(self._params)}. Return all of them."
                )
            self._params = params
        self._memory = memory
        state.step += 1
        self._is_whole = True
        return reached is not None

    def _gather(self) -> None:
        """Copy the parameters and the optimizer to the state on the host."""
        run, state = self._run, self._run.state
        state.params, state.best = run.to_host(self._params), run.to_host(self._best)
        with self._scope():
            state.moments = self._optimizer.export_state(self._memory)
        self._gathered = state.step
