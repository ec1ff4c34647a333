"""Chains, rings and stars, which are not drawn in rows."""

from __future__ import annotations

import math

from ._canvas import Canvas, rim
from ._diagram import Diagram, Link
from ._records import Label, Node, Picture, Point
from ._rows import SIDEWAYS

_APART, _FAN, _LEG = 0.85, 0.75, 0.75
_CLEAR = 0.28  # between the middle of a core and the chord that passes it
_MOST_AROUND = 16  # cores on a circle with chords
_STEPS = 16


def neighbours(diagram: Diagram) -> dict[str, list[tuple[str, Link]]]:
    """Return the cores and dots that every core and dot is linked with, in the order of the links."""
    found: dict[str, list[tuple[str, Link]]] = {
        key: [] for key, item in diagram.items.items() if item.role in ("core", "dot")
    }
    for link in diagram.links:
        if link.upper in found and link.lower in found:
            found[link.upper].append((link.lower, link))
            found[link.lower].append((link.upper, link))
    return found


def path_order(diagram: Diagram) -> list[str] | None:
    """Return the cores of an open chain from one end to the other, or of a ring; ``None`` if it is neither."""
    near = neighbours(diagram)
    ends = [key for key, found in near.items() if len(found) < 2]
    if any(len(found) > 2 or len({k for k, _ in found}) < len(found) for found in near.values()):
        return None
    order = [ends[0] if ends else next(iter(near))]
    while True:
        following = [k for k, _ in near[order[-1]] if k not in order]
        if not following:
            return order if len(order) == len(near) else None
        order.append(following[0])


def star_center(diagram: Diagram) -> str | None:
    """Return the core or dot that all others are linked with, if these are linked with no other."""
    near = neighbours(diagram)
    for key, found in near.items():
        others = [k for k, _ in found]
        if len(others) == len(near) - 1 >= 2 and set(others) == set(near) - {key}:
            return key if all(len(near[k]) == 1 and diagram.legs_of(k) for k in others) else None
    return None


def chain(diagram: Diagram, order: list[str]) -> Picture:
    """Draw sites from left to right, with the legs of the first axis upwards and all others downwards."""
    canvas = Canvas(diagram)
    axes = {s.name: s.axis for s in diagram.strokes.values() if s.kind == "leg"}
    several = len(set(axes.values())) > 1
    up = {key: [n for n in diagram.legs_of(key) if several and axes[n] == 0] for key in order}
    down = {key: [n for n in diagram.legs_of(key) if n not in up[key]] for key in order}
    x, last = 0.0, 0.0
    for k, key in enumerate(order):
        width = _FAN * (max(len(up[key]), len(down[key]), 1) - 1) / 2
        x += (last + width + _APART) * (k > 0)
        last = width
        canvas.node(key, (x, 0.0))
        for names, side in ((up[key], 1.0), (down[key], -1.0)):
            for j, name in enumerate(names):
                tip = (x + _FAN * (j - (len(names) - 1) / 2), side * _LEG)
                start = canvas.nodes[key].port((tip[0] - x) / (width + 1.0), below=side < 0)
                canvas.leg(name, start, tip, (0.0, side))
    for key in order:
        for other, link in neighbours(diagram)[key]:
            if link.upper == key:
                a, b = canvas.nodes[key], canvas.nodes[other]
                canvas.join(link, rim(a, b.at), rim(b, a.at))
    _rule_of_chain(canvas, x + last, any(up.values()), any(down.values()))
    return canvas.picture()


def _rule_of_chain(canvas: Canvas, right: float, *sides: bool) -> None:
    activation = canvas.diagram.segments[-1].activation
    if activation == "identity":
        return
    text = f"σ = {activation}"
    for side, used in zip((1.0, -1.0), sides, strict=True):
        if used:
            y = side * 0.5
            canvas.rules.append(((-0.6, y), (right + 0.6, y)))
            canvas.labels.append(Label(text=text, at=(right + 0.7 + Label(text=text, at=(0, 0)).half[0], y)))


def _towards(angle: float, radius: float, center: Point = (0.0, 0.0)) -> Point:
    return center[0] + radius * math.cos(angle), center[1] + radius * math.sin(angle)


def _outwards(canvas: Canvas, key: str, angle: float, tip: float, step: float) -> None:
    """Draw the legs of a core away from the middle, to a distance from it."""
    names = canvas.diagram.legs_of(key)
    for j, name in enumerate(names):
        own = angle - step * (j - (len(names) - 1) / 2)
        end = _towards(own, tip)
        canvas.leg(name, rim(canvas.nodes[key], end), end, _towards(own, 1.0))


def _circle(radius: float) -> tuple[Point, ...]:
    return tuple(_towards(2 * math.pi * k / 96, radius) for k in range(97))


def ring(diagram: Diagram, order: list[str]) -> Picture:
    """Draw the sites of a ring on a circle, clockwise from the top, with legs outwards."""
    canvas = Canvas(diagram)
    n = len(order)
    legs = max(len(diagram.legs_of(key)) for key in order)
    radius = max(0.75, 0.5 * (1.0 + 0.35 * (legs - 1)) / math.sin(math.pi / n))
    angles = {key: math.pi / 2 - 2 * math.pi * k / n for k, key in enumerate(order)}
    for key, angle in angles.items():
        canvas.node(key, _towards(angle, radius))
        _outwards(canvas, key, angle, radius + _LEG, 2 * math.pi / n / legs)
    seen: set[str] = set()
    gap = 2 * math.asin(0.19 / radius / 2)
    for k, key in enumerate(order):
        following = order[(k + 1) % n]
        link = next(x for other, x in neighbours(diagram)[key] if other == following and x.line not in seen)
        seen.add(link.line)
        start, step = angles[key] - gap, (2 * math.pi / n - 2 * gap) / _STEPS
        canvas.join(link, *(_towards(start - step * j, radius) for j in range(_STEPS + 1)))
    activation = diagram.segments[-1].activation
    if activation != "identity":
        canvas.rules.append(_circle(radius + 0.45))
        _above(canvas, f"σ = {activation}")
    return canvas.picture()


def is_tangled(diagram: Diagram) -> bool:
    """Return whether a network has loops, no direction and no hyper-index, and is small enough for a circle."""
    near = neighbours(diagram)
    cores = [item.core for item in diagram.cores]
    plain = all(core is not None and core.kind in SIDEWAYS for core in cores) and len(near) == len(cores)
    return plain and len(cores) <= _MOST_AROUND and sum(map(len, near.values())) // 2 >= len(cores) > 2


def tangle(diagram: Diagram) -> Picture:
    """Draw any network: cores on a circle, clockwise from the top, with bonds as chords and legs outwards."""
    canvas = Canvas(diagram)
    order = list(neighbours(diagram))
    turn = 2 * math.pi / len(order)
    legs = max(1, *(len(diagram.legs_of(key)) for key in order))
    radius = max(0.5 * (1.0 + 0.35 * (legs - 1)) / math.sin(turn / 2), _CLEAR / (1.0 - math.cos(turn)))
    for k, key in enumerate(order):
        angle = math.pi / 2 - turn * k
        canvas.node(key, _towards(angle, radius))
        _outwards(canvas, key, angle, radius + _LEG, turn / legs)
    twins: dict[frozenset[str], list[Link]] = {}
    for link in diagram.links:
        if link.upper in canvas.nodes and link.lower in canvas.nodes:
            twins.setdefault(frozenset((link.upper, link.lower)), []).append(link)
    for links in twins.values():
        for k, link in enumerate(links):
            _chord(canvas, link, 0.12 * (k - (len(links) - 1) / 2))
    return canvas.picture()


def _chord(canvas: Canvas, link: Link, shift: float) -> None:
    """Draw a straight bond, shifted sideways where two cores have several."""
    a, b = canvas.nodes[link.upper], canvas.nodes[link.lower]
    start, end = rim(a, b.at), rim(b, a.at)
    far = math.dist(start, end)
    across = (-(end[1] - start[1]) / far * shift, (end[0] - start[0]) / far * shift)
    canvas.join(link, *((x + across[0], y + across[1]) for x, y in (start, end)))


def _above(canvas: Canvas, text: str) -> None:
    top = canvas.picture().box[3]
    canvas.labels.append(Label(text=text, at=(0.0, top + 0.3)))


def star(diagram: Diagram, center: str) -> Picture:
    """Draw the core of a Tucker form, or the common index of CP, with everything else around it."""
    canvas = Canvas(diagram)
    around: list[str] = []  # factors, and legs without one, in the order of the legs
    for leg in diagram.legs:
        owner = next(link.upper for link in diagram.links if link.lower == f"(leg) {leg}")
        owner = leg if owner == center or diagram.items[owner].role == "pass" else owner
        if owner not in around:
            around.append(owner)
    n = len(around)
    inner = max(1.0, 0.16 * n)
    canvas.node(center, (0.0, 0.0))
    joined = dict(neighbours(diagram)[center])
    for k, key in enumerate(around):
        angle = math.pi / 2 - 2 * math.pi * k / n
        if key not in diagram.items:
            _uncut(canvas, key, canvas.nodes[center], angle, inner + _LEG)
            continue
        canvas.node(key, _towards(angle, inner))
        a, b = canvas.nodes[center], canvas.nodes[key]
        canvas.join(joined[key], rim(a, b.at), rim(b, a.at))
        _outwards(canvas, key, angle, inner + _LEG, 2 * math.pi / n / max(len(diagram.legs_of(key)), 1))
    _rules_of_star(canvas, inner)
    return canvas.picture()


def _uncut(canvas: Canvas, name: str, center: Node, angle: float, tip: float) -> None:
    """Draw a leg without a factor; where it passes an activation, its bond ends there."""
    end = _towards(angle, tip)
    bonds = [link for link in canvas.diagram.links if link.index == name and link.line != f"(leg) {name}"]
    start = rim(center, end)
    for link in bonds:
        middle = _towards(angle, 0.62 * tip)
        canvas.join(link, start, middle)
        start = middle
    canvas.leg(name, start, end, _towards(angle, 1.0))


def _rules_of_star(canvas: Canvas, inner: float) -> None:
    segments = canvas.diagram.segments
    names = [segment.activation for segment in segments]
    if len(segments) > 1 and names[0] != "identity":
        canvas.rules.append(_circle(0.55 * inner))
    if names[-1] != "identity":
        canvas.rules.append(_circle(inner + 0.45))
    if used := [name for name in dict.fromkeys(names) if name != "identity"]:
        _above(canvas, f"σ = {', '.join(used)}")
