r"""A program cut into what is computed once and what is computed tile by tile.

The last segment is a tree of pairwise contractions. Legs of the weight are never summed, so fixing the first of them,
``S``, to one value after the other walks through the weight in tiles::

    once:      F_j       = everything whose result is small (the frontier)
    per tile:  Z[s]      = contraction of F_j[s],      W[s] = σ(Z[s])
               F̄_j[s]   += environment of F_j[s] in Z̄[s]
    once:      Ā_t[k]    from F̄_j

Nothing of the size of the weight exists at any time. With ``S`` empty there is one tile: the weight itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from .._typing import Inds, Shape
from ..errors import TopologyError
from ..layout import Layout
from ..topology import Activation, Core, Segment, get_activation, sizes_of
from ._order import Node, arrange, contraction_nodes
from ._pairwise import MatrixView, PairStep
from ._path import find_path
from ._program import Path, Program, Stage, compile_program, last_halves, plan_steps

# intermediates up to this part of the weight are computed once for all tiles
ONCE_PART = 1 / 12


@dataclass(frozen=True, eq=False)
class Operand:
    """One operand of the tile network.

    Parameters
    ----------
    slot : int
        Of the workspace of the part that is computed once.
    view : MatrixView
        Reads it as ``(blocks, entries)``, or as ``(entries,)`` when it has no sliced legs.
    digits : tuple of (int, int, int)
        Its block for tile ``i`` is ``sum(i // stride % dim * factor)`` over these ``(stride, dim, factor)``.
    need : bool
        Whether anything upstream is trained.
    """

    slot: int
    view: MatrixView
    digits: tuple[tuple[int, int, int], ...]
    need: bool

    @property
    def entries(self) -> int:
        """All its entries."""
        return math.prod(self.view.matrix)

    def block(self, tile: int) -> int:
        """Which block the tile with this number reads; also for traced numbers."""
        return sum(tile // stride % dim * factor for stride, dim, factor in self.digits)


@dataclass(frozen=True, eq=False)
class Tiled:
    """A program that generates a weight tile by tile.

    Parameters
    ----------
    head : Program
        Everything before the last segment.
    last : Stage
        The last segment with only those steps whose results serve all tiles.
    operands : tuple of Operand
        What a tile reads; they fill the first slots of its workspace.
    steps : tuple of PairStep
        Steps of one tile.
    tiles : int
        How many.
    shape : tuple of int
        Of a tile's ``Z``: the legs that are not sliced, in the wanted order.
    legs : tuple of str
        All legs of the weight in the order in which the tiles walk through them.
    smallest : int
        The operand with the fewest entries: where a factor of the weight costs least.
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
        """σ after the last segment."""
        return get_activation(self.last.segment.activation)

    @property
    def linear_end(self) -> bool:
        """Whether there is none."""
        return self.last.segment.activation == "identity"

    @property
    def n_slots(self) -> int:
        """Slots of the last segment: the state, its cores and all results."""
        return len(self.last.cores) + self.last.has_state + len(self.last.path)


def tile_counts(dims: Shape) -> list[int]:
    """Into how many tiles the first legs can cut: all products of leading dimensions and divisors of the next."""
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
    """Cut a program into tiles.

    Parameters
    ----------
    segments : tuple of Segment
        Of the whole generator.
    paths : tuple of (path or None)
        Contraction order of each segment.
    order : tuple of str
        The legs of the weight in the order in which it is walked through; the first ones are sliced.
    tiles : int
        How many tiles; one of :func:`tile_counts` of the legs' dimensions.
    once_part : float
        Results up to this part of the weight are computed once.
    keep_last : bool
        The last product belongs to the tile even when there is only one.

    Raises
    ------
    TopologyError
        If the first legs cannot be cut into so many tiles.
    """
    sizes = sizes_of(segments)
    paths = tuple(p if p is not None else default_path(s, sizes) for s, p in zip(segments, paths, strict=True))
    last, sliced = _cut(replace(segments[-1], outputs=order), sizes, tiles)
    legs, sizes, order = order, sizes | sizes_of([last]), last.outputs
    kept = tuple(i for i in order if i not in sliced)
    terms = last.terms
    nodes = contraction_nodes(terms, order, paths[-1])
    bound = once_part * math.prod(sizes[i] for i in order)
    tile_nodes, once_nodes = _divide(nodes, sliced, sizes, bound, keep_last)
    made = {node.out for node in tile_nodes}
    top = len(terms) + len(nodes) - 1
    frontier = sorted({s for node in tile_nodes for s in (node.left, node.right)} - made or {top})

    # a state is made in the order in which it is read, unless a leg of the weight that it carries is cut in two
    free_state = bool(last.inputs) and last.inputs == segments[-1].inputs and bool(nodes)
    wanted = [None if t == 0 and free_state else term for t, term in enumerate(terms)] + [None] * len(nodes)

    # first inside a tile: that says how the frontier should lie. Small cores are permuted once, which is free
    small = {s for s in frontier if math.prod(sizes[i] for i in _inds(s, terms, nodes)) <= bound}
    stored = [None if i is None or s in small else _without(i, sliced) for s, i in enumerate(wanted)]
    stored[top] = kept
    halves = {node.out: (node.rows, node.cols) for node in (m.without(sliced) for m in once_nodes)}
    tile_nodes, orders = arrange(tile_nodes, stored, sizes, halves)
    for s in frontier:
        if wanted[s] is None:
            wanted[s] = (*_sliced_of(_inds(s, terms, nodes), order, sliced), *orders[s])
    halves = _halves_of_state(segments, paths) if free_state and wanted[0] is None else {}
    once_nodes, lies = arrange(once_nodes, wanted, sizes, halves)

    trained = any(core.trainable for s in segments[:-1] for core in s.cores)
    needs = dict(enumerate(([trained] if last.inputs else []) + [core.trainable for core in last.cores]))
    once = plan_steps(once_nodes, lies, needs, sizes)
    operands = tuple(_operand(s, lies[s], orders[s], order, sliced, sizes, needs[s]) for s in frontier)
    local = {s: k for k, s in enumerate([*frontier, *(node.out for node in tile_nodes)])}
    renamed = [replace(m, left=local[m.left], right=local[m.right], out=local[m.out]) for m in tile_nodes]
    steps = plan_steps(renamed, [orders[s] for s in local], dict(enumerate(op.need for op in operands)), sizes)

    head = Program(())
    if len(segments) > 1:
        before = replace(segments[-2], outputs=lies[0]) if free_state else segments[-2]
        head = compile_program((*segments[:-2], before), paths[:-1], free_states=True)
        last = replace(last, inputs=lies[0])
    shape = tuple(sizes[i] for i in order)
    stage = Stage(last, paths[-1], last.cores, once, None, bool(last.inputs), trained, shape)
    smallest = min(range(len(operands)), key=lambda k: operands[k].entries)
    return Tiled(head, stage, operands, steps, tiles, tuple(sizes[i] for i in kept), legs, smallest)


def _divide(
    nodes: list[Node], sliced: frozenset[str], sizes: dict[str, int], bound: float, keep_last: bool
) -> tuple[list[Node], list[Node]]:
    """Nodes of a tile and nodes of the part that is computed once.

    A node belongs to the tile when it has sliced legs and is large, or one of its operands belongs there.
    """
    tile: list[Node] = []
    once: list[Node] = []
    made: set[int] = set()
    for node in nodes:
        large = math.prod(sizes[i] for i in node.inds) > bound or node is nodes[-1]
        kept = keep_last and node is nodes[-1]
        if kept or (sliced & set(node.inds) and (large or {node.left, node.right} & made)):
            made.add(node.out)
            tile.append(node.without(sliced))
        else:
            once.append(node)
    return tile, once


def default_path(segment: Segment, sizes: dict[str, int]) -> Path:
    """What :func:`find_path` gives for a segment."""
    terms = segment.terms
    return find_path(terms, segment.outputs, tuple(sorted(sizes.items()))) if len(terms) > 1 else ()


def _inds(slot: int, terms: tuple[Inds, ...], nodes: list[Node]) -> Inds:
    return terms[slot] if slot < len(terms) else nodes[slot - len(terms)].inds


def _without(inds: Inds, sliced: frozenset[str]) -> Inds:
    return tuple(i for i in inds if i not in sliced)


def _sliced_of(inds: Inds, order: Inds, sliced: frozenset[str]) -> Inds:
    return tuple(i for i in order if i in sliced and i in inds)


def _halves_of_state(segments: tuple[Segment, ...], paths: tuple[Path | None, ...]) -> dict[int, tuple[Inds, Inds]]:
    found = last_halves(segments[-2], paths[-2])
    return {} if found is None else {0: found}


def _operand(
    slot: int, lies: Inds, rest: Inds, order: Inds, sliced: frozenset[str], sizes: dict[str, int], need: bool
) -> Operand:
    walk = [i for i in order if i in sliced]
    head = _sliced_of(lies, order, sliced)
    strides = {i: math.prod(sizes[j] for j in walk[p + 1 :]) for p, i in enumerate(walk)}
    factors = {i: math.prod(sizes[j] for j in head[p + 1 :]) for p, i in enumerate(head)}
    view = MatrixView.plain(lies, sizes, (head, rest) if head else (rest,))
    return Operand(slot, view, tuple((strides[i], sizes[i], factors[i]) for i in head), need)


def cut_legs(legs: Inds, sizes: dict[str, int], tiles: int) -> dict[str, int]:
    """The first legs that make so many tiles, with what is left of each inside a tile.

    Raises
    ------
    TopologyError
        If they cannot be cut into so many tiles.
    """
    left, inside = tiles, dict[str, int]()
    for name in legs:
        d = sizes[name]
        if left == 1 or (left % d and d % left):
            break
        inside[name] = 1 if left % d == 0 else d // left
        left = left // d if left % d == 0 else 1
    if left != 1:
        dims = tuple(sizes[i] for i in legs)
        raise TopologyError(f"Got tiles={tiles}; legs of {dims} can be cut into {tile_counts(dims)[:40]}.")
    return inside


def _cut(segment: Segment, sizes: dict[str, int], tiles: int) -> tuple[Segment, frozenset[str]]:
    """The legs that are sliced; one that is sliced in part is read as two."""
    inside = cut_legs(segment.outputs, sizes, tiles)
    sliced: set[str] = set()
    for name, rest in inside.items():
        if rest == 1:
            sliced.add(name)
        else:
            first, second = f"{name}/0", f"{name}/1"
            segment = _split(segment, name, (first, second), (sizes[name] // rest, rest))
            sliced.add(first)
    return segment, frozenset(sliced)


def _split(segment: Segment, name: str, names: tuple[str, str], dims: tuple[int, int]) -> Segment:
    """The same segment with one leg read as two."""

    def inds(old: Inds) -> Inds:
        return tuple(j for i in old for j in (names if i == name else (i,)))

    cores: list[Core] = []
    for core in segment.cores:
        shape = tuple(e for i, d in zip(core.inds, core.shape, strict=True) for e in (dims if i == name else (d,)))
        cores.append(replace(core, inds=inds(core.inds), shape=shape))
    return replace(segment, inputs=inds(segment.inputs), cores=tuple(cores), outputs=inds(segment.outputs))


def row_order(segments: tuple[Segment, ...], layout: Layout) -> Inds:
    """The legs of the weight axis by axis: tiles are blocks of rows."""
    positions = sorted(range(layout.ndim_legs), key=lambda p: layout.leg_axes[p])
    return tuple(segments[-1].outputs[p] for p in positions)
