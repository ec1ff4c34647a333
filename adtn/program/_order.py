"""In which order the indices of every intermediate of a contraction tree lie, so that little is permuted.

A product comes out as (batch, rows, columns), and each group of indices may be in any order if both operands
have it in that order. So orders are decided from the root down: each node asks its operands for the order that
makes it a plain matrix product, and what lies transposed is as good.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from .._typing import Inds


@dataclass(frozen=True, slots=True)
class Node:
    """One pairwise contraction and its groups of indices.

    Parameters
    ----------
    left, right, out : int
        Slots: operands first, then results.
    batch, rows, inner, cols : tuple of str
        Indices of both operands and the result, of left and the result, of both operands, of right and the result.
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
        """Indices of the result."""
        return (*self.batch, *self.rows, *self.cols)

    def without(self, sliced: frozenset[str]) -> Node:
        """The same contraction at fixed values of some indices of the result."""
        keep = [tuple(i for i in group if i not in sliced) for group in (self.batch, self.rows, self.cols)]
        return replace(self, batch=keep[0], rows=keep[1], cols=keep[2])


def contraction_nodes(terms: tuple[Inds, ...], output: Inds, path: tuple[tuple[int, int], ...]) -> list[Node]:
    """The nodes of a path in the convention of :func:`numpy.einsum_path`."""
    live: list[tuple[int, Inds]] = list(enumerate(terms))
    nodes: list[Node] = []
    for i, j in path:
        (right, lb), (left, la) = live.pop(max(i, j)), live.pop(min(i, j))
        needed = set(output).union(*(inds for _, inds in live))
        node = Node(
            left,
            right,
            len(terms) + len(nodes),
            tuple(i for i in la if i in lb and i in needed),
            tuple(i for i in la if i not in lb and i in needed),
            tuple(i for i in la if i in lb and i not in needed),
            tuple(i for i in lb if i not in la and i in needed),
        )
        nodes.append(node)
        live.append((node.out, node.inds))
    return nodes


def arrange(
    nodes: list[Node], stored: list[Inds | None], sizes: dict[str, int], halves: dict[int, tuple[Inds, Inds]]
) -> tuple[list[Node], list[Inds]]:
    """Decide all orders, from the root down.

    Parameters
    ----------
    nodes : list of Node
        In execution order.
    stored : list of (tuple of str or None)
        By slot: order in which it lies, ``None`` where it may be chosen. The last one is wanted.
    sizes : dict of str to int
        Dimension of each index.
    halves : dict of int to (tuple of str, tuple of str)
        For free slots that are not results of ``nodes``: the two groups that lie together.

    Returns
    -------
    tuple of list of Node and list of tuple of str
        The nodes with ordered groups, and the order of every slot.
    """
    orders: list[Inds | None] = list(stored)
    halves = halves | {node.out: (node.rows, node.cols) for node in nodes}
    arranged: list[Node] = []
    for node in reversed(nodes):
        want = orders[node.out]
        assert want is not None
        rank = {i: p for p, i in enumerate(want)}
        batch, rows, cols = (tuple(sorted(g, key=rank.__getitem__)) for g in (node.batch, node.rows, node.cols))
        given = [orders[s] for s in (node.left, node.right)]
        entries = [math.prod(sizes[i] for i in group) for group in (rows, cols)]
        inner = node.inner
        # the larger operand that is fixed says in which order the summed indices come
        for order in (given if entries[0] >= entries[1] else given[::-1])[::-1]:
            if order is not None:
                inner = tuple(sorted(inner, key=order.index))
        node = replace(node, batch=batch, rows=rows, inner=inner, cols=cols)
        for slot, outer in ((node.left, rows), (node.right, cols)):
            if orders[slot] is None:
                orders[slot] = (*batch, *_oriented(outer, inner, halves.get(slot)))
        arranged.append(node)
    return arranged[::-1], [() if order is None else order for order in orders]


def _oriented(outer: Inds, inner: Inds, halves: tuple[Inds, Inds] | None) -> Inds:
    """``outer + inner`` or the reverse, whichever the producer can write without permuting."""
    if halves is not None:
        for order in ((*outer, *inner), (*inner, *outer)):
            n, m = (sum(i in half for i in order) for half in halves)
            head = set(order[:n])
            if head == set(order) & set(halves[0]) or set(order[:m]) == set(order) & set(halves[1]):
                return order
    return (*outer, *inner)
