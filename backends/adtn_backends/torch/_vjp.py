"""Backward passes that are themselves differentiated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch


def must_differentiate(cotangent: torch.Tensor) -> bool:
    """Return whether a backward pass is itself differentiated (``create_graph``), or batched by ``vmap``."""
    functorch: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue, reportPrivateUsage]
    return (
        torch.is_grad_enabled() or functorch.is_batchedtensor(cotangent) or functorch.is_legacy_batchedtensor(cotangent)
    )


def differentiable_vjp(
    fn: Callable[[], torch.Tensor], inputs: Sequence[torch.Tensor], cotangent: torch.Tensor
) -> list[torch.Tensor | None]:
    """Compute adjoints of the inputs of ``fn`` by PyTorch's operations, so that they can be differentiated.

    This is needed under ``create_graph=True``, as the library's own adjoint leaves no graph.
    """
    differentiated = [x for x in inputs if x.requires_grad]
    with torch.autocast(cotangent.device.type, enabled=False):  # as in the forward pass
        with torch.enable_grad():
            value = fn()
        graph = torch.is_grad_enabled()
        adjoints = iter(torch.autograd.grad(value, differentiated, cotangent, create_graph=graph, allow_unused=True))
    return [next(adjoints) if x.requires_grad else None for x in inputs]
