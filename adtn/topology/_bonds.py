"""The bonds of a network: which indices are summed, which are legs of a state, and which cores they join."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from .._checks import shown
from .._typing import Inds
from ..errors import TopologyError
from ._activation import Gauge, get_activation
from ._segment import Segment, sizes_of

BondKind = Literal["linear", "state", "hyper"]
BondGauge = Gauge | Literal["monomial"]


@dataclass(frozen=True, kw_only=True)
class BondIndex:
    """A virtual index of a network.

    Parameters
    ----------
    name : str
        Its name, unique within a generator: the index, and ``#`` with its segment if several have one of that name.
    index : str
        The index in the equations.
    kind : {"linear", "state", "hyper"}
        - ``"linear"``: summed between two cores of a segment
        - ``"state"``: a leg of the state between two segments
        - ``"hyper"``: on more than two cores of a segment, summed once
    segment : int
        The position of its segment; for a leg of a state, of the one that it comes from.
    dim : int
        Its dimension.
    above, below : tuple of str
        Names of the cores on its first and second side; all cores of a hyper-index are in ``above``. A leg of a state
        has none where it passes through a segment.
    gauge : str
        The matrices that can be inserted together with their inverse without changing the weight: ``"GL"`` (all
        invertible ones), ``"positive monomial"``, ``"signed permutations"``, ``"permutations"``, or, on a hyper-index,
        ``"monomial"`` (permutations times scalings of its cores whose product is one).
    """

    name: str
    index: str
    kind: BondKind
    segment: int
    dim: int
    above: tuple[str, ...]
    below: tuple[str, ...]
    gauge: BondGauge

    @property
    def ends(self) -> tuple[str, ...]:
        """The names of the cores that it joins."""
        return self.above + self.below


def bond_indices(segments: Sequence[Segment]) -> tuple[BondIndex, ...]:
    """List the virtual indices of a program, segment by segment, each followed by the legs of its outgoing state."""
    sizes = sizes_of(segments)
    found: list[BondIndex] = []
    for t, segment in enumerate(segments):
        open_legs = {*segment.inputs, *segment.outputs}
        places = _places(segment)
        for index, cores in places.items():
            if len(cores) < 2 or index in open_legs:
                continue
            linear = len(cores) == 2
            found.append(
                BondIndex(
                    name=index,
                    index=index,
                    kind="linear" if linear else "hyper",
                    segment=t,
                    dim=sizes[index],
                    above=cores[:1] if linear else cores,
                    below=cores[1:] if linear else (),
                    gauge="GL" if linear else "monomial",
                )
            )
        if t == len(segments) - 1:
            break
        after = _places(segments[t + 1])
        gauge = get_activation(segment.activation).gauge
        for index in segment.outputs:
            above, below = places.get(index, ()), after.get(index, ())
            found.append(
                BondIndex(
                    name=index,
                    index=index,
                    kind="state",
                    segment=t,
                    dim=sizes[index],
                    above=above,
                    below=below,
                    gauge=gauge,
                )
            )
    uses = Counter(bond.index for bond in found)
    return tuple(b if uses[b.index] == 1 else replace(b, name=f"{b.index}#{b.segment + 1}") for b in found)


def find_bond(segments: Sequence[Segment], name: str) -> BondIndex:
    """Return the virtual index called ``name``.

    Raises
    ------
    TopologyError
        If there is none.
    """
    bonds = {bond.name: bond for bond in bond_indices(segments)}
    if name not in bonds:
        listed = ", ".join(list(bonds)[:12]) or "none"
        raise TopologyError(
            f"Got name={shown(name)}, which is not a bond of this generator; expected one of its {len(bonds)}: "
            f"{listed}."
        )
    return bonds[name]


def _places(segment: Segment) -> dict[str, tuple[str, ...]]:
    """Return the cores of every index, by name, in order."""
    places: dict[str, tuple[str, ...]] = {}
    for core in segment.cores:
        for index in dict.fromkeys(core.inds):
            places[index] = (*places.get(index, ()), core.name)
    return places


def is_elementwise(segments: Sequence[Segment], bond: BondIndex, side: str) -> bool:
    """Return whether a leg of a state is an index of the input and of the result of the segment on one side of it."""
    if bond.kind != "state":
        return False
    segment = segments[bond.segment + (side == "below")]
    return bond.index in segment.inputs and bond.index in segment.outputs


def renamed_index(inds: Inds, old: str, new: str) -> Inds:
    """Rename one index."""
    return tuple(new if i == old else i for i in inds)
