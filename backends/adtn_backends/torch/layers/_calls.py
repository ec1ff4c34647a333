"""The circumstances of a layer's call: compilers and function transforms, autocast, gradients."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from adtn.errors import LayoutError
from torch import nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

PLAIN = (torch.Tensor, nn.Parameter)
"""Types of tensors whose entries are in the memory they point to."""


def autocasts(device: torch.device) -> bool:
    """Return whether autocast is on for a device, so that products may change the dtype."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def in_own_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context without autocast, as cores are contracted in their own dtype, like norms."""
    return torch.autocast(device.type, enabled=False) if autocasts(device) else nullcontext()


def differentiable(arrays: dict[str, torch.Tensor]) -> bool:
    """Return whether the gradient with respect to one of these arrays is needed."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in arrays.values())


def recomputed(fn: Callable[..., Any], *inputs: Any) -> Any:
    """Compute ``fn(*inputs)`` so that autograd keeps the inputs only, and computes the rest again to go back."""
    if not torch.is_grad_enabled() or torch._C._len_torch_dispatch_stack():  # pyright: ignore[reportPrivateUsage]
        return fn(*inputs)
    return checkpoint(fn, *inputs, use_reentrant=False)


def refuse_tracers(layer: nn.Module, *inputs: Any) -> None:
    """Refuse tracers that would make the weight, and the plan for one batch size, constants of their graph.

    Raises
    ------
    LayoutError
        If called under :func:`torch.jit.trace` or :func:`torch.fx.symbolic_trace`.
    """
    proxy = any(isinstance(x, torch.fx.Proxy) for x in inputs)
    if proxy or torch._C._get_tracing_state() is not None:  # pyright: ignore[reportPrivateUsage]
        raise LayoutError(
            f"Got {'a torch.fx.Proxy' if proxy else 'torch.jit.trace'} in {type(layer).__name__}; expected tensors. "
            "Use torch.compile or torch.export, or trace adtn_backends.torch.to_dense(model)."
        )


def is_traced() -> bool:
    """Return whether a compiler or a function transform traces every operation."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():  # pyright: ignore[reportPrivateUsage]
        return True
    return forward_ad._current_level >= 0  # pyright: ignore[reportPrivateUsage]
