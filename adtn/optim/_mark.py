"""Marks of checkpoints: what a resumed fit must have in common with the interrupted one."""

from __future__ import annotations

import numpy as np

from ..generator import Generator
from ._checkpoint import first_fingerprint
from ._fingerprint import fingerprint
from ._objective import Objective, Reconstruction, batch_at
from ._optimizer import get_optimizer, is_own
from ._options import FitOptions


def mark_of(generator: Generator, objective: Objective, options: FitOptions) -> str:
    """Fingerprint of a fit, with its data, functions and, where a user wrote it, its optimizer."""
    every = max(options.steps // 64, 1)
    rates = [float(options.schedule(n)) for n in range(0, options.steps, every)] if callable(options.schedule) else []
    first = [batch_at(objective, options.seed, step) for step in range(2)]
    optimizer = get_optimizer(options.optimizer)
    return fingerprint(
        repr(generator.topology),
        repr(generator.layout),
        generator.scale,
        repr(options.mark()),
        tuple(rates),
        generator.params,
        generator.constants(),
        objective,
        first,
        *([optimizer] if is_own(optimizer) else []),
    )


def old_mark_of(generator: Generator, objective: Objective, options: FitOptions) -> str | None:
    """Fingerprint of the first format, which says nothing of functions."""
    if not isinstance(objective, Reconstruction) or callable(options.schedule):
        return None
    numbers = {**generator.params, **generator.constants(), **objective.constants(), **objective.params}
    return first_fingerprint(
        generator.topology,
        generator.layout,
        generator.scale,
        *options.mark(),
        *numbers,
        *map(np.asarray, numbers.values()),
    )
