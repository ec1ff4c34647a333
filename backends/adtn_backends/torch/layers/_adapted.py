"""Adapters: named generated weights that are added to frozen dense ones and can be switched at run time."""

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
from ._slice import GeneratedSlice
from ._weight import GeneratedWeight


class Adapted(Mergeable):
    """A dense layer with adapters: ``y = base(x) + Σ_active generated(x)``.

    Parameters
    ----------
    base_layer : torch.nn.Module
        The dense layer: linear, a convolution, an embedding, or the ``Conv1D`` of GPT-2.

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
        """The sum of the base layer's weight and the active adapters, differentiable."""
        return self.total()

    @property
    def bias(self) -> torch.Tensor | None:
        """The bias of the base layer."""
        return self.base_layer.bias  # type: ignore[return-value]

    def add(self, name: str, weight: GeneratedWeight) -> None:
        """Add an adapter, which becomes the active one.

        Raises
        ------
        CompressError
            If there is one of that name, or the name is empty or contains a dot.
        """
        if name in self.adapters or "." in name or not name:
            raise CompressError(
                f"Got the adapter name {name!r}; expected a name without dots other than {list(self.adapters)}."
            )
        self.unmerge()
        self.adapters[name] = layer_like(self.base_layer, weight, bias=False)
        self.active = (name,)

    def merge(self) -> None:
        """Use the sum of the dense weight and the active adapters for inference.

        No parameter is written to: the model is saved and loaded as if nothing were merged, and the sum is recomputed
        when an adapter changes. With gradients, and in compilers, adapters are applied separately.
        """
        self.merged = bool(self.active)

    def unmerge(self) -> None:
        """Apply the dense weight and the adapters separately again."""
        self.merged, self._sum = False, None

    def check_stay(self) -> None:
        """Refuse to write merged adapters to a dense weight that is computed from other parameters."""
        if self.merged:
            self.refuse_computed()

    def stay(self) -> None:
        """Write merged adapters to the dense weight for good."""
        if self.merged:
            self.merge_for_good()
            self.unmerge()

    def dense_layer(self) -> Any:
        """Return the dense layer."""
        return self.base_layer

    def inside(self) -> list[GeneratedWeight]:
        """Return the weights of the active adapters."""
        return [self.adapters[name].generated for name in self.active]  # type: ignore[misc]

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Apply the dense layer and the active adapters."""
        x = input  # a name that callers of torch.nn use
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
        """Return the names of the active adapters, and whether they are merged."""
        return f"active={list(self.active)}, merged={self.merged}"


def put_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replace the module at one place of a model."""
    owner, _, leaf = name.rpartition(".")
    model.get_submodule(owner)._modules[leaf] = module  # pyright: ignore[reportPrivateUsage]


def _beside(generator: Generator, dense: nn.Module) -> GeneratedWeight:
    """Make a generated weight with the device and dtype of a dense layer."""
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
    sliced=GeneratedSlice,
)


@modules_for.register(nn.Module)
def _modules(model: nn.Module) -> Modules:
    return MODULES
