"""The hooks of a dense layer, and their transfer to the layer that replaces it."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)

_BEFORE = ("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs")
_OTHERS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_hooks",
    "_backward_pre_hooks",
)
HOOKS = (*_OTHERS, *_BEFORE)


def with_hooks(layer: M, dense: nn.Module) -> M:
    """Share the hooks of a dense layer with another layer, and return that; handles remove a hook from both.

    Hooks that compute the dense weight before every call (pruning, old weight norms) are not shared.
    """
    makes_weight = any(type(h).__module__.startswith("torch.nn.utils") for h in dense._forward_pre_hooks.values())  # pyright: ignore[reportPrivateUsage]
    for name in _OTHERS if makes_weight else (*_OTHERS, *_BEFORE):
        setattr(layer, name, getattr(dense, name))
    layer._is_full_backward_hook = dense._is_full_backward_hook  # pyright: ignore[reportPrivateUsage]
    return layer


def without_hooks(module: M) -> M:
    """Make a shallow copy without hooks, for workers."""
    bare = copy.copy(module)
    for name in (*_OTHERS, *_BEFORE):
        setattr(bare, name, OrderedDict())
    return bare
