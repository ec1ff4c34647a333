"""A generated layer in the form of a dense one."""

from __future__ import annotations

from typing import Any

from adtn.errors import LayoutError
from torch import nn

from ._conv import ADTNConv1d, ADTNConv2d, ADTNConv3d
from ._embedding import ADTNEmbedding, unlike_embedding
from ._linear import ADTNLinear, is_transposed
from ._weight import GeneratedWeight

CONVS: dict[type, Any] = {nn.Conv1d: ADTNConv1d, nn.Conv2d: ADTNConv2d, nn.Conv3d: ADTNConv3d}
STANDARD = (nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag, nn.RNNBase, nn.modules.conv._ConvNd)
"""Layers whose matrices are their weights, whatever their subclasses make of them."""


def weight_shape(dense: Any) -> tuple[int, ...] | None:
    """Of the generated weight that would do; ``None`` for layers without a generated form."""
    if is_transposed(dense):
        n_in, n_out = dense.weight.shape
        return int(n_out), int(n_in)
    known = type(dense) in CONVS or type(dense) in (nn.Linear, nn.Embedding)
    return tuple(dense.weight.shape) if known else None


def matrices(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of a module's own parameters of two and more axes, by name."""
    own = {name: p for name, p in module.named_parameters(recurse=False) if p.ndim > 1 and p.is_floating_point()}
    return {name: tuple(p.shape) for name, p in own.items()}


def layer_like(dense: Any, weight: GeneratedWeight, *, bias: bool = True) -> nn.Module:
    """With the bias and geometry of a dense layer.

    Raises
    ------
    LayoutError
        If there is no generated form of it, or its weight has another shape.
    """
    shape = weight_shape(dense)
    if shape != weight.shape:
        raise LayoutError(f"Got a generator of {weight.shape} for {type(dense).__name__}, whose weight is {shape}.")
    made: nn.Module
    if isinstance(dense, nn.Embedding):
        if reason := unlike_embedding(dense):
            raise LayoutError(f"Got an Embedding without a generated form: {reason}.")
        made = ADTNEmbedding(weight, dense.padding_idx, scale_grad_by_freq=dense.scale_grad_by_freq)
    elif type(dense) in CONVS:
        made = CONVS[type(dense)](
            weight, dense.bias if bias else False, stride=dense.stride, padding=dense.padding,
            dilation=dense.dilation, groups=dense.groups, padding_mode=dense.padding_mode,
        )  # fmt: skip
    else:
        made = ADTNLinear(weight, dense.bias if bias else False)
    return made.train(dense.training)
