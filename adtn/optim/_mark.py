"""Fingerprints of fits in checkpoints, which a resumed fit must share with the interrupted one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..generator import Generator
from ._checkpoint import first_fingerprint
from ._fingerprint import LIBRARIES, fingerprint
from ._objective import Objective, Reconstruction, batch_at
from ._optimizer import get_optimizer, is_own
from ._options import FitOptions


def mark_of(
    generator: Generator, objective: Objective, options: FitOptions, libraries: Sequence[str] = LIBRARIES
) -> str:
    """Return the fingerprint of a fit, with its data, functions and, if a user wrote it, its optimizer.

    Parameters
    ----------
    generator, objective, options
        The fit.
    libraries : sequence of str
        See :func:`fingerprint`; :data:`FORMER` for the fingerprints of older checkpoints.
    """
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
        *([repr([p and p.array.tolist() for p in generator.permutations])] if generator.permutations else []),
        libraries=libraries,
    )


def old_mark_of(generator: Generator, objective: Objective, options: FitOptions) -> str | None:
    """Return the fingerprint of the first format, which does not cover functions."""
    if not isinstance(objective, Reconstruction) or callable(options.schedule):
        return None
    arrays = {
        **generator.params,
        **generator.constants(),
        **objective.constants(generator.weighting),
        **objective.params,
    }
    return first_fingerprint(
        generator.topology,
        generator.layout,
        generator.scale,
        *options.mark(),
        *arrays,
        *map(np.asarray, arrays.values()),
    )
