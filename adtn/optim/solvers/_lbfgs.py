"""L-BFGS with the line search of SciPy's L-BFGS-B, for every backend.

A generator has hundreds to thousands of parameters: a float64 host vector costs nothing beside an evaluation, and
all backends take the same steps. SciPy's own loop cannot be left and entered again without losing its curvature, hence
the recursion here; its Moré-Thuente line search has no interface but ``minimize``, which runs it in one dimension.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..._errors import FitError
from ..._typing import Params
from .._optimizer import Evaluation, Iterate, Optimizer, Problem
from ._vectors import flat, unflat

_PAIRS = 20
_LEAST_SLOPE = 1e-12
_EPS = float(np.finfo(np.float64).eps)

Pair = tuple[np.ndarray, np.ndarray]  # what parameters and gradient changed by in a step
State = tuple[Pair, ...]


class LBFGS(Optimizer):
    """Limited-memory quasi-Newton steps with a line search.

    References
    ----------
    D. C. Liu, J. Nocedal (1989), "On the limited memory BFGS method for large scale optimization"; J. J. Moré,
    D. J. Thuente (1994), "Line search algorithms with guaranteed sufficient decrease".
    """

    on_host = True
    takes_clip = False

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        if problem.has_batches:
            raise FitError("optimizer='lbfgs' needs the same loss at every step; this task has batches. Use 'adam'.")

    def init(self, params: Params) -> State:
        """No curvature yet."""
        return ()

    def step(self, at: Iterate, state: State) -> tuple[Evaluation | None, State]:
        """Search along the quasi-Newton direction, or along the gradient where that leads nowhere."""
        names = sorted(at.params)
        x, slope = flat(at.params, names), flat(at.grads, names)
        if float(np.max(np.abs(slope), initial=0.0)) <= _LEAST_SLOPE:
            return None, state
        reached = self._search(at, names, x, slope, state)
        if reached is None and state:
            state = ()
            reached = self._search(at, names, x, slope, state)
        if reached is None:
            return None, state
        change, bend = flat(reached.params, names) - x, flat(reached.grads, names) - slope
        if float(change @ bend) > -_EPS * float(slope @ change):
            state = (*state, (change, bend))[-_PAIRS:]
        return reached, state

    def export_state(self, state: State) -> dict[str, np.ndarray]:
        """Pairs of changes, oldest first."""
        if not state:
            return {}
        return {"changes": np.stack([s for s, _ in state]), "bends": np.stack([y for _, y in state])}

    def import_state(self, params: Params, arrays: dict[str, np.ndarray]) -> State:
        """The inverse of :meth:`export_state`."""
        return tuple(zip(arrays["changes"], arrays["bends"], strict=True))

    def _search(
        self, at: Iterate, names: list[str], x: np.ndarray, slope: np.ndarray, state: State
    ) -> Evaluation | None:
        """A point with less loss and less slope, or one whose loss is not finite; ``None`` where there is neither."""
        direction = _direction(slope, state)
        steepness = -float(slope @ direction)
        if not 0.0 < steepness < math.inf:
            return None
        last: Evaluation = at

        def along(distance: float) -> tuple[float, float]:
            """Loss and slope, relative to those at the start, so that the first trial is at 1."""
            nonlocal last
            if distance == 0.0:
                return 0.0, -1.0
            last = self.problem.evaluate(unflat(x + distance * direction, names, at.params))
            if not math.isfinite(last.loss):
                raise _NotFiniteError
            return (last.loss - at.loss) / steepness, float(flat(last.grads, names) @ direction) / steepness

        try:
            succeeded = _line_search(along)
        except _NotFiniteError:
            return last
        return last if succeeded and last.loss < at.loss else None


class _NotFiniteError(Exception):
    """The loss left the numbers."""


def _direction(slope: np.ndarray, state: State) -> np.ndarray:
    """Two-loop recursion; a unit vector down the gradient where no curvature is known."""
    if not state:
        return -slope / float(np.linalg.norm(slope))
    direction = -slope
    shares: list[tuple[np.ndarray, np.ndarray, float, float]] = []
    for change, bend in reversed(state):
        curvature = float(change @ bend)
        share = float(change @ direction) / curvature
        direction = direction - share * bend
        shares.append((change, bend, curvature, share))
    newest, newest_bend = state[-1]
    direction = direction * (float(newest @ newest_bend) / float(newest_bend @ newest_bend))
    for change, bend, curvature, share in reversed(shares):
        direction = direction + (share - float(bend @ direction) / curvature) * change
    return direction


def _line_search(along: Any) -> bool:
    """Strong Wolfe conditions; whether the last point that was tried fulfils them."""
    from scipy.optimize import minimize

    def value_and_slope(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = along(float(x[0]))
        return value, np.array([slope])

    # the first direction of L-BFGS-B is the unit step down the gradient: from 0 to 1
    options = {"maxiter": 1, "ftol": 0.0, "gtol": 0.0}
    return bool(minimize(value_and_slope, np.zeros(1), jac=True, method="L-BFGS-B", options=options).nit == 1)
