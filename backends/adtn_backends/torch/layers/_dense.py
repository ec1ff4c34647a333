"""The conversion of models back to dense ones."""

from __future__ import annotations

import copy
from typing import Any

from adtn.errors import CompressError
from torch import nn

from .._structures import note_structures
from ._adapted import Adapted
from ._hooks import HOOKS
from ._kind import at, put_at
from ._kinds import kind_of, kind_of_generated
from ._merged import Mergeable


def to_dense(model: nn.Module) -> nn.Module:
    """Copy a model, with every generated layer replaced by an ordinary one, for instance to export it to ONNX.

    Layers that share a generated weight share the dense one, and active adapters are merged. Hooks, ties and frozen
    parameters are preserved.

    Parameters
    ----------
    model : torch.nn.Module
        The model, which is not changed.

    Raises
    ------
    CompressError
        If PyTorch cannot copy the model.

    Examples
    --------
    >>> import adtn, torch
    >>> from adtn_backends.torch import ADTNLinear
    >>> layer = ADTNLinear(adtn.Generator((64, 32), adtn.TTN(bond=2)))
    >>> to_dense(torch.nn.Sequential(layer, torch.nn.ReLU()))[0]
    Linear(in_features=32, out_features=64, bias=True)
    """
    memo: dict[int, Any] = {}
    inside = tuple(f"{name}." for name, m in model.named_modules() if isinstance(m, Mergeable) and name)
    owned: list[Any] = [
        m for name, m in model.named_modules() if not f"{name}.".startswith(inside) or isinstance(m, Mergeable)
    ]
    weights: dict[int, nn.Parameter] = {}  # by generated weight
    kinds = [(module, kind_of_generated(module)) for module in owned]
    for module, kind in kinds:
        if kind is not None and kind.filled_later:
            memo[id(module)] = module.blank_dense()
    try:
        for module, kind in kinds:
            if kind is not None and kind.filled_later:
                module.fill_dense(memo[id(module)], memo, weights)
            elif kind is not None:
                memo[id(module)] = _with_hooks(_tied(module, module.to_dense(), weights), module, memo)
            elif isinstance(module, Adapted):
                memo[id(module)] = _with_hooks(module.dense_copy(memo), module, memo)
        dense = copy.deepcopy(model, memo)
    except (RuntimeError, TypeError) as error:
        raise CompressError(
            f"Cannot copy the model: {error}. Make pruning and old weight norms permanent first "
            "(torch.nn.utils.prune.remove, remove_weight_norm)."
        ) from error
    note_structures(dense, {}, {})
    return dense


def _tied(module: Any, dense: Any, weights: dict[int, nn.Parameter]) -> Any:
    """Tie a dense layer to others of the same generated weight, and return it."""
    for part in kind_of(dense).parts(dense).values():
        parameter = at(dense, part.parameter)
        put_at(dense, part.parameter, weights.setdefault(id(at(module, part.generated)), parameter))
    return dense


def _with_hooks(dense: nn.Module, module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Give a dense layer copies of the hooks of a generated one."""
    for name in HOOKS:
        setattr(dense, name, copy.deepcopy(getattr(module, name), memo))
    dense._is_full_backward_hook = module._is_full_backward_hook  # pyright: ignore[reportPrivateUsage]
    return dense
