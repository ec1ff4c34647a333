r"""The squared distance of a weight from a target, and its adjoint, without the weight.

Where no activation follows the last segment, the weight is multilinear in its operands, and

.. math:: \lVert W - T\rVert^2 = \lVert T\rVert^2 - 2\,\langle T, W\rangle + \lVert W\rVert^2 .

The contraction tree ends in one product :math:`W = A B`. The adjoints of :math:`\langle T, W\rangle` are the
projections :math:`\bar A = T B^\top` and :math:`\bar B = A^\top T`: two products that read the target instead of three
that make and read a weight, and nothing of its size is written. They are done tile by tile, so that the target comes
from memory once. :math:`\lVert W\rVert^2` is the network of the last segment closed with its own copy, which is small.

The price is cancellation: the rounding error of the sum is one of :math:`\lVert T\rVert^2`, whatever is left of the
distance.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from autoray import do

from .._backend import Backend, Workspace
from .._typing import Array, Inds, Params
from ._adjoint import backward_steps, forward_steps
from ._pairwise import PairStep
from ._program import Path, Stage
from ._segment import Core, Segment
from ._tiled_adjoint import accumulate, no_bars, operands_of
from ._tiles import Tiled
from ._tree_order import Node, contraction_nodes

STATE = "x/state"


def product_order(segment: Segment, path: Path, sizes: dict[str, int], tiles: int) -> Inds:
    """The outputs in the order in which a tiled path does least: first those that tiles fix, then those inside a tile.

    The first ones belong to what is contracted first, so that a tile is a slice of everything that is large. The
    others lie as the products of the path leave them: every operand with what it shares with its neighbour at one end.
    """
    terms = segment.terms
    nodes: dict[int, Node] = {node.out: node for node in contraction_nodes(terms, segment.outputs, path)}
    inds = {**dict(enumerate(terms)), **{slot: node.inds for slot, node in nodes.items()}}
    outputs = set(segment.outputs)

    def weigh(slot: int, among: set[str]) -> float:
        return sum(math.log(sizes[i]) for i in inds[slot] if i in among)

    def arranged(slot: int, first: set[str], last: set[str]) -> list[str]:
        """Outputs below a slot whose neighbours share ``first`` and ``last`` with it."""
        if slot not in nodes:
            return [i for i in inds[slot] if i in outputs]
        node = nodes[slot]
        shared, (p, q) = set(node.inner), (node.left, node.right)
        straight, turned = weigh(p, first) + weigh(q, last), weigh(q, first) + weigh(p, last)
        if turned > straight or (turned == straight and weigh(q, outputs) > weigh(p, outputs)):
            p, q = q, p
        return list(dict.fromkeys([*arranged(p, first, shared), *arranged(q, shared, last)]))

    def contracted(slot: int) -> list[str]:
        """Outputs below a slot, those of the larger operand first."""
        if slot not in nodes:
            return [i for i in inds[slot] if i in outputs]
        pair = sorted((nodes[slot].left, nodes[slot].right), key=lambda s: -weigh(s, set(inds[s])))
        return list(dict.fromkeys([*contracted(pair[0]), *contracted(pair[1])]))

    root = len(terms) + len(path) - 1
    fixed: list[str] = []
    for i in contracted(root):
        if tiles <= 1:
            break
        fixed.append(i)
        tiles //= sizes[i]
    return tuple(dict.fromkeys([*fixed, *arranged(root, set(), set())]))


def closed(segment: Segment, sizes: dict[str, int]) -> Segment:
    """A segment contracted with its own copy, ``‖W‖²`` for a given state; only the first copy is trained."""
    kept = set(segment.outputs)

    def copied(inds: Inds) -> Inds:
        return tuple(i if i in kept else f"{i}/copy" for i in inds)

    copies = [replace(c, name=f"{c.name}/copy", inds=copied(c.inds), trainable=False) for c in segment.cores]
    if segment.inputs:
        shape = tuple(sizes[i] for i in segment.inputs)
        copies.append(Core(STATE, copied(segment.inputs), shape, STATE, "state", trainable=False))
    return replace(segment, cores=(*segment.cores, *copies), outputs=())


def squared_norm(
    stage: Stage, state: Array | None, arrays: Params, factor: float | Array, space: Workspace
) -> tuple[Array, list[Array | None]]:
    """``factor * ‖W‖²`` by a :func:`closed` segment, and half of its adjoints: of the state, then of every core."""
    if stage.has_state:
        state = do("reshape", state, stage.cores[-1].shape)
    slots: list[Any] = [state] if stage.has_state else []
    slots += [state if core.param == STATE else arrays[core.param] for core in stage.cores]
    n_operands = len(slots)
    slots += [None] * len(stage.steps)
    matrices = forward_steps(stage.steps, slots, True, space)
    value = do("reshape", slots[-1], ()) * factor
    bars = backward_steps(stage.steps, matrices, do("zeros_like", value) + factor, n_operands, space=space)
    return value, bars[: stage.has_state + len(stage.cores) // 2]


def project(
    tiled: Tiled, blocks: list[Array], backend: Backend, space: Workspace, target: Array, factor: float | Array
) -> tuple[Array, list[Array | None]]:
    """``factor * ⟨target, W⟩`` and the adjoint of every block.

    Parameters
    ----------
    tiled : Tiled
        With the last product among the steps of a tile.
    blocks : list of array
        From :func:`frontier`.
    backend : Backend
        Loops.
    space : Workspace
        Where intermediates go.
    target : array
        ``(tiles, ...)``, each as the tile's ``Z``.
    factor : float or array
        Of everything.
    """
    *steps, root = tiled.steps
    least = min((k for k, op in enumerate(tiled.operands) if op.need), key=lambda k: tiled.operands[k].entries)
    scaled = list(blocks)
    scaled[least] = scaled[least] * factor

    def body(i: Any, bars: Any) -> Any:
        at, slots = operands_of(tiled, scaled, backend, i)
        matrices = forward_steps(tuple(steps), slots, True, space)
        found: list[Any] = [None] * len(slots)
        found[root.left], found[root.right] = _project_root(
            root, slots[root.left], slots[root.right], backend.take(target, i), space
        )
        found = backward_steps(tuple(steps), matrices, None, len(blocks), found, space)
        return accumulate(tiled, backend, bars, at, found)

    bars = no_bars(tiled, blocks)
    bars = body(0, bars) if tiled.tiles == 1 else backend.loop(tiled.tiles, body, bars)
    bars[least] = bars[least] * factor
    # the weight is linear in every operand; sums of sums lose less than one long sum
    value = do("reshape", blocks[least] * bars[least], (blocks[least].shape[0], -1))
    return do("sum", do("sum", value, axis=-1)), bars


def _project_root(
    root: PairStep, left: Array, right: Array, target: Array, space: Workspace
) -> tuple[Array | None, Array | None]:
    """Adjoints of both operands."""
    a, b, t = root.a.read(left, space), root.b.read(right, space), root.c.read(target, space)
    turned = root.c.swapped  # the target is read as it lies: libraries are slow at thin products with a transposed one
    if turned:
        a, b, t = b.mT, a.mT, t.mT
    need_a, need_b = (root.need_b, root.need_a) if turned else (root.need_a, root.need_b)
    abar = space.matmul(t, b.mT) if need_a else None
    bbar = space.matmul(a.mT, t) if need_b else None
    if not turned:
        return None if abar is None else root.a.write(abar), None if bbar is None else root.b.write(bbar)
    return None if bbar is None else root.a.write(bbar.mT), None if abar is None else root.b.write(abar.mT)
