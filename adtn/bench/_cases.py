"""The benchmark set: topologies, shapes and batches for judging the scheduler and the backends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import BenchError
from ..generator import Generator
from ..layout import Layout
from ..topology import ATTN, MERA, MPO, TTN, BrickWall, Topology, Tucker

# name -> topology and the target size of a leg, None for the default of the topology
TOPOLOGIES: dict[str, tuple[Topology, int | None]] = {
    "TTN 2": (TTN(bond=2), 8),
    "TTN 4": (TTN(bond=4), 8),
    "TTN 8": (TTN(bond=8), 8),
    "aTTN 4": (ATTN(bond=4), 8),
    "MERA 4": (MERA(bond=4), 8),
    "wall 1": (BrickWall(layers=1), None),
    "wall 2": (BrickWall(layers=2), None),
    "wall 4": (BrickWall(layers=4), None),
    "MPO 8": (MPO(bond=8), 8),
    "Tucker 4": (Tucker(bond=4), 8),
}
SHAPES = ((256, 256), (1024, 1024), (4096, 4096), (11008, 4096))
BATCHES = (1, 16, 64, 256, 1024)


@dataclass(frozen=True)
class BenchCase:
    """One topology on one shape.

    Parameters
    ----------
    name : str
        A key of :data:`TOPOLOGIES`.
    shape : tuple of int
        Shape of the weight.
    """

    name: str
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        if self.name not in TOPOLOGIES:
            raise BenchError(f"Got case {self.name!r}; expected one of {', '.join(TOPOLOGIES)}.")

    @property
    def label(self) -> str:
        """The label of the case in tables."""
        return f"{self.name} {self.shape[0]}x{self.shape[1]}"

    def generator(self) -> Generator:
        """Create the generator of the case, identical on every machine."""
        topology, leg = TOPOLOGIES[self.name]
        layout = Layout.of(self.shape, leg, topology.order) if leg is not None else None
        return Generator(self.shape, topology, layout=layout, seed=0)


def bench_set(shapes: Sequence[tuple[int, int]] = SHAPES, names: Sequence[str] = tuple(TOPOLOGIES)) -> list[BenchCase]:
    """List all topologies on all shapes; brick walls have legs of 2, so only on powers of two."""
    cases = [BenchCase(name, shape) for shape in shapes for name in names]
    return [c for c in cases if not (c.name.startswith("wall") and any(n & (n - 1) for n in c.shape))]
