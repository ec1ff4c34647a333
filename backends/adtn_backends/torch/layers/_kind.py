"""The description of one kind of layer: everything that the library has to know about a dense layer of PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from ...shared._passage import NoPassage, Passage, generates_first
from ._slice import Weight

Weights: TypeAlias = Mapping[str, Weight]
"""The generated weights of a layer by the names of its parts."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One weight of a layer.

    Parameters
    ----------
    parameter : str
        The path from the dense layer to the parameter.
    generated : str
        The path from the generated layer to the generated weight.
    """

    parameter: str = "weight"
    generated: str = "generated"


ONE = {"": Part()}
"""The parts of a layer with a single weight, which has the name of the layer."""


def never(layer: Any) -> bool:
    """Return false."""
    return False


def no_reason(dense: Any) -> str:
    """Return an empty reason: the layer has a generated form."""
    return ""


def no_rows(dense: Any, x: torch.Tensor) -> None:
    """Return ``None``: second moments of the inputs are not implemented."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of dense layer, and the generated layer that replaces it.

    Parameters
    ----------
    dense : tuple of type
        The classes of dense layers. Subclasses do not belong to this kind, as they may compute something else.
    matches : callable
        ``matches(module)`` returns whether a module belongs to this kind, if its class alone does not decide.
    imported : callable
        ``imported()`` imports classes of dense layers from other libraries, and returns them.
    generated : type, optional
        The class of the generated layer; its method ``to_dense`` is the inverse.
    build : callable
        ``build(dense, weights, bias)`` makes the generated layer with these weights, and with copies of the dense
        layer's biases unless ``bias`` is false.
    parts : callable
        ``parts(dense)`` returns the weights of the layer by the names that follow the name of the layer.
    biases : tuple of str
        Paths to parameters that have the same name in both layers and are not replaced.
    transposed : bool
        Whether the dense weight is ``(n_in, n_out)``.
    refusal : callable
        ``refusal(dense)`` says why the layer has no generated form; empty if it has one.
    rows : callable
        ``rows(dense, x)`` returns the rows that the layer multiplies with its weight, for second moments; or ``None``.
    outputs : int
        The axis of the layer's outputs over which the rows of its weight are, where it has ``rows``.
    batch : callable
        ``batch(layer, x)`` returns the number of rows to which the generated layer is applied, or 0 if it generates its
        weight for any input.
    passage : callable
        ``passage(layer)`` returns how the input of the generated layer passes its networks, or why it does not.
    whole : bool
        Whether modules inside the dense layer are replaced together with it.
    adaptable : bool
        Whether the generated layer can be added to a dense one as an adapter.
    optional : callable
        ``optional(dense)`` returns whether the layer is replaced only if a target names it.
    tied : callable
        ``tied(dense)`` returns whether layers that share this weight can share a generated one.
    filled_later : bool
        Whether ``to_dense`` takes two steps, as modules inside the layer may refer to it.
    """

    build: Callable[[Any, Weights, bool], nn.Module]
    dense: tuple[type[nn.Module], ...] = ()
    matches: Callable[[nn.Module], bool] = never
    imported: Callable[[], tuple[type[nn.Module], ...]] = tuple
    generated: type[nn.Module] | None = None
    parts: Callable[[Any], Mapping[str, Part]] = lambda dense: ONE
    biases: tuple[str, ...] = ("bias",)
    transposed: bool = False
    refusal: Callable[[Any], str] = no_reason
    rows: Callable[[Any, torch.Tensor], torch.Tensor | None] = no_rows
    outputs: int = -1
    batch: Callable[[Any, torch.Tensor], int] = lambda layer, x: 0
    passage: Callable[[Any], Passage | NoPassage] = generates_first
    whole: bool = False
    adaptable: bool = False
    optional: Callable[[Any], bool] = never
    tied: Callable[[Any], bool] = never
    filled_later: bool = False

    def takes(self, module: nn.Module) -> bool:
        """Return whether a dense layer is of this kind."""
        return type(module) in self.dense or self.matches(module)

    def shapes(self, dense: nn.Module) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the generated weights by part."""
        return {part: tuple(self.oriented(self.parameter(dense, part)).shape) for part in self.parts(dense)}

    def parameter(self, dense: nn.Module, part: str) -> torch.Tensor:
        """Return the weight of a dense layer, which may be computed from other parameters."""
        return at(dense, self.parts(dense)[part].parameter)

    def oriented(self, weight: torch.Tensor) -> torch.Tensor:
        """Convert a weight from the orientation of the dense layer to that of the generated one, or back."""
        return weight.T if self.transposed else weight


def at(module: nn.Module, path: str) -> Any:
    """Return the attribute at a path from a module."""
    owner, _, leaf = path.rpartition(".")
    return getattr(module.get_submodule(owner), leaf)


def put_at(module: nn.Module, path: str, value: Any) -> None:
    """Set the attribute at a path from a module."""
    owner, _, leaf = path.rpartition(".")
    setattr(module.get_submodule(owner), leaf, value)
