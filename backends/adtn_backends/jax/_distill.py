"""One layer of Flax trained to give the outputs of the dense one; what workers run."""

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
"""A module as :func:`flax.nnx.split` gives it, its values on the host: it can go to another process."""


def packed(layer: nnx.Module) -> Packed:
    """A copy of a layer that can be sent."""
    graph, state = nnx.split(layer)
    return graph, jax.tree.map(np.asarray, state)


def distill_layer(layer: Packed, seen: Sequence[Seen], tuning: Tuning) -> tuple[Packed, float, float]:
    """Train one layer on inputs and outputs; the layer, and the first and last relative error."""
    graph, state = layer
    made: Any = nnx.merge(graph, jax.tree.map(jnp.asarray, state))
    spread = statistics.fmean(float(np.var(y)) for _, _, y in seen) or 1.0

    def value(layer: Any, one: Seen) -> Any:
        inputs, options, target = one
        return jnp.square(exact(layer(*inputs, **options)) - exact(target)).mean() / spread

    chosen = {path: v for path, v in variables_of(made).items() if isinstance(v, nnx.Param)}
    tuning = replace(tuning, optimizer="adam", clip=None)
    losses = train(made, chosen, value, cycled(seen, tuning.steps), tuning, lambda step, loss: None)
    window = max(min(len(seen), len(losses)), 1)
    first, last = (math.sqrt(statistics.fmean(part)) for part in (losses[:window], losses[-window:]))
    return packed(made), first, last
