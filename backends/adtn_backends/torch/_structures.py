"""Generated weights, and ties between parameters, in the configurations of transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from adtn import Generator
from torch import nn


def noted_structures(model: nn.Module, generated: Sequence[str]) -> dict[str, Any]:
    """Return the descriptions of weights that are generated already, from the configuration of the model.

    Parameters
    ----------
    model : nn.Module
    generated : sequence of str
        The names of its modules that are generated weights.
    """
    from adtn.compression import STRUCTURES  # late: layers alone need no whole models

    noted: Mapping[str, Any] = getattr(getattr(model, "config", None), STRUCTURES, None) or {}
    # a configuration may also be that of another model, which is dense
    owners = {name: (f"{name}.", f"{name.rpartition('.')[0]}.") for name in noted}
    return {name: noted[name] for name, own in owners.items() if any(path.startswith(own) for path in generated)}


def note_structures(model: nn.Module, generators: Mapping[str, Generator], noted: Mapping[str, Any]) -> None:
    """Describe generated weights in the configuration of a transformers model, which ``save_pretrained`` writes.

    Parameters
    ----------
    model : nn.Module
    generators : mapping of str to Generator
    noted : mapping of str to dict
        The descriptions of the weights that were generated before.
    """
    config: Any = getattr(model, "config", None)
    if hasattr(config, "save_pretrained"):
        from adtn.compression import STRUCTURES, structure_to_json  # late: layers alone need no whole models

        structures = dict(noted) | {name: structure_to_json(g) for name, g in generators.items()}
        if structures:
            setattr(config, STRUCTURES, structures)
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
