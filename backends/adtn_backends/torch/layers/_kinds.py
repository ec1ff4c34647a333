"""The table of layers. A new kind of layer is a file with its rows, named here."""

from __future__ import annotations

from typing import Any

from adtn.errors import LayoutError
from torch import nn

from . import _attention, _conv, _embedding, _linear, _parametrized
from ._kind import Kind, Weights, at, put_at
from ._weight import GeneratedWeight

KINDS: tuple[Kind, ...] = (
    *_linear.KINDS,
    *_conv.KINDS,
    *_embedding.KINDS,
    *_attention.KINDS,
    *_parametrized.KINDS,  # takes what is left
)


def kind_of(dense: nn.Module) -> Kind:
    """The row of a dense layer."""
    return next(kind for kind in KINDS if kind.takes(dense))


def kind_of_generated(layer: nn.Module) -> Kind | None:
    """The row of a generated layer, nothing for other modules."""
    return next((kind for kind in KINDS if kind.generated is not None and isinstance(layer, kind.generated)), None)


def weight_shape(dense: nn.Module) -> tuple[int, ...] | None:
    """The shape of the generated weight of an adapter; ``None`` for layers that cannot have one."""
    kind = kind_of(dense)
    return kind.shapes(dense)[""] if kind.adaptable else None


def layer_like(dense: Any, weight: GeneratedWeight, *, bias: bool = True) -> nn.Module:
    """Make a generated layer with the bias and geometry of a dense one.

    Raises
    ------
    LayoutError
        If there is no generated form of it, or its weight has another shape.
    """
    shape = weight_shape(dense)
    if shape != weight.shape:
        raise LayoutError(f"Got a generator of {weight.shape} for {type(dense).__name__}, whose weight is {shape}.")
    kind = kind_of(dense)
    if reason := kind.refusal(dense):
        raise LayoutError(f"Got a {type(dense).__name__} without a generated form: {reason}.")
    return kind.build(dense, {"": weight}, bias)


def layer_in_place_of(dense: nn.Module, weights: Weights) -> nn.Module:
    """Make the generated layer with given weights by part; biases are the very parameters, which others may share."""
    kind = kind_of(dense)
    made = kind.build(dense, weights, True)
    for path in kind.biases:
        if (own := at_or_none(dense, path)) is not None:
            put_at(made, path, own)
    return made


def at_or_none(module: nn.Module, path: str) -> Any:
    """The attribute at a path from a module, nothing where it has none."""
    try:
        return at(module, path)
    except AttributeError:
        return None
