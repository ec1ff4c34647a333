"""A model without generated weights."""

from __future__ import annotations

import copy

from adtn.compress import STRUCTURES
from torch import nn

from ._attention import ADTNMultiheadAttention
from ._conv import ADTNConv1d, ADTNConv2d, ADTNConv3d
from ._embedding import ADTNEmbedding
from ._linear import ADTNLinear
from ._parametrized import Parametrized, list_again

LAYERS = (ADTNLinear, ADTNConv1d, ADTNConv2d, ADTNConv3d, ADTNEmbedding, ADTNMultiheadAttention)


def to_dense(model: nn.Module) -> nn.Module:
    """A copy of a model in which every generated layer is an ordinary one, for instance to export it to ONNX.

    Layers that shared a generated weight share the dense one.

    Parameters
    ----------
    model : torch.nn.Module
        Left as it is.

    Examples
    --------
    >>> import adtn, torch
    >>> layer = ADTNLinear(adtn.Generator((64, 32), adtn.TTN(bond=2)))
    >>> to_dense(torch.nn.Sequential(layer, torch.nn.ReLU()))[0]
    Linear(in_features=32, out_features=64, bias=True)
    """
    made: dict[int, nn.Module] = {}
    weights: dict[int, nn.Parameter] = {}

    def dense(module: nn.Module) -> nn.Module:
        if id(module) not in made:
            if isinstance(module, LAYERS):
                found = module.to_dense()
                if isinstance(found, nn.Linear | nn.Embedding):
                    found.weight = weights.setdefault(id(module.generated), nn.Parameter(found.weight))
            else:
                source = module.to_dense() if isinstance(module, Parametrized) else module
                # children apart: they are replaced, not copied
                found = object.__new__(type(source))  # copy.copy refuses modules with parametrizations
                vars(found).update(vars(source))
                found._modules = {k: None if m is None else dense(m) for k, m in source._modules.items()}
                own = {k: None if p is None else _copied(p, weights) for k, p in source._parameters.items()}
                if isinstance(module, Parametrized):
                    shared = {k: weights.setdefault(id(g), own[k]) for k, g in module.generated.items()}  # type: ignore[arg-type]
                    own |= shared
                found._parameters = own
                found._buffers = copy.deepcopy(source._buffers)
                list_again(found)
                if hasattr(vars(found).get("config"), STRUCTURES):  # of transformers, for save_pretrained
                    vars(found)["config"] = copy.copy(found.config)
                    delattr(found.config, STRUCTURES)
            made[id(module)] = found
        return made[id(module)]

    return dense(model)


def _copied(parameter: nn.Parameter, known: dict[int, nn.Parameter]) -> nn.Parameter:
    return known.setdefault(id(parameter), copy.deepcopy(parameter))
