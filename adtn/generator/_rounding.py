"""The codes of a generator that is stored in fewer bits: made, and checked."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from .._typing import Shape
from ..errors import GeneratorError, PrecisionError
from ..precision import Codes, Precision, round_to


def rounded_codes(
    stored: Mapping[str, np.ndarray],
    precision: Precision,
    hessians: Mapping[str, Any],
    row_hessians: Mapping[str, Any],
) -> dict[str, Codes]:
    """Round the stored parameters.

    Raises
    ------
    GeneratorError
        If a core cannot be rounded, or a moment belongs to no core or does not fit.
    """
    if unknown := sorted({*hessians, *row_hessians} - set(stored)):
        raise GeneratorError(f"Got hessians of {unknown}; expected some of {sorted(stored)}.")
    codes: dict[str, Codes] = {}
    for name, x in stored.items():
        try:
            of_rows = row_hessians.get(name)
            codes[name] = round_to(x, precision.of(x.shape), hessians.get(name), row_hessian=of_rows)
        except PrecisionError as error:
            raise GeneratorError(f"Cannot round the core {name!r}: {error}") from error
    return codes


def checked_codes(codes: Mapping[str, Codes], precision: Precision, shapes: Mapping[str, Shape]) -> Mapping[str, Codes]:
    """Return codes by name, read-only.

    Raises
    ------
    GeneratorError
        If a name is missing or unknown, or a shape or precision differs.
    """
    if set(codes) != set(shapes):
        raise GeneratorError(f"Got codes of {sorted(codes)}; expected those of {sorted(shapes)}.")
    for name, x in codes.items():
        if (x.shape, x.precision) != (shapes[name], precision.of(shapes[name])):
            raise GeneratorError(
                f"Got {x!r} for {name!r}; expected the shape {shapes[name]} in {precision.of(shapes[name])}."
            )
    return MappingProxyType(dict(sorted(codes.items())))
