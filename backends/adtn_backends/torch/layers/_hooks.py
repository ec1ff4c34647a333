"""Hooks of a dense layer on the layer that takes its place."""

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


def with_hooks(made: M, dense: nn.Module) -> M:
    """``made`` with the hooks of ``dense``: the same dictionaries, so that handles remove them from both.

    Those that compute the dense weight before every call (pruning, old weight norms) stay where they are.
    """
    makes_weight = any(type(h).__module__.startswith("torch.nn.utils") for h in dense._forward_pre_hooks.values())
    for name in _OTHERS if makes_weight else (*_OTHERS, *_BEFORE):
        setattr(made, name, getattr(dense, name))
    made._is_full_backward_hook = dense._is_full_backward_hook
    return made


def without_hooks(module: M) -> M:
    """A shallow copy that calls none, for workers."""
    bare = copy.copy(module)
    for name in (*_OTHERS, *_BEFORE):
        setattr(bare, name, OrderedDict())
    return bare
