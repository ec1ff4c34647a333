"""L-BFGS with the line search of SciPy's L-BFGS-B, for every backend.

A generator has hundreds to thousands of parameters: a float64 host vector costs nothing beside an evaluation, and
all backends take the same steps. SciPy's own loop cannot be left and entered again without losing its curvature, hence
the recursion here.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ..._typing import Params
from ...errors import FitError
from .._optimizer import Evaluation, Iterate, Optimizer, Problem
from ._vectors import flat, unflat

_PAIRS = 20
_LEAST_SLOPE = 1e-12
_DECREASE, _FLATNESS = 1e-3, 0.9  # of the strong Wolfe conditions, as in L-BFGS-B
_EPS = float(np.finfo(np.float64).eps)

Pair = tuple[np.ndarray, np.ndarray, float]  # changes of parameters and gradient in a step, and their inner product
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
        """Search along the quasi-Newton direction, or down the gradient where that leads nowhere."""
        names = sorted(at.params)
        x, slope = flat(at.params, names), flat(at.grads, names)
        if float(np.max(np.abs(slope), initial=0.0)) <= _LEAST_SLOPE:
            return None, state
        reached = self._search(at, x, slope, state)
        if reached is None and state:
            state = ()
            reached = self._search(at, x, slope, state)
        if reached is None:
            return None, state
        change, bend = flat(reached.params, names) - x, flat(reached.grads, names) - slope
        curvature = float(change @ bend)
        if curvature > -_EPS * float(slope @ change):
            state = (*state, (change, bend, curvature))[-_PAIRS:]
        return reached, state

    def export_state(self, state: State) -> dict[str, np.ndarray]:
        """Changes of parameters and gradient, oldest first."""
        if not state:
            return {}
        return {"changes": np.stack([change for change, _, _ in state]), "bends": np.stack([y for _, y, _ in state])}

    def import_state(self, params: Params, arrays: dict[str, np.ndarray]) -> State:
        """The inverse of :meth:`export_state`."""
        pairs = zip(arrays["changes"], arrays["bends"], strict=True)
        return tuple((change, bend, float(change @ bend)) for change, bend in pairs)

    def _search(self, at: Iterate, x: np.ndarray, slope: np.ndarray, state: State) -> Evaluation | None:
        """A point with less loss and less slope, or one whose loss is not finite; ``None`` where there is neither."""
        direction = _direction(slope, state)
        steepness = -float(slope @ direction)
        if not 0.0 < steepness < math.inf:
            return None
        line = _Line(self.problem.evaluate, at, x, direction, steepness)
        try:
            succeeded = line.first_trial_is_good() or _more_thuente(line)
        except _NotFiniteError:
            return line.last
        return line.last if succeeded and line.last.loss < at.loss else None


class _NotFiniteError(Exception):
    """The loss is not finite somewhere on the line."""


class _Line:
    """Loss along a direction, relative to that at the start and scaled to a slope of -1 there."""

    def __init__(
        self,
        evaluate: Callable[[Params], Evaluation],
        at: Evaluation,
        x: np.ndarray,
        direction: np.ndarray,
        steepness: float,
    ) -> None:
        self._evaluate, self._start = evaluate, at
        self._names = sorted(at.params)
        self._x, self._direction, self._steepness = x, direction, steepness
        self._distance, self._value, self._slope = 0.0, 0.0, -1.0
        self.last = at

    def __call__(self, distance: float) -> tuple[float, float]:
        """Value and slope; those of the last distance are cached, and those of the start known."""
        if distance == 0.0:
            return 0.0, -1.0
        if distance != self._distance:
            moved = self._x + distance * self._direction
            self.last = self._evaluate(unflat(moved, self._names, self._start.params))
            if not math.isfinite(self.last.loss):
                raise _NotFiniteError
            self._distance = distance
            self._value = (self.last.loss - self._start.loss) / self._steepness
            self._slope = float(flat(self.last.grads, self._names) @ self._direction) / self._steepness
        return self._value, self._slope

    def first_trial_is_good(self) -> bool:
        """Whether the distance 1 fulfils the conditions, as it mostly does: then nothing is to be searched."""
        value, slope = self(1.0)
        return value <= -_DECREASE and abs(slope) <= _FLATNESS


def _more_thuente(line: _Line) -> bool:
    """Whether the search succeeds, and the last point with it.

    SciPy offers the search of L-BFGS-B by ``minimize`` alone: in one dimension, its first direction is the line, and
    its first trial 1.
    """
    from scipy.optimize import minimize

    def value_and_slope(distance: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = line(float(distance[0]))
        return value, np.array([slope])

    options = {"maxiter": 1, "ftol": 0.0, "gtol": 0.0}
    return bool(minimize(value_and_slope, np.zeros(1), jac=True, method="L-BFGS-B", options=options).nit == 1)


def _direction(slope: np.ndarray, state: State) -> np.ndarray:
    """Two-loop recursion; a unit vector down the gradient where no curvature is known."""
    if not state:
        return -slope / float(np.linalg.norm(slope))
    direction = -slope
    shares: list[float] = []
    for change, bend, curvature in reversed(state):
        share = float(change @ direction) / curvature
        direction -= share * bend
        shares.append(share)
    _, bend, curvature = state[-1]
    direction *= curvature / float(bend @ bend)
    for (change, bend, curvature), share in zip(state, reversed(shares), strict=True):
        direction += (share - float(bend @ direction) / curvature) * change
    return direction
