"""The table of layers. A new kind of layer is a file with its rows, named here."""

from __future__ import annotations

from typing import Any

from adtn.errors import LayoutError
from flax import nnx

from . import _attention, _conv, _embedding, _linear
from ._kind import Kind
from ._weight import GeneratedWeight

KINDS: tuple[Kind, ...] = (*_linear.KINDS, *_conv.KINDS, *_embedding.KINDS)
GENERATED: tuple[type[Any], ...] = (*(layer for kind in KINDS for layer in kind.generated), *_attention.GENERATED)
"""Layers that have a method ``to_dense``."""


def kind_of(dense: Any) -> Kind | None:
    """The row of a dense layer, nothing for other modules."""
    return next((kind for kind in KINDS if type(dense) is kind.dense), None)


def known_kind_of(dense: Any) -> Kind:
    """The row of a dense layer that has one.

    Raises
    ------
    LayoutError
        If it has none.
    """
    kind = kind_of(dense)
    if kind is None:
        raise LayoutError(f"Got a {type(dense).__name__}, which has no generated form.")
    return kind


def kind_of_generated(layer: Any) -> Kind | None:
    """The row of a generated layer, nothing for other modules."""
    return next((kind for kind in KINDS if isinstance(layer, kind.generated)), None)


def weight_of(dense: Any) -> tuple[Any | None, str]:
    """The weight as PyTorch orders it, ``(out, in, ...)``, or why there is no generated form."""
    kind = kind_of(dense)
    if kind is not None:
        reason = kind.reason(dense)
        return (None, reason) if reason else (kind.weight(dense), "")
    if isinstance(dense, GeneratedWeight) or hasattr(dense, "generated"):
        return None, "compressed already"
    return None, f"no generated form of {type(dense).__name__}"


def layer_like(dense: Any, weight: GeneratedWeight, *, bias: bool = True) -> nnx.Module:
    """Make a generated layer with the geometry and dtype of a dense one, and its bias unless there shall be none.

    Raises
    ------
    LayoutError
        If there is no generated form of it, or its weight has another shape.
    """
    own, reason = weight_of(dense)
    if own is None or weight.shape != own.shape:
        what = reason if own is None else f"whose weight is {tuple(own.shape)}"
        raise LayoutError(f"Got a generator of {weight.shape} for {type(dense).__name__}, {what}.")
    values = getattr(dense, "bias", None) if bias else None
    return known_kind_of(dense).build(dense, weight, False if values is None else values[...])
