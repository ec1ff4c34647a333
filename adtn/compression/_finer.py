"""Entropy codes of finer steps in what is left of a budget.

The squared error of a code falls by the same factor per bit in every weight, so that an allocation stays the best one
when all rates rise by the same number of bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from ..precision import Precision
from ._choice import Choice

_LEFT = 0.02  # of a budget, below which nothing is changed
_LARGEST = 12.0  # bits per entry
_BYTES = 6  # of a weight, that may be more: codes are whole words, and a rate with two decimals is longer in a header


def with_finer_codes(choices: Mapping[str, Choice], most: int) -> dict[str, Choice]:
    """Return choices with all entropy codes finer by the same number of bits, within ``most`` bytes.

    They are the same ones if there are no entropy codes, or if at most 2 % of the bytes are left.
    """
    left = most - sum(choice.bytes for choice in choices.values())
    coded = {name: precision for name, choice in choices.items() if (precision := _code_of(choice)) is not None}
    entries = sum(choices[name].params for name in coded)
    more = math.floor(100 * 8 * (left - _BYTES * len(coded)) / max(entries, 1)) / 100
    if left <= _LEFT * most or more <= 0.0:
        return dict(choices)
    return {name: _finer(c, coded[name], more) if name in coded else c for name, c in choices.items()}


def _code_of(choice: Choice) -> Precision | None:
    precision = None if choice.family is None else choice.family.precision
    return precision if precision is not None and precision.is_coded else None


def _finer(choice: Choice, precision: Precision, more: float) -> Choice:
    assert choice.family is not None and choice.topology is not None and precision.rate is not None, "it has a code"
    rate = min(round(precision.rate + more, 2), _LARGEST)
    family = replace(choice.family, precision=replace(precision, rate=rate))
    return family.member(choice.topology, choice.params)
