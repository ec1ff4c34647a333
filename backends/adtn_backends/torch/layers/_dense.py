"""A model without generated weights."""

from __future__ import annotations

import copy
from typing import Any

from adtn.errors import CompressError
from torch import nn

from ..huggingface import note_structures
from ._adapted import Adapted
from ._attention import ADTNMultiheadAttention
from ._conv import ADTNConv1d, ADTNConv2d, ADTNConv3d
from ._embedding import ADTNEmbedding
from ._hooks import HOOKS
from ._linear import ADTNLinear
from ._merged import Mergeable
from ._parametrized import Parametrized

LAYERS = (ADTNLinear, ADTNConv1d, ADTNConv2d, ADTNConv3d, ADTNEmbedding, ADTNMultiheadAttention)


def to_dense(model: nn.Module) -> nn.Module:
    """A copy of a model in which every generated layer is an ordinary one, for instance to export it to ONNX.

    Layers that shared a generated weight share the dense one; active adapters are in the weights of their layers.
    Hooks, ties and what is frozen stay what they are.

    Parameters
    ----------
    model : torch.nn.Module
        Left as it is.

    Raises
    ------
    CompressError
        If PyTorch cannot copy it.

    Examples
    --------
    >>> import adtn, torch
    >>> layer = ADTNLinear(adtn.Generator((64, 32), adtn.TTN(bond=2)))
    >>> to_dense(torch.nn.Sequential(layer, torch.nn.ReLU()))[0]
    Linear(in_features=32, out_features=64, bias=True)
    """
    memo: dict[int, Any] = {}
    inside = tuple(f"{name}." for name, m in model.named_modules() if isinstance(m, Mergeable) and name)
    owned = [m for name, m in model.named_modules() if not f"{name}.".startswith(inside) or isinstance(m, Mergeable)]
    weights: dict[int, nn.Parameter] = {}  # by generated weight
    for module in owned:
        if isinstance(module, Parametrized):
            memo[id(module)] = module.blank_dense()  # filled below: what is in it may know it
    try:
        for module in owned:
            if isinstance(module, LAYERS):
                memo[id(module)] = _with_hooks(_tied(module, module.to_dense(), weights), module, memo)
            elif isinstance(module, Parametrized):
                module.fill_dense(memo[id(module)], memo, weights)
            elif isinstance(module, Adapted):
                memo[id(module)] = _with_hooks(module.dense_copy(memo), module, memo)
        found = copy.deepcopy(model, memo)
    except (RuntimeError, TypeError) as error:
        raise CompressError(
            f"Cannot copy the model: {error}. Make pruning and old weight norms permanent first "
            "(torch.nn.utils.prune.remove, remove_weight_norm)."
        ) from error
    note_structures(found, {})
    return found


def _tied(module: Any, dense: Any, weights: dict[int, nn.Parameter]) -> Any:
    """The dense layer, with the parameter of another one of the same generated weight."""
    if isinstance(module, ADTNMultiheadAttention):
        pairs = [(dense, "in_proj_weight", module.generated), (dense.out_proj, "weight", module.out_proj.generated)]
    else:
        pairs = [(dense, "weight", module.generated)]
    for owner, name, generated in pairs:
        setattr(owner, name, weights.setdefault(id(generated), getattr(owner, name)))
    return dense


def _with_hooks(dense: nn.Module, module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """With copies of the hooks of a generated layer."""
    for name in HOOKS:
        setattr(dense, name, copy.deepcopy(getattr(module, name), memo))
    dense._is_full_backward_hook = module._is_full_backward_hook
    return dense
