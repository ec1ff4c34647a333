"""Adapters: generated weights that are added to frozen dense ones, by name, switched at run time."""

from __future__ import annotations

from typing import Any

import torch
from adtn import Generator
from adtn.errors import CompressError
from torch import nn

from ...shared._adapters import Modules, modules_for
from ._calls import is_traced, refuse_tracers
from ._kinds import layer_like
from ._merged import Mergeable
from ._weight import GeneratedWeight


class Adapted(Mergeable):
    """A dense layer and adapters: ``y = base(x) + Σ_active generated(x)``.

    Parameters
    ----------
    base_layer : torch.nn.Module
        Linear, convolution, embedding, or the ``Conv1D`` of GPT-2.

    Examples
    --------
    >>> import adtn, torch
    >>> layer = Adapted(torch.nn.Linear(32, 64))
    >>> layer.add("task", GeneratedWeight(adtn.Generator((64, 32), adtn.TTN(bond=2))))
    >>> layer.merge()
    >>> layer(torch.zeros(5, 32)).shape
    torch.Size([5, 64])
    """

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.adapters = nn.ModuleDict()
        self.active: tuple[str, ...] = ()
        self.merged = False

    @property
    def weight(self) -> torch.Tensor:
        """The weight of the base layer with the active adapters in it, differentiable."""
        return self.total()

    @property
    def bias(self) -> torch.Tensor | None:
        """Bias of the base layer."""
        return self.base_layer.bias  # type: ignore[return-value]

    def add(self, name: str, weight: GeneratedWeight) -> None:
        """Another adapter; it becomes the active one.

        Raises
        ------
        CompressError
            If there is one of that name, or the name has a dot.
        """
        if name in self.adapters or "." in name or not name:
            raise CompressError(f"Got the adapter name {name!r}; there are {list(self.adapters)}, and dots do not do.")
        self.unmerge()
        self.adapters[name] = layer_like(self.base_layer, weight, bias=False)
        self.active = (name,)

    def merge(self) -> None:
        """Make one weight of the dense one and the active adapters, for inference.

        No parameter is written to: states are saved and loaded as if nothing was merged, adapters that change are
        merged anew, and while gradients are wanted, or a compiler looks, they are applied beside the dense weight.
        """
        self.merged = bool(self.active)

    def unmerge(self) -> None:
        """The dense weight and the adapters apart."""
        self.merged, self._sum = False, None

    def check_stay(self) -> None:
        """Refuse to leave what is merged in a dense weight that is computed."""
        if self.merged:
            self.refuse_computed()

    def stay(self) -> None:
        """Leave what is merged in the dense weight for good."""
        if self.merged:
            self.merge_for_good()
            self.unmerge()

    def dense_layer(self) -> Any:
        """The dense layer."""
        return self.base_layer

    def inside(self) -> list[GeneratedWeight]:
        """The weights of the active adapters."""
        return [self.adapters[name].generated for name in self.active]  # type: ignore[misc]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer as the dense one, and the active adapters."""
        if not is_traced():
            refuse_tracers(self, x)
        layer = self.merged_layer() if self.merged else None
        if layer is not None:
            return layer(x)
        y = self.base_layer(x)
        for name in self.active:
            y = y + self.adapters[name](x)
        return y

    def _apply(self, fn: Any, recurse: bool = True) -> Adapted:
        self.unmerge()
        return super()._apply(fn, recurse)

    def extra_repr(self) -> str:
        """Names of the active adapters."""
        return f"active={list(self.active)}, merged={self.merged}"


def put_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module into one place of a model."""
    owner, _, leaf = name.rpartition(".")
    model.get_submodule(owner)._modules[leaf] = module


def _beside(generator: Generator, dense: nn.Module) -> GeneratedWeight:
    """A generated weight with the device and dtype of a dense layer."""
    weight, like = GeneratedWeight(generator), next(dense.parameters(), None)
    return weight if like is None else weight.to(like.device, like.dtype)


MODULES = Modules(
    adapted=Adapted,
    wrap=lambda dense: Adapted(dense).train(dense.training),
    places=lambda model: dict(model.named_modules(remove_duplicate=False)),
    at=lambda model, name: model.get_submodule(name),
    put=put_module,
    parameters=lambda module: [p for name, p in module._parameters.items() if name == "weight" and p is not None],
    generated=_beside,
)


@modules_for.register(nn.Module)
def _modules(model: nn.Module) -> Modules:
    return MODULES
