"""Statistics of batch normalisation over some batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ._loss import outputs_of


def statistics_of(model: nn.Module, batches: Sequence[Any]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Compute means and variances of the inputs of batch normalisation, means over the batches, by name of the module.

    Every layer is given what the normalised layers before it return for these batches. The model is not changed.
    """
    norms: dict[str, Any] = {
        name: m
        for name, m in model.named_modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats  # pyright: ignore[reportPrivateUsage]
    }
    if not norms or not batches:
        return {}
    modes = {m: m.training for m in model.modules()}
    before = {name: [(b, b.clone()) for b in m.buffers()] for name, m in norms.items()}
    momenta = {name: m.momentum for name, m in norms.items()}
    try:
        model.eval()
        for m in norms.values():
            m.reset_running_stats()
            m.momentum = None  # a cumulative mean
            m.train()
        with torch.no_grad():
            for batch in batches:
                outputs_of(model, batch)
        return {name: (m.running_mean.clone(), m.running_var.clone()) for name, m in norms.items()}
    finally:
        for name, m in norms.items():
            m.momentum = momenta[name]
            for buffer, value in before[name]:
                buffer.copy_(value)
        for m, training in modes.items():
            m.training = training
