"""The contraction of a segment with its own copy, and the order in which a tiled product reads a target."""

from __future__ import annotations

import math
from dataclasses import replace

from .._typing import Inds
from ..topology import Core, Segment
from ._order import Node, contraction_nodes
from ._program import Path

STATE = "x/state"
MOMENT = "second_moment"


def product_order(segment: Segment, path: Path, sizes: dict[str, int], tiles: int) -> Inds:
    """Order the outputs so that a tiled path does the least work: first the sliced ones, then those inside a tile.

    The sliced outputs belong to the first contractions, so that a tile is a slice of every large intermediate. The
    others are in the order in which the products of the path leave them: in each operand, the indices shared with
    its neighbour are at one end.
    """
    terms = segment.terms
    nodes: dict[int, Node] = {node.out: node for node in contraction_nodes(terms, segment.outputs, path)}
    inds = {**dict(enumerate(terms)), **{slot: node.inds for slot, node in nodes.items()}}
    outputs = set(segment.outputs)

    def weigh(slot: int, among: set[str]) -> float:
        return sum(math.log(sizes[i]) for i in inds[slot] if i in among)

    def arranged(slot: int, first: set[str], last: set[str]) -> list[str]:
        """Order the outputs below a slot whose neighbours share ``first`` and ``last`` with it."""
        if slot not in nodes:
            return [i for i in inds[slot] if i in outputs]
        node = nodes[slot]
        shared, (p, q) = set(node.inner), (node.left, node.right)
        straight, crossed = weigh(p, first) + weigh(q, last), weigh(q, first) + weigh(p, last)
        if crossed > straight or (crossed == straight and weigh(q, outputs) > weigh(p, outputs)):
            p, q = q, p
        return list(dict.fromkeys([*arranged(p, first, shared), *arranged(q, shared, last)]))

    def contracted(slot: int) -> list[str]:
        """Order the outputs below a slot, those of the larger operand first."""
        if slot not in nodes:
            return [i for i in inds[slot] if i in outputs]
        pair = sorted((nodes[slot].left, nodes[slot].right), key=lambda s: -weigh(s, set(inds[s])))
        return list(dict.fromkeys([*contracted(pair[0]), *contracted(pair[1])]))

    root = len(terms) + len(path) - 1
    sliced: list[str] = []
    for i in contracted(root):
        if tiles <= 1:
            break
        sliced.append(i)
        tiles //= sizes[i]
    return tuple(dict.fromkeys([*sliced, *arranged(root, set(), set())]))


def copy_of(leg: str) -> str:
    """Name the leg of the copy in a :func:`closed` segment."""
    return f"{leg}/copy"


def closed(segment: Segment, sizes: dict[str, int], inputs: Inds = ()) -> Segment:
    """Contract a segment with its own copy, ``‖W‖²`` for a given state; only the first copy is trained.

    If ``inputs`` names the legs of the inputs, a second moment C joins those of both copies: ``tr(W C Wᵀ)``.
    """
    shared = set(segment.outputs) - set(inputs)

    def copied(inds: Inds) -> Inds:
        return tuple(i if i in shared else copy_of(i) for i in inds)

    copies = [replace(c, name=f"{c.name}/copy", inds=copied(c.inds), trainable=False) for c in segment.cores]
    if inputs:
        both = (*inputs, *copied(inputs))
        shape = tuple(sizes[i] for i in inputs) * 2
        copies.append(Core(name=MOMENT, inds=both, shape=shape, param=MOMENT, kind="moment", trainable=False))
    if segment.inputs:
        shape = tuple(sizes[i] for i in segment.inputs)
        copies.append(
            Core(name=STATE, inds=copied(segment.inputs), shape=shape, param=STATE, kind="state", trainable=False)
        )
    return replace(segment, cores=(*segment.cores, *copies), outputs=())
