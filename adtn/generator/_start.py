"""The formula and the values that a new generator starts with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._typing import Float
from ..calculus import initial_values, isometric_rows
from ..errors import GeneratorError
from ..layout import Layout, Permutation
from ..program import cached_program
from ..topology import IdentityBase, RuleBase, Topology, cores_of
from ..weight import BASE_SCALE, Weighting
from ._values import Base, as_permutations, readonly, silence


def formula(
    layout: Layout, scale: float, base: Base, permutations: Sequence[Permutation | Sequence[int] | None] | None
) -> Weighting:
    """Return the formula by which the generated state becomes a weight."""
    shape = layout.shape
    return Weighting(
        layout=layout,
        scale=scale,
        has_base=base is not None,
        trains_base_scale=isinstance(base, RuleBase),
        identity=base.entry(shape) if isinstance(base, IdentityBase) and len(shape) == 2 else None,
        permutations=as_permutations(permutations, shape),
    )


@dataclass(frozen=True, kw_only=True)
class Start:
    """The values of a new generator.

    Parameters
    ----------
    params : mapping of str to array
        Those that are trained.
    given : mapping of str to array
        Those of frozen cores that were passed.
    spread_is_exact : bool
        Whether the initial weight has exactly the requested standard deviation.
    """

    params: Mapping[str, Float[np.ndarray, "..."]]
    given: Mapping[str, Float[np.ndarray, "..."]]
    spread_is_exact: bool


def start(
    topology: Topology, layout: Layout, *, passed: Mapping[str, Any], seed: int, scale: float, base: Base, dtype: str
) -> Start:
    """Return the values that were passed, and initial ones of the other trained cores.

    Raises
    ------
    GeneratorError
        If a passed value belongs to no core, or a core without a rule has none.
    """
    segments = topology.segments(layout)
    cores = cores_of(segments)
    shapes = {core.param: core.shape for core in cores}
    trainable = {core.param: core.shape for core in cores if core.trainable}
    names = set(shapes) | ({BASE_SCALE} if isinstance(base, RuleBase) else set())
    if unknown := sorted(set(passed) - names):
        raise GeneratorError(f"Got parameters {unknown}; expected some of {sorted(names)}.")
    spread_is_exact = True
    trained = {name: passed[name] for name in trainable if name in passed}
    if len(trained) < len(trainable):
        program = cached_program(segments)
        values, spread_is_exact = initial_values(program, layout, seed, passed, topology)
        trained = values | trained
        if isinstance(base, np.ndarray | IdentityBase):
            silence(program, trained)
    if isinstance(base, RuleBase):
        trained[BASE_SCALE] = passed.get(BASE_SCALE, np.asarray(scale))
    params = readonly(trained, trainable | {BASE_SCALE: ()}, dtype, isometric_rows(cores))
    if missing := sorted(c.param for c in cores if c.init == "given" and c.param not in passed):
        raise GeneratorError(f"Cores {missing} have no rule for their values; pass params that contain them.")
    given = {k: passed[k] for k in set(shapes) - set(trainable) if k in passed}
    return Start(params=params, given=readonly(given, shapes, dtype), spread_is_exact=spread_is_exact)
