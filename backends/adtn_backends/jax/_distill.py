"""Distillation of one layer of Flax, which workers run: it is trained to reproduce the outputs of the dense layer."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from adtn.compression import Tuning
from flax import nnx

from ..shared._batches import cycled
from ._loss import exact
from ._step import train
from .layers._places import variables_of

Seen: TypeAlias = tuple[tuple[Any, ...], dict[str, Any], Any]
"""Positional inputs, keywords and outputs of one batch."""
Packed: TypeAlias = tuple[Any, Any]
"""A module as split by :func:`flax.nnx.split`, with its values on the host, so that it can be sent to a process."""


def packed(layer: nnx.Module) -> Packed:
    """Copy a layer in a form that can be sent to another process."""
    graph, state = nnx.split(layer)
    return graph, jax.tree.map(np.asarray, state)


def distill_layer(layer: Packed, seen: Sequence[Seen], tuning: Tuning) -> tuple[Packed, float, float]:
    """Train one layer on inputs and outputs; return the layer, and its relative error at the start and at the end."""
    graph, state = layer
    module: Any = nnx.merge(graph, jax.tree.map(jnp.asarray, state))
    variance = statistics.fmean(float(np.var(y)) for _, _, y in seen) or 1.0

    def value(layer: Any, batch: Seen) -> Any:
        inputs, options, target = batch
        return jnp.square(exact(layer(*inputs, **options)) - exact(target)).mean() / variance

    chosen = {path: v for path, v in variables_of(module).items() if isinstance(v, nnx.Param)}
    tuning = replace(tuning, optimizer="adam", clip=None)
    losses = train(module, chosen, value, cycled(seen, tuning.steps), tuning, lambda step, loss: None)
    window = max(min(len(seen), len(losses)), 1)
    first, last = (math.sqrt(statistics.fmean(part)) for part in (losses[:window], losses[-window:]))
    return packed(module), first, last
