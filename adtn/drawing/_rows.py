"""The rows of a layered picture."""

from __future__ import annotations

from ._diagram import Diagram, Item

SIDEWAYS = ("core", "site")
"""Kinds of cores that have no direction: those of a segment may stand beside each other although they are linked."""


def rows_of(diagram: Diagram) -> dict[str, int]:
    """Return the row of every item, from the top."""
    place: dict[str, float] = {}
    base = 0.0
    for t in range(len(diagram.segments)):
        own = [item for item in diagram.items.values() if item.segment == t and item.role != "leg"]
        cores = [item for item in own if item.role == "core"]
        generic = bool(cores) and all(item.core is not None and item.core.kind in SIDEWAYS for item in cores)
        found = _by_distance(diagram, own) if generic else _by_order(diagram, own)
        place |= {key: base + row for key, row in found.items()}
        base = 1.0 + max(place.values(), default=-1.0)
    place |= {item.key: base for item in diagram.items.values() if item.role == "leg"}
    ranks = {row: k for k, row in enumerate(sorted(set(place.values())))}
    return {key: ranks[row] for key, row in place.items()}


def _by_order(diagram: Diagram, own: list[Item]) -> dict[str, float]:
    """Put every item below those it is linked with that come earlier; cores of one kind and level in one row."""
    keys = {item.key for item in own}
    links = [(k.upper, k.lower) for k in diagram.links if k.upper in keys and k.lower in keys]
    linked = {(item.core.kind, item.core.level) for item in own if item.core and _is_linked_inside(item, own, links)}
    rows = dict.fromkeys(keys, 0.0)
    for _ in range(2 * len(own) + 2):
        before = dict(rows)
        for upper, lower in links:
            rows[lower] = max(rows[lower], rows[upper] + 1.0)
        groups: dict[tuple[str, int], float] = {}
        for item in own:
            if item.core and (group := (item.core.kind, item.core.level)) not in linked:
                groups[group] = max(groups.get(group, 0.0), rows[item.key])
        for item in own:
            if item.core:
                rows[item.key] = groups.get((item.core.kind, item.core.level), rows[item.key])
        if rows == before:
            break
    return rows


def _is_linked_inside(item: Item, own: list[Item], links: list[tuple[str, str]]) -> bool:
    """Return whether a core is linked with another one of its kind and level."""
    assert item.core is not None
    group = (item.core.kind, item.core.level)
    same = {one.key for one in own if one.core and (one.core.kind, one.core.level) == group}
    return any(item.key in link and set(link) <= same for link in links)


def _by_distance(diagram: Diagram, own: list[Item]) -> dict[str, float]:
    """Put cores of one level in rows by their distance to the cores that leave the level downwards; dots between."""
    keys = {item.key: item for item in own}
    levels = sorted({item.core.level for item in own if item.core})
    rows: dict[str, float] = {}
    base = 0.0
    for level in levels:
        rest = {item.key for item in own if item.core and item.core.level == level}
        below = {k.upper for k in diagram.links if k.upper in rest and _leaves(keys, k.lower, level)}
        found: list[set[str]] = []
        now = below & rest or set(rest)
        while now:
            found.append(now)
            rest -= now
            near = {b if a in now else a for a, b in ((k.upper, k.lower) for k in diagram.links) if {a, b} & now}
            now = near & rest
        found[-1] |= rest
        for k, group in enumerate(reversed(found)):
            rows |= dict.fromkeys(sorted(group), base + k)
        base += len(found)
    for item in own:
        if item.role == "pass":
            rows[item.key] = 0.0
        elif item.role == "dot":
            under = [rows[k.upper] for k in diagram.links if k.lower == item.key and k.upper in rows]
            over = [rows[k.lower] for k in diagram.links if k.upper == item.key and k.lower in rows]
            rows[item.key] = max(under) + 0.5 if under else min(over, default=0.0) - 0.5
    return rows


def _leaves(keys: dict[str, Item], lower: str, level: int) -> bool:
    item = keys.get(lower)
    return item is None or (item.core is not None and item.core.level > level)
