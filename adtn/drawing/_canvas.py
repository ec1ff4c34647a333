"""The nodes, lines and labels of a picture that is not in rows, while it is made."""

from __future__ import annotations

import math
from collections import defaultdict

from ._diagram import Diagram, Link
from ._records import Label, Line, Node, Picture, Piece, Point, label_beyond


class Canvas:
    """A picture in the making."""

    def __init__(self, diagram: Diagram) -> None:
        self.diagram = diagram
        self.nodes: dict[str, Node] = {}
        self.pieces: dict[str, list[Piece]] = defaultdict(list)
        self.tips: dict[str, Point] = {}
        self.labels: list[Label] = []
        self.rules: list[tuple[Point, ...]] = []

    def node(self, key: str, at: Point) -> None:
        item = self.diagram.items[key]
        core = item.core
        kind, trained = ("dot", True) if core is None else (core.kind, core.trainable)
        self.nodes[key] = Node(name=key, kind=kind, at=at, trained=trained)

    def join(self, link: Link, *points: Point) -> None:
        self.pieces[link.line].append(Piece(points=points, shade=link.shade))

    def leg(self, name: str, start: Point, tip: Point, direction: Point) -> None:
        key = f"(leg) {name}"
        self.pieces[key].append(Piece(points=(start, tip), shade=key))
        self.tips[key] = tip
        self.labels.append(label_beyond(name, tip, direction, self.diagram.strokes[key].axis))

    def picture(self) -> Picture:
        lines = [
            Line(
                name=stroke.name,
                kind=stroke.kind,
                dim=stroke.dim,
                ends=stroke.ends,
                pieces=tuple(self.pieces[key]),
                axis=stroke.axis,
                tip=self.tips.get(key),
            )
            for key, stroke in self.diagram.strokes.items()
        ]
        return Picture(
            nodes=tuple(self.nodes.values()), lines=tuple(lines), labels=tuple(self.labels), rules=tuple(self.rules)
        )


def rim(node: Node, other: Point) -> Point:
    """Return the point of a round node that is nearest to another point."""
    (x, y), r = node.at, node.half[0]
    far = math.dist(node.at, other)
    return x + r * (other[0] - x) / far, y + r * (other[1] - y) / far
