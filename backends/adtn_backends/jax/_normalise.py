"""Statistics of batch normalisation over some batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx

from ._loss import outputs_of
from .layers._places import modules_of


def statistics_of(model: Any, batches: Sequence[Any]) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Compute means and variances of the inputs of batch normalisation, means over the batches, by name of the module.

    Every layer is given what the normalised layers before it return for these batches. The model is not changed.
    """
    copied = nnx.clone(model)
    copied.eval()
    norms = {name: m for name, m in modules_of(copied) if isinstance(m, nnx.BatchNorm)}
    if not norms:
        return {}
    for n, batch in enumerate(batches):
        for m in norms.values():
            m.momentum, m.use_running_average = n / (n + 1), False  # a cumulative mean
        outputs_of(copied, batch)
    return {name: (m.mean[...], m.var[...]) for name, m in norms.items()}
