"""Distillation of one layer, which workers run: it is trained to reproduce the outputs of the dense layer."""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from adtn.compression import Tuning
from torch import nn

from ._loss import exact
from ._overlap import overlaps
from ._step import step_of

Seen: TypeAlias = tuple[Any, dict[str, Any], torch.Tensor]
"""Positional inputs, keywords and outputs of one batch."""


def copied(x: Any) -> Any:
    """Copy all tensors in a value, as later layers may change them in place."""
    if isinstance(x, Mapping):
        return {key: copied(one) for key, one in x.items()}
    if isinstance(x, tuple | list):
        return tuple(copied(one) for one in x)
    return x.detach().clone() if isinstance(x, torch.Tensor) else x


def nbytes(x: Any) -> int:
    """Count the bytes of all tensors in a value."""
    if isinstance(x, Mapping):
        x = tuple(x.values())
    if isinstance(x, tuple | list):
        return sum(map(nbytes, x))
    return x.numel() * x.element_size() if isinstance(x, torch.Tensor) else 0


def distill_layer(
    layer: nn.Module, seen: Sequence[Seen], tuning: Tuning
) -> tuple[dict[str, torch.Tensor], float, float]:
    """Train one layer on inputs and outputs; return its state, and its relative error at the start and at the end."""
    layer = copy.deepcopy(layer).train()
    variance = statistics.fmean(float(y.var(correction=0)) for _, _, y in seen) or 1.0
    trained = [p for p in layer.parameters() if p.requires_grad and not overlaps(p)]

    def value(batch: Seen) -> torch.Tensor:
        inputs, options, target = batch
        output = layer(*inputs, **options)
        output = output[0] if isinstance(output, tuple) else output
        return (exact(output) - exact(target)).square().mean() / variance

    step = step_of(value, {1.0: trained}, replace(tuning, optimizer="adam", clip=None))
    losses = [float(step(seen[n % len(seen)], n)) for n in range(tuning.steps)]
    window = max(min(len(seen), tuning.steps), 1)
    first, last = (math.sqrt(statistics.fmean(part)) for part in (losses[:window], losses[-window:]))
    return {k: v.detach() for k, v in layer.state_dict().items()}, first, last
