"""Parts of generated layers: weights, biases, and the conversion to dense layers."""

from __future__ import annotations

from typing import Any

import torch
from adtn import Generator
from adtn._arrays import host_array
from adtn.errors import LayoutError
from torch import nn

from ...shared._from_dense import Fit
from ...shared._geometry import check_axes, check_bias
from ._slice import Weight
from ._weight import GeneratedWeight


def refuse_subclass(dense: Any, *classes: type[nn.Module]) -> None:
    """Refuse subclasses that override ``forward``, whose behaviour would be lost.

    Raises
    ------
    LayoutError
        If the layer is not one of these classes, or a subclass that overrides ``forward``.
    """
    if not any(isinstance(dense, cls) and type(dense).forward is cls.forward for cls in classes):
        raise LayoutError(
            f"Got a {type(dense).__name__}; expected {' or '.join(c.__name__ for c in classes)}, or a subclass with "
            "the same forward. Use adtn_backends.torch.parametrized, which runs the layer's own forward."
        )


def as_weight(weight: Generator | Weight, axes: int, what: str) -> Weight:
    """Convert a generator to a module, and refuse weights with another number of axes."""
    check_axes(weight.shape, axes, what)
    return GeneratedWeight(weight) if isinstance(weight, Generator) else weight


def fitted_weight(dense: torch.Tensor, fit: Fit) -> GeneratedWeight:
    """Make a generated weight from a dense one, with its device and dtype."""
    generator = fit(dense.detach().cpu().double().numpy())
    return GeneratedWeight(generator).to(dense.device, dense.dtype)


def bias_parameter(bias: Any, n: int, like: Weight) -> nn.Parameter | None:
    """Make the parameter of a bias: zeros for ``True``, none for ``False`` or ``None``, or the given values.

    A frozen bias remains frozen.
    """
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
    """Return whether this is a parameter that is not trained."""
    return isinstance(x, nn.Parameter) and not x.requires_grad


def filled(dense: Any, layer: Any) -> Any:
    """Fill a dense layer with the weight and bias of a generated one, and return it; frozen parameters stay frozen."""
    with torch.no_grad():
        dense.weight.copy_(layer.generated.now())
        if layer.bias is not None:
            dense.bias.copy_(layer.bias)
            dense.bias.requires_grad_(layer.bias.requires_grad)
    dense.weight.requires_grad_(layer.generated.trains)
    return dense.train(layer.training)
