"""L-BFGS from SciPy, for every backend.

A generator has hundreds to thousands of parameters: a float64 host vector costs nothing beside an evaluation, and
all backends take the same steps.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from .._errors import FitError
from ._solution import Status

if TYPE_CHECKING:
    from ._fit import Run

_MEMORY = 20


class _Stop(Exception):
    def __init__(self, status: Status) -> None:
        self.status = status


def run_lbfgs(run: Run) -> Status:
    """Minimise with ``scipy.optimize.minimize(method="L-BFGS-B")``, in chunks when there is a checkpoint."""
    from scipy.optimize import minimize

    state, options = run.state, run.options
    if run.batch(0):
        raise FitError("optimizer='lbfgs' needs the same loss at every step; this task has batches. Use 'adam'.")
    names = sorted(state.params)
    shapes = {k: state.params[k].shape for k in names}

    def unflat(x: np.ndarray) -> dict[str, np.ndarray]:
        out: dict[str, np.ndarray] = {}
        at = 0
        for k in names:
            size = math.prod(shapes[k])
            out[k] = x[at : at + size].reshape(shapes[k])
            at += size
        return out

    seen: dict[str, float] = {}

    def evaluate(x: np.ndarray) -> tuple[float, np.ndarray]:
        loss_array, grads = run.loss_and_grads(run.to_device(unflat(x)), ())
        loss = float(loss_array)
        if not math.isfinite(loss):
            raise _Stop(Status.DIVERGED)
        if loss < state.best_loss:
            state.best, state.best_loss, state.best_step = unflat(x.copy()), loss, state.step
        host = run.to_host(grads)
        seen["loss"] = loss
        return loss, np.concatenate([np.ravel(host[k]).astype(np.float64) for k in names])

    def after(intermediate_result: Any) -> None:
        state.params = unflat(np.array(intermediate_result.x))
        stop = run.record(state.step, float(intermediate_result.fun))
        state.step += 1
        if stop is not None:
            raise _Stop(stop)

    x = np.concatenate([np.ravel(state.params[k]).astype(np.float64) for k in names])
    try:
        while state.step < options.steps:
            chunk = options.steps - state.step
            if options.checkpoint is not None:
                chunk = min(chunk, options.checkpoint_every)
            settings = {
                "maxiter": chunk,
                "maxcor": _MEMORY,
                "ftol": 0.0,
                "gtol": 1e-12,
                "maxfun": 20 * chunk + 20,
            }
            before = state.step
            found = minimize(evaluate, x, jac=True, method="L-BFGS-B", callback=after, options=settings)
            x = np.asarray(found.x)
            state.params = unflat(x)
            run.save()
            if state.step - before < chunk:
                return Status.STALLED  # SciPy found no better point before the chunk was over
    except _Stop as stop:
        return stop.status
    return Status.FINISHED
