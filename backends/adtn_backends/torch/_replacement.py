"""Which weights of a PyTorch module can be generated, and what takes its place then."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from adtn.compression import Layer
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from .layers import Adapted, ADTNMultiheadAttention, GeneratedWeight, parametrized
from .layers._hooks import with_hooks
from .layers._like import STANDARD, layer_like, matrices, weight_shape


def weights_of(name: str, module: nn.Module) -> tuple[dict[str, tuple[int, ...]], str]:
    """Shapes of the weights of a layer, or why it has none."""
    if type(module) is nn.MultiheadAttention:
        if module.in_proj_weight is None:
            return {}, "keys and values have other widths than queries"
        n = module.embed_dim
        return {f"{name}.in_proj": (3 * n, n), f"{name}.out_proj": (n, n)}, ""
    if isinstance(module, GeneratedWeight) or hasattr(module, "generated"):
        return {}, "compressed already"
    if is_parametrized(module):
        return {}, "computed by a parametrization; remove it first (torch.nn.utils.parametrize.remove_parametrizations)"
    if isinstance(module, torch.jit.ScriptModule):
        return {}, "compiled by TorchScript; compress the model it was made of"
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None:
        return {}, "max_norm changes its rows in place"
    base = module.base_layer if isinstance(module, Adapted) else module
    shape, own = weight_shape(base), matrices(base)
    if not own or isinstance(base, nn.MultiheadAttention):
        return {}, f"no generated form of {type(base).__name__}"
    if not name and shape is None and not isinstance(base, STANDARD):
        return {}, "no place to put another layer"
    if shape is None and getattr(base, "sparse", False):
        return {}, "its gradients are sparse"
    if shape is not None or list(own) == ["weight"]:
        return {name: shape or own["weight"]}, ""
    return {f"{name}.{part}": shape for part, shape in own.items()}, ""


def owners_of(model: nn.Module) -> dict[int, list[tuple[str, nn.Module, str]]]:
    """Of every parameter the modules that have it as their own: their names, themselves, and their names for it."""
    found: dict[int, list[tuple[str, nn.Module, str]]] = {}
    for name, module in model.named_modules():
        for part, p in module._parameters.items():
            if p is not None:
                found.setdefault(id(p), []).append((name, module, part))
    return found


def generated_parts(name: str, dense: Any, weights: Mapping[str, Any]) -> list[nn.Parameter]:
    """The parameters of a module that would be generated."""
    if isinstance(dense, nn.MultiheadAttention):
        parts = [dense.in_proj_weight, dense.out_proj.weight]
    else:
        parts = [dense._parameters.get("weight" if w == name else w.removeprefix(f"{name}.")) for w in weights]
    return [p for p in parts if isinstance(p, nn.Parameter)]


def generated_in_place_of(dense: Any, layer: Layer, name: str, weights: Mapping[str, GeneratedWeight]) -> nn.Module:
    """The generated layer in place of a dense one; biases are the very parameters, which others may share."""
    if type(dense) is nn.MultiheadAttention:
        first, last = (weights[f"{name}.{part}"] for part in ("in_proj", "out_proj"))
        made = ADTNMultiheadAttention.of(dense, first, last)
        _with_biases(made.out_proj, dense.out_proj, "bias")
        return with_hooks(_with_biases(made, dense, "in_proj_bias", "bias_k", "bias_v"), dense)
    if weight_shape(dense) is not None:
        return with_hooks(_with_biases(layer_like(dense, weights[next(iter(layer.weights))]), dense, "bias"), dense)
    given = [one for one in layer.weights if one in weights]
    return parametrized(dense, {_part(layer.name, one): weights[one] for one in given})


def _with_biases(made: nn.Module, dense: nn.Module, *names: str) -> nn.Module:
    for name in names:
        if getattr(dense, name, None) is not None:
            setattr(made, name, getattr(dense, name))
    return made


def declare_tie(layer: nn.Module) -> None:
    """Tell transformers, which refuses to save shared tensors that nobody declares, that these are another layer's."""
    names = [f"generated.{name}" for name in layer.get_submodule("generated").state_dict()]
    vars(layer)["_tied_weights_keys"] = {name: name for name in names}


def _part(layer: str, weight: str) -> str:
    """The parameter's name in its module."""
    return weight.removeprefix(f"{layer}.") if weight != layer else "weight"
