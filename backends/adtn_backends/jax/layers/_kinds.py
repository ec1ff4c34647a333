"""The table of the kinds of layers; a new kind is a file of its own that is listed here."""

from __future__ import annotations

from typing import Any

from adtn.errors import LayoutError
from flax import nnx

from ...shared._passage import Passage
from ._attention import PASSAGES as ATTENTION
from ._conv import KINDS as CONV
from ._embedding import KINDS as EMBEDDING
from ._kind import Kind
from ._linear import KINDS as LINEAR
from ._slice import Weight
from ._weight import GeneratedWeight

KINDS: tuple[Kind, ...] = (*LINEAR, *CONV, *EMBEDDING)
GENERATED: tuple[type[Any], ...] = (*(layer for kind in KINDS for layer in kind.generated), *ATTENTION)
"""Generated layers, which have a method ``to_dense``."""


def kind_of(dense: Any) -> Kind | None:
    """Return the kind of a dense layer, ``None`` for other modules."""
    return next((kind for kind in KINDS if type(dense) is kind.dense), None)


def known_kind_of(dense: Any) -> Kind:
    """Return the kind of a dense layer.

    Raises
    ------
    LayoutError
        If the module has no kind.
    """
    kind = kind_of(dense)
    if kind is None:
        raise LayoutError(f"Got a {type(dense).__name__}, which has no generated form.")
    return kind


def kind_of_generated(layer: Any) -> Kind | None:
    """Return the kind of a generated layer, ``None`` for other modules."""
    return next((kind for kind in KINDS if isinstance(layer, kind.generated)), None)


def passage_of(layer: Any) -> Passage | None:
    """Return how inputs of a generated layer pass its networks, ``None`` for other modules."""
    kind = kind_of_generated(layer)
    return kind.passage if kind else next((own for cls, own in ATTENTION.items() if isinstance(layer, cls)), None)


def weight_of(dense: Any) -> tuple[Any | None, str]:
    """Return the weight with the axes of PyTorch, ``(out, in, ...)``, or why the layer has no generated form."""
    kind = kind_of(dense)
    if kind is not None:
        reason = kind.reason(dense)
        return (None, reason) if reason else (kind.weight(dense), "")
    if isinstance(dense, GeneratedWeight) or hasattr(dense, "generated"):
        return None, "compressed already"
    return None, f"no generated form of {type(dense).__name__}"


def layer_like(dense: Any, weight: Weight, *, bias: bool = True) -> nnx.Module:
    """Make a generated layer with the geometry and dtype of a dense one, and with its bias unless ``bias`` is false.

    Raises
    ------
    LayoutError
        If the dense layer has no generated form, or its weight has another shape.
    """
    original, reason = weight_of(dense)
    if original is None or weight.shape != original.shape:
        what = (
            f"which cannot be generated: {reason}"
            if original is None
            else f"whose weight has shape {tuple(original.shape)}"
        )
        raise LayoutError(f"Got a generator of shape {weight.shape} for a {type(dense).__name__}, {what}.")
    values = getattr(dense, "bias", None) if bias else None
    return known_kind_of(dense).build(dense, weight, False if values is None else values[...])
