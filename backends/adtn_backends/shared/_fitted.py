"""A generator that approximates an existing weight, for every framework."""

from __future__ import annotations

from typing import Any, TypeAlias

import adtn
import numpy as np
from adtn import Generator, Layout, Topology
from adtn.optim import has_decomposition
from adtn.topology import RuleBase

Base: TypeAlias = np.ndarray | RuleBase | None


def fitted(
    values: np.ndarray,
    topology: Topology,
    layout: Layout | None,
    *,
    seed: int,
    base: Base,
    steps: int,
    options: dict[str, Any],
) -> Generator:
    """Make a generator with the standard deviation of a weight, and fit it to the weight for ``steps`` steps."""
    generator = Generator(values.shape, topology, layout=layout, scale=values, base=base, seed=seed)
    if not steps:
        return generator
    options = {"start": "decomposition" if has_decomposition(generator) else "generator", **options}
    return adtn.fit(generator, values, steps=steps, seed=seed, **options).uninterrupted().generator
