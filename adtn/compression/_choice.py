"""How one weight is stored: a topology on a layout, or dense, with what it costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .._typing import Shape
from ..errors import LayoutError, TopologyError
from ..layout import Layout
from ..topology import Topology
from ._sizes import largest_within, stored_params

Unit = Literal["parameters", "bytes"]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A way to store one weight.

    Parameters
    ----------
    topology, layout
        The generator; ``None`` for a weight that stays as it is.
    params, bytes : int
        What it costs.
    """

    topology: Topology | None
    layout: Layout | None
    params: int
    bytes: int

    def cost(self, unit: Unit) -> int:
        """Return the parameters or the bytes."""
        return self.params if unit == "parameters" else self.bytes

    def __str__(self) -> str:
        legs = "" if self.layout is None else f", legs {self.layout.dims}"
        return f"{self.topology or 'dense'}{legs}, {self.params:,} parameters"


@dataclass(frozen=True, kw_only=True)
class Family:
    """The choices that differ in size only.

    Parameters
    ----------
    topology : Topology
        Its bond is ignored.
    layout : Layout
    itemsize : int
        Bytes of one parameter.
    """

    topology: Topology
    layout: Layout
    itemsize: int

    def within(self, params: int) -> Choice | None:
        """Return the largest member of at most ``params`` parameters, or ``None``."""
        grown = largest_within(self.topology, self.layout, params) if self.topology.grows else self.topology
        if grown is None or (size := stored_params(grown, self.layout)) > params:
            return None
        return self._member(grown, size)

    def holds(self, choice: Choice) -> bool:
        """Return whether a choice is a member."""
        return (choice.layout, type(choice.topology)) == (self.layout, type(self.topology)) and (
            _nominal(choice.topology) == self.topology if choice.topology is not None else False
        )

    def sized(self, bond: int) -> Choice:
        """Return the member of a given bond dimension."""
        grown = self.topology.grown(bond)
        return self._member(grown, stored_params(grown, self.layout))

    def _member(self, topology: Topology, params: int) -> Choice:
        return Choice(topology=topology, layout=self.layout, params=params, bytes=params * self.itemsize)


def dense_choice(shape: Shape, itemsize: int) -> Choice:
    """Return the choice of a weight that stays as it is."""
    entries = math.prod(shape)
    return Choice(topology=None, layout=None, params=entries, bytes=entries * itemsize)


def families(shape: Shape, topologies: Sequence[Topology], itemsize: int) -> list[Family]:
    """Return the families of these topologies that can generate a weight, on their usual layouts."""
    found: dict[Family, None] = {}
    for topology in topologies:
        for layout in _layouts(shape, topology):
            family = Family(topology=_nominal(topology), layout=layout, itemsize=itemsize)
            try:
                family.topology.segments(layout)
            except (LayoutError, TopologyError):
                continue
            found[family] = None
    return list(found)


def _nominal(topology: Topology) -> Topology:
    """Return the member of a family by which it is recognised."""
    return topology.grown(1) if topology.grows == "bond" else topology


def _layouts(shape: Shape, topology: Topology) -> list[Layout]:
    """Return the usual layout of a topology whose legs are whole axes or have a required size, and several others."""
    usual = topology.default_layout(shape)
    if topology.exact or usual == whole_axes(shape):
        return [usual]
    layouts = [usual]
    for leg in (4, 8, 16, 32):
        one = Layout.of(shape, leg, topology.order)
        if one not in layouts:
            layouts.append(one)
    return layouts


def whole_axes(shape: Shape) -> Layout:
    """Return the layout whose legs are the axes."""
    return Layout.of(shape, max(shape))
