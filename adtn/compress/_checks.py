"""Values from callers and from files: what they must be, and errors that say so."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from .._errors import CompressError


def check_whole(name: str, value: Any, least: int) -> None:
    """A whole number.

    Raises
    ------
    CompressError
        If it is none, or smaller than ``least``.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise CompressError(f"Got {name}={value!r}; expected a whole number of at least {least}.")


def check_real(name: str, value: Any, least: float, most: float = math.inf, *, above: bool = False) -> None:
    """A number from ``least``, or above it, to ``most``.

    Raises
    ------
    CompressError
        If it is none, not finite, or out of bounds.
    """
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if math.isfinite(number) and least <= number <= most and not (above and number == least):
        return
    bounds = f"{'above' if above else 'of at least'} {least:g}{'' if most == math.inf else f' and at most {most:g}'}"
    raise CompressError(f"Got {name}={value!r}; expected a number {bounds}.")


def check_choice(name: str, value: Any, known: Sequence[str]) -> None:
    """One of some words.

    Raises
    ------
    CompressError
        If it is another one.
    """
    if value not in known:
        raise CompressError(f"Got {name}={value!r}; expected one of {', '.join(known)}.")


def check_names(name: str, value: Any) -> None:
    """A list of words.

    Raises
    ------
    CompressError
        If it is none; a single word is none either.
    """
    if isinstance(value, str) or not isinstance(value, Sequence) or any(not isinstance(one, str) for one in value):
        example = [value] if isinstance(value, str) else ["fc1"]
        raise CompressError(f"Got {name}={value!r}; expected a list of names, such as {example!r}.")


def check_kind(name: str, value: Any, kind: Any, example: str) -> None:
    """An object of a class.

    Raises
    ------
    CompressError
        If it is of another one.
    """
    if not isinstance(value, kind):
        raise CompressError(f"Got {name}={value!r}; expected {example}.")


def check_mapping(name: str, value: Any, example: str) -> None:
    """Values by names.

    Raises
    ------
    CompressError
        If it is something else.
    """
    if not isinstance(value, Mapping) or any(not isinstance(key, str) for key in value):
        raise CompressError(f"Got {name}={value!r}; expected values by names, such as {example}.")
