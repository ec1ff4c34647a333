"""What a plan needs to know of a generator: its structure, without numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from .._typing import Shape
from ..network import Layout, Segment, Topology


class Planned(Protocol):
    """What a plan needs to know of a generator."""

    @property
    def shape(self) -> Shape: ...
    @property
    def layout(self) -> Layout: ...
    @property
    def topology(self) -> Any: ...
    @property
    def scale(self) -> float: ...
    @property
    def base(self) -> Any: ...
    @property
    def dtype(self) -> str: ...
    @property
    def segments(self) -> tuple[Segment, ...]: ...


@dataclass(frozen=True)
class Sketch:
    """A generator without numbers: enough for a plan."""

    shape: Shape
    topology: Topology
    layout: Layout
    dtype: str = "float32"
    scale: float = 1.0
    base: None = None

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The program as index equations."""
        return self.topology.segments(self.layout)
