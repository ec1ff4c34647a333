"""Executables: one object per mode, which the planner traces, a plan holds, and every caller runs.

An executable is a structure without arrays, bound to a backend. The planner binds it to the null backend to learn what
it costs, a user to the backend of the arrays; the code that runs is the same.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Self, TypeAlias

from .._typing import Array, Factor, Float, Params, Shape
from ..backends import Backend, Workspace
from ..calculus import Consumer
from ..program import PairStep
from ._mode import Mode
from ._weighting import Weighting

Tape: TypeAlias = tuple[Float[Array, "..."], ...]
"""The arrays that the backward pass reads; frameworks hold those, and nothing else."""
Matrix: TypeAlias = Float[Array, "n_out n_in"]
ListedStep: TypeAlias = tuple[int, int, PairStep]


class Executable(ABC):
    """A weight in one mode, bound to a backend.

    Parameters
    ----------
    backend : Backend
        The backend of the arrays.
    """

    mode: ClassVar[Mode]
    tiles: int = 1
    """The number of parts into which the weight is cut."""
    by_rows: bool = True
    """Whether the parts are blocks of rows."""
    tile_shape: Shape = ()

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.space: Workspace = backend.workspace()

    def on(self, backend: Backend) -> Self:
        """Bind to another backend."""
        bound = copy.copy(self)
        Executable.__init__(bound, backend)
        return bound

    @property
    @abstractmethod
    def weighting(self) -> Weighting:
        """The formula that converts a state to a weight."""

    @abstractmethod
    def steps(self) -> Iterator[ListedStep]:
        """List pairwise contractions of a forward pass as ``(segment, times, step)``."""

    @property
    def permutes(self) -> bool:
        """Whether the last contraction copies one of its tensors into another order."""
        *_, (_, _, last) = [(0, 0, None), *self.steps()]
        return last is None or any(view.moves for view in (last.a, last.b, last.c))

    @property
    def label(self) -> str:
        """Name the mode and the tiles."""
        what = "rows" if self.by_rows else "legs"
        return f"{self.mode}, {self.tiles} tile{'s' if self.tiles > 1 else ''} of {what}"

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # a value: modules that hold one are copied with it


class Layer(Executable):
    """The product ``y = x Wᵀ`` and its adjoint in one mode."""

    keeps: bool = False
    """Whether the backward pass reads a tape; otherwise it recomputes what it needs."""
    merges_batch: ClassVar[bool] = False
    """Whether the axis of the batch is merged with legs of the network."""
    makes_weight: ClassVar[bool] = False
    """Whether the whole weight is generated, so that it can be cached while the parameters stay the same."""

    @abstractmethod
    def __call__(self, arrays: Params, x: Float[Array, "batch n_in"]) -> Float[Array, "batch n_out"]:
        """Multiply ``(batch, n_in)`` to ``(batch, n_out)``."""

    def with_tape(self, arrays: Params, x: Float[Array, "batch n_in"]) -> tuple[Float[Array, "batch n_out"], Tape]:
        """Return the product and the tape of :meth:`pullback`, which is empty where the weight is generated again."""
        return self(arrays, x), ()

    @abstractmethod
    def pullback(
        self,
        tape: Tape,
        arrays: Params,
        x: Float[Array, "batch n_in"],
        ybar: Float[Array, "batch n_out"],
        *,
        need_x: bool = True,
    ) -> tuple[dict[str, Float[Array, "..."]], Float[Array, "batch n_in"] | None]:
        """Compute the adjoints of the parameters from that of the product, and that of ``x`` if ``need_x``."""

    def fixed(
        self, arrays: Callable[[], Params], weight: Callable[[], Matrix], batch: int | None = None
    ) -> Callable[[Float[Array, "batch n_in"]], Float[Array, "batch n_out"]]:
        """Return ``x -> y`` for parameters that stay the same.

        Parameters
        ----------
        arrays : callable
            A function that returns the parameters on the device.
        weight : callable
            A function that returns the weight; called only by modes that generate it.
        batch : int, optional
            The number of rows of ``x``, if the best product depends on it.
        """
        there, apply = arrays(), self.backend.with_vjp(self)
        return lambda x: apply(there, x)


class FitExecutable(Executable):
    """A loss of the weight, with its gradient by the parameters."""

    exact: ClassVar[bool] = True
    """Whether residuals are computed themselves, so that small ones keep their digits."""
    reads_base: ClassVar[bool] = True
    """Whether the base is added to what is generated; otherwise it is subtracted from the target."""

    @abstractmethod
    def arrange(self, weight: Float[Array, "*shape"]) -> Float[Array, " tiles *tile"]:
        """Arrange an array of the weight's shape in the order in which it is read; a view if possible."""

    def arrange_moment(self, moment: Float[Array, "n_in n_in"]) -> Float[Array, "..."]:
        """Arrange a second moment of inputs in generated order as it is read."""
        return moment

    @abstractmethod
    def evaluate(
        self,
        arrays: Params,
        target: Float[Array, " tiles *tile"],
        consume: Consumer,
        start: Callable[[], Any],
        *,
        scale: Factor | None = None,
        factor: Factor | None = None,
    ) -> tuple[Any, dict[str, Float[Array, "..."]]]:
        """Evaluate a loss that is a sum over tiles.

        Parameters
        ----------
        arrays : mapping of str to array
            Parameters, frozen cores, and the base, arranged by :meth:`arrange`.
        target : array
            The target, arranged by :meth:`arrange`.
        consume : callable
            ``(tile, number, carry) -> (carry, adjoint of the tile)``.
        start : callable
            A function that returns the initial carry.
        scale : float or array, optional
            The scale of the generated part; that of the weighting when not given.
        factor : float or array, optional
            A factor of the weight that the consumer receives; 1 when not given.

        Returns
        -------
        tuple of any and dict of str to array
            The final carry and the adjoints. Executables that compute no residuals return
            ``‖W - target‖² - ‖target‖²`` and half of its gradient, whatever ``consume`` is.
        """
