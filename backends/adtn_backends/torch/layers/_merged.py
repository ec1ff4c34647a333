"""Merged adapters: the sum of a dense weight and its adapters, which is cached for inference."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from adtn.errors import CompressError
from torch import nn

from ._calls import PLAIN, is_traced
from ._kinds import kind_of
from ._weight import GeneratedWeight


@dataclass(frozen=True)
class _Sum:
    """The sum of a dense weight and adapters, with a stamp of the tensors that it was made of."""

    stamp: Any
    weight: torch.Tensor
    dense: torch.Tensor  # held, so that no other tensor gets its address


class Mergeable(nn.Module):
    """A layer that can cache the sum of a dense layer's weight and generated ones.

    No parameter is written to: states, copies, moving averages and other threads see the dense weight and the
    adapters. The sum is used where neither is differentiated, and recomputed when one of them has changed.
    """

    _sum: _Sum | None = None

    def dense_layer(self) -> Any:
        """Return the dense layer."""
        raise NotImplementedError

    def inside(self) -> Sequence[GeneratedWeight]:
        """Return the weights that are merged."""
        raise NotImplementedError

    def total(self) -> torch.Tensor:
        """Compute the sum of the dense weight and the merged ones, differentiable."""
        dense = self.dense_layer()
        kind, weight = kind_of(dense), dense.weight
        for generated in self.inside():
            weight = weight + kind.oriented(generated())
        return weight

    def merged_layer(self) -> nn.Module | None:
        """Return the dense layer with the sum as its weight; ``None`` with gradients, compilers or computed weights."""
        layer = self.dense_layer()
        weight = layer._parameters.get("weight")  # pruned and normed weights are computed in every call
        if weight is None or is_traced() or type(weight) not in PLAIN or torch._C._len_torch_dispatch_stack():  # pyright: ignore[reportPrivateUsage]
            return None
        if torch.is_grad_enabled() and (weight.requires_grad or any(w.trains for w in self.inside())):
            return None
        stamp, total = self._stamp(weight), self._sum
        if total is None or total.stamp != stamp:
            with torch.inference_mode(False), torch.no_grad():
                self._sum = total = _Sum(stamp, self.total().detach(), weight)
        twin = object.__new__(type(layer))  # a copy for this call, with the present bias, hooks and mode
        vars(twin).update(vars(layer))
        vars(twin)["_parameters"] = {name: p for name, p in layer._parameters.items() if name != "weight"}
        vars(twin)["weight"] = total.weight
        return twin

    def refuse_computed(self) -> None:
        """Refuse a dense weight that is computed from other parameters, to which nothing can be written.

        Raises
        ------
        CompressError
            If the weight is not a parameter.
        """
        layer = self.dense_layer()
        if "weight" not in layer._parameters:
            raise CompressError(
                f"Got a {type(layer).__name__} whose weight is computed (pruning, weight norm), so adapters cannot be "
                "merged into it; make it permanent first (torch.nn.utils.prune.remove, remove_weight_norm)."
            )

    def merge_for_good(self) -> None:
        """Write the sum to the dense weight; raise like :meth:`refuse_computed`."""
        self.refuse_computed()
        with torch.no_grad():
            self.dense_layer().weight.copy_(self.total())
        self._sum = None

    def dense_copy(self, memo: dict[int, Any]) -> nn.Module:
        """Copy the dense layer, with the sum as its weight."""
        with torch.no_grad():
            total = self.total().detach().clone()
        self.refuse_computed()
        layer = copy.deepcopy(self.dense_layer(), memo)
        layer.weight = nn.Parameter(total, self.dense_layer().weight.requires_grad)
        return layer

    def _stamp(self, weight: torch.Tensor) -> Any:
        """Identify the cores by their entries, and the dense weight by address, version and, if it is trained, bits."""
        parts: list[Any] = [weight.data_ptr(), weight.dtype, weight.is_inference() or weight._version]
        if weight.requires_grad and weight.device.type == "cpu":
            parts.append(_bits(weight).tolist())
        for generated in self.inside():
            parts.append(generated(_stamp_of(generated)))
        return parts

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._sum = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_sum": None}


def _stamp_of(weight: GeneratedWeight) -> Any:
    """Make a function that stamps cores: by their entries, or on accelerators, without waiting, by their versions."""

    def stamp(arrays: dict[str, torch.Tensor]) -> Any:
        return weight.stamp(arrays) or [(x.data_ptr(), x._version, x.dtype) for x in weight.sources(arrays).values()]

    return stamp


def _bits(weight: torch.Tensor) -> torch.Tensor:
    """Sum the bits of each row."""
    whole = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}[weight.element_size()]
    return weight.detach().contiguous().view(whole).flatten(1).sum(1, dtype=torch.int64)
