"""Adapters: generated weights that are added to frozen dense ones, by name, switched at run time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from adtn import Generator
from adtn.compression import load_layers, save_layers
from adtn.errors import CompressError
from torch import nn

from ...shared._adapters import generators_of, names_of, switch
from ._like import layer_like
from ._merged import Mergeable
from ._weight import GeneratedWeight, is_traced, refuse_tracers


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
        """That of the base layer with the active adapters in it, differentiable."""
        return self.total()

    @property
    def bias(self) -> torch.Tensor | None:
        """Of the base layer."""
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

    def dense_layer(self) -> Any:
        """The dense layer."""
        return self.base_layer

    def inside(self) -> list[GeneratedWeight]:
        """The weights of the active adapters."""
        return [self.adapters[name].generated for name in self.active]  # type: ignore[misc]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As the dense layer."""
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
        """What is active."""
        return f"active={list(self.active)}, merged={self.merged}"


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, Adapted]]:
    """Adapted layers by name."""
    yield from ((name, m) for name, m in model.named_modules() if isinstance(m, Adapted))


def adapter_names(model: nn.Module) -> list[str]:
    """Of all adapters in a model."""
    return names_of(list(adapted_layers(model)))


def set_adapter(model: nn.Module, *names: str) -> None:
    """Switch to one adapter, to several together, or to none: the dense model.

    Raises
    ------
    CompressError
        If a name is unknown; nothing is switched then.

    Examples
    --------
    >>> import adtn, torch
    >>> layer = Adapted(torch.nn.Linear(32, 64))
    >>> layer.add("task", GeneratedWeight(adtn.Generator((64, 32), adtn.TTN(bond=2))))
    >>> model = torch.nn.Sequential(layer)
    >>> set_adapter(model)
    >>> layer.active
    ()
    """
    switch(list(adapted_layers(model)), names)


def merge_adapters(model: nn.Module) -> None:
    """Put the active adapters into the dense weights: inference costs what it cost before."""
    for _, layer in adapted_layers(model):
        layer.merge()


def unmerge_adapters(model: nn.Module) -> None:
    """The dense weights as they were, to the bit."""
    for _, layer in adapted_layers(model):
        layer.unmerge()


def remove_adapters(model: nn.Module) -> nn.Module:
    """The dense layers back in their places, with adapters merged in where they are merged; returns the model."""
    found = list(adapted_layers(model))
    for _, layer in found:
        if layer.merged:
            layer.refuse_computed()
    for name, layer in found:
        if layer.merged:
            layer.merge_for_good()
        if not name:
            return layer.base_layer
        owner, _, leaf = name.rpartition(".")
        model.get_submodule(owner)._modules[leaf] = layer.base_layer
    return model


def add_adapter(model: nn.Module, generators: Mapping[str, Generator], name: str = "default") -> nn.Module:
    """Add generated weights to layers of a model, in place; returns the model.

    Parameters
    ----------
    model : torch.nn.Module
    generators : mapping of str to Generator
        By name of the layer.
    name : str
        Of the adapter, which becomes the active one.

    Raises
    ------
    CompressError, LayoutError
        If a layer is missing or has no generated form, or the shapes differ. Nothing is changed then.
    """
    made: dict[str, Adapted] = {}
    if "" in generators:
        raise CompressError("Got an adapter for the model itself, which has no place; use Adapted(model).add(...).")
    for where, generator in generators.items():
        try:
            found = model.get_submodule(where)
        except AttributeError as error:
            raise CompressError(f"Got an adapter for {where!r}, which {type(model).__name__} does not have.") from error
        like = next(found.parameters())
        _refuse_ties(model, where)
        layer = Adapted(found.base_layer if isinstance(found, Adapted) else found)
        if isinstance(found, Adapted):
            for other, module in found.adapters.items():
                layer.adapters[other] = module
        layer.add(name, GeneratedWeight(generator).to(like.device, like.dtype))
        made[where] = layer.train(found.training)
    for where, layer in made.items():
        found = model.get_submodule(where)
        if isinstance(found, Adapted):
            found.unmerge()
        owner, _, leaf = where.rpartition(".")
        model.get_submodule(owner)._modules[leaf] = layer
    for _, layer in adapted_layers(model):  # what the new adapter does not touch is dense
        layer.active = (name,) if name in layer.adapters else ()
    return model


def _refuse_ties(model: nn.Module, where: str) -> None:
    """A merged adapter would change what shares the weight, too."""
    weight = getattr(model.get_submodule(where), "weight", None)
    owners = [n for n, m in model.named_modules(remove_duplicate=False) if m._parameters.get("weight") is weight]
    others = [n for n in owners if n not in (where, f"{where}.base_layer")]
    if weight is not None and others:
        raise CompressError(f"Layer {where!r} shares its weight with {', '.join(others)}; it cannot be adapted alone.")


def adapter_generators(model: nn.Module, name: str = "default") -> dict[str, Generator]:
    """The numbers of an adapter as they are now, by layer.

    Raises
    ------
    CompressError
        If there is none of that name.
    """
    return generators_of(list(adapted_layers(model)), name)


def save_adapter(model: nn.Module, folder: str | Path, name: str = "default", dtype: Any = None) -> None:
    """One small file per layer, and nothing of the dense model; ``dtype`` as of :func:`adtn.save`."""
    save_layers(folder, adapter_generators(model, name), dtype)


def load_adapter(model: nn.Module, folder: str | Path, name: str = "default") -> nn.Module:
    """Add what :func:`save_adapter` wrote, in place; returns the model.

    Raises
    ------
    CompressError
        If the folder holds no adapter.
    """
    return add_adapter(model, load_layers(folder, "adapter; pass a folder that save_adapter wrote"), name)
