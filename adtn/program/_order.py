"""The index order of every intermediate of a contraction tree, chosen to avoid permutations.

The result of a product is ordered (batch, rows, columns), and each group of indices may be in any order that both
operands share. Orders are therefore decided from the root down: each node requests from its operands the order that
makes it a plain matrix product; a transposed operand is equally good.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from .._typing import Inds


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One pairwise contraction and its groups of indices.

    Parameters
    ----------
    left, right, out : int
        Slots of the workspace: operands first, then results.
    batch, rows, inner, cols : tuple of str
        Indices that are in both operands and the result, in left and the result, in both operands only, and in right
        and the result.
    """

    left: int
    right: int
    out: int
    batch: Inds
    rows: Inds
    inner: Inds
    cols: Inds

    @property
    def inds(self) -> Inds:
        """The indices of the result."""
        return (*self.batch, *self.rows, *self.cols)

    def without(self, sliced: frozenset[str]) -> Node:
        """Remove some indices of the result, which are fixed to one value."""
        groups = [tuple(i for i in group if i not in sliced) for group in (self.batch, self.rows, self.cols)]
        return replace(self, batch=groups[0], rows=groups[1], cols=groups[2])


def contraction_nodes(terms: tuple[Inds, ...], output: Inds, path: tuple[tuple[int, int], ...]) -> list[Node]:
    """Build the nodes of a path in the convention of :func:`numpy.einsum_path`."""
    live: list[tuple[int, Inds]] = list(enumerate(terms))
    nodes: list[Node] = []
    for i, j in path:
        (right, lb), (left, la) = live.pop(max(i, j)), live.pop(min(i, j))
        needed = set(output).union(*(inds for _, inds in live))
        node = Node(
            left=left,
            right=right,
            out=len(terms) + len(nodes),
            batch=tuple(i for i in la if i in lb and i in needed),
            rows=tuple(i for i in la if i not in lb and i in needed),
            inner=tuple(i for i in la if i in lb and i not in needed),
            cols=tuple(i for i in lb if i not in la and i in needed),
        )
        nodes.append(node)
        live.append((node.out, node.inds))
    return nodes


def arrange(
    nodes: list[Node], stored: list[Inds | None], sizes: dict[str, int], halves: dict[int, tuple[Inds, Inds]]
) -> tuple[list[Node], list[Inds]]:
    """Decide the index order of all slots, from the root down.

    Parameters
    ----------
    nodes : list of Node
        In execution order.
    stored : list of (tuple of str or None)
        Index order of each slot, ``None`` where it is free. The last one, of the result, must be given.
    sizes : dict of str to int
        Dimension of each index.
    halves : dict of int to (tuple of str, tuple of str)
        For free slots that are not results of ``nodes``: the two groups of indices that are each contiguous.

    Returns
    -------
    tuple of list of Node and list of tuple of str
        The nodes with ordered groups, and the order of every slot.
    """
    orders: list[Inds | None] = list(stored)
    halves = halves | {node.out: (node.rows, node.cols) for node in nodes}
    arranged: list[Node] = []
    for node in reversed(nodes):
        target = orders[node.out]
        assert target is not None
        rank = {i: p for p, i in enumerate(target)}
        batch, rows, cols = (tuple(sorted(g, key=rank.__getitem__)) for g in (node.batch, node.rows, node.cols))
        operand_orders = [orders[s] for s in (node.left, node.right)]
        entries = [math.prod(sizes[i] for i in group) for group in (rows, cols)]
        inner = node.inner
        # the larger operand with a given order decides the order of the summed indices
        for order in (operand_orders if entries[0] >= entries[1] else operand_orders[::-1])[::-1]:
            if order is not None:
                inner = tuple(sorted(inner, key=order.index))
        node = replace(node, batch=batch, rows=rows, inner=inner, cols=cols)
        for slot, outer in ((node.left, rows), (node.right, cols)):
            if orders[slot] is None:
                orders[slot] = (*batch, *_oriented(outer, inner, halves.get(slot)))
        arranged.append(node)
    return arranged[::-1], [() if order is None else order for order in orders]


def _oriented(outer: Inds, inner: Inds, halves: tuple[Inds, Inds] | None) -> Inds:
    """Return ``outer + inner`` or the reverse, whichever the producer can write without permuting."""
    if halves is not None:
        for order in ((*outer, *inner), (*inner, *outer)):
            n, m = (sum(i in half for i in order) for half in halves)
            head = set(order[:n])
            if head == set(order) & set(halves[0]) or set(order[:m]) == set(order) & set(halves[1]):
                return order
    return (*outer, *inner)
