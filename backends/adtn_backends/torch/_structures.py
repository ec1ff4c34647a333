"""Generated weights, and ties between parameters, in the configurations of transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from adtn import Generator
from torch import nn


def note_structures(model: nn.Module, generators: Mapping[str, Generator]) -> None:
    """Describe generated weights in the configuration of a transformers model, which ``save_pretrained`` writes."""
    config: Any = getattr(model, "config", None)
    if hasattr(config, "save_pretrained"):
        from adtn.compression import STRUCTURES, structure_to_json  # late: layers alone need no whole models

        if generators:
            setattr(config, STRUCTURES, {name: structure_to_json(g) for name, g in generators.items()})
        elif STRUCTURES in vars(config):
            delattr(config, STRUCTURES)
        _forget_lost_ties(model)


def _forget_lost_ties(model: nn.Module) -> None:
    """Remove ties of parameters that no longer exist, as generated weights are tied through their modules."""
    for module in model.modules():
        if not hasattr(type(module), "tie_weights"):
            continue
        vars(module).pop("_tied_weights_keys", None)  # of an earlier compression
        declared = getattr(module, "_tied_weights_keys", None)
        if not isinstance(declared, dict):
            continue
        names = [name for name, _ in module.named_parameters(remove_duplicate=False)]
        alive = {
            target: source
            for target, source in declared.items()
            if all(any(re.search(pattern, name) for name in names) for pattern in (target, source))
        }
        if alive != declared:
            vars(module)["_tied_weights_keys"] = alive
        if hasattr(module, "all_tied_weights_keys"):
            vars(module)["all_tied_weights_keys"] = module.get_expanded_tied_weights_keys(all_submodels=True)  # type: ignore[operator]
