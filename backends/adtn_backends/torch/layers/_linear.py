"""Linear layers with generated weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from adtn import Generator
from adtn._checks import checked
from adtn._typing import Float
from adtn.errors import LayoutError
from torch import nn
from torch.nn.utils import skip_init

from ...shared._from_dense import Fit, FromLinear
from ...shared._geometry import check_input
from ...shared._passage import Passage, Products
from ._calls import autocasts, differentiable, in_own_precision, is_traced, recomputed, refuse_tracers
from ._kind import Kind, Weights
from ._parts import as_weight, bias_parameter, filled, fitted_weight, refuse_subclass
from ._slice import Weight
from ._weight import Mode


class ADTNLinear(FromLinear, nn.Module):
    """A linear layer ``y = x Wᵀ + b`` with a generated weight; it replaces :class:`torch.nn.Linear`.

    Parameters
    ----------
    weight : Generator or GeneratedWeight
        The weight, ``(n_out, n_in)``. Layers that use the same module share their weight.
    bias : array or bool
        The bias, ``(n_out,)``; ``True`` for zeros, ``False`` for none.
    mode : {"materialise", "stream", "factored"}, optional
        The mode of execution. By default, the scheduler chooses it by the batch size.

    Raises
    ------
    LayoutError
        If the weight is not a matrix, or the bias does not fit.

    Examples
    --------
    >>> import adtn, torch
    >>> layer = ADTNLinear(adtn.Generator((64, 32), adtn.TTN(bond=2)))
    >>> layer(torch.zeros(5, 32)).shape
    torch.Size([5, 64])
    """

    @checked(LayoutError)
    def __init__(self, weight: Generator | Weight, bias: Any = True, mode: Mode | None = None) -> None:
        super().__init__()
        self.generated = as_weight(weight, 2, "a linear layer (n_out, n_in)")
        self.out_features, self.in_features = self.generated.shape
        self.mode: Mode | None = mode
        self.bias = bias_parameter(bias, self.out_features, self.generated)

    @classmethod
    def _in_place_of(cls, dense: Any, fit: Fit, mode: Mode | None = None, **options: Any) -> Self:
        kind = TRANSPOSED if TRANSPOSED.takes(dense) else LINEAR
        if kind is LINEAR:
            refuse_subclass(dense, nn.Linear)
        weight = fitted_weight(kind.oriented(dense.weight), fit)
        return cls(weight, dense.bias if dense.bias is not None else False, mode).train(dense.training)

    @property
    def weight(self) -> Float[torch.Tensor, "n_out n_in"]:
        """The weight, ``(n_out, n_in)``, differentiable."""
        return self.generated.own()

    def to_dense(self) -> nn.Linear:
        """Make an ordinary layer with the present weight."""
        has_bias = self.bias is not None
        place = {"device": self.generated.device, "dtype": self.generated.dtype}
        return filled(skip_init(nn.Linear, self.in_features, self.out_features, has_bias, **place), self)

    def extra_repr(self) -> str:
        """Return the sizes as the dense layer prints them, and the mode."""
        mode = f", mode={self.mode!r}" if self.mode else ""
        bias = self.bias is not None
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={bias}{mode}"

    def forward(self, input: Float[torch.Tensor, "*batch n_in"]) -> Float[torch.Tensor, "*batch n_out"]:
        """Map ``(..., n_in)`` to ``(..., n_out)``."""
        x = input  # a name that callers of torch.nn use
        if is_traced():
            return self.generated(lambda arrays: self._traced(arrays, x))
        refuse_tracers(self, x)
        if not x.is_nested:
            check_input(x.shape, self.in_features)
        if self.generated.made or x.is_meta or x.is_nested:
            return nn.functional.linear(x, self.generated.now(), self.bias)
        if self.generated.is_coded:
            return recomputed(self._decoding, x)
        return self.generated(lambda arrays: self._eager(arrays, x))

    def _decoding(self, x: Float[torch.Tensor, "*batch n_in"]) -> Float[torch.Tensor, "*batch n_out"]:
        """Apply a weight that is decoded in every call; of ordered columns and few rows, these are permuted instead."""
        order = self.generated.order_for(x)
        given = x if order is None else x.index_select(-1, order)
        return self.generated(lambda arrays: self._eager(arrays, given), in_groups=order is not None)

    def _traced(
        self, arrays: dict[str, torch.Tensor], x: Float[torch.Tensor, "*batch n_in"]
    ) -> Float[torch.Tensor, "*batch n_out"]:
        """Apply the layer in a compiler, with one graph for all batch sizes."""
        weight = self.generated
        steps, apply = weight.traced(self.mode), weight.without
        if steps is None or apply is None:
            return nn.functional.linear(x, weight.weight_of(arrays), self.bias)
        return self._applied(lambda rows: apply(steps, arrays, rows), x, self._rows(x))

    def _eager(
        self, arrays: dict[str, torch.Tensor], x: Float[torch.Tensor, "*batch n_in"]
    ) -> Float[torch.Tensor, "*batch n_out"]:
        linear, weight, rows = nn.functional.linear, self.generated, self._rows(x)
        trains = differentiable(arrays)
        # a weight that is generated in every call costs as much as in training
        chosen, apply = weight.layer(rows, self.mode, train=trains or not weight.caches)
        if chosen.makes_weight and not trains:
            return linear(x, weight.cached(arrays), self.bias)
        if chosen.makes_weight and autocasts(x.device):
            return linear(x, weight.weight_of(arrays), self.bias)
        return self._applied(lambda rows: apply(arrays, rows), x, rows)

    def _rows(self, x: Float[torch.Tensor, "*batch n_in"]) -> Float[torch.Tensor, "rows n_in"]:
        rows = x.reshape(-1, self.in_features)
        return rows.to(self.generated.dtype) if autocasts(x.device) else rows

    def _applied(self, layer: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, rows: torch.Tensor) -> Any:
        with in_own_precision(x.device):
            y = layer(rows).reshape(*x.shape[:-1], self.out_features)
            y = y if self.bias is None else y + self.bias
        return y.to(torch.get_autocast_dtype(x.device.type)) if autocasts(x.device) else y


def _build(dense: Any, weights: Weights, bias: bool) -> ADTNLinear:
    """Make the layer with a given weight."""
    return ADTNLinear(weights[""], dense.bias if bias else False).train(dense.training)


def _rows(dense: Any, x: torch.Tensor) -> torch.Tensor:
    return x.reshape(-1, x.shape[-1])


def _through(layer: ADTNLinear, products: Products, input: torch.Tensor) -> torch.Tensor:
    y = products[""](input)
    return y if layer.bias is None else y + layer.bias


def _batch(layer: ADTNLinear, x: torch.Tensor) -> int:
    return x.numel() // layer.in_features


def _is_transposed(layer: nn.Module) -> bool:
    """Return whether a layer is the ``Conv1D`` of GPT-2: by its name, so that transformers is not imported."""
    return type(layer).__name__ == "Conv1D" and hasattr(layer, "nf")


def _conv1d() -> tuple[type[nn.Module], ...]:
    from transformers.pytorch_utils import Conv1D

    return (Conv1D,)


_PASSAGE = Passage(through=_through)
LINEAR = Kind(
    dense=(nn.Linear,),
    generated=ADTNLinear,
    build=_build,
    rows=_rows,
    batch=_batch,
    passage=lambda layer: _PASSAGE,
    adaptable=True,
    tied=lambda dense: True,
)
TRANSPOSED = Kind(
    matches=_is_transposed,
    imported=_conv1d,
    generated=ADTNLinear,
    build=_build,
    transposed=True,
    rows=_rows,
    batch=_batch,
    passage=lambda layer: _PASSAGE,
    adaptable=True,
)
KINDS = (LINEAR, TRANSPOSED)
"""Linear layers of PyTorch, and those of GPT-2."""


def is_linear(module: nn.Module) -> bool:
    """Return whether a module is a linear layer, dense or generated."""
    return type(module) is ADTNLinear or any(kind.takes(module) for kind in KINDS)
