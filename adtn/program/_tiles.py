r"""Tiled programs: a part that is computed once and a part that is computed tile by tile.

The last segment is a tree of pairwise contractions. Legs of the weight are never summed, so fixing the first of them,
``S``, to one value after the other traverses the weight in tiles::

    once:      F_j       = all small intermediates (the frontier)
    per tile:  Z[s]      = contraction of F_j[s],      W[s] = σ(Z[s])
               F̄_j[s]   += environment of F_j[s] in Z̄[s]
    once:      Ā_t[k]    from F̄_j

No array of the size of the weight exists at any time. With ``S`` empty there is one tile, the weight itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

from .._typing import Inds, Shape
from ..errors import TopologyError
from ..layout import Layout
from ..topology import Activation, Core, Segment, get_activation, sizes_of
from ._order import Node, arrange, contraction_nodes
from ._pairwise import MatrixView, PairStep
from ._path import find_path
from ._program import Path, Program, Stage, compile_program, last_halves, plan_steps

# intermediates up to this fraction of the weight are computed once for all tiles
ONCE_PART = 1 / 12


@dataclass(frozen=True, eq=False)
class Operand:
    """One operand of the tile network.

    Parameters
    ----------
    slot : int
        Slot in the workspace of the part that is computed once.
    view : MatrixView
        View of the operand as ``(blocks, entries)``, or as ``(entries,)`` if it has no sliced legs.
    digits : tuple of (int, int, int)
        Triples ``(stride, dim, factor)``; the block of tile ``i`` is the sum of ``i // stride % dim * factor``.
    need : bool
        Whether the operand depends on trained parameters.
    """

    slot: int
    view: MatrixView
    digits: tuple[tuple[int, int, int], ...]
    need: bool

    @property
    def entries(self) -> int:
        """The number of entries in all blocks."""
        return math.prod(self.view.matrix)

    def block(self, tile: int) -> int:
        """Return the index of the block that a tile reads; the tile index may be traced."""
        return sum(tile // stride % dim * factor for stride, dim, factor in self.digits)


@dataclass(frozen=True, eq=False, kw_only=True)
class Tiled:
    """A program that generates a weight tile by tile.

    Parameters
    ----------
    head : Program
        The program of all segments before the last.
    last : Stage
        The last segment, with only the steps whose results are used by all tiles.
    operands : tuple of Operand
        The operands of a tile; they fill the first slots of its workspace.
    steps : tuple of PairStep
        The steps of one tile.
    tiles : int
        Number of tiles.
    shape : tuple of int
        Shape of ``Z`` in a tile: the legs that are not sliced, in the requested order.
    legs : tuple of str
        All legs of the weight, in the order in which the tiles traverse them.
    smallest : int
        Index of the operand with the fewest entries, where scaling the weight is cheapest.
    """

    head: Program
    last: Stage
    operands: tuple[Operand, ...]
    steps: tuple[PairStep, ...]
    tiles: int
    shape: Shape
    legs: Inds
    smallest: int

    @property
    def activation(self) -> Activation:
        """The activation σ after the last segment."""
        return get_activation(self.last.segment.activation)

    @property
    def linear_end(self) -> bool:
        """Whether no activation follows the last segment."""
        return self.last.segment.activation == "identity"

    @property
    def n_slots(self) -> int:
        """The number of slots of the last segment: the state, its cores and all results."""
        return len(self.last.cores) + self.last.has_state + len(self.last.path)


def tile_counts(dims: Shape) -> list[int]:
    """List the possible numbers of tiles: the products of leading dimensions with a divisor of the next."""
    counts, done = {1}, 1
    for d in dims:
        counts |= {done * k for k in range(1, d + 1) if d % k == 0}
        done *= d
    return sorted(counts)


def tile_program(
    segments: tuple[Segment, ...],
    paths: tuple[Path | None, ...],
    order: Inds,
    tiles: int = 1,
    *,
    once_part: float = ONCE_PART,
    keep_last: bool = False,
) -> Tiled:
    """Divide a program into tiles.

    Parameters
    ----------
    segments : tuple of Segment
        The segments of the whole generator.
    paths : tuple of (path or None)
        Contraction order of each segment.
    order : tuple of str
        The legs of the weight in the order in which it is traversed; the first ones are sliced.
    tiles : int
        Number of tiles; one of :func:`tile_counts` of the dimensions of the legs.
    once_part : float
        Intermediates up to this fraction of the weight are computed once.
    keep_last : bool
        Compute the last product in the tile even if there is only one tile.

    Raises
    ------
    TopologyError
        If the first legs cannot be split into this number of tiles.
    """
    sizes = sizes_of(segments)
    paths = tuple(p if p is not None else default_path(s, sizes) for s, p in zip(segments, paths, strict=True))
    parts = _divided(replace(segments[-1], outputs=order), paths[-1], sizes, tiles, once_part, keep_last)
    last = parts.last
    # the state is computed in the order in which it is read, unless one of its legs is a split leg of the weight
    free_state = bool(last.inputs) and last.inputs == segments[-1].inputs and bool(parts.path)
    arranged = _arranged(parts, free_state, _halves_of_state(segments, paths) if free_state else {})

    trained = any(core.trainable for s in segments[:-1] for core in s.cores)
    needs = dict(enumerate(([trained] if last.inputs else []) + [core.trainable for core in last.cores]))
    once = plan_steps(arranged.once, arranged.once_orders, needs, parts.sizes)
    operands = tuple(_operand(parts, s, arranged, needs[s]) for s in parts.frontier)
    head = Program(())
    if len(segments) > 1:
        before = replace(segments[-2], outputs=arranged.once_orders[0]) if free_state else segments[-2]
        head = compile_program((*segments[:-2], before), paths[:-1], free_states=True)
        last = replace(last, inputs=arranged.once_orders[0])
    stage = Stage(
        segment=last,
        path=paths[-1],
        cores=last.cores,
        steps=once,
        alone=None,
        has_state=bool(last.inputs),
        need_state=trained,
        out_shape=tuple(parts.sizes[i] for i in last.outputs),
    )
    return Tiled(
        head=head,
        last=stage,
        operands=operands,
        steps=_steps_of_tile(parts, arranged, operands),
        tiles=tiles,
        shape=tuple(parts.sizes[i] for i in parts.unsliced),
        legs=order,
        smallest=min(range(len(operands)), key=lambda k: operands[k].entries),
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class _Parts:
    """The last segment, with its contractions divided into those of a tile and those that are computed once.

    ``bound`` is the number of entries up to which an intermediate is small.
    """

    last: Segment
    path: list[Node]
    tile: list[Node]
    once: list[Node]
    sliced: frozenset[str]
    sizes: dict[str, int]
    bound: float

    @property
    def unsliced(self) -> Inds:
        """The legs of the weight inside a tile."""
        return _without(self.last.outputs, self.sliced)

    @property
    def top(self) -> int:
        """The slot of the result."""
        return len(self.last.terms) + len(self.path) - 1

    @cached_property
    def frontier(self) -> list[int]:
        """The slots that are computed once and used by the tiles."""
        inside = {node.out for node in self.tile}
        return sorted({s for node in self.tile for s in (node.left, node.right)} - inside or {self.top})

    def inds(self, slot: int) -> Inds:
        """Return the indices of a slot."""
        terms = self.last.terms
        return terms[slot] if slot < len(terms) else self.path[slot - len(terms)].inds

    def blocks(self, inds: Inds) -> Inds:
        """Return those of some indices that are sliced, in the order of the weight."""
        return tuple(i for i in self.last.outputs if i in self.sliced and i in inds)


def _divided(
    segment: Segment, path: Path, sizes: dict[str, int], tiles: int, once_part: float, keep_last: bool
) -> _Parts:
    """Cut the legs of the last segment, and divide its contractions."""
    last, sliced, cut = _cut(segment, sizes, tiles)
    sizes = sizes | cut
    nodes = contraction_nodes(last.terms, last.outputs, path)
    bound = once_part * math.prod(sizes[i] for i in last.outputs)
    tile, once = _divide(nodes, sliced, sizes, bound, keep_last)
    return _Parts(last=last, path=nodes, tile=tile, once=once, sliced=sliced, sizes=sizes, bound=bound)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Arranged:
    """Contractions with the order of the indices of every slot, outside and inside a tile."""

    tile: list[Node]
    tile_orders: list[Inds]
    once: list[Node]
    once_orders: list[Inds]


def _arranged(parts: _Parts, free_state: bool, halves_of_state: dict[int, tuple[Inds, Inds]]) -> _Arranged:
    """Order the indices of all intermediates, so that products need few copies."""
    terms, sizes, sliced, frontier = parts.last.terms, parts.sizes, parts.sliced, parts.frontier
    once_orders = [None if t == 0 and free_state else term for t, term in enumerate(terms)] + [None] * len(parts.path)

    # inside a tile first, which decides the index order of the frontier; permuting small cores once is free
    small = {s for s in frontier if math.prod(sizes[i] for i in parts.inds(s)) <= parts.bound}
    tile_orders = [None if i is None or s in small else _without(i, sliced) for s, i in enumerate(once_orders)]
    tile_orders[parts.top] = parts.unsliced
    halves = {node.out: (node.rows, node.cols) for node in (m.without(sliced) for m in parts.once)}
    tile, orders = arrange(parts.tile, tile_orders, sizes, halves)
    for s in frontier:
        if once_orders[s] is None:
            once_orders[s] = (*parts.blocks(parts.inds(s)), *orders[s])
    halves = halves_of_state if once_orders[0] is None else {}
    once, slot_orders = arrange(parts.once, once_orders, sizes, halves)
    return _Arranged(tile=tile, tile_orders=orders, once=once, once_orders=slot_orders)


def _steps_of_tile(parts: _Parts, arranged: _Arranged, operands: tuple[Operand, ...]) -> tuple[PairStep, ...]:
    """Return the steps of a tile, in whose workspace the operands come first."""
    local = {s: k for k, s in enumerate([*parts.frontier, *(node.out for node in arranged.tile)])}
    nodes = [replace(m, left=local[m.left], right=local[m.right], out=local[m.out]) for m in arranged.tile]
    needs = dict(enumerate(op.need for op in operands))
    return plan_steps(nodes, [arranged.tile_orders[s] for s in local], needs, parts.sizes)


def _divide(
    nodes: list[Node], sliced: frozenset[str], sizes: dict[str, int], bound: float, keep_last: bool
) -> tuple[list[Node], list[Node]]:
    """Divide the nodes into those of a tile and those that are computed once.

    A node belongs to the tile if it has sliced legs and is large, or if one of its operands belongs there.
    """
    tile: list[Node] = []
    once: list[Node] = []
    tile_slots: set[int] = set()
    for node in nodes:
        large = math.prod(sizes[i] for i in node.inds) > bound or node is nodes[-1]
        forced = keep_last and node is nodes[-1]
        if forced or (sliced & set(node.inds) and (large or {node.left, node.right} & tile_slots)):
            tile_slots.add(node.out)
            tile.append(node.without(sliced))
        else:
            once.append(node)
    return tile, once


def default_path(segment: Segment, sizes: dict[str, int]) -> Path:
    """Find the default path of a segment with :func:`find_path`."""
    terms = segment.terms
    return find_path(terms, segment.outputs, tuple(sorted(sizes.items()))) if len(terms) > 1 else ()


def _without(inds: Inds, sliced: frozenset[str]) -> Inds:
    return tuple(i for i in inds if i not in sliced)


def _halves_of_state(segments: tuple[Segment, ...], paths: tuple[Path | None, ...]) -> dict[int, tuple[Inds, Inds]]:
    halves = last_halves(segments[-2], paths[-2])
    return {} if halves is None else {0: halves}


def _operand(parts: _Parts, slot: int, arranged: _Arranged, need: bool) -> Operand:
    sizes, stored, rest = parts.sizes, arranged.once_orders[slot], arranged.tile_orders[slot]
    traversal = parts.blocks(parts.last.outputs)
    head = parts.blocks(stored)
    strides = {i: math.prod(sizes[j] for j in traversal[p + 1 :]) for p, i in enumerate(traversal)}
    factors = {i: math.prod(sizes[j] for j in head[p + 1 :]) for p, i in enumerate(head)}
    view = MatrixView.plain(stored, sizes, (head, rest) if head else (rest,))
    return Operand(slot, view, tuple((strides[i], sizes[i], factors[i]) for i in head), need)


def cut_legs(legs: Inds, sizes: dict[str, int], tiles: int) -> dict[str, int]:
    """Choose the first legs that make the given number of tiles, with the dimension of each inside a tile.

    Raises
    ------
    TopologyError
        If the legs cannot be split into this number of tiles.
    """
    remaining, inside = tiles, dict[str, int]()
    for name in legs:
        d = sizes[name]
        if remaining == 1 or (remaining % d and d % remaining):
            break
        inside[name] = 1 if remaining % d == 0 else d // remaining
        remaining = remaining // d if remaining % d == 0 else 1
    if remaining != 1:
        dims = tuple(sizes[i] for i in legs)
        raise TopologyError(f"Got tiles={tiles}; legs of {dims} can be split into {tile_counts(dims)[:40]} tiles.")
    return inside


def _cut(segment: Segment, sizes: dict[str, int], tiles: int) -> tuple[Segment, frozenset[str], dict[str, int]]:
    """Find the sliced legs; a leg that is sliced in part is split into two, whose dimensions are returned as well."""
    inside = cut_legs(segment.outputs, sizes, tiles)
    sliced: set[str] = set()
    parts: dict[str, int] = {}  # a leg may be that of the state, without a core that has it
    for name, rest in inside.items():
        if rest == 1:
            sliced.add(name)
        else:
            first, second = f"{name}/0", f"{name}/1"
            parts |= {first: sizes[name] // rest, second: rest}
            segment = _split(segment, name, (first, second), (sizes[name] // rest, rest))
            sliced.add(first)
    return segment, frozenset(sliced), parts


def _split(segment: Segment, name: str, names: tuple[str, str], dims: tuple[int, int]) -> Segment:
    """Split one leg of a segment into two."""

    def inds(old: Inds) -> Inds:
        return tuple(j for i in old for j in (names if i == name else (i,)))

    cores: list[Core] = []
    for core in segment.cores:
        shape = tuple(e for i, d in zip(core.inds, core.shape, strict=True) for e in (dims if i == name else (d,)))
        cores.append(replace(core, inds=inds(core.inds), shape=shape))
    return replace(segment, inputs=inds(segment.inputs), cores=tuple(cores), outputs=inds(segment.outputs))


def row_order(segments: tuple[Segment, ...], layout: Layout) -> Inds:
    """Return the legs of the weight axis by axis, so that tiles are blocks of rows."""
    positions = sorted(range(layout.ndim_legs), key=lambda p: layout.leg_axes[p])
    return tuple(segments[-1].outputs[p] for p in positions)
