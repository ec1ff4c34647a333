"""Rows of the table of layers: all that the library must know about one kind of dense layer of PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from ._weight import GeneratedWeight

Weights: TypeAlias = Mapping[str, GeneratedWeight]
"""Generated weights of a layer by the names of their parts."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One weight of a layer.

    Parameters
    ----------
    parameter : str
        Path from the dense layer to the parameter.
    generated : str
        Path from the generated layer to the generated weight.
    """

    parameter: str = "weight"
    generated: str = "generated"


ONE = {"": Part()}
"""The weight of a layer that has no other: it is called as the layer."""


def never(layer: Any) -> bool:
    """Say no."""
    return False


def no_reason(dense: Any) -> str:
    """Give no reason."""
    return ""


def no_rows(dense: Any, x: torch.Tensor) -> None:
    """Give nothing, where second moments of the inputs are not worked out."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of dense layer, and the generated layer that takes its place.

    Parameters
    ----------
    dense : tuple of type
        Dense layers of this kind; subclasses are other kinds, as their forward may do something else.
    matches : callable
        ``matches(module)``, for dense layers that are not known by their class alone.
    imported : callable
        ``imported()``, dense layers of other libraries, which are imported then.
    generated : type, optional
        The generated layer; its method ``to_dense`` is the way back.
    build : callable
        ``build(dense, weights, bias)``, the generated layer with these weights, and with copies of the dense layer's
        biases unless ``bias`` is false.
    parts : callable
        ``parts(dense)``, its weights by the names that follow the name of the layer.
    biases : tuple of str
        Paths to parameters that both layers call the same, and that stay what they are.
    transposed : bool
        Whether the dense weight is ``(n_in, n_out)``.
    refusal : callable
        ``refusal(dense)``, why it has no generated form; empty when it has one.
    rows : callable
        ``rows(dense, x)``, what the layer multiplies its weight with, for second moments; ``None`` for nothing.
    batch : callable
        ``batch(layer, x)``, rows that the generated layer is applied to; 0 where it makes its weight in any case.
    whole : bool
        Whether modules inside of the dense layer belong to it.
    adaptable : bool
        Whether the generated layer is added to a dense one as an adapter.
    optional : callable
        ``optional(dense)``, whether it is replaced only where a target names it.
    tied : callable
        ``tied(dense)``, whether layers that share this weight can share a generated one.
    filled_later : bool
        Whether ``to_dense`` takes two steps, as what is inside of the layer may refer to it.
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
    batch: Callable[[Any, torch.Tensor], int] = lambda layer, x: 0
    whole: bool = False
    adaptable: bool = False
    optional: Callable[[Any], bool] = never
    tied: Callable[[Any], bool] = never
    filled_later: bool = False

    def takes(self, module: nn.Module) -> bool:
        """Whether a dense layer is of this kind."""
        return type(module) in self.dense or self.matches(module)

    def shapes(self, dense: nn.Module) -> dict[str, tuple[int, ...]]:
        """Shapes of the generated weights, by part."""
        return {part: tuple(self.oriented(self.parameter(dense, part)).shape) for part in self.parts(dense)}

    def parameter(self, dense: nn.Module, part: str) -> torch.Tensor:
        """The dense weight as the layer has it, which may be computed from other parameters."""
        return at(dense, self.parts(dense)[part].parameter)

    def oriented(self, weight: torch.Tensor) -> torch.Tensor:
        """A weight from the orientation of the dense layer to that of the generated one, or back."""
        return weight.T if self.transposed else weight


def at(module: nn.Module, path: str) -> Any:
    """The attribute at a path from a module."""
    owner, _, leaf = path.rpartition(".")
    return getattr(module.get_submodule(owner), leaf)


def put_at(module: nn.Module, path: str, value: Any) -> None:
    """Put something to a path from a module."""
    owner, _, leaf = path.rpartition(".")
    setattr(module.get_submodule(owner), leaf, value)
