"""Trained parameters of a PyTorch model, by their learning rates."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from adtn.compression import Tuning
from torch import nn

from ..shared._model import rate_of
from ..shared._relative import relative_rates
from ._overlap import overlaps


def groups_of(model: nn.Module, cores: Iterable[nn.Parameter], tuning: Tuning) -> dict[float, list[nn.Parameter]]:
    """Group all parameters by the factor of their learning rate, which is 0 for those that are not trained.

    Parameters
    ----------
    model : torch.nn.Module
    cores : iterable of torch.nn.Parameter
        The parameters of generated weights.
    tuning : Tuning
        The options of the training.
    """
    own = {id(p): p for p in cores}
    scales = relative_rates({k: _root_mean_square(p) for k, p in own.items()}) if tuning.relative else {}
    groups: dict[float, list[nn.Parameter]] = {}
    for name, p in model.named_parameters():
        # PyTorch's optimizers refuse to write to entries that share memory
        trained = p.requires_grad and not overlaps(p) and (tuning.train == "all" or id(p) in own)
        groups.setdefault(rate_of(name, tuning.rates) * scales.get(id(p), 1.0) * trained, []).append(p)
    return groups


@torch.no_grad()
def _root_mean_square(p: nn.Parameter) -> float:
    return float(p.float().square().mean().sqrt()) if p.numel() else 0.0
