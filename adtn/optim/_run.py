"""A fit in progress: its device, loss and state."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .._arrays import host_array
from .._typing import Array, Params
from ..backends import Backend
from ..errors import FitError, OutputWarning
from ._checkpoint import Checkpoint, write_checkpoint
from ._loss import Loss
from ._objective import Objective, batch_at
from ._observer import Observer, Snapshot, is_due
from ._optimizer import Evaluation
from ._options import FitOptions
from ._progress import ProgressBar
from ._solution import Status


@dataclass(kw_only=True)
class Run:
    """A fit in progress.

    Parameters
    ----------
    backend, device
        The backend and the device of the fit.
    objective : Objective
        The objective that is minimised.
    options : FitOptions
        The options of the fit.
    on_host : bool
        Whether the optimizer sees float64 NumPy arrays instead of arrays of the backend.
    loss : Loss
        The compiled loss with its gradients.
    exact : callable
        A function that makes the loss to use when this one is no longer exact.
    state : Checkpoint
        The state of the fit; its parameters and moments are current only at checkpoints.
    snapshot : callable
        ``snapshot(step, loss, params)`` makes what observers see.
    mark : str
        The fingerprint in the checkpoint.
    bar : ProgressBar
        The progress bar, which shows the loss.
    deadline : float
        The value of ``time.monotonic()`` at which to stop.
    """

    backend: Backend
    device: str
    objective: Objective
    options: FitOptions
    on_host: bool
    loss: Loss
    exact: Callable[[], Loss]
    state: Checkpoint
    snapshot: Callable[[int, float, Mapping[str, np.ndarray]], Snapshot]
    mark: str
    bar: ProgressBar
    deadline: float

    def evaluate(self, params: Params) -> Evaluation:
        """Compute loss and gradients with the data of the current step, for the optimizer."""
        batch = self._batch(self.state.step) if self.has_batches else ()
        if not self.on_host:
            loss, grads = self._loss_and_grads(params, batch)
            return Evaluation(params=params, loss=float(loss), grads=grads)
        loss, grads = self._loss_and_grads(self._to_device(params), batch)
        return Evaluation(params=params, loss=float(loss), grads=self.given(self.to_host(grads)))

    def _loss_and_grads(self, params: Params, batch: tuple[Array, ...]) -> tuple[Array, Params]:
        """Evaluate; a loss that loses too many digits by cancellation is computed in another way from then on."""
        if not self.loss.exact:
            loss, grads = self.loss(params, batch)
            if not float(loss) < self.loss.trusted:
                return loss, grads
            self.state.exact = True
            self.loss.release()
            self.loss = self.exact()
        return self.loss(params, batch)

    def given(self, params: Mapping[str, np.ndarray]) -> Params:
        """Convert host arrays to those that the optimizer uses."""
        return {k: x.astype(np.float64) for k, x in params.items()} if self.on_host else self._to_device(params)

    def _to_device(self, params: Params) -> dict[str, Array]:
        return {k: self.backend.asarray(x, self.device, self.options.master) for k, x in params.items()}

    def to_host(self, params: Params) -> dict[str, np.ndarray]:
        """Return parameters as NumPy arrays."""
        return {k: x if isinstance(x, np.ndarray) else self.backend.to_numpy(x) for k, x in params.items()}

    @cached_property
    def has_batches(self) -> bool:
        """Whether every step has its own data; determined once, as drawing data takes much of a small step."""
        return bool(self._batch(0))

    def _batch(self, step: int) -> tuple[Array, ...]:
        """Return the data of a step, with floating-point arrays in the dtype of the fit."""
        return tuple(self._asarray(x) for x in batch_at(self.objective, self.options.seed, step) or ())

    def _asarray(self, x: Any) -> Array:
        x = host_array("batches", x, FitError)
        return self.backend.asarray(x, self.device, self.options.dtype if np.issubdtype(x.dtype, np.floating) else None)

    def record(self, loss: float, params: Params) -> Status | None:
        """Record the loss before the current step, and return whether to stop."""
        options, state = self.options, self.state
        state.history.append(loss)
        self.bar.update(state.step + 1, loss)
        plain = [callback for callback in options.callbacks if not isinstance(callback, Observer)]
        stops = [callback(state.step, loss) for callback in plain]  # all of them are called at every step
        if any(stops) | self.observe(loss, params):
            return Status.STOPPED
        if self.objective.is_relative_square and loss <= options.tolerance**2:
            return Status.REACHED
        if options.patience is not None and state.step - state.best_step >= options.patience:
            return Status.STALLED
        if time.monotonic() > self.deadline:
            return Status.TIME
        return None

    def observe(self, loss: float, params: Params) -> bool:
        """Show the current parameters to the observers whose turn it is, and return whether one asks to stop."""
        state, last = self.state, self.options.steps
        watching = [one for one in self.options.callbacks if isinstance(one, Observer)]
        due = [one for one in watching if is_due(one, state.step, last)]
        if not due:
            return False
        own = {k: np.array(x) for k, x in self.to_host(params).items()}  # optimizers may update in place
        seen = self.snapshot(state.step, loss, own)
        asked = [one.observe(seen) for one in due]  # all of them are called
        return any(asked)

    def save(self) -> None:
        """Write the checkpoint, if there is one."""
        path: str | os.PathLike[str] | None = self.options.checkpoint
        if path is None:
            return
        try:
            write_checkpoint(path, self.state, self.mark)
        except OSError as error:
            text = f"Cannot write checkpoint={str(path)!r} ({error}); the fit continues without it."
            warnings.warn(text, OutputWarning, stacklevel=2)
