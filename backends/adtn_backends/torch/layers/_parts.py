"""Parts from which layers are made: weights, biases, and dense layers on the way back."""

from __future__ import annotations

from typing import Any

import torch
from adtn import Generator
from adtn._arrays import host_array
from adtn.errors import LayoutError
from torch import nn

from ...shared._from_dense import Fit
from ...shared._geometry import check_axes, check_bias
from ._weight import GeneratedWeight


def refuse_subclass(dense: Any, *known: type[nn.Module]) -> None:
    """Refuse what a subclass does in its own forward: it would be lost.

    Raises
    ------
    LayoutError
        If the layer is no layer of the framework, or one with another forward.
    """
    if not any(isinstance(dense, one) and type(dense).forward is one.forward for one in known):
        raise LayoutError(
            f"Got {type(dense).__name__}; expected {' or '.join(one.__name__ for one in known)}, or a subclass with "
            "the same forward. Keep its own forward with adtn_backends.torch.parametrized."
        )


def as_weight(weight: Generator | GeneratedWeight, axes: int, what: str) -> GeneratedWeight:
    """A module for a generator; refuses weights with another number of axes."""
    check_axes(weight.shape, axes, what)
    return weight if isinstance(weight, GeneratedWeight) else GeneratedWeight(weight)


def fitted_weight(dense: torch.Tensor, fit: Fit) -> GeneratedWeight:
    """A generated weight in place of a dense one, with its device and dtype."""
    generator = fit(dense.detach().cpu().double().numpy())
    return GeneratedWeight(generator).to(dense.device, dense.dtype)


def bias_parameter(bias: Any, n: int, like: GeneratedWeight) -> nn.Parameter | None:
    """``True`` for zeros, ``False`` or ``None`` for nothing, or the values; a frozen bias stays frozen."""
    if bias is False or bias is None:
        return None
    if bias is True:
        values = torch.zeros(n)
    elif isinstance(bias, torch.Tensor) and not bias.is_complex():
        values = bias.detach().clone()
    else:
        values = torch.tensor(host_array("bias", bias, LayoutError))
    check_bias(tuple(values.shape), n)
    return nn.Parameter(values.to(like.device, like.dtype), requires_grad=not is_frozen(bias))


def is_frozen(x: Any) -> bool:
    """Whether a parameter is one that is not trained."""
    return isinstance(x, nn.Parameter) and not x.requires_grad


def filled(dense: Any, layer: Any) -> Any:
    """A dense layer with the weight, bias and state of training of a generated one; what was frozen stays frozen."""
    with torch.no_grad():
        dense.weight.copy_(layer.generated.now())
        if layer.bias is not None:
            dense.bias.copy_(layer.bias)
            dense.bias.requires_grad_(layer.bias.requires_grad)
    dense.weight.requires_grad_(any(x.requires_grad for x in layer.generated.arrays().values()))
    return dense.train(layer.training)
