r"""Levenberg-Marquardt: hundreds of parameters, millions of residuals.

With residuals r, their Jacobian J and the curvature C of the loss in them, a step solves, with D the diagonal of H::

    H = Jᵀ C J        (H + λ D) δ = -g        ρ = (L(θ) - L(θ + δ)) / -(gᵀδ + δᵀHδ/2)

J is made for a sample of rows and columns that is drawn again at every step; the gradient g and the loss are those of
all entries, so that the sample decides how good a step is, not where it leads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from autoray import do

from ..._typing import Array, Float, Params
from ...backends import Backend
from ...calculus import SampledJacobian, isometric, isometric_jacobian, sampled_jacobian, stacked
from ...errors import FitError
from ...generator import Generator
from ...weight import BASE, BASE_SCALE
from .._objective import Objective
from .._optimizer import Evaluation, Iterate, Optimizer, Problem
from ._vectors import flat, unflat

_MOST = 2048  # parameters; with more, a dense H costs more than it saves
_PER_PARAMETER = 128  # entries of the sample
_FEWEST = 1 << 13
_LARGEST = 1 << 17
_START = 1e-2  # of λ
_ATTEMPTS = 10

State = tuple[float, float]  # the damping, and its factor after the next failure


@dataclass(frozen=True, eq=False, kw_only=True)
class Curvature:
    """The matrix H, from a sample of the weight's entries.

    Parameters
    ----------
    jacobian : SampledJacobian
        The derivatives of the generated state.
    generator : Generator
        A generator with the structure, scale and base.
    objective : Objective
        The loss, which defines C.
    backend, device, dtype
        The place and precision of the computation.
    constants : mapping of str to array
        Frozen parameters, unit directions, and the arrays of the objective.
    base : numpy.ndarray
        ``(n_out, n_in)``; empty where its factor is not trained.
    names : list of str
        Names of the parameters, in the order of H.
    seed : int
        The seed of the samples.
    """

    jacobian: SampledJacobian
    generator: Generator
    objective: Objective
    backend: Backend
    device: str
    dtype: str
    constants: Mapping[str, Array]
    base: np.ndarray
    names: list[str]
    seed: int

    def __call__(self, params: Params, step: int) -> Float[np.ndarray, "parameters parameters"]:
        """Compute H at a step, in float64 on the host."""
        shape = self.generator.shape
        n_in = math.prod(shape[1:])
        rng = np.random.Generator(np.random.Philox(key=np.array([self.seed, step], dtype=np.uint64)))
        n_rows, n_columns = self.jacobian.counts
        rows = np.sort(rng.choice(shape[0], n_rows, replace=False))
        columns = np.sort(rng.choice(n_in, n_columns, replace=False)) if n_columns else None
        probes = {k: self._asarray(x) for k, x in self.jacobian.probes(rows, columns).items()}
        derivatives = self.jacobian({**self.constants, **params, **probes})
        changes = stacked(derivatives, [k for k in self.names if k != BASE_SCALE])
        changes = self.generator.weighting.tangent(changes, whole_rows=columns is None)
        if BASE_SCALE in self.names:
            base = self.base[rows] if columns is None else self.base[np.ix_(rows, columns)]
            changes = do("concatenate", (changes, self._asarray(base[None])), axis=0)
        bent = self.objective.curvature(changes, self.constants)
        flat = (changes.shape[0], -1)
        product = do("matmul", do("reshape", changes, flat), do("transpose", do("reshape", bent, flat), (1, 0)))
        share = n_rows * (n_columns or n_in) / (shape[0] * n_in)
        matrix = self.backend.to_numpy(product).astype(np.float64) / share
        return 0.5 * (matrix + matrix.T)

    def _asarray(self, x: Float[np.ndarray, "*shape"]) -> Float[Array, "*shape"]:
        return self.backend.asarray(x, self.device, self.dtype)


def plan_curvature(
    generator: Generator, objective: Objective, backend: Backend, device: str, dtype: str, seed: int
) -> Curvature:
    """Choose the size of the sample, plan its derivatives, and put everything on the device.

    Raises
    ------
    FitError
        If there are more than 2048 parameters, or the loss is not a sum of squares.
    """
    shapes = {k: np.shape(generator.params[k]) for k in generator.params if k != BASE_SCALE}
    names = [*sorted(shapes), *([BASE_SCALE] if BASE_SCALE in generator.params else [])]
    n = sum(math.prod(shape) for shape in shapes.values())
    if n > _MOST:
        raise FitError(f"Got {n} parameters; optimizer='lm' is for at most {_MOST}. Use 'lbfgs' or 'adam'.")
    n_out, n_in = generator.shape[0], math.prod(generator.shape[1:])
    wanted = min(max(_PER_PARAMETER * n, _FEWEST), max(_LARGEST, 2 * n))
    if objective.needs_whole_rows:
        rows, columns = min(n_out, max(8, math.ceil(wanted / n_in))), 0
    else:
        columns = min(n_in, max(round(math.sqrt(wanted)), math.ceil(wanted / n_out)))
        rows = min(n_out, math.ceil(wanted / columns))
    jacobian = sampled_jacobian(generator.segments, generator.layout, rows, columns)
    frozen = generator.constants()
    base = frozen.pop(BASE, np.zeros(0))
    weighting = generator.weighting
    base = weighting.to_generated_order(base).reshape(n_out, n_in) if BASE_SCALE in names else np.zeros(0)
    given = objective.constants(weighting)
    arrays = {k: np.asarray(x) for k, x in {**frozen, **given}.items() if k != "target"}
    arrays |= {f"unit/{k}": np.eye(math.prod(s)).reshape(-1, *s) for k, s in shapes.items()}
    constants = {k: backend.asarray(x, device, dtype) for k, x in arrays.items()}
    return Curvature(
        jacobian=jacobian,
        generator=generator,
        objective=objective,
        backend=backend,
        device=device,
        dtype=dtype,
        constants=constants,
        base=base,
        names=names,
        seed=seed,
    )


class LevenbergMarquardt(Optimizer):
    """The Levenberg-Marquardt method, with damping by the gain ratio (Nielsen's rule).

    References
    ----------
    D. W. Marquardt (1963), "An algorithm for least-squares estimation of nonlinear parameters"; H. B. Nielsen (1999),
    "Damping parameter in Marquardt's method". Sampled rows for H alone: F. Roosta-Khorasani, M. W. Mahoney (2016),
    arXiv:1601.04737 (sub-sampled Newton).
    """

    on_host = True
    takes_clip = False
    solves_matrices = True  # larger than any product of the network

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self._curvature = plan_curvature(
            problem.generator, problem.objective, problem.backend, problem.device, problem.dtype, problem.seed
        )
        self._rows = problem.generator.isometric_rows
        if problem.has_batches or set(problem.rate_factors) != set(self._curvature.names):
            raise FitError("optimizer='lm' needs a weight to reconstruct; for tasks use 'adam' or 'lbfgs'.")

    def init(self, params: Params) -> State:
        """Return the initial damping."""
        return _START, 2.0

    def step(self, at: Iterate, state: State) -> tuple[Evaluation | None, State]:
        """Increase the damping until a step lowers the loss."""
        names = self._curvature.names
        matrix, slope = self._matrix(at), flat(at.grads, names)
        damping, growth = state
        for _ in range(_ATTEMPTS):
            change = _solve(matrix, slope, damping)
            trial = self.problem.evaluate(unflat(flat(at.params, names) + change, names, at.params))
            expected = -float(slope @ change + 0.5 * change @ matrix @ change)
            gain = (at.loss - trial.loss) / expected if expected > 0.0 and math.isfinite(trial.loss) else -1.0
            if gain > 0.0:
                damping = max(damping * max(1.0 / 3.0, 1.0 - (2.0 * gain - 1.0) ** 3), 1e-10)
                return trial, (damping, 2.0)
            damping, growth = damping * growth, growth * 2.0
        return None, (damping, growth)

    def export_state(self, state: State) -> dict[str, np.ndarray]:
        """Return the damping and its growth."""
        return {"lm": np.array(state)}

    def import_state(self, params: Params, arrays: dict[str, np.ndarray]) -> State:
        """Invert :meth:`export_state`."""
        damping, growth = arrays["lm"]
        return float(damping), float(growth)

    def _matrix(self, at: Iterate) -> Float[np.ndarray, "parameters parameters"]:
        problem = self.problem
        with problem.backend.scope(problem.dtype):
            cores = isometric(at.params, self._rows)
            params = {k: problem.backend.asarray(x, problem.device, problem.dtype) for k, x in cores.items()}
            matrix = self._curvature(params, at.step)
        return self._by_parameters(matrix, at.params) if self._rows else matrix

    def _by_parameters(
        self, matrix: Float[np.ndarray, "parameters parameters"], params: Params
    ) -> Float[np.ndarray, "parameters parameters"]:
        """Convert H from entries of isometries to those of the parameters that stand for them."""
        slopes, start = isometric_jacobian(params, self._rows), 0
        for name in self._curvature.names:
            own = slice(start, start + np.size(params[name]))
            if name in slopes:
                matrix[own] = slopes[name].T @ matrix[own]
                matrix[:, own] = matrix[:, own] @ slopes[name]
            start = own.stop
        return matrix


def _solve(
    matrix: Float[np.ndarray, "parameters parameters"], slope: Float[np.ndarray, " parameters"], damping: float
) -> Float[np.ndarray, " parameters"]:
    """Solve ``(H + λ D) δ = -g``, scaled to a unit diagonal first."""
    diagonal = np.diag(matrix)
    unit = np.sqrt(np.maximum(diagonal, 1e-6 * max(float(diagonal.max()), 1e-300)))
    scaled = matrix / np.outer(unit, unit)
    scaled[np.diag_indices_from(scaled)] += damping
    try:
        change = np.linalg.solve(scaled, -slope / unit)
    except np.linalg.LinAlgError:
        change = np.linalg.lstsq(scaled, -slope / unit, rcond=None)[0]
    return change / unit
