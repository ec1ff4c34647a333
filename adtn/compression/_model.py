"""The interface through which whole models of a framework are compressed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .._typing import Shape
from ..backends import backend_names, get_backend
from ..errors import CompressError, MissingDependencyError
from ..generator import Generator
from ..precision import Precision
from ._rows import ForwardCost


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer of a model.

    Parameters
    ----------
    name : str
        The name of the module.
    kind : str
        The name of its class, such as ``"Linear"`` or ``"Conv2d"``.
    weights : mapping of str to tuple of int
        Shapes of the weights that can be generated, by full name; most layers have one, with the name of the layer.
    tied : tuple of str
        Names of other layers with the same weight; they are replaced together.
    reason : str
        The reason why the layer cannot be replaced; empty if it can.
    itemsize : int
        Bytes of one parameter.
    optional : bool
        Whether the layer is replaced only if a target names it.
    adaptable : bool
        Whether adapters can be added to the layer.
    place : str
        The dtype and the device of its parameters.
    group : tuple of Layer
        The layers of the weights that share one generator, in the order of the name, if this stands for a group.
    """

    name: str
    kind: str
    weights: Mapping[str, Shape] = field(default_factory=dict)
    tied: tuple[str, ...] = ()
    reason: str = ""
    itemsize: int = 4
    optional: bool = False
    adaptable: bool = True
    place: str = ""
    group: tuple[Layer, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """The options of training a whole model through its generators.

    Parameters
    ----------
    steps : int
        The number of steps.
    lr : float
        The initial learning rate, which falls to zero as a cosine.
    distill : float
        The share of the dense model's outputs in the loss, between 0 and 1.
    train : {"generated", "all"}
        Whether only generators are trained, or other parameters are fine-tuned as well.
    clip : float or None
        The largest norm of all gradients together.
    rates : mapping of str to float
        Factors of the learning rate for parameters whose names match a pattern; the first match counts, and 0 freezes.
    relative : bool
        Whether the rates of cores are in proportion to the root mean squares of their entries.
    seed : int
        The seed of random numbers.
    optimizer : {"adam", "sgd"}
        Adam, or SGD with a momentum of 0.9.
    dropout : float or None
        The rate of all dropouts while training; by default, each keeps its own.
    capture : bool
        Whether a step is captured as a CUDA graph and replayed.
    autocast : {"bfloat16"}, optional
        The dtype of products while training.
    checkpoint : path, optional
        A file that is written ten times during training; if it exists, training continues from it.
    observe_every : int
        The number of steps after which the model itself has the current parameters; 0 for at the end only.
    """

    steps: int = 0
    lr: float = 1e-3
    distill: float = 0.0
    train: str = "generated"
    clip: float | None = 1.0
    rates: Mapping[str, float] = field(default_factory=dict)
    relative: bool = False
    seed: int = 0
    optimizer: str = "adam"
    dropout: float | None = None
    capture: bool = False
    autocast: str | None = None
    checkpoint: Path | None = None
    observe_every: int = 0

    @property
    def every(self) -> int:
        """The number of steps between checkpoints."""
        return max(self.steps // 10, 1)

    def check(self, losses: Sequence[float]) -> None:
        """Refuse to continue if the last loss is not finite.

        Raises
        ------
        CompressError
            If it is infinite or NaN; the message says what to do.
        """
        last = losses[-1]
        if math.isfinite(last):
            return
        if len(losses) == 1:
            raise CompressError(
                f"The loss is {last} before the first step; check that the batches and the parameters of dense layers "
                "are finite."
            )
        raise CompressError(f"The loss became {last} at step {len(losses)}; lower tune_lr, which is {self.lr}.")


class Model(Protocol):
    """A model of some framework, all changes of which :meth:`restore` undoes."""

    model: Any
    """The model of the framework, which is changed in place."""

    def layers(self) -> list[Layer]:
        """List all layers with parameters of their own, including those that cannot be replaced."""
        ...

    def weight(self, name: str) -> np.ndarray:
        """Return a dense weight by its full name."""
        ...

    def second_moments(self, names: Sequence[str], data: Iterable[Any], samples: int = 512) -> dict[str, np.ndarray]:
        """Compute the mean of ``x xᵀ`` over the inputs of weights, for those weights that are applied to rows.

        Batches are drawn until they contain ``samples`` samples.
        """
        ...

    def input_rows(self, names: Sequence[str], batch: Any) -> dict[str, int]:
        """Count the rows to which weights are applied for one batch; others are left out."""
        ...

    def called(self, names: Sequence[str], data: Iterable[Any]) -> list[str]:
        """Return the layers that the first batch reaches, in the order in which they are first called."""
        ...

    def exchange(self, generators: Mapping[str, Generator]) -> None:
        """Give installed weights other generators, of other structures as well."""
        ...

    def weight_gradients(
        self, names: Sequence[str], data: Iterable[Any], loss: Callable[..., Any] | None
    ) -> dict[str, np.ndarray]:
        """Compute the gradients of the mean loss with respect to installed weights, in evaluation mode."""
        ...

    def output_moments(self, names: Sequence[str], data: Iterable[Any], *, classes: bool) -> dict[str, np.ndarray]:
        """Compute G for weights, such that ``tr(G D C Dᵀ)`` is what outputs are expected to lose by a small change D.

        C is the second moment of the inputs of that weight. Weights for which that is not implemented are left out; the
        loss is a divergence if the outputs score classes, or else a squared distance over the variance.
        """
        ...

    def in_order(self, data: Iterable[Any]) -> list[list[str]]:
        """Return the installed weights that act on rows, in the order of their calls; those of one input together."""
        ...

    def moments_behind(
        self, names: Sequence[str], data: Iterable[Any], most: int
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Compute the means of ``y yᵀ`` and ``x yᵀ`` for the inputs x of layers in the dense model and y in this one.

        Batches are drawn until there are ``most`` rows per column.
        """
        ...

    def in_turn(self, batch: Any) -> AbstractContextManager[bool]:
        """Declare that weights change in the order of their calls inside this block, and batches stay the same.

        Return whether passes of :meth:`moments_behind` then begin where nothing changes any more.
        """
        ...

    def outputs(self, data: Iterable[Any]) -> list[np.ndarray] | None:
        """Compute ``(rows, columns)`` of outputs by batch in evaluation mode; ``None`` if they are not one array."""
        ...

    def distance_from_dense(self, data: Iterable[Any]) -> float:
        """Compute the squared distance of the outputs from those of the dense model, over their variance."""
        ...

    def has_classes(self, data: Iterable[Any]) -> bool:
        """Return whether labels are indices of classes that the outputs score."""
        ...

    def normalise(self, data: Iterable[Any]) -> bool:
        """Correct the running statistics of batch normalisation; return whether there are any."""
        ...

    def install(self, generators: Mapping[str, Generator]) -> None:
        """Replace layers by generated ones, all or none; the name of a group stands for all of its weights."""
        ...

    def update(self, generators: Mapping[str, Generator]) -> None:
        """Give installed weights other parameters; their structures and precisions are the same."""
        ...

    def adapt(self, generators: Mapping[str, Generator], name: str) -> None:
        """Add generated weights to layers, all or none, as an adapter of that name; dense weights are frozen."""
        ...

    def restore(self) -> None:
        """Restore the original model."""
        ...

    def decode_once(self, once: bool) -> None:
        """Decode codes once, or in every call, which takes less memory."""
        ...

    def distill(self, data: Iterable[Any], tuning: Tuning, executor: Any, say: Callable[[str], None]) -> None:
        """Train every installed layer separately, to have the outputs of the dense one."""
        ...

    def check(self, tuning: Tuning) -> None:
        """Refuse options with which training is not possible, before anything is done."""
        ...

    def observing(self) -> AbstractContextManager[None]:
        """Switch to evaluation mode inside this block, whose random numbers are not those of a training."""
        ...

    def tune(self, data: Iterable[Any], loss: Callable[..., Any] | None, tuning: Tuning, report: Any) -> list[float]:
        """Train the model through the generators, and return the losses."""
        ...

    def loss_on(self, data: Iterable[Any], loss: Callable[..., Any] | None) -> float:
        """Compute the mean loss over the batches, without training."""
        ...

    def accuracy(self, data: Iterable[Any]) -> float | None:
        """Compute the accuracy in percent; ``None`` if labels are not indices of classes."""
        ...

    def score(self, score: Callable[[Any], Any]) -> float:
        """Compute a user's score of the model in evaluation mode."""
        ...

    def generators(self) -> dict[str, Generator]:
        """Return the generators of all installed weights, with their current parameters."""
        ...

    def state(self) -> Any:
        """Copy all parameters and other state, for :meth:`set_state`."""
        ...

    def digest(self) -> str:
        """Return a digest of all current parameters."""
        ...

    def set_state(self, state: Any) -> None:
        """Set all parameters and other state to a copy."""
        ...

    def load(self, path: Path) -> None:
        """Load the state from a file."""
        ...

    def content(self, metadata: Mapping[str, str], rest: Precision | None = None) -> bytes:
        """Return the state, including parameters of generators, as the content of a file without a digest.

        With ``rest``, real numbers outside of generators are stored in it where it holds them: as float16 or bfloat16,
        or matrices in 8 bits with a scale per row.
        """
        ...

    def save(self, path: Path, metadata: Mapping[str, str], rest: Precision | None = None) -> None:
        """Save the content of the state to a file; the metadata leave room for a digest."""
        ...

    def narrow(self, rest: Precision) -> None:
        """Round what is outside of generators to the values that :meth:`content` stores."""
        ...

    def sizes(self) -> tuple[int, int]:
        """Count the parameters and their bytes; shared parameters count once."""
        ...

    def resident_bytes(self) -> int:
        """Count the bytes of parameters, buffers and frozen values; shared ones count once."""
        ...

    def forward_costs(self, data: Iterable[Any]) -> tuple[ForwardCost, ForwardCost]:
        """Measure forward passes of the first batch, of the dense model and of this one in turns."""
        ...

    def predicted_seconds(self, data: Iterable[Any]) -> dict[str, float]:
        """Predict the seconds of each installed weight in a forward pass of the first batch."""
        ...


def model_of(model: Any, device: str | None) -> Model:
    """Wrap a model by the class of its framework.

    Raises
    ------
    CompressError
        If it is not a model of any framework.
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
