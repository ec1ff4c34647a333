"""A program as a graph of what is drawn: cores, dots, legs, and the links between them from top to bottom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from ..layout import Layout
from ..topology import Core, Segment, bond_indices, sizes_of

Role = Literal["core", "dot", "pass", "leg"]


@dataclass(frozen=True, kw_only=True)
class Item:
    """A thing with a place: a core, a dot, the place where a leg of a state passes a segment, or the end of a leg."""

    key: str
    role: Role
    segment: int
    core: Core | None = None


@dataclass(frozen=True, kw_only=True)
class Link:
    """A piece of a line between two items.

    Parameters
    ----------
    upper, lower : str
        The items, in the order of the segments and of their cores.
    line : str
        The name of its bond or leg.
    index : str
        The index in the equations.
    shade : str
        The name of the bond that colours it.
    """

    upper: str
    lower: str
    line: str
    index: str
    shade: str


@dataclass(frozen=True, kw_only=True)
class Stroke:
    """A bond or a leg, without points."""

    name: str
    kind: str
    dim: int
    ends: tuple[str, ...]
    axis: int | None = None


@dataclass(kw_only=True)
class Diagram:
    """All items by name, links, and lines by name."""

    segments: Sequence[Segment]
    layout: Layout
    items: dict[str, Item] = field(default_factory=dict)
    links: list[Link] = field(default_factory=list)
    strokes: dict[str, Stroke] = field(default_factory=dict)

    @property
    def cores(self) -> list[Item]:
        """The cores, in the order of the segments."""
        return [item for item in self.items.values() if item.role == "core"]

    @property
    def legs(self) -> list[str]:
        """The names of the legs of the weight, in their order."""
        return [s.name for s in self.strokes.values() if s.kind == "leg"]

    def legs_of(self, key: str) -> list[str]:
        """Return the legs of the weight at an item."""
        found = {self.strokes[k.line].name for k in self.links if k.upper == key and self.items[k.lower].role == "leg"}
        return [name for name in self.legs if name in found]


def diagram(segments: Sequence[Segment], layout: Layout) -> Diagram:
    """List what is drawn for a program."""
    found = Diagram(segments=segments, layout=layout)
    names: dict[tuple[int, str], str] = {}
    for bond in bond_indices(segments):
        names[bond.segment, bond.index] = bond.name
        found.strokes[bond.name] = Stroke(name=bond.name, kind=bond.kind, dim=bond.dim, ends=bond.ends)
    last, sizes = len(segments) - 1, sizes_of(segments)
    axes = dict(zip(segments[-1].outputs, layout.leg_axes, strict=True))
    for leg in segments[-1].outputs:
        names[last, leg] = _leg_key(leg)
        ends = tuple(core.name for core in segments[-1].cores if leg in core.inds)
        found.strokes[_leg_key(leg)] = Stroke(name=leg, kind="leg", dim=sizes[leg], ends=ends, axis=axes[leg][0])
    above: dict[str, str] = {}
    for t, segment in enumerate(segments):
        above = _add(found, t, segment, above, names)
    for leg in segments[-1].outputs:
        key = _leg_key(leg)
        found.items[key] = Item(key=key, role="leg", segment=last)
        found.links.append(Link(upper=above[leg], lower=key, line=key, index=leg, shade=key))
    return found


def _leg_key(leg: str) -> str:
    return f"(leg) {leg}"


def core_key(name: str) -> str:
    """Return the key of a core."""
    return f"(core) {name}"


def _add(
    found: Diagram, t: int, segment: Segment, above: dict[str, str], names: dict[tuple[int, str], str]
) -> dict[str, str]:
    """Add a segment below the items where its incoming legs come from; return those where its outgoing ones do."""
    for core in segment.cores:
        key = core_key(core.name)
        found.items[key] = Item(key=key, role="core", segment=t, core=core)
    indices = dict.fromkeys((*segment.inputs, *(i for core in segment.cores for i in core.inds)))
    out: dict[str, str] = {}
    for index in indices:
        cores = [core_key(core.name) for core in segment.cores if index in core.inds]
        comes, goes = index in segment.inputs, index in segment.outputs
        upper = names.get((t - 1, index), "")
        own = names.get((t, index), "")
        place = _place(found, t, index, cores, comes or goes)
        if comes:
            found.links.append(Link(upper=above[index], lower=place or cores[0], line=upper, index=index, shade=upper))
        if place and found.items[place].role == "dot":
            _spokes(found, place, index, cores, own or upper, goes)
        elif not comes and not goes and len(cores) == 2:
            found.links.append(Link(upper=cores[0], lower=cores[1], line=own, index=index, shade=own))
        if goes:
            out[index] = place or cores[0]
    return out


def _place(found: Diagram, t: int, index: str, cores: list[str], is_open: bool) -> str:
    """Add a dot where an index needs one, or the place where it passes; return its key, or nothing."""
    if len(cores) + is_open > 2 or (not cores and is_open):
        key = f"(dot) {index} {t}"
        found.items[key] = Item(key=key, role="dot" if cores else "pass", segment=t)
        return key
    return ""


def _spokes(found: Diagram, dot: str, index: str, cores: list[str], line: str, goes: bool) -> None:
    """Link a dot with its cores: it is below them if the index goes on, above them otherwise."""
    kind = found.strokes[line].kind
    for core in cores:
        shade = f"{index}@{core.removeprefix('(core) ')}" if kind == "hyper" else line
        upper, lower = (core, dot) if goes else (dot, core)
        found.links.append(Link(upper=upper, lower=lower, line=line, index=index, shade=shade))
