"""L-BFGS with the line search of L-BFGS-B, for every backend.

A generator has hundreds to thousands of parameters: a float64 host vector costs nothing beside an evaluation, and
all backends take the same steps. The recursion is here because the loop of SciPy cannot be interrupted and continued
without losing its curvature.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from ..._typing import Float, Params
from ...errors import FitError
from .._optimizer import Evaluation, Iterate, Optimizer, Problem
from ._line_search import search
from ._vectors import flat, unflat

Vector: TypeAlias = Float[np.ndarray, " parameters"]
Steps: TypeAlias = Float[np.ndarray, "steps parameters"]

_PAIRS = 20
_LEAST_SLOPE = 1e-12
_EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, eq=False)
class History:
    r"""The last steps: changes :math:`s_i` of the parameters, :math:`y_i` of the gradient, and :math:`s_i^\top y_j`.

    The arrays have room for twice as many steps as are remembered: they move to new arrays once in so many steps, and
    a new step is written where no older history reads.

    Parameters
    ----------
    changes, bends : numpy.ndarray
        ``(2 * _PAIRS, n)``.
    products : numpy.ndarray
        ``(2 * _PAIRS, 2 * _PAIRS)``, of which the upper triangle is read.
    start, stop : int
        The rows of the remembered steps, oldest first.
    """

    changes: np.ndarray
    bends: np.ndarray
    products: np.ndarray
    start: int = 0
    stop: int = 0

    @classmethod
    def of(cls, changes: Steps, bends: Steps, products: Float[np.ndarray, "steps steps"]) -> History:
        """Return a history of given steps."""
        k, n = changes.shape
        size = 2 * _PAIRS
        history = cls(np.zeros((size, n)), np.zeros((size, n)), np.zeros((size, size)), 0, k)
        history.changes[:k], history.bends[:k], history.products[:k, :k] = changes, bends, products
        return history

    @classmethod
    def empty(cls, n: int) -> History:
        """Return a history without curvature."""
        return cls.of(np.zeros((0, n)), np.zeros((0, n)), np.zeros((0, 0)))

    @property
    def steps(self) -> tuple[Steps, Steps, Float[np.ndarray, "steps steps"]]:
        """The remembered changes, bends and products."""
        at = slice(self.start, self.stop)
        return self.changes[at], self.bends[at], self.products[at, at]

    def extended(self, change: Vector, bend: Vector) -> History:
        """Add a step, in place of the oldest one if there is no room."""
        if self.stop == len(self.changes):
            return History.of(*self.steps).extended(change, bend)
        row, start = self.stop, max(self.start, self.stop + 1 - _PAIRS)
        self.changes[row], self.bends[row] = change, bend
        self.products[start : row + 1, row] = self.changes[start : row + 1] @ bend
        return History(self.changes, self.bends, self.products, start, row + 1)

    def direction(self, slope: Vector) -> Vector:
        r"""Multiply the gradient :math:`g` by the approximate inverse Hessian, with a minus sign.

        The two loops of the recursion are two solves with the triangle R of the products of changes and bends, and D
        its diagonal: :math:`R\alpha = S g`, :math:`q = \gamma (g - Y^\top\alpha)`,
        :math:`R^\top\delta = D\alpha - Y q`, and the direction is :math:`-q - S^\top\delta`.
        """
        from scipy.linalg.lapack import dtrtrs  # pyright: ignore[reportAttributeAccessIssue]

        if self.start == self.stop:
            return -slope / float(np.linalg.norm(slope))
        changes, bends, triangle = self.steps
        alpha = dtrtrs(triangle, changes @ slope)[0]
        gamma = float(triangle[-1, -1]) / float(bends[-1] @ bends[-1])
        q = gamma * (slope - alpha @ bends)
        delta = dtrtrs(triangle, triangle.diagonal() * alpha - bends @ q, trans=1)[0]
        return -q - delta @ changes


State = History


class LBFGS(Optimizer):
    """The limited-memory BFGS method with a line search.

    References
    ----------
    D. C. Liu, J. Nocedal (1989), "On the limited memory BFGS method for large scale optimization"; J. J. Moré,
    D. J. Thuente (1994), "Line search algorithms with guaranteed sufficient decrease".
    """

    on_host = True
    takes_clip = False

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self._last: tuple[Evaluation, np.ndarray, np.ndarray] | None = None  # as vectors: the next step begins there
        if problem.has_batches:
            raise FitError("optimizer='lbfgs' needs the same loss at every step; this task has batches. Use 'adam'.")

    def init(self, params: Params) -> State:
        """Return a history without curvature."""
        return History.empty(sum(np.size(x) for x in params.values()))

    def step(self, at: Iterate, state: State) -> tuple[Evaluation | None, State]:
        """Search along the quasi-Newton direction, or along the negative gradient if that fails."""
        x, slope = self._vectors_of(at)
        if float(np.max(np.abs(slope), initial=0.0)) <= _LEAST_SLOPE:
            return None, state
        reached = self._search(at, x, slope, state)
        if reached is None and state.start < state.stop:
            state = replace(state, start=state.stop)
            reached = self._search(at, x, slope, state)
        if reached is None:
            return None, state
        new_x, new_slope = self._vectors_of(reached)
        change, bend = new_x - x, new_slope - slope
        curvature = float(change @ bend)
        if curvature > -_EPS * float(slope @ change):
            state = state.extended(change, bend)
        return reached, state

    def export_state(self, state: State) -> dict[str, np.ndarray]:
        """Return the changes of parameters and gradient, oldest first, and their products, which are exact this way."""
        if state.start == state.stop:
            return {}
        changes, bends, products = map(np.array, state.steps)
        return {"changes": changes, "bends": bends, "products": products}

    def import_state(self, params: Params, arrays: dict[str, np.ndarray]) -> State:
        """Invert :meth:`export_state`."""
        changes, bends = arrays["changes"], arrays["bends"]
        products = arrays.get("products")
        return History.of(changes, bends, np.triu(changes @ bends.T) if products is None else products)

    def _vectors_of(self, at: Evaluation) -> tuple[Vector, Vector]:
        """Return parameters and gradient as vectors; those of the last trial are cached."""
        if self._last is not None and self._last[0].params is at.params:
            return self._last[1:]
        names = sorted(at.params)
        return flat(at.params, names), flat(at.grads, names)

    def _search(self, at: Iterate, x: Vector, slope: Vector, state: State) -> Evaluation | None:
        """Return a point with less loss and slope, or one whose loss is not finite; ``None`` if there is neither."""
        direction = state.direction(slope)
        steepness = -float(slope @ direction)
        if not 0.0 < steepness < math.inf:
            return None
        line = _Line(self.problem.evaluate, at, x, direction, steepness)
        try:
            succeeded = search(line)
        except _NotFiniteError:
            return line.last
        if not succeeded or line.last.loss >= at.loss:
            return None
        self._last = (line.last, line.x, line.gradient)
        return line.last


class _NotFiniteError(Exception):
    """The loss is not finite at a trial."""


class _Line:
    """The loss along a direction, relative to that at the start and scaled to a slope of -1 there."""

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
        self._origin, self._direction, self._steepness = x, direction, steepness
        self.x = self.gradient = x
        self._distance, self._value, self._slope = 0.0, 0.0, -1.0
        self.last = at

    def __call__(self, distance: float) -> tuple[float, float]:
        """Return value and slope; those of the last distance are cached, and those of the start are known."""
        if distance == 0.0:
            return 0.0, -1.0
        if distance != self._distance:
            self.x = self._origin + distance * self._direction
            self.last = self._evaluate(unflat(self.x, self._names, self._start.params))
            if not math.isfinite(self.last.loss):
                raise _NotFiniteError
            self._distance = distance
            self._value = (self.last.loss - self._start.loss) / self._steepness
            self.gradient = flat(self.last.grads, self._names)
            self._slope = float(self.gradient @ self._direction) / self._steepness
        return self._value, self._slope
