"""Objectives: reconstruction, data-aware reconstruction, or any task loss."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from autoray import do

from .._arrays import host_array
from .._checks import checked, shown
from .._typing import Array, Float, Params, Shape
from ..backends import Backend
from ..errors import FitError
from ..program import MOMENT
from ..schedule import FitLoss
from ..weight import Consumer, Weighting, output_distance, squared_distance

_NEAR = 1e-12  # smallest norm, or inverse, whose square is in the range of single precision
_BLOCK = 1 << 13  # entries that are processed together

ValueAndGrad = Callable[[Array, "Params | None", Params, tuple[Array, ...]], tuple[Array, tuple[Any, ...]]]


class Objective(ABC):
    """A loss that depends on the weight.

    Examples
    --------
    >>> import adtn, numpy as np
    >>> objectives = [adtn.Reconstruction(np.eye(4)), adtn.Task(lambda w: (float((w * w).sum()), 2 * w))]
    >>> all(isinstance(objective, adtn.Objective) for objective in objectives)
    True
    """

    params: Mapping[str, np.ndarray]
    """Further trained arrays, such as the other layers of a network."""

    @abstractmethod
    def constants(self, weighting: Weighting) -> dict[str, Float[np.ndarray, "..."]]:
        """Return the arrays that are copied to the device once.

        The ``"target"`` is in the order of the weight; an array that is multiplied with rows of tiles, such as a second
        moment of inputs, is in the generated order of the weighting.
        """

    def bind(self, backend: Backend) -> ValueAndGrad:
        """Make a function ``(W, params, constants, batch) -> (loss, (dW, d_params))`` of arrays of the backend.

        It is used for a loss without :meth:`in_tiles`.
        """
        raise NotImplementedError(f"{type(self).__name__} needs bind or in_tiles.")

    def batch(self, rng: np.random.Generator) -> tuple[np.ndarray, ...] | None:
        """Return the data of one step; ``None`` for an objective that is the same at every step."""
        return None

    def check(self, shape: Shape) -> None:
        """Refuse weights of another shape."""
        del shape

    @property
    def is_relative_square(self) -> bool:
        """Whether the loss is the square of a relative error."""
        return False

    def in_tiles(self, half: bool) -> TileObjective | None:
        """Return the loss as a sum over tiles of the weight; ``None`` if it needs the whole weight at once."""
        return None

    @property
    def needs_whole_rows(self) -> bool:
        """Whether :meth:`curvature` mixes the entries of a row."""
        return True

    def curvature(
        self, rows: Float[Array, "parameters rows entries"], constants: Params
    ) -> Float[Array, "parameters rows entries"]:
        """Multiply changes of the weight, ``(..., rows, n_in)``, by the second derivative, as Gauss-Newton requires."""
        raise FitError(
            f"Got optimizer='lm' with {type(self).__name__}, which does not implement curvature(); 'lm' requires a "
            "loss that is a sum of squares. Use 'adam' or 'lbfgs'."
        )


@dataclass(frozen=True, kw_only=True)
class TileObjective:
    """A loss that is a sum over tiles.

    Parameters
    ----------
    loss : {"distance", "output distance", "any"}
        Which loss it is: the squared distance from the target, where tiles may be any legs, that of the outputs, or
        any. Weights need not be generated for the first two; tiles are rows for the last two.
    consume : callable
        ``(backend, arranged target, constants) -> consumer``, see :class:`adtn.weight.TiledWeight`. It is the same
        function for all objectives of a kind, so that compiled code is shared.
    factor : float
        The factor of both: tiles are those of ``factor * W``, and the target is ``factor * target``.
    loss_factor : float
        The factor of the final sum.
    slope_factor : float
        The factor that turns ``adjoint`` into the derivative of the loss.
    """

    loss: FitLoss
    consume: Callable[[Backend, Array, Params], Consumer]
    factor: float
    loss_factor: float
    slope_factor: float

    @property
    def is_far(self) -> bool:
        """Whether the squares of the target and of the generator's scale exceed the range of single precision."""
        return self.factor != 1.0 and not _NEAR < self.factor < 1.0 / _NEAR


class Reconstruction(Objective):
    r"""The relative squared error :math:`\lVert \hat W - W\rVert_F^2 / \lVert W\rVert_F^2`.

    Parameters
    ----------
    target : array
        The weight W, with any number of axes.

    Raises
    ------
    FitError
        If it is zero or not finite.

    Examples
    --------
    >>> import adtn, numpy as np
    >>> target = np.sin(np.arange(256.0)).reshape(16, 16)
    >>> solution = adtn.fit(adtn.Generator((16, 16), adtn.MPO(bond=4)), adtn.Reconstruction(target), optimizer="lbfgs")
    >>> round(solution.relative_error, 3)
    0.0
    """

    def __init__(self, target: Any) -> None:
        target = host_array("target", target, FitError)
        # single and double precision are not converted, so that a large weight is not copied
        self.target = target if target.dtype in (np.float32, np.float64) else target.astype(np.float64)
        self.params = {}
        norm = _norm(self.target, "target")
        if norm == 0.0:
            raise FitError("Got a target of zeros, which has no relative error; expected others. Leave that layer out.")
        self._norm = norm
        self._inverse_norm = 1.0 / norm

    def constants(self, weighting: Weighting) -> dict[str, Float[np.ndarray, "..."]]:
        """Return the target."""
        return {"target": self.target}

    @property
    def norm(self) -> float:
        """The norm of the target."""
        return self._norm

    def check(self, shape: Shape) -> None:
        """Refuse weights of another shape."""
        if self.target.shape != shape:
            raise FitError(f"Got a target of shape {self.target.shape} for a generator of {shape}; they must be equal.")

    @property
    def is_relative_square(self) -> bool:
        """Whether the loss is the square of a relative error, which it is."""
        return True

    _loss: ClassVar[FitLoss] = "distance"

    @staticmethod
    def _consume(backend: Backend, target: Float[Array, " tiles *tile"], constants: Params) -> Consumer:
        return squared_distance(backend, target)

    def in_tiles(self, half: bool) -> TileObjective | None:
        """Return the loss as a sum over tiles."""
        inverse = self._inverse_norm
        # with half precisions or extreme norms, normalise before squaring, as sums of squares could overflow
        factor, rest = (1.0, inverse * inverse) if _NEAR < inverse < 1.0 / _NEAR and not half else (inverse, 1.0)
        return TileObjective(
            loss=self._loss, consume=self._consume, factor=factor, loss_factor=rest, slope_factor=2.0 * rest
        )

    @property
    def needs_whole_rows(self) -> bool:
        """Whether :meth:`curvature` mixes the entries of a row, which it does not."""
        return False

    def curvature(
        self, rows: Float[Array, "parameters rows entries"], constants: Params
    ) -> Float[Array, "parameters rows entries"]:
        """Multiply changes of the weight by the second derivative, the same for every entry."""
        return rows * self._inverse_norm * (2.0 * self._inverse_norm)


class DataAwareReconstruction(Reconstruction):
    r"""The relative squared error of a layer's outputs.

    .. math:: \lVert (\hat W - W) C^{1/2}\rVert_F^2 / \lVert W C^{1/2}\rVert_F^2

    Parameters
    ----------
    target : array
        The weight, ``(n_out, n_in)`` or ``(n_out, ...)`` with the rest flattened to ``n_in``.
    second_moment : array
        ``(n_in, n_in)``, the mean of ``x xᵀ`` over the layer's inputs.

    Raises
    ------
    FitError
        If shapes disagree, the moment is not symmetric, or all outputs are zero.

    Examples
    --------
    >>> import adtn, numpy as np
    >>> rng = np.random.default_rng(0)
    >>> w, x = rng.standard_normal((8, 16)), rng.standard_normal((100, 16)) * np.arange(16)
    >>> objective = adtn.DataAwareReconstruction(w, x.T @ x / len(x))
    >>> start = adtn.Generator((8, 16), adtn.MPO(bond=4))
    >>> gen = adtn.fit(start, objective, optimizer="lbfgs").generator
    >>> relative = np.linalg.norm(x @ (gen.weight() - w).T) / np.linalg.norm(x @ w.T)
    >>> bool(relative < np.linalg.norm(gen.weight() - w) / np.linalg.norm(w))
    True
    """

    def __init__(self, target: Any, second_moment: Any) -> None:
        super().__init__(target)
        self.target = np.asarray(self.target, dtype=np.float64)
        self.second_moment = np.asarray(host_array("second_moment", second_moment, FitError), dtype=np.float64)
        if not self.target.ndim:
            raise FitError(f"Got target={shown(target)}; expected a weight (n_out, n_in).")
        n_in = self.target.size // self.target.shape[0]
        if self.second_moment.shape != (n_in, n_in):
            raise FitError(
                f"Got a second_moment of shape {self.second_moment.shape} for a target of {self.target.shape}; "
                f"expected {(n_in, n_in)}."
            )
        _norm(self.second_moment, "second_moment")
        if not np.allclose(
            self.second_moment, self.second_moment.T, rtol=1e-4, atol=1e-6 * np.abs(self.second_moment).max()
        ):
            raise FitError("Got a second_moment that is not symmetric; expected x.T @ x / n of the layer's inputs.")
        self.second_moment = (self.second_moment + self.second_moment.T) * 0.5  # the rest changes no loss
        # a relative error does not depend on the scale of the moment, and a power of two changes no digit
        spread = float(np.trace(self.second_moment)) / n_in
        if spread > 0.0:
            self.second_moment = self.second_moment * 2.0 ** -round(math.log2(spread))
        flat = self.target.reshape(self.target.shape[0], -1) * (1.0 / self._norm)
        power = float(np.sum((flat @ self.second_moment) * flat))
        if not power > 0.0:
            raise FitError(
                "Got a second_moment under which the layer's outputs are zero; check that its inputs were collected."
            )
        self._inverse_norm = power**-0.5 / self._norm

    def constants(self, weighting: Weighting) -> dict[str, Float[np.ndarray, "..."]]:
        """Return the target and the second moment."""
        moment = weighting.moment_to_generated_order(self.second_moment)
        return {"target": self.target, MOMENT: moment}

    _loss: ClassVar[FitLoss] = "output distance"

    @staticmethod
    def _consume(backend: Backend, target: Float[Array, " tiles *tile"], constants: Params) -> Consumer:
        return output_distance(backend, target, constants[MOMENT])

    @property
    def needs_whole_rows(self) -> bool:
        """Whether :meth:`curvature` mixes the entries of a row, which the second moment does."""
        return True

    def curvature(
        self, rows: Float[Array, "parameters rows entries"], constants: Params
    ) -> Float[Array, "parameters rows entries"]:
        """Multiply changes of the weight by the second moment of the inputs."""
        bent = do("matmul", rows * self._inverse_norm, constants[MOMENT])
        return bent * (2.0 * self._inverse_norm)


class Task(Objective):
    """An objective that is any function of the weight.

    Parameters
    ----------
    fn : callable
        ``fn(W, *batch)`` or, with ``params``, ``fn(W, params, *batch)``, in the arrays of the backend that fits.
        On PyTorch and JAX it returns the loss; on NumPy, which cannot differentiate, ``(loss, dL/dW)`` or
        ``(loss, (dL/dW, d_params))``.
    params : mapping of str to array, optional
        Further arrays that are trained with the generator.
    batches : callable, optional
        ``batches(rng)`` returns the arrays of one step; ``rng`` depends on the seed and the step alone, so that
        an interrupted fit continues with the same data.
    differentiated : bool
        Whether ``fn`` returns its gradient on every backend, not only on NumPy.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.ones((4, 8), "float32")
    >>> def loss(W):
    ...     y = x @ W.T
    ...     return (y * y).mean(), 2 * y.T @ x / y.size
    >>> Task(loss).in_tiles(half=False) is None  # it needs the weight as a whole
    True
    """

    @checked(FitError)
    def __init__(
        self,
        fn: Callable[..., Any],
        *,
        params: Mapping[str, Any] | None = None,
        batches: Callable[[np.random.Generator], tuple[np.ndarray, ...]] | None = None,
        differentiated: bool = False,
    ) -> None:
        self.fn = fn
        self.params = {k: host_array(f"params[{k!r}]", x, FitError) for k, x in (params or {}).items()}
        self.batches = batches
        self.differentiated = differentiated

    def constants(self, weighting: Weighting) -> dict[str, Float[np.ndarray, "..."]]:
        """Return nothing, as a task holds its own data."""
        return {}

    def batch(self, rng: np.random.Generator) -> tuple[np.ndarray, ...] | None:
        """Return the data of one step."""
        if self.batches is None:
            return None
        arrays = self.batches(rng)
        return tuple(arrays) if isinstance(arrays, tuple | list) else (arrays,)

    def bind(self, backend: Backend) -> ValueAndGrad:
        """Return the function with its gradient, its own or the framework's."""
        fn, has_params = self.fn, bool(self.params)
        differentiate = None if self.differentiated else backend.value_and_grad(fn)

        def value_and_grad(weight: Array, params: Any, constants: Params, batch: Any) -> tuple[Array, tuple[Any, ...]]:
            if differentiate is not None:
                return differentiate(weight, params if has_params else None, *batch)
            loss, grads = fn(weight, params, *batch) if has_params else fn(weight, *batch)
            return loss, grads if isinstance(grads, tuple) else (grads,)

        return value_and_grad


def as_objective(target: Any) -> Objective:
    """Return an objective unchanged, a function as a :class:`Task`, and an array as a :class:`Reconstruction`."""
    if isinstance(target, Objective):
        return target
    if callable(target):
        return Task(target)
    return Reconstruction(target)


def batch_at(objective: Objective, seed: int, step: int) -> tuple[np.ndarray, ...] | None:
    """Draw the data of a step, which depend on the seed and the step only."""
    return objective.batch(np.random.Generator(np.random.Philox(key=np.array([seed, step], dtype=np.uint64))))


def _norm(x: Float[np.ndarray, "..."], what: str) -> float:
    """Compute the Frobenius norm in double precision block by block, without copying the array."""
    iterate: Any = np.nditer
    flags = ["external_loop", "buffered", "zerosize_ok"]
    blocks = iterate(x, flags, [["readonly"]], [np.float64], casting="unsafe", buffersize=_BLOCK)
    norm, bad = 0.0, 0
    for block in blocks:
        part: np.ndarray = block
        largest = float(np.abs(part).max(initial=0.0))
        if math.isfinite(largest) and largest > 0.0:  # squares of 1e-200 and 1e200 exceed the range of a double
            norm = math.hypot(norm, largest * float(np.linalg.norm(part / largest)))
        elif not math.isfinite(largest):
            bad += part.size - int(np.isfinite(part).sum())
    if bad:
        raise FitError(f"Got a {what} with {bad} entries that are NaN or infinite; expected none. Repair it first.")
    return norm
