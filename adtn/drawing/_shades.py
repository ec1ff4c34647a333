"""The colours of bonds, which are measured further up than networks are drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Shade:
    """The colour of a bond.

    Parameters
    ----------
    share : float
        Its entropy over the logarithm of its dimension.
    exact : bool
        Whether that is the entropy of a cut; other bonds are dashed.
    """

    share: float
    exact: bool


Measure = Callable[[Any], dict[str, Shade]]
_MEASURES: dict[str, Measure] = {}


def measures_shades(measure: Measure) -> Measure:
    """Register the function that measures a generator: ``bondspace``, which this folder does not know."""
    _MEASURES["bonds"] = measure
    return measure


def shades_of(generator: Any) -> dict[str, Shade]:
    """Return the shades of the bonds of a generator by name."""
    return _MEASURES["bonds"](generator)
