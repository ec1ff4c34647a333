"""Budgets: the choice of a topology, bond and layout for every layer, so that the model has the requested size.

With the relative error e of a layer's outputs, the loss of the model grows about as ``Σ_layers s e²``: e is measured by
quick local fits of candidates of several sizes, and the sensitivity s by installing one of them in the model. Then one
candidate per layer is chosen such that the sum is smallest and the sizes are within the budget.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any

import numpy as np

from .._checks import Count, NotNegative, Range, check_fields, checked
from .._typing import Shape
from ..errors import CompressError
from ..layout import Layout
from ..topology import Topology
from ._sizes import largest_within, stored_params

_CELLS = 4000  # resolution of the allocation, in parts of the budget


@dataclass(frozen=True)
class Budget:
    """The size that a compressed model may have, or the accuracy that it may lose; exactly one of them.

    Parameters
    ----------
    params : int, optional
        The largest number of parameters of the whole model.
    bytes : int, optional
        The largest number of bytes of all its parameters.
    ratio : float, optional
        The factor by which the whole model becomes smaller, at least.
    accuracy_loss : float, optional
        The largest loss of accuracy in percentage points; the smallest model found that loses no more is chosen.

    Raises
    ------
    CompressError
        If none or several are given, or a value is not allowed.

    Examples
    --------
    >>> Budget(ratio=20).most(1_000_000, 4_000_000)
    (50000, 'parameters')
    """

    params: Count | None = None
    bytes: Count | None = None
    ratio: Annotated[float, Range(1.0)] | None = None
    accuracy_loss: NotNegative | None = None

    def __post_init__(self) -> None:
        check_fields(self, CompressError)
        options = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        if len(options) != 1:
            raise CompressError(
                f"Got a budget of {options or 'nothing'}; expected one of params, bytes, ratio, accuracy_loss."
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

    def most(self, params: int, size: int) -> tuple[int, str]:
        """Return the largest cost of the whole model and its unit, for a model of that many parameters and bytes."""
        if self.bytes is not None:
            return int(self.bytes), "bytes"
        if self.params is not None:
            return int(self.params), "parameters"
        return int(params / (self.ratio or 1.0)), "parameters"


@dataclass(frozen=True)
class Choice:
    """A topology and a layout by which one weight is generated."""

    topology: Topology
    layout: Layout
    params: int


def layouts_of(shape: Shape) -> list[Layout]:
    """Return small, middle and large legs, by axis and interleaved."""
    layouts: list[Layout] = []
    for leg in (4, 8, 16):
        for order in ("axis", "interleaved"):
            one = Layout.of(shape, leg, order)
            if one not in layouts:
                layouts.append(one)
    return layouts


def rungs_of(entries: int, least: int) -> list[int]:
    """Return sizes from half of the dense weight downwards, by factors of two."""
    sizes = [entries >> k for k in range(1, entries.bit_length()) if entries >> k >= least]
    return sizes[:: max(1, math.ceil(len(sizes) / 8))]


def candidates(shape: Shape, topologies: Sequence[Topology], size: int) -> list[Choice]:
    """Return the largest generators of at most ``size`` parameters, for topologies and layouts that can be so small."""
    choices: dict[tuple[Topology, Layout], Choice] = {}
    for topology in topologies:
        for layout in layouts_of(shape) if not topology.exact else [topology.default_layout(shape)]:
            grown = largest_within(topology, layout, size) if topology.grows else topology
            if grown is not None and stored_params(grown, layout) <= size:
                choices[grown, layout] = Choice(grown, layout, stored_params(grown, layout))
    return list(choices.values())


def smallest(shape: Shape, topologies: Sequence[Topology]) -> int:
    """Return the number of parameters of the smallest candidate."""
    entries = math.prod(shape)
    sizes = [c.params for k in range(entries.bit_length()) for c in candidates(shape, topologies, 1 << k)[:1]]
    if not sizes:
        raise CompressError(f"No topology among {list(topologies)} is smaller than a weight of {shape}.")
    return min(sizes)


def allocate(
    options: Mapping[str, Sequence[tuple[int, float]]], most: int, describe: Callable[[int], str] = str
) -> dict[str, int]:
    """Choose one option per layer, so that the costs are at most ``most`` in total and the losses are smallest.

    Parameters
    ----------
    options : mapping of str to sequence of (cost, loss)
        The options of every layer.
    most : int
    describe : callable
        A function that describes a cost, for the error.

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
            f"Got a budget that leaves {describe(most)} for the chosen layers; their smallest candidates together have "
            f"{describe(least)}. Allow more, choose more layers, or give smaller candidates."
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
            joined = best[: cells + 1 - extra] + loss
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
