"""The step that loses as much as is allowed, found by measuring."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from autoray import do

from .._typing import Array, Float, Int
from ._decoder import Decoder, States
from ._tables import PER_OCTAVE

_TRIES = 8


def divergence(exact: Float[Array, "tokens vocabulary"], coded: Float[Array, "tokens vocabulary"]) -> float:
    """Return the mean over tokens of KL(exact || coded), in nats, for log-probabilities."""
    return float(do("mean", do("sum", do("exp", exact) * (exact - coded), axis=-1)))


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """The mean divergence of continuations that read coded prefixes.

    Parameters
    ----------
    decoder : Decoder
    prefixes : sequence of (states, others, token ids)
        Exact prefixes.
    continuations : sequence of (token ids, log-probabilities)
        What reads them, with the exact results.
    """

    decoder: Decoder
    prefixes: Sequence[tuple[States, Any, Int[np.ndarray, " tokens"]]]
    continuations: Sequence[tuple[Int[np.ndarray, " n"], Float[Array, "n vocabulary"]]]

    @classmethod
    def of(cls, decoder: Decoder, texts: Sequence[Int[np.ndarray, " n"]], continuation: int) -> Divergence:
        """Read the texts exactly."""
        prefixes, continuations = [], []
        for ids in texts:
            first, rest = ids[:-continuation], ids[-continuation:]
            cache = decoder.prefill(first)
            prefixes.append((decoder.states(cache), decoder.others(cache), first))
            continuations.append((rest, decoder.log_probabilities(cache, rest)))
        return cls(decoder=decoder, prefixes=prefixes, continuations=continuations)

    def __call__(self, recoded: Callable[[States, Int[np.ndarray, " tokens"]], States]) -> float:
        """Return the mean divergence with prefixes that have passed through ``recoded``."""
        found: list[float] = []
        for (states, others, ids), (rest, exact) in zip(self.prefixes, self.continuations, strict=True):
            cache = self.decoder.cache(recoded(states, ids), others)
            found.append(divergence(exact, self.decoder.log_probabilities(cache, rest)))
        return float(np.mean(found))


def step_for(wanted: float, measure: Callable[[int], float], first: int) -> int:
    """Return the coarsest step, a point of the grid, that loses at most ``wanted``.

    Losses grow about with the square of the step, which gives the next step to try; what was tried bounds it.
    """
    low, high = None, None
    index = first
    for _ in range(_TRIES):
        loss = measure(index)
        if loss <= wanted:
            low = index if low is None else max(low, index)
        else:
            high = index if high is None else min(high, index)
        moved = PER_OCTAVE * math.log2(wanted / max(loss, 1e-3 * wanted)) / 2.0
        following = index + (max(round(moved), 1) if loss <= wanted else min(round(moved), -1))
        if low is not None and high is not None:
            if high - low <= 1:
                return low
            following = min(max(following, low + 1), high - 1)
        index = following
    return low if low is not None else index
