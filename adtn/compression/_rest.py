"""The ways to store what is not generated."""

from __future__ import annotations

from dataclasses import dataclass

from ..precision import Precision

RESTS = (None, Precision("float16"), Precision("int8"))
"""The precisions to choose from for what is not generated; ``None`` leaves it as it is."""


@dataclass(frozen=True, kw_only=True)
class Rest:
    """A way to store what is not generated.

    Parameters
    ----------
    precision : Precision or None
    bytes : int
    loss : float
        What the model's outputs lose.
    """

    precision: Precision | None
    bytes: int
    loss: float


def stored_as(rest: Precision | None) -> str:
    """Describe in which precision a file holds what is not generated.

    Examples
    --------
    >>> stored_as(None), stored_as(Precision("int8"))
    ('as it is', 'as int8, what is small as float16')
    """
    if rest is None:
        return "as it is"
    return f"as {rest}, what is small as float16" if rest.is_integer else f"as {rest}"
