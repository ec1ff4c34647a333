"""The weights of a PyTorch module that can be generated, and the layer that replaces it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch
from adtn.compression import Layer
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from ..shared._model import full_name, part_of
from .layers import Adapted, GeneratedSlice, GeneratedWeight
from .layers._hooks import with_hooks
from .layers._kinds import kind_of, layer_in_place_of
from .layers._slice import Weight

Owners: TypeAlias = dict[int, list[tuple[str, nn.Module, str]]]
"""The modules that own a parameter, by its id: the module's name, the module, and its name for the parameter."""


def dense_of(module: nn.Module) -> nn.Module:
    """Return the dense layer, without its adapters."""
    return module.base_layer if isinstance(module, Adapted) else module


def is_whole(module: nn.Module) -> bool:
    """Return whether the modules inside a module are compressed together with it."""
    return isinstance(module, Adapted) or is_parametrized(module) or kind_of(module).whole


def weights_of(name: str, module: nn.Module) -> tuple[dict[str, tuple[int, ...]], str]:
    """Return the shapes of a layer's weights by their full names, or why it cannot be generated."""
    if isinstance(module, GeneratedWeight) or hasattr(module, "generated"):
        return {}, "compressed already"
    if is_parametrized(module):
        return {}, "computed by a parametrization; remove it first (torch.nn.utils.parametrize.remove_parametrizations)"
    if isinstance(module, torch.jit.ScriptModule):
        return {}, "compiled by TorchScript; compress the model from which it was compiled"
    dense = dense_of(module)
    kind = kind_of(dense)
    if reason := kind.refusal(dense):
        return {}, reason
    if not name and kind.optional(dense):
        return {}, "the model itself is this layer and cannot be replaced in place"
    return {full_name(name, part): shape for part, shape in kind.shapes(dense).items()}, ""


def owners_of(model: nn.Module) -> Owners:
    """Return the modules that own each parameter of a model."""
    owners: Owners = {}
    for name, module in model.named_modules():
        for part, p in module._parameters.items():  # pyright: ignore[reportPrivateUsage]
            if p is not None:
                owners.setdefault(id(p), []).append((name, module, part))
    return owners


def ties_of(
    name: str,
    module: nn.Module,
    weights: Mapping[str, tuple[int, ...]],
    owners: Owners,
) -> tuple[tuple[str, ...], bool]:
    """Return the names of layers that share a weight with this one, and whether they can share a generated weight."""
    dense = dense_of(module)
    kind = kind_of(dense)
    inside = f"{name}." if name else "\0"
    shared = [
        owner
        for weight in weights
        for owner in owners.get(id(kind.parameter(dense, part_of(name, weight))), ())  # computed ones have no owner
        if owner[1] is not dense and not owner[0].startswith(inside)
    ]
    alike = kind_of(module).tied(module) and all(part == "weight" and kind_of(m).tied(m) for _, m, part in shared)
    return tuple(dict.fromkeys(owner for owner, _, _ in shared)), alike


def generated_in_place_of(dense: nn.Module, layer: Layer, weights: Mapping[str, Weight]) -> nn.Module:
    """Make the generated layer that replaces a dense one, with its hooks."""
    by_part = {part_of(layer.name, weight): weights[weight] for weight in layer.weights if weight in weights}
    return with_hooks(layer_in_place_of(dense, by_part), dense)


def declare_tie(layer: nn.Module, dense: nn.Module, *, again: bool) -> None:
    """Declare which tensors a layer shares, as transformers refuses to save undeclared shared tensors.

    Parameters
    ----------
    layer : torch.nn.Module
        The generated layer.
    dense : torch.nn.Module
        The layer that it replaces.
    again : bool
        Whether another layer has the same generated weights; otherwise, slices share those of the first one.
    """
    parts = {part.generated for part in kind_of(dense_of(dense)).parts(dense_of(dense)).values()}
    paths = [path for path, module in layer.named_modules() if _repeats(module) or (again and path in parts)]
    names = [f"{path}.{name}" for path in paths for name in layer.get_submodule(path).state_dict()]
    if names:
        vars(layer)["_tied_weights_keys"] = {name: name for name in names}


def _repeats(module: nn.Module) -> bool:
    return isinstance(module, GeneratedSlice) and module.start > 0
