"""Two-dimensional lattices, such as PEPS: sites in rows and columns, with the legs of the weight between them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence

from ._canvas import Canvas, rim
from ._diagram import Diagram
from ._records import Picture, Point
from ._special import neighbours

_TIP = 0.5  # length of a leg
_DIAGONAL = math.sqrt(0.5)
_DIRECTIONS: Sequence[Point] = ((_DIAGONAL, -_DIAGONAL), (-_DIAGONAL, _DIAGONAL))
_LEAST = 1.3  # distance of sites
_FREE = 0.12  # between labels, and between them and bonds

Place = tuple[int, int]


def lattice(diagram: Diagram) -> dict[str, Place] | None:
    """Return row and column of every core of an open square lattice; ``None`` for other networks.

    With the distances p and q from two corners of a row of n columns, the row of a site is (p + q - n + 1) / 2, and its
    column is (p - q + n - 1) / 2. The first core is at the top left where it is a corner, and the second one beside it.
    """
    near = {key: [other for other, _ in found] for key, found in neighbours(diagram).items()}
    if any(len(set(others)) < len(others) for others in near.values()):
        return None
    if any(len(diagram.legs_of(key)) > len(_DIRECTIONS) for key in near):
        return None
    corners = [key for key, others in near.items() if len(others) == 2]
    if len(corners) != 4:
        return None
    second = list(near)[1]
    found = [places for other in corners[1:] if (places := _places(near, corners[0], other)) is not None]
    return min(found, key=lambda places: places[second][0], default=None)


def _places(near: Mapping[str, Sequence[str]], first: str, second: str) -> dict[str, Place] | None:
    """Return the places if the two corners are ends of the first row."""
    p, q = _distances(near, first), _distances(near, second)
    last = p.get(second, 0)
    if len(p) < len(near):
        return None
    places = {key: ((p[key] + q[key] - last) // 2, (p[key] - q[key] + last) // 2) for key in near}
    taken = {at: key for key, at in places.items()}
    height, width = (max(at[k] for at in taken) + 1 for k in (0, 1))
    if len(taken) != len(near) or height * width != len(near):
        return None
    for key, (i, j) in places.items():
        expected = {taken[at] for at in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)) if at in taken}
        if expected != set(near[key]):
            return None
    return places


def _distances(near: Mapping[str, Sequence[str]], start: str) -> dict[str, int]:
    found, queue = {start: 0}, deque([start])
    while queue:
        key = queue.popleft()
        for other in near[key]:
            if other not in found:
                found[other] = found[key] + 1
                queue.append(other)
    return found


def sheet(diagram: Diagram, places: Mapping[str, Place]) -> Picture:
    """Draw a lattice from above, with the legs of the weight obliquely between the bonds.

    The legs of the first axis go down to the right; of two legs at a site, the other one goes up to the left.
    """
    canvas = Canvas(diagram)
    apart = _apart(diagram, places)
    for key, (i, j) in places.items():
        canvas.node(key, (apart * j, -apart * i))
        for name, direction in zip(diagram.legs_of(key), _DIRECTIONS, strict=False):
            x, y = canvas.nodes[key].at
            tip = (x + _TIP * direction[0], y + _TIP * direction[1])
            canvas.leg(name, rim(canvas.nodes[key], tip), tip, direction)
    for key in places:
        for other, link in neighbours(diagram)[key]:
            if link.upper == key:
                a, b = canvas.nodes[key], canvas.nodes[other]
                canvas.join(link, rim(a, b.at), rim(b, a.at))
    return canvas.picture()


def _apart(diagram: Diagram, places: Mapping[str, Place]) -> float:
    """Return the distance of sites at which the labels inside of a square of bonds do not meet."""
    probe = Canvas(diagram)
    most = 0
    for key in places:
        names = diagram.legs_of(key)
        most = max(most, len(names))
        for name in names:
            probe.leg(name, (0.0, 0.0), (_TIP * _DIAGONAL, -_TIP * _DIAGONAL), _DIRECTIONS[0])
    right = max((label.box[2] for label in probe.labels), default=0.0)
    deep = max((-label.box[1] for label in probe.labels), default=0.0)
    # one label at a corner of the square, or two at opposite corners, which need to be apart in one direction only
    needed = right if most < 2 else min(2 * deep, 2 * right)
    return max(_LEAST, needed + 2 * _FREE, right + 2 * _FREE)
