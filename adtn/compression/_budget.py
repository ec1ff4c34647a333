"""Budgets: the size that a model may have, and its exact distribution over the layers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any

import numpy as np

from .._checks import Count, NotNegative, Range, check_fields, checked
from ..device import parse_bytes
from ..errors import CompressError
from ._choice import Unit

_WORST = 1e300  # the loss of an option whose loss is not finite: many of them still add up to a number
_CELLS = 4000  # resolution of the allocation, in parts of the budget


@dataclass(frozen=True)
class Budget:
    """The size that a compressed model may have, or the accuracy that it may lose; exactly one of them.

    Parameters
    ----------
    params : int, optional
        The largest number of parameters of the whole model.
    bytes : int, optional
        The largest size of the file of the whole model, headers included; layers, and everything else, may then be
        stored as integers and in half precision.
    bytes_ratio : float, optional
        The factor by which that file becomes smaller, at least.
    ratio : float, optional
        The factor by which the number of parameters of the whole model becomes smaller, at least.
    accuracy_loss : float, optional
        The largest loss of accuracy in percentage points; the smallest model found that loses no more is chosen.

    Raises
    ------
    CompressError
        If none or several are given, or a value is not allowed.

    Examples
    --------
    >>> Budget(ratio=20).most(1_000_000), Budget(ratio=20).unit
    (50000, 'parameters')
    """

    params: Count | None = None
    bytes: Count | None = None
    ratio: Annotated[float, Range(1.0)] | None = None
    bytes_ratio: Annotated[float, Range(1.0)] | None = None
    accuracy_loss: NotNegative | None = None

    def __post_init__(self) -> None:
        check_fields(self, CompressError)
        options = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        if len(options) != 1:
            raise CompressError(
                f"Got a budget of {options or 'nothing'}; expected one of params, bytes, ratio, "
                "bytes_ratio, accuracy_loss."
            )

    @classmethod
    @checked(CompressError)
    def from_dict(cls, values: Mapping[str, Any]) -> Budget:
        """Read a budget from plain values.

        Examples
        --------
        >>> Budget.from_dict({"ratio": 20}).ratio
        20
        """
        names = {f.name for f in fields(cls)}
        if unknown := sorted(set(values) - names):
            raise CompressError(f"Got {unknown} for a budget; expected one of {', '.join(sorted(names))}.")
        return cls(**values)

    @classmethod
    @checked(CompressError)
    def parse(cls, text: str) -> Budget:
        """Read a budget in bytes as one writes it: ``"4x"``, ``"25%"`` or ``"2MB"``.

        Raises
        ------
        CompressError
            If it is none of these.

        Examples
        --------
        >>> Budget.parse("25%").bytes_ratio, Budget.parse("1.5 MiB").bytes
        (4.0, 1572864)
        """
        match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(x|%|[KMGT]?i?B)\s*", text, re.IGNORECASE)
        if match is None:
            raise CompressError(
                f"Got the budget {text!r}; expected a ratio such as '4x', a share such as '25%', or a "
                "size such as '2MB' or '512KiB'."
            )
        number, unit = float(match[1]), match[2].lower()
        if unit == "%":
            if not 0.0 < number <= 100.0:
                raise CompressError(f"Got the budget {text!r}; expected a share above 0 and up to 100%.")
            return cls(bytes_ratio=100.0 / number)
        return cls(bytes_ratio=number) if unit == "x" else cls(bytes=parse_bytes(text))

    @property
    def unit(self) -> Unit:
        """The unit of costs."""
        return "parameters" if self.bytes is None and self.bytes_ratio is None else "bytes"

    def most(self, dense: int) -> int:
        """Return the largest cost of a model whose cost is ``dense`` now."""
        wanted = self.bytes if self.params is None else self.params
        return int(wanted) if wanted is not None else int(dense / (self.ratio or self.bytes_ratio or 1.0))


def allocate(options: Mapping[str, Sequence[tuple[int, float]]], most: int) -> dict[str, int]:
    """Choose one option per layer, so that the costs are at most ``most`` in total and the losses are smallest.

    Parameters
    ----------
    options : mapping of str to sequence of (cost, loss)
        The options of every layer.
    most : int

    Returns
    -------
    dict of str to int
        The index of the option of each layer.

    Raises
    ------
    CompressError
        If even the cheapest options cost more in total.

    Examples
    --------
    >>> allocate({"a": [(10, 1.0), (50, 0.1)], "b": [(10, 5.0), (50, 0.2)]}, 60)
    {'a': 0, 'b': 1}
    """
    least = sum(min(cost for cost, _ in own) for own in options.values())
    if least > most:
        raise CompressError(
            f"The smallest candidates together have {least:,}, and {max(most, 0):,} are left for them. "
            "Allow more, choose more layers, or give smaller candidates."
        )
    # costs above the cheapest options are rounded up to cells, so the budget is never exceeded
    cell = max(1.0, (most - least) / _CELLS)
    cells = int((most - least) / cell)
    best = np.zeros(cells + 1)
    picks: list[np.ndarray] = []
    for own in options.values():
        cheapest = min(cost for cost, _ in own)
        total = np.full(cells + 1, np.inf)
        pick = np.zeros(cells + 1, dtype=int)
        for k, (cost, loss) in enumerate(own):
            extra = math.ceil((cost - cheapest) / cell)
            if extra > cells:
                continue
            joined = best[: cells + 1 - extra] + (loss if math.isfinite(loss) else _WORST)
            better = joined < total[extra:]
            total[extra:][better] = joined[better]
            pick[extra:][better] = k
        best = total
        picks.append(pick)
    at, chosen = cells, {}
    for (name, own), pick in zip(reversed(list(options.items())), reversed(picks), strict=True):
        k = int(pick[at])
        chosen[name] = k
        at -= math.ceil((own[k][0] - min(cost for cost, _ in own)) / cell)
    return {name: chosen[name] for name in options}
