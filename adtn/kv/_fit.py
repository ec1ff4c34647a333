"""The fit of a code to moments and texts: bases, magnitudes, the step, and which components it needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from autoray import do

from .._typing import Array, Int
from ._calibrate import Moments, Precision, Recipe, active, bases_of, magnitudes_of, prefixes
from ._code import Places, StatesCode
from ._decoder import Decoder, States
from ._order import Order
from ._pair import Pair
from ._step import Divergence, step_for
from ._tables import grid_index

_MAGNITUDE_TEXTS = 16  # from which magnitudes are estimated
_STEP_TEXTS = 4  # on which the step is chosen


def fitted(
    decoder: Decoder,
    moments: Pair[Moments],
    groups: tuple[tuple[int, ...], ...],
    texts: Sequence[Int[np.ndarray, " n"]],
    recipe: Recipe,
    kl: float,
    finest: float,
) -> tuple[StatesCode, int, int, int]:
    """Return the code, the step for a divergence, the finest step, and the unit of the weights."""
    bases, unit = bases_of(moments, groups, recipe.weighting)
    first = prefixes(decoder, texts[:_MAGNITUDE_TEXTS], recipe.continuation, recipe.sinks)
    magnitudes = magnitudes_of(bases, groups, first, moments, recipe.least)
    code = StatesCode(groups=groups, bases=bases.map(tuple), magnitudes=magnitudes.map(tuple))
    recipe.say("choosing the step")
    measure = Divergence.of(decoder, texts[-_STEP_TEXTS:], recipe.continuation)
    # errors of rounding by one step have a mean square of a twelfth
    values = len(texts[-1]) * sum(m.mean.size for m in moments)
    start = int(grid_index(np.sqrt(np.array(24.0 * kl / values)))) - unit

    def loss(step: int) -> float:
        return measure(lambda states, ids: _recoded(code, states, ids, step, recipe.sinks))

    step = step_for(kl, loss, start)
    least = step + int(grid_index(np.array(finest)))
    return without_inactive(code, least, recipe.precision), step, least, unit


def _recoded(code: StatesCode, states: States, ids: Int[np.ndarray, " tokens"], step: int, sinks: int) -> States:
    """Return states as they are after coding; the first ones are as they were."""
    n = min(sinks, len(ids))
    places = Places(order=Order.by_id(ids[n:]), step=step, is_even=False)
    again = code.recoded(states.map(lambda x: x[n:]), places)

    def whole(first: Array, rest: Array) -> Array:
        return do("concatenate", [first[:n], rest], axis=0)

    return Pair(k=whole(states.k, again.k), v=whole(states.v, again.v))


def without_inactive(code: StatesCode, finest: int, precision: Precision) -> StatesCode:
    """Return a code without the components that have no symbols at the finest step."""
    pairs = Pair(
        k=[active(basis, magnitudes, finest, precision) for basis, magnitudes, _ in code.parts("k")],
        v=[active(basis, magnitudes, finest, precision) for basis, magnitudes, _ in code.parts("v")],
    )
    return replace(
        code,
        bases=pairs.map(lambda own: tuple(basis for basis, _ in own)),
        magnitudes=pairs.map(lambda own: tuple(magnitudes for _, magnitudes in own)),
    )
