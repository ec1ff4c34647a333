"""A generated layer in the form of a dense one of Flax NNX."""

from __future__ import annotations

from typing import Any

from adtn.errors import LayoutError
from flax import nnx

from ._conv import ADTNConv1d, ADTNConv2d, ADTNConv3d
from ._embedding import ADTNEmbedding
from ._kernels import conv_options, weight_of
from ._linear import ADTNLinear, ADTNLinearGeneral
from ._weight import GeneratedWeight

CONVS = {1: ADTNConv1d, 2: ADTNConv2d, 3: ADTNConv3d}


def layer_like(dense: Any, weight: GeneratedWeight, *, bias: bool = True) -> nnx.Module:
    """With the geometry and dtype of a dense layer, and its bias unless there shall be none.

    Raises
    ------
    LayoutError
        If there is no generated form of it, or its weight has another shape.
    """
    own, reason = weight_of(dense)
    if own is None or weight.shape != own.shape:
        what = reason if own is None else f"whose weight is {tuple(own.shape)}"
        raise LayoutError(f"Got a generator of {weight.shape} for {type(dense).__name__}, {what}.")
    if isinstance(dense, nnx.Embed):
        return ADTNEmbedding(weight, dense.dtype)
    values = dense.bias[...] if bias and dense.bias is not None else False
    if isinstance(dense, nnx.LinearGeneral):
        flat = values if values is False else values.reshape(-1)
        return ADTNLinearGeneral(weight, flat, dense.in_features, dense.out_features, dense.dtype)
    if isinstance(dense, nnx.Conv):
        return CONVS[len(weight.shape) - 2](weight, values, **conv_options(dense))
    return ADTNLinear(weight, values, dtype=dense.dtype)
