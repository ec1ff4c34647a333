"""Adapters and a dense weight as one: for inference, while both stay what they are."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from adtn.errors import CompressError
from torch import nn

from ._calls import PLAIN, differentiable, is_traced
from ._kinds import kind_of
from ._weight import GeneratedWeight


@dataclass(frozen=True)
class _Sum:
    """A dense weight with adapters in it, and what it was made of."""

    stamp: Any
    weight: torch.Tensor
    dense: torch.Tensor  # held, so that no other tensor gets its address


class Mergeable(nn.Module):
    """A layer with a dense one, ``dense_layer()``, beside which the sum of its weight and generated ones may lie.

    No parameter is written to: states, copies, moving averages and other threads see the dense weight and the
    adapters. The sum is used where nobody differentiates either, and made again when one of them has changed.
    """

    _sum: _Sum | None = None

    def dense_layer(self) -> Any:
        """The dense layer."""
        raise NotImplementedError

    def inside(self) -> Sequence[GeneratedWeight]:
        """The weights that are merged."""
        raise NotImplementedError

    def total(self) -> torch.Tensor:
        """The dense weight with what is merged, differentiable."""
        dense = self.dense_layer()
        kind, weight = kind_of(dense), dense.weight
        for one in self.inside():
            weight = weight + kind.oriented(one())
        return weight

    def merged_layer(self) -> nn.Module | None:
        """The dense layer with the sum as its weight; nothing where gradients, compilers or the layer forbid it."""
        layer = self.dense_layer()
        weight = layer._parameters.get("weight")  # pruned and normed ones are computed in every call
        if weight is None or is_traced() or type(weight) not in PLAIN or torch._C._len_torch_dispatch_stack():
            return None
        if torch.is_grad_enabled() and (weight.requires_grad or any(differentiable(w.arrays()) for w in self.inside())):
            return None
        stamp, total = self._stamp(weight), self._sum
        if total is None or total.stamp != stamp:
            with torch.inference_mode(False), torch.no_grad():
                self._sum = total = _Sum(stamp, self.total().detach(), weight)
        twin = object.__new__(type(layer))  # of this call: bias, hooks and mode are those of the layer now
        vars(twin).update(vars(layer))
        vars(twin)["_parameters"] = {name: p for name, p in layer._parameters.items() if name != "weight"}
        vars(twin)["weight"] = total.weight
        return twin

    def refuse_computed(self) -> None:
        """Before :meth:`merge_for_good` of several layers.

        Raises
        ------
        CompressError
            If the dense weight is computed from other parameters.
        """
        layer = self.dense_layer()
        if "weight" not in layer._parameters:
            raise CompressError(
                f"Got a {type(layer).__name__} whose weight is computed (pruning, weight norm), so that no adapter can "
                "be put into it; make it permanent first (torch.nn.utils.prune.remove, remove_weight_norm)."
            )

    def merge_for_good(self) -> None:
        """Write the sum to the dense weight; raises as :meth:`refuse_computed`."""
        self.refuse_computed()
        with torch.no_grad():
            self.dense_layer().weight.copy_(self.total())
        self._sum = None

    def dense_copy(self, memo: dict[int, Any]) -> nn.Module:
        """The dense layer with what is merged, as a layer of its own."""
        with torch.no_grad():
            total = self.total().detach().clone()
        self.refuse_computed()
        layer = copy.deepcopy(self.dense_layer(), memo)
        layer.weight = nn.Parameter(total, self.dense_layer().weight.requires_grad)
        return layer

    def _stamp(self, weight: torch.Tensor) -> Any:
        """Cores by their entries; the dense weight by address and version, and by its bits if somebody trains it."""
        parts: list[Any] = [weight.data_ptr(), weight.dtype, weight.is_inference() or weight._version]
        if weight.requires_grad and weight.device.type == "cpu":
            parts.append(_bits(weight).tolist())
        for one in self.inside():
            parts.append(one(_looked_at(one)))
        return parts

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._sum = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_sum": None}


def _looked_at(weight: GeneratedWeight) -> Any:
    """Look, on accelerators, where entries would have to be waited for, at what writes in place leave behind."""

    def seen(arrays: dict[str, torch.Tensor]) -> Any:
        return weight.stamp(arrays) or [(x.data_ptr(), x._version, x.dtype) for x in arrays.values()]

    return seen


def _bits(weight: torch.Tensor) -> torch.Tensor:
    """Sums over the bits of its rows."""
    whole = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}[weight.element_size()]
    return weight.detach().contiguous().view(whole).flatten(1).sum(1, dtype=torch.int64)
