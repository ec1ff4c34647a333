"""The ways to store one weight: a topology on a layout, or dense, with its costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from .._typing import Shape
from ..errors import LayoutError, TopologyError
from ..layout import Layout
from ..precision import Precision
from ..topology import TT, Dense, KroneckerSum, LowRank, Topology, Tucker
from ._sizes import rounded_bytes, stored_params

Unit = Literal["parameters", "bytes"]
_LARGEST_BOND = 4096
_RATES_OF_CORES = (2.0, 3.0, 4.0)
_BEST = {  # for matrices, and for convolutions; measured in bench/compress
    False: (LowRank(),),
    True: (LowRank(), LowRank(split="spatial"), Tucker(), TT()),
}


@dataclass(frozen=True, kw_only=True)
class Family:
    """The choices that differ in size only.

    Parameters
    ----------
    topology : Topology
        A member of the family; its size is ignored.
    layout : Layout
    precision : Precision or None
        The precision to which cores are rounded.
    itemsize : int
        Bytes of one parameter that is not rounded.
    """

    topology: Topology
    layout: Layout
    precision: Precision | None
    itemsize: int

    def within(self, params: int) -> Choice | None:
        """Return the largest member of at most ``params`` parameters, or ``None``."""
        members = self.members(params)
        return members[-1] if members else None

    def members(self, most: int) -> list[Choice]:
        """Return all members of at most ``most`` parameters, from small to large."""
        return [choice for choice in _members(self, 1 << max(most - 1, 0).bit_length()) if choice.params <= most]

    def sized(self, bond: int) -> Choice:
        """Return the member of a given bond dimension."""
        grown = self.topology.grown(bond)
        return self.member(grown, stored_params(grown, self.layout))

    def member(self, topology: Topology, params: int) -> Choice:
        """Return the choice of one of its topologies."""
        size = params * self.itemsize
        if self.precision is not None:
            size = rounded_bytes(topology, self.layout, self.precision)
        return Choice(family=self, topology=topology, params=params, bytes=size)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A way to store one weight.

    Parameters
    ----------
    family : Family or None
        ``None`` for a weight that stays as it is.
    topology : Topology or None
    params, bytes : int
        What it costs.
    """

    family: Family | None
    topology: Topology | None
    params: int
    bytes: int

    @property
    def layout(self) -> Layout | None:
        """The layout of the generator."""
        return None if self.family is None else self.family.layout

    def cost(self, unit: Unit) -> int:
        """Return the parameters or the bytes."""
        return self.params if unit == "parameters" else self.bytes

    def __str__(self) -> str:
        legs = "" if self.layout is None else f", legs {self.layout.dims}"
        precision = "" if self.family is None or self.family.precision is None else f", {self.family.precision}"
        return f"{self.topology or 'dense'}{precision}{legs}, {self.params:,} parameters, {self.bytes:,} bytes"


@lru_cache(maxsize=1024)
def _members(family: Family, most: int) -> tuple[Choice, ...]:
    """Return the members of at most ``most`` parameters, each with the smallest bond dimension of its size."""
    if not family.topology.grows:
        size = stored_params(family.topology, family.layout)
        return (family.member(family.topology, size),) if size <= most else ()
    found: list[Choice] = []
    for bond in range(1, _LARGEST_BOND):
        choice = family.sized(bond)
        if choice.params > most or (found and choice.params == found[-1].params):
            break
        found.append(choice)
    return tuple(found)


def dense_choice(shape: Shape, itemsize: int) -> Choice:
    """Return the choice of a weight that stays as it is."""
    entries = math.prod(shape)
    return Choice(family=None, topology=None, params=entries, bytes=entries * itemsize)


def families(
    shape: Shape, topologies: Sequence[Topology] | None, precisions: Sequence[Precision], itemsize: int
) -> list[Family]:
    """Return the families of these topologies that can generate a weight, on their usual layouts.

    Parameters
    ----------
    shape : tuple of int
    topologies : sequence of Topology or None
        By default, those that are best on trained weights.
    precisions : sequence of Precision
        The precisions to which the dense weight may be rounded, and cores to the coarse ones among them.
    itemsize : int
        Bytes of one parameter that is not rounded.
    """
    found: dict[Family, None] = {}
    for given in _BEST[len(shape) > 2] if topologies is None else topologies:
        topology = _for_shape(given, shape)
        for layout in _layouts(shape, topology):
            try:
                topology.segments(layout)
            except (LayoutError, TopologyError):
                continue
            for precision in (None, *_of_cores(precisions)):
                found[Family(topology=topology, layout=layout, precision=precision, itemsize=itemsize)] = None
    for precision in precisions:
        found[Family(topology=Dense(), layout=Layout.whole(shape), precision=precision, itemsize=itemsize)] = None
    return list(found)


def _of_cores(precisions: Sequence[Precision]) -> list[Precision]:
    """Return the integers of each number of bits with the largest groups: more ranks are better than more scales.

    Of entropy codes, those of whole bits are enough, as the rank changes in small steps. Columns of cores are not
    ordered: with the order, errors of rounded pairs of MiniLM were 1 percent larger in the mean.
    """
    found: dict[float, Precision] = {}
    for precision in (replace(p, ordered=False) for p in precisions):
        best = found.get(precision.bits)
        larger = best is None or (best.group is not None and (precision.group or math.inf) > best.group)
        if precision.is_integer and larger:
            found[precision.bits] = precision
    coded = [p for p in precisions if p.is_coded and p.bits in _RATES_OF_CORES]
    return [*found.values(), *coded]


def _for_shape(topology: Topology, shape: Shape) -> Topology:
    """Return the Tucker-2 form for convolutions, and other topologies of the smallest size."""
    if isinstance(topology, Tucker) and isinstance(topology.bond, int) and len(shape) > 2:
        return replace(topology, bond=(*shape[:2], *(None for _ in shape[2:])))
    return topology.grown(1) if topology.grows and not isinstance(getattr(topology, "bond", 1), tuple) else topology


def _layouts(shape: Shape, topology: Topology) -> list[Layout]:
    """Return the usual layout of a topology, whole axes for trains over convolutions, and larger legs for matrices."""
    usual = topology.default_layout(shape)
    if topology.exact or usual == Layout.whole(shape) or isinstance(topology, KroneckerSum):
        return [usual]
    if len(shape) > 2:
        return [Layout.whole(shape)] if type(topology) is TT else [usual]
    return list(dict.fromkeys([usual, *(Layout.of(shape, leg, topology.order) for leg in (4, 32))]))
