"""Tensors of which several entries share memory, as those that ``expand`` makes; PyTorch refuses to write to them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


def overlaps(x: torch.Tensor) -> bool:
    """Return whether several entries of a tensor may share memory.

    Examples
    --------
    >>> overlaps(torch.ones(1).expand(4)), overlaps(torch.ones(4))
    (True, False)
    """
    if x.layout is not torch.strided or not x.numel():
        return False
    extent = 1
    for stride, size in sorted((stride, size) for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1):
        if stride < extent:
            return True
        extent += (size - 1) * stride
    return False


@torch.no_grad()
def fill(x: torch.Tensor, values: torch.Tensor) -> None:
    """Set the entries of a tensor, whose entries may share memory; ``values`` are equal where they do.

    Examples
    --------
    >>> x = torch.ones(1).expand(3)
    >>> fill(x, torch.full((3,), 2.0))
    >>> x
    tensor([2., 2., 2.])
    """
    if not overlaps(x):
        x.copy_(values)
        return
    extent = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    memory = x.detach().as_strided((extent,), (1,), x.storage_offset())
    place = torch.arange(extent, device=x.device).as_strided(x.shape, x.stride())
    memory[place.reshape(-1)] = values.to(x).reshape(-1)


def load_state(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Set the state of a module as ``load_state_dict`` does, also where entries of its tensors share memory."""
    shared = {
        name: x
        for name, x in model.state_dict(keep_vars=True).items()
        if torch.is_tensor(x) and overlaps(x) and name in state and state[name].shape == x.shape
    }
    own: Any = copy.copy(state)  # with the versions of modules, which an ordinary copy leaves out
    own.update(shared)  # a tensor that is copied to itself is not written to
    model.load_state_dict(own)
    for name, x in shared.items():
        fill(x, state[name])
