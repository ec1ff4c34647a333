"""The table of the kinds of layers; a new kind is a file of its own that is listed here."""

from __future__ import annotations

from typing import Any

from adtn.errors import LayoutError
from torch import nn

from ._attention import KINDS as ATTENTION
from ._conv import KINDS as CONV
from ._embedding import KINDS as EMBEDDING
from ._kind import Kind, Weights, at, put_at
from ._linear import KINDS as LINEAR
from ._parametrized import KINDS as PARAMETRIZED
from ._slice import Weight

KINDS: tuple[Kind, ...] = (
    *LINEAR,
    *CONV,
    *EMBEDDING,
    *ATTENTION,
    *PARAMETRIZED,  # takes all other modules
)


def kind_of(dense: nn.Module) -> Kind:
    """Return the kind of a dense layer."""
    return next(kind for kind in KINDS if kind.takes(dense))


def kind_of_generated(layer: nn.Module) -> Kind | None:
    """Return the kind of a generated layer, ``None`` for other modules."""
    return next((kind for kind in KINDS if kind.generated is not None and isinstance(layer, kind.generated)), None)


def weight_shape(dense: nn.Module) -> tuple[int, ...] | None:
    """Return the shape of an adapter's generated weight; ``None`` for layers that cannot have an adapter."""
    kind = kind_of(dense)
    return kind.shapes(dense)[""] if kind.adaptable else None


def layer_like(dense: Any, weight: Weight, *, bias: bool = True) -> nn.Module:
    """Make a generated layer with the bias and geometry of a dense one.

    Raises
    ------
    LayoutError
        If the dense layer has no generated form, or its weight has another shape.
    """
    shape = weight_shape(dense)
    if shape != weight.shape:
        what = "which has no generated form" if shape is None else f"whose weight has shape {shape}"
        raise LayoutError(f"Got a generator of shape {weight.shape} for a {type(dense).__name__}, {what}.")
    kind = kind_of(dense)
    if reason := kind.refusal(dense):
        raise LayoutError(f"Got a {type(dense).__name__} without a generated form: {reason}.")
    return kind.build(dense, {"": weight}, bias)


def layer_in_place_of(dense: nn.Module, weights: Weights) -> nn.Module:
    """Make the generated layer with given weights by part; its biases are the original parameters, not copies."""
    kind = kind_of(dense)
    layer = kind.build(dense, weights, True)
    for path in kind.biases:
        if (bias := at_or_none(dense, path)) is not None:
            put_at(layer, path, bias)
    return layer


def at_or_none(module: nn.Module, path: str) -> Any:
    """Return the attribute at a path from a module, ``None`` if there is none."""
    try:
        return at(module, path)
    except AttributeError:
        return None
