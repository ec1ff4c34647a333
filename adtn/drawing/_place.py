"""The choice of a picture for a network."""

from __future__ import annotations

from collections.abc import Sequence

from ..layout import Layout
from ..topology import Segment
from ._diagram import diagram
from ._layers import layered
from ._records import Picture
from ._sheet import lattice, sheet
from ._special import chain, is_tangled, neighbours, path_order, ring, star, star_center, tangle

_DIRECTED = {"root", "isometry", "leaf", "disentangler", "gate", "boundary", "noise", "smoothing", "window"}
_MOST_AROUND = 40


def place(segments: Sequence[Segment], layout: Layout) -> Picture:
    """Decide where everything is: chains, rings, lattices, stars and tangles as such, else in rows.

    Parameters
    ----------
    segments : sequence of Segment
    layout : Layout
        That of the weight, whose legs are those of the last segment.

    Returns
    -------
    Picture
    """
    found = diagram(segments, layout)
    kinds = {core.kind for segment in segments for core in segment.cores}
    if kinds & _DIRECTED:
        return layered(found)
    if len(segments) == 1 and (order := path_order(found)) is not None:
        is_ring = len(order) > 2 and all(len(near) == 2 for near in neighbours(found).values())
        return ring(found, order) if is_ring else chain(found, order)
    if len(segments) == 1 and segments[0].activation == "identity" and (places := lattice(found)) is not None:
        return sheet(found, places)
    center = star_center(found) if len(segments) <= 2 and len(found.items) <= 2 * _MOST_AROUND else None
    if center is not None:
        return star(found, center)
    plain = len(segments) == 1 and segments[0].activation == "identity"
    return tangle(found) if plain and is_tangled(found) else layered(found)
