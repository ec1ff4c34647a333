"""A sketch: the part of a generator that a plan needs, without parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from .._typing import Shape
from ..layout import Layout
from ..topology import Segment, Topology
from ..weight import Weighting


class Planned(Protocol):
    """The part of a generator that a plan needs."""

    @property
    def shape(self) -> Shape: ...
    @property
    def layout(self) -> Layout: ...
    @property
    def topology(self) -> Any: ...
    @property
    def weighting(self) -> Weighting: ...
    @property
    def dtype(self) -> str: ...
    @property
    def segments(self) -> tuple[Segment, ...]: ...


@dataclass(frozen=True)
class Sketch:
    """A generator without parameters, which is enough for a plan."""

    shape: Shape
    topology: Topology
    layout: Layout
    dtype: str = "float32"

    @property
    def weighting(self) -> Weighting:
        """The formula of a generator without a base."""
        return Weighting(layout=self.layout, scale=1.0)

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The program as index equations."""
        return self.topology.segments(self.layout)
