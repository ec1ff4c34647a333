"""The interface that a framework must offer so that a whole model can be compressed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .._typing import Shape
from ..backends import backend_names, get_backend
from ..errors import CompressError, MissingDependencyError
from ..generator import Generator


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer of a model.

    Parameters
    ----------
    name : str
        Of the module.
    kind : str
        Name of its class, such as ``"Linear"`` or ``"Conv2d"``.
    weights : mapping of str to tuple of int
        Shapes of the weights that can be generated, by full name; most layers have one, called as the layer.
    tied : tuple of str
        Other layers with the same weight; they are replaced together.
    reason : str
        Why it cannot be replaced; empty when it can.
    itemsize : int
        Bytes of one number.
    optional : bool
        Whether it is replaced only where a target names it.
    adaptable : bool
        Whether adapters can be added to it.
    """

    name: str
    kind: str
    weights: Mapping[str, Shape] = field(default_factory=dict)
    tied: tuple[str, ...] = ()
    reason: str = ""
    itemsize: int = 4
    optional: bool = False
    adaptable: bool = True


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """The options of training a whole model through its generators.

    Parameters
    ----------
    steps : int
    lr : float
        Of the optimizer, falling as a cosine.
    distill : float
        Weight of the dense model's outputs in the loss, between 0 and 1.
    train : {"generated", "all"}
        Whether other parameters are trained, too.
    clip : float or None
        Largest norm of all gradients together.
    rates : mapping of str to float
        Factors of the learning rate for parameters whose names match a pattern; the first match counts, 0 freezes.
    seed : int
    optimizer : {"adam", "sgd"}
        SGD with a momentum of 0.9.
    dropout : float or None
        Rate of all dropouts while training; that of each when not given.
    capture : bool
        Whether updates are recorded once as a CUDA graph and replayed.
    autocast : {"bfloat16"}, optional
        Of products while training.
    checkpoint : path, optional
        A file that is written ten times on the way; where it exists, training goes on from it.
    """

    steps: int = 0
    lr: float = 1e-3
    distill: float = 0.0
    train: str = "generated"
    clip: float | None = 1.0
    rates: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    optimizer: str = "adam"
    dropout: float | None = None
    capture: bool = False
    autocast: str | None = None
    checkpoint: Path | None = None

    @property
    def every(self) -> int:
        """The number of steps between checkpoints."""
        return max(self.steps // 10, 1)

    def check(self, losses: Sequence[float]) -> None:
        """Refuse to go on when the last loss is not finite.

        Raises
        ------
        CompressError
            With what to do about it.
        """
        last = losses[-1]
        if math.isfinite(last):
            return
        if len(losses) == 1:
            raise CompressError(
                f"The loss is {last} before any update; look for numbers in the batches or in layers that stay dense "
                "that are not finite."
            )
        raise CompressError(f"The loss became {last} at step {len(losses)}; lower tune_lr, now {self.lr}.")


class Model(Protocol):
    """A model of some framework. Nothing of it changes before :meth:`install`, and :meth:`restore` undoes that."""

    model: Any
    """What is changed in place."""

    def layers(self) -> list[Layer]:
        """Every layer with numbers of its own, also those that cannot be replaced."""
        ...

    def weight(self, name: str) -> np.ndarray:
        """A dense weight by its full name."""
        ...

    def second_moments(self, names: Sequence[str], data: Iterable[Any]) -> dict[str, np.ndarray]:
        """Compute the mean of ``x xᵀ`` over the inputs of those weights for which it makes sense."""
        ...

    def install(self, generators: Mapping[str, Generator]) -> None:
        """Replace layers by generated ones, all or none."""
        ...

    def adapt(self, generators: Mapping[str, Generator], name: str) -> None:
        """Add generated weights to layers, all or none, as an adapter of that name; their own stay frozen."""
        ...

    def restore(self) -> None:
        """The model as it was."""
        ...

    def distill(self, data: Iterable[Any], tuning: Tuning, executor: Any, say: Callable[[str], None]) -> None:
        """Train every installed layer by itself on the inputs and outputs of the dense one."""
        ...

    def check(self, tuning: Tuning) -> None:
        """Refuse a training that cannot work, before anything is done."""
        ...

    def tune(self, data: Iterable[Any], loss: Callable[..., Any] | None, tuning: Tuning, report: Any) -> list[float]:
        """Train through the generators; returns the losses."""
        ...

    def loss_on(self, data: Iterable[Any], loss: Callable[..., Any] | None) -> float:
        """Compute the mean loss over the batches, without training."""
        ...

    def accuracy(self, data: Iterable[Any]) -> float | None:
        """Compute the accuracy in percent; nothing where labels do not number classes."""
        ...

    def score(self, score: Callable[[Any], Any]) -> float:
        """Compute what a caller's function says of the model in evaluation mode."""
        ...

    def generators(self) -> dict[str, Generator]:
        """Return the generators of all installed weights, with their current parameters."""
        ...

    def state(self) -> Any:
        """A copy of all numbers, for :meth:`set_state`."""
        ...

    def digest(self) -> str:
        """Return a digest of all current parameters."""
        ...

    def set_state(self, state: Any) -> None:
        """All numbers as they were."""
        ...

    def load(self, path: Path) -> None:
        """The state from a file."""
        ...

    def save(self, path: Path, metadata: Mapping[str, str]) -> None:
        """The state to a file, numbers of generators included; the metadata have a place for a digest."""
        ...

    def numbers(self) -> tuple[int, int]:
        """Return the number of parameters and their bytes; what is shared counts once."""
        ...

    def forward_cost(self, data: Iterable[Any]) -> tuple[float, int | None]:
        """Return median seconds and peak bytes of a forward pass of the first batch."""
        ...

    def predicted_seconds(self, data: Iterable[Any]) -> dict[str, float]:
        """Return what the scheduler expects each installed weight to cost in a forward pass of the first batch."""
        ...


def model_of(model: Any, device: str | None) -> Model:
    """The adapter of a framework for one of its models.

    Raises
    ------
    CompressError
        If no framework knows it.
    """
    packages = {cls.__module__.partition(".")[0] for cls in type(model).__mro__}
    for name in sorted(backend_names(), key=lambda n: n not in packages):
        try:
            adapter = get_backend(name).model(model, device)
        except MissingDependencyError:
            continue
        if adapter is not None:
            return adapter
    raise CompressError(
        f"Got {type(model).__name__}, which is not a model of {', '.join(backend_names())}; expected a "
        "torch.nn.Module or flax.nnx.Module."
    )
