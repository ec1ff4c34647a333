"""The parts of a picture, in units of the distance between neighbouring legs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Point = tuple[float, float]
Form = Literal["circle", "triangle", "square", "diamond", "vector", "dot"]

SCALE = 0.5
"""Inches per unit."""
FONT = 7.0
"""Points of the labels."""

_FORMS: dict[str, Form] = {
    "isometry": "triangle",
    "disentangler": "square",
    "gate": "square",
    "noise": "square",
    "control": "diamond",
    "boundary": "vector",
}
_HALF: dict[Form, Point] = {
    "circle": (0.19, 0.19),
    "triangle": (0.25, 0.2),
    "square": (0.18, 0.18),
    "diamond": (0.2, 0.2),
    "vector": (0.11, 0.11),
    "dot": (0.06, 0.06),
}


@dataclass(frozen=True, kw_only=True)
class Node:
    """A core, or the dot of an index that more than two cores share.

    Parameters
    ----------
    name, kind : str
        Those of the core; the kind of a dot is ``"dot"``.
    at : tuple of float
        Its centre.
    trained : bool
    """

    name: str
    kind: str
    at: Point
    trained: bool = True

    @property
    def form(self) -> Form:
        """The form that its kind has."""
        return "dot" if self.kind == "dot" else _FORMS.get(self.kind, "circle")

    @property
    def half(self) -> Point:
        """The half of its width and height."""
        return _HALF[self.form]

    @property
    def box(self) -> tuple[float, float, float, float]:
        """The left, bottom, right and top."""
        (x, y), (w, h) = self.at, self.half
        return x - w, y - h, x + w, y + h

    def port(self, across: float, *, below: bool) -> Point:
        """Return the point of its outline at a place from -1 (left) to 1 (right) where a line can begin."""
        (x, y), (w, h) = self.at, self.half
        side = -1.0 if below else 1.0
        if self.form == "square":
            return x + 0.9 * across * w, y + side * h
        if self.form == "triangle":
            return (x + 0.8 * across * w, y - h) if below else (x + 0.3 * across * w, y + h * (1.0 - 0.6 * abs(across)))
        if self.form == "diamond":
            return x + 0.6 * across * w, y + side * h * (1.0 - 0.6 * abs(across))
        angle = 0.9 * across
        return x + w * math.sin(angle), y + side * h * math.cos(angle)


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A part of a line that is drawn in one go.

    Parameters
    ----------
    points : tuple of points
    shade : str
        The name of the bond whose entropy colours it: at a hyper-index, that of one core.
    """

    points: tuple[Point, ...]
    shade: str


@dataclass(frozen=True, kw_only=True)
class Line:
    """A bond or a leg.

    Parameters
    ----------
    name : str
        The name of the bond, or of the leg.
    kind : {"linear", "state", "hyper", "leg"}
    dim : int
    ends : tuple of str
        The cores that it joins.
    pieces : tuple of Piece
    axis : int, optional
        Of a leg: the axis of the weight.
    tip : tuple of float, optional
        Of a leg: its free end.
    """

    name: str
    kind: str
    dim: int
    ends: tuple[str, ...]
    pieces: tuple[Piece, ...]
    axis: int | None = None
    tip: Point | None = None


@dataclass(frozen=True, kw_only=True)
class Label:
    """A text around a point.

    Parameters
    ----------
    text : str
    at : tuple of float
        The centre.
    axis : int, optional
        The axis of the leg that it names; ``None`` for an activation.
    """

    text: str
    at: Point
    axis: int | None = None

    @property
    def half(self) -> Point:
        """The half of its width and height."""
        unit = FONT / 72.0 / SCALE
        return 0.33 * unit * len(self.text), 0.6 * unit

    @property
    def box(self) -> tuple[float, float, float, float]:
        """The left, bottom, right and top."""
        (x, y), (w, h) = self.at, self.half
        return x - w, y - h, x + w, y + h


@dataclass(frozen=True, kw_only=True)
class Picture:
    """The nodes, lines and texts that are drawn.

    Parameters
    ----------
    nodes, lines, labels : tuples
    rules : tuple of tuple of points
        Dashed lines: activations.
    """

    nodes: tuple[Node, ...]
    lines: tuple[Line, ...]
    labels: tuple[Label, ...]
    rules: tuple[tuple[Point, ...], ...] = ()

    @property
    def box(self) -> tuple[float, float, float, float]:
        """The left, bottom, right and top of everything."""
        boxes = [one.box for one in (*self.nodes, *self.labels)]
        points = [p for line in self.lines for piece in line.pieces for p in piece.points]
        points += [p for rule in self.rules for p in rule]
        boxes += [(x, y, x, y) for x, y in points]
        left, bottom, right, top = zip(*boxes, strict=True)
        return min(left), min(bottom), max(right), max(top)


def label_beyond(text: str, tip: Point, direction: Point, axis: int | None) -> Label:
    """Return a label that begins a little beyond a point in a direction of length one."""
    w, h = Label(text=text, at=tip).half
    far = 0.14 + abs(direction[0]) * w + abs(direction[1]) * h
    return Label(text=text, at=(tip[0] + far * direction[0], tip[1] + far * direction[1]), axis=axis)
