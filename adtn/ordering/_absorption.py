"""The orders of generated weights that moved into neighbouring layers of a model, and those that stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["hidden", "values", "heads", "keys", "rotary"]
"""Hidden units, channels of values inside heads, heads, channels of keys and queries, and their rotary pairs."""
SIDES = ("outputs", "inputs")
"""The names of the axes of the weight of a linear layer."""


@dataclass(frozen=True, kw_only=True)
class Absorbed:
    """An order that moved into neighbouring layers, where it costs nothing.

    Parameters
    ----------
    kind : {"hidden", "values", "heads", "keys", "rotary"}
        What was brought to another order: hidden units, channels of values inside each head, heads, channels of keys
        and queries, or rotary pairs of these.
    freed : tuple of str
        The axes that need no permutation any more, such as ``"mlp.0 outputs"``.
    into : tuple of str
        What took the order over: axes of other layers, and frequencies of rotary positions.
    bits : float
        The number of bits that are no longer stored.
    """

    kind: Kind
    freed: tuple[str, ...]
    into: tuple[str, ...]
    bits: float

    def __str__(self) -> str:
        into = f" -> {', '.join(self.into)}" if self.into else ""
        return f"{self.kind}: {', '.join(self.freed)}{into} ({self.bits:,.1f} bits)"


@dataclass(frozen=True, kw_only=True)
class Kept:
    """An order that stays: the layer permutes its inputs or outputs in every call.

    Parameters
    ----------
    layer : str
        The name of the layer.
    axis : int
        0 for its outputs, 1 for its inputs.
    reason : str
        Why no neighbour took it over.
    bits : float
        The number of bits that the permutation needs.
    """

    layer: str
    axis: int
    reason: str
    bits: float

    def __str__(self) -> str:
        return f"kept: {self.layer} {SIDES[self.axis]} ({self.bits:,.1f} bits), {self.reason}"


@dataclass(frozen=True, kw_only=True)
class Absorption:
    """The orders that a model took over, and those that it did not; ``absorb_orders`` of a framework returns it.

    Parameters
    ----------
    absorbed : tuple of Absorbed
        The orders that moved.
    kept : tuple of Kept
        The orders that stay.

    Examples
    --------
    >>> from adtn.ordering import Absorbed, Absorption
    >>> moved = Absorbed(kind="hidden", freed=("0 outputs",), into=("2 inputs",), bits=79.8)
    >>> print(Absorption(absorbed=(moved,), kept=()))
    1 order absorbed, 79.8 bits saved; none kept
      hidden: 0 outputs -> 2 inputs (79.8 bits)
    """

    absorbed: tuple[Absorbed, ...]
    kept: tuple[Kept, ...]

    @property
    def bits(self) -> float:
        """The number of all bits that are no longer stored."""
        return sum(one.bits for one in self.absorbed)

    def __str__(self) -> str:
        n, left = len(self.absorbed), sum(one.bits for one in self.kept)
        kept = f"{len(self.kept)} kept ({left:,.1f} bits)" if self.kept else "none kept"
        first = f"{n} order{'' if n == 1 else 's'} absorbed, {self.bits:,.1f} bits saved; {kept}"
        return "\n".join([first, *(f"  {one}" for one in (*self.absorbed, *self.kept))])
