"""Adapters inside a dense weight: states, gradients and later changes are as if they were beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ._linear import is_transposed
from ._weight import GeneratedWeight, differentiable, is_traced, refuse_tracers


@dataclass(frozen=True)
class _Merge:
    """What was done to a dense weight.

    Parameters
    ----------
    dense : torch.Tensor
        The weight before.
    delta_of : list of (GeneratedWeight, dict of str to torch.Tensor)
        What was added, with its cores at that time.
    stamps : list
        Of these cores.
    check : torch.Tensor
        :func:`_bits` of the weight after.
    """

    dense: torch.Tensor
    delta_of: list[tuple[GeneratedWeight, dict[str, torch.Tensor]]]
    stamps: list[Any]
    check: torch.Tensor


class Mergeable(nn.Module):
    """A layer with a dense one, ``dense_layer()``, into whose weight generated ones can be put."""

    _merge: _Merge | None = None
    _again = False
    _handles: tuple[Any, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.register_state_dict_post_hook(_save_apart)
        self.register_load_state_dict_post_hook(_after_loading)

    def dense_layer(self) -> Any:
        """The dense layer."""
        raise NotImplementedError

    def inside(self) -> Sequence[GeneratedWeight]:
        """What is to be inside the dense weight while it is merged."""
        raise NotImplementedError

    def put_in(self) -> None:
        """Add :meth:`inside` to the dense weight."""
        weight, added = self.dense_layer().weight, self.inside()
        with torch.no_grad():
            dense = weight.detach().clone()
            for one in added:
                weight += self._turned(one.own())
        cores = [(one, {name: x.detach().clone() for name, x in one.arrays().items()}) for one in added]
        self._merge = _Merge(dense, cores, [_stamp(one) for one in added], _bits(weight))
        if not self._handles:
            layer = self.dense_layer()
            self._handles = (
                layer.register_load_state_dict_pre_hook(self._before_dense),
                layer.register_load_state_dict_post_hook(self._after_dense),
            )

    def take_out(self) -> None:
        """The dense weight as it was, to the bit; what was written to it in the meantime stays in it."""
        if self._merge is not None:
            with torch.no_grad():
                self.dense_layer().weight.copy_(self.without())
        self.stay()

    def stay(self) -> None:
        """Forget that anything was merged: the dense weight stays as it is."""
        self._merge = None
        for handle in self._handles:
            handle.remove()
        self._handles = ()

    def without(self) -> torch.Tensor:
        """The dense weight without what is inside."""
        weight, merge = self.dense_layer().weight.detach(), self._merge
        if merge is None:
            return weight
        if torch.equal(_bits(weight), merge.check):
            return merge.dense
        with torch.no_grad():  # somebody wrote to it: what the layer computes shall not change
            for one, cores in merge.delta_of:
                weight = weight - self._turned(one.weight_of(cores))
        return weight

    def with_inside(self, x: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        """The dense layer on ``x``, merged with the adapters as they are now; their gradients are found, too."""
        layer, merge = self.dense_layer(), self._merge
        assert merge is not None
        if not is_traced():
            refuse_tracers(self, x)
            if [_stamp(one) for one in self.inside()] != merge.stamps:
                self.take_out()
                self.put_in()
        if not any(differentiable(one.arrays()) for one in self.inside()):
            return layer(x, *args, **options)
        weight = layer.weight
        for one in self.inside():
            delta = self._turned(one())
            weight = weight + (delta - delta.detach())  # zero, with a gradient
        return torch.func.functional_call(layer, {"weight": weight}, (x, *args), options)

    def _turned(self, delta: torch.Tensor) -> torch.Tensor:
        return delta.T if is_transposed(self.dense_layer()) else delta

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.take_out()  # what is remembered would stay where it is
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **options: Any) -> None:
        self._again = self._merge is not None
        if self._again:
            self._restore()
        super()._load_from_state_dict(*args, **options)

    def _before_dense(self, *_: Any) -> None:
        """Only the dense layer is loaded."""
        if self._merge is not None:
            self._again = True
            self._restore()

    def _after_dense(self, *_: Any) -> None:
        if self._again:
            _after_loading(self)

    def _restore(self) -> None:
        """:meth:`take_out` without removing hooks, which are running."""
        with torch.no_grad():
            self.dense_layer().weight.copy_(self.without())
        self._merge = None


def _save_apart(module: Any, state: dict[str, Any], prefix: str, _: Any) -> None:
    key = f"{prefix}base_layer.weight"
    if module._merge is not None and key in state:
        state[key] = module.without()


def _after_loading(module: Any, *_: Any) -> None:
    if module._again:
        module._again = False
        module.put_in()


def _stamp(weight: GeneratedWeight) -> Any:
    """Of the cores; on accelerators, where looking at entries would wait, what writes in place leave behind."""

    def seen(arrays: dict[str, torch.Tensor]) -> Any:
        return weight.stamp(arrays) or [(x.data_ptr(), x._version, x.dtype) for x in arrays.values()]

    return weight(seen)


def _bits(weight: torch.Tensor) -> torch.Tensor:
    """Sums over the bits of its rows."""
    whole = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}[weight.element_size()]
    return weight.detach().contiguous().view(whole).flatten(1).sum(1, dtype=torch.int64)
