"""The general picture: rows of cores from the top to the legs of the weight, with lines that pass between cores."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from ._diagram import Diagram
from ._records import Label, Line, Node, Picture, Piece, Point, label_beyond
from ._rows import SIDEWAYS, rows_of

_GAP, _SLOPE, _RULE = 0.85, 0.07, 0.2
_APART = {"core": 0.5, "leg": 0.5, "dot": 0.3, "pass": 0.3, "": 0.3}  # half of the room that an item has in its row
_CLEAR = 0.24  # half of the height of a row
_MARGIN = 0.7


@dataclass(kw_only=True)
class _Grid:
    """Rows of items, and of the places where links pass rows."""

    diagram: Diagram
    rows: dict[str, int]
    chains: dict[int, list[str]] = field(default_factory=dict)  # by the position of the link
    sideways: list[int] = field(default_factory=list)
    down: dict[str, list[tuple[int, str]]] = field(default_factory=lambda: defaultdict(list))
    up: dict[str, list[tuple[int, str]]] = field(default_factory=lambda: defaultdict(list))
    lanes: dict[tuple[str, int], float] = field(default_factory=dict)
    x: dict[str, float] = field(default_factory=dict)
    y: list[float] = field(default_factory=list)
    wrapped: set[int] = field(default_factory=set)

    def role(self, key: str) -> str:
        return self.diagram.items[key].role if key in self.diagram.items else ""

    @property
    def members(self) -> list[list[str]]:
        """The keys of every row."""
        found: list[list[str]] = [[] for _ in range(max(self.rows.values()) + 1)]
        for key, row in self.rows.items():
            found[row].append(key)
        return found


def layered(diagram: Diagram) -> Picture:
    """Place everything in rows."""
    grid = _Grid(diagram=diagram, rows=rows_of(diagram))
    _thread(grid)
    legs = [f"(leg) {leg}" for leg in diagram.legs]
    _place(grid, legs)
    if all(item.core is None or item.core.kind in SIDEWAYS for item in diagram.items.values()):
        _place(grid, sorted(legs, key=lambda leg: grid.x[grid.up[leg][0][1]]))  # each below the core that has it
    _heights(grid)
    nodes = _nodes(grid)
    lines = _lines(grid, {node.name: node for node in nodes})
    labels = [label_beyond(s.name, s.tip, (0.0, -1.0), s.axis) for s in lines if s.tip is not None]
    xs = [x for line in lines for piece in line.pieces for x, _ in piece.points] + [n.at[0] for n in nodes]
    left, right = min(xs) - 0.4, max(xs) + 0.4
    rules: list[tuple[Point, ...]] = []
    for t, segment in enumerate(diagram.segments):
        if segment.activation != "identity":
            y = _rule_height(grid, t)
            rules.append(((left, y), (right, y)))
            text = f"σ = {segment.activation}"
            labels.append(Label(text=text, at=(right + 0.1 + Label(text=text, at=(0, 0)).half[0], y)))
    return Picture(nodes=tuple(nodes), lines=tuple(lines), labels=tuple(labels), rules=tuple(rules))


def _thread(grid: _Grid) -> None:
    """Give every link a place in each row that it passes."""
    for n, link in enumerate(grid.diagram.links):
        upper, lower = link.upper, link.lower
        if grid.rows[upper] == grid.rows[lower]:
            grid.sideways.append(n)
            continue
        if grid.rows[upper] > grid.rows[lower]:
            upper, lower = lower, upper
        chain = [upper]
        for row in range(grid.rows[upper] + 1, grid.rows[lower]):
            grid.rows[f"(via) {n} {row}"] = row
            chain.append(f"(via) {n} {row}")
        chain.append(lower)
        grid.chains[n] = chain
        for a, b in pairwise(chain):
            grid.down[a].append((n, b))
            grid.up[b].append((n, a))


def _place(grid: _Grid, legs: list[str]) -> None:
    """Compute positions across, from the legs upwards: an item is above the middle of what is below it."""
    for row in range(max(grid.rows.values()), -1, -1):
        wanted: dict[str, float] = {}
        for key in grid.members[row]:
            below = [grid.lanes[b, n] for n, b in grid.down[key]]
            if key in legs:
                wanted[key] = float(legs.index(key))
            elif _wraps(grid, key, row):
                wanted[key] = max(below) + 0.5
                grid.wrapped |= {n for n, b in grid.down[key] if grid.lanes[b, n] == min(below)}
            else:
                wanted[key] = sum(below) / len(below) if below else math.inf
        _spread(grid, wanted)
        for key in grid.members[row]:
            _lanes_above(grid, key)


def _wraps(grid: _Grid, key: str, row: int) -> bool:
    """Return whether a core acts on the first and the last of several legs, around a periodic boundary."""
    if grid.role(key) != "core" or len(grid.up[key]) != 2 or len(grid.down[key]) != 2:
        return False
    own = sorted(grid.lanes[b, n] for n, b in grid.down[key])
    others = [grid.lanes[b, n] for k in grid.members[row] for n, b in grid.down[k] if k != key]
    return len(others) >= 2 and all(own[0] < x < own[1] for x in others)


def _lanes_above(grid: _Grid, key: str) -> None:
    """Let links from above arrive where the matching ones leave below; in the middle where there are not as many."""
    up, down = grid.up[key], grid.down[key]
    item = grid.diagram.items.get(key)
    if item is not None and item.core is not None and len(up) == len(down):
        inds = item.core.inds
        ordered = [sorted(links, key=lambda k: inds.index(grid.diagram.links[k[0]].index)) for links in (up, down)]
        for (n, _), (m, b) in zip(*ordered, strict=True):
            grid.lanes[key, n] = grid.lanes[b, m]
            if m in grid.wrapped:
                grid.wrapped.add(n)
        return
    for k, (n, _) in enumerate(up):
        grid.lanes[key, n] = grid.x[key] + 0.3 * (k - (len(up) - 1) / 2)


def _spread(grid: _Grid, wanted: dict[str, float]) -> None:
    """Find the nearest positions (in squares) at which the items of a row keep their distances."""
    largest = max((x for x in wanted.values() if x < math.inf), default=-1.0)
    place = {key: x if x < math.inf else largest + 1.0 for key, x in wanted.items()}
    keys = sorted(place, key=lambda key: place[key])
    offsets = [0.0]
    for a, b in pairwise(keys):
        offsets.append(offsets[-1] + _APART[grid.role(a)] + _APART[grid.role(b)])
    blocks: list[list[float]] = []  # mean and number of items that are pushed together
    for key, offset in zip(keys, offsets, strict=True):
        blocks.append([place[key] - offset, 1.0])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (a, m), (b, n) = blocks[-2:]
            blocks[-2:] = [[(m * a + n * b) / (m + n), m + n]]
    values = [x for x, n in blocks for _ in range(int(n))]
    grid.x |= {key: x + offset for key, x, offset in zip(keys, values, offsets, strict=True)}


def _heights(grid: _Grid) -> None:
    """Compute the height of every row: more room where links go far across, and for an activation."""
    last = {t: max(row for key, row in grid.rows.items() if _segment(grid, key) == t) for t in _segments(grid)}
    ruled = {last[t] for t in last if grid.diagram.segments[t].activation != "identity"}
    grid.y = [0.0]
    for row in range(max(grid.rows.values())):
        across = [
            abs(grid.x[a] - grid.x[b])
            for n, chain in grid.chains.items()
            for a, b in pairwise(chain)
            if grid.rows[a] == row and n not in grid.wrapped
        ]
        beside = [grid.rows[grid.diagram.links[n].upper] for n in grid.sideways]
        room = _GAP + _SLOPE * max(across, default=0.0) + _RULE * (row in ruled) + 0.5 * (row + 1 in beside)
        grid.y.append(grid.y[-1] - room)


def _segment(grid: _Grid, key: str) -> int:
    item = grid.diagram.items.get(key)
    return item.segment if item is not None and item.role != "leg" else -1


def _segments(grid: _Grid) -> list[int]:
    return [t for t in range(len(grid.diagram.segments)) if t in {_segment(grid, key) for key in grid.rows}]


def _rule_height(grid: _Grid, t: int) -> float:
    row = max((row for key, row in grid.rows.items() if _segment(grid, key) == t), default=0)
    return (grid.y[row] + grid.y[row + 1]) / 2 - 0.02


def _nodes(grid: _Grid) -> list[Node]:
    found: list[Node] = []
    for key, item in grid.diagram.items.items():
        at = (grid.x[key], grid.y[grid.rows[key]])
        if item.core is not None:
            found.append(Node(name=key, kind=item.core.kind, at=at, trained=item.core.trainable))
        elif item.role == "dot":
            found.append(Node(name=key, kind="dot", at=at))
    return found


def _lines(grid: _Grid, nodes: dict[str, Node]) -> list[Line]:
    pieces: dict[str, list[Piece]] = defaultdict(list)
    tips: dict[str, Point] = {}
    border = (min(grid.x.values()) - _MARGIN, max(grid.x.values()) + _MARGIN)
    for n, link in enumerate(grid.diagram.links):
        if n in grid.sideways:
            pieces[link.line].append(Piece(points=_beside(grid, nodes, n), shade=link.shade))
            continue
        chain = grid.chains[n]
        if grid.role(chain[-1]) == "leg":
            tips[link.line] = (grid.x[chain[-1]], grid.y[grid.rows[chain[-1]]])
        for points in _path(grid, nodes, n, border):
            pieces[link.line].append(Piece(points=points, shade=link.shade))
    return [
        Line(
            name=stroke.name,
            kind=stroke.kind,
            dim=stroke.dim,
            ends=stroke.ends,
            pieces=tuple(pieces[key]),
            axis=stroke.axis,
            tip=tips.get(key),
        )
        for key, stroke in grid.diagram.strokes.items()
    ]


def _path(grid: _Grid, nodes: dict[str, Node], n: int, border: tuple[float, float]) -> list[tuple[Point, ...]]:
    """Return the points of a link; two lists of them if it goes around a periodic boundary."""
    chain = grid.chains[n]
    paths: list[list[Point]] = [[]]
    for a, b in pairwise(chain):
        start, end = _port(grid, nodes, a, n, below=True), _port(grid, nodes, b, n, below=False)
        paths[-1].append(start)
        if n in grid.wrapped and abs(start[0] - end[0]) > (border[1] - border[0]) / 2:
            rightwards = start[0] > end[0]
            y = (start[1] + end[1]) / 2
            paths[-1].append((border[rightwards], y))
            paths.append([(border[not rightwards], y)])
        paths[-1].append(end)
    return [tuple(path) for path in paths]


def _port(grid: _Grid, nodes: dict[str, Node], key: str, n: int, *, below: bool) -> Point:
    """Return the point where a link leaves or reaches an item."""
    x, y = grid.x[key], grid.y[grid.rows[key]]
    role = grid.role(key)
    if role == "":
        return x, y + (-_CLEAR if below else _CLEAR)
    if role in ("leg", "pass", "dot"):
        return x, y

    def side(link: tuple[int, str]) -> tuple[float, int]:
        other = grid.x[link[1]]
        if link[0] in grid.wrapped and abs(other - x) > 1.0:
            other = -other + 2 * x  # it leaves on the other side
        return other, link[0]

    links = sorted(grid.down[key] if below else grid.up[key], key=side)
    k = [m for m, _ in links].index(n)
    across = 0.0 if len(links) == 1 else 2.0 * k / (len(links) - 1) - 1.0
    return nodes[key].port(across, below=below)


def _beside(grid: _Grid, nodes: dict[str, Node], n: int) -> tuple[Point, ...]:
    """Return the points of a link between two cores of one row: straight between neighbours, else an arc above them."""
    link = grid.diagram.links[n]
    a, b = sorted((link.upper, link.lower), key=lambda key: grid.x[key])
    row = grid.members[grid.rows[a]]
    between = [key for key in row if grid.x[a] < grid.x[key] < grid.x[b]]
    twins = [m for m in grid.sideways if {grid.diagram.links[m].upper, grid.diagram.links[m].lower} == {a, b}]
    (xa, y), (xb, _) = nodes[a].at, nodes[b].at
    if not between:
        shift = 0.12 * (twins.index(n) - (len(twins) - 1) / 2)
        return (xa + nodes[a].half[0] * 0.95, y + shift), (xb - nodes[b].half[0] * 0.95, y + shift)
    return _arc(nodes[a].port(0.0, below=False), nodes[b].port(0.0, below=False), 0.25 + 0.06 * len(between))


def _arc(a: Point, b: Point, height: float) -> tuple[Point, ...]:
    steps = 24
    middle, half = (a[0] + b[0]) / 2, (b[0] - a[0]) / 2
    angles: Sequence[float] = [math.pi * (1.0 - k / steps) for k in range(steps + 1)]
    return tuple((middle + half * math.cos(v), a[1] + height * math.sin(v)) for v in angles)
