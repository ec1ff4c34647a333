"""Where a call of a layer takes place: in compilers and function transforms, under autocast, with gradients."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from adtn.errors import LayoutError
from torch import nn
from torch.autograd import forward_ad

PLAIN = (torch.Tensor, nn.Parameter)
"""Tensors whose entries lie where they say."""


def autocasts(device: torch.device) -> bool:
    """Whether products there are made in another dtype than their operands'."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def in_own_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Cores are contracted in their own dtype, as norms are."""
    return torch.autocast(device.type, enabled=False) if autocasts(device) else nullcontext()


def differentiable(arrays: dict[str, torch.Tensor]) -> bool:
    """Whether a gradient by one of these is wanted."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in arrays.values())


def refuse_tracers(layer: nn.Module, *inputs: Any) -> None:
    """Those that would make the weight, and the plan for one size of batch, constants of their graph.

    Raises
    ------
    LayoutError
        Under :func:`torch.jit.trace` and :func:`torch.fx.symbolic_trace`.
    """
    proxy = any(isinstance(x, torch.fx.Proxy) for x in inputs)
    if proxy or torch._C._get_tracing_state() is not None:
        raise LayoutError(
            f"Got {'a torch.fx.Proxy' if proxy else 'torch.jit.trace'} in {type(layer).__name__}; expected tensors, "
            "torch.compile or torch.export. Use one of these, or trace adtn_backends.torch.to_dense(model)."
        )


def is_traced() -> bool:
    """Whether a compiler or a function transform looks at every operation."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return True
    return forward_ad._current_level >= 0
