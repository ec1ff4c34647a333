"""A segment as a graph of tensors in which every edge joins two of them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .._typing import Float, Inds
from ..calculus import forward_stage
from ..errors import TopologyError
from ..program import plan_stage
from ..topology import Core, Segment

MOST_ENTRIES = 1 << 27
"""Entries of the largest intermediate, 1 GiB."""
STATE = "(state)"
INPUT = ":in"


@dataclass(frozen=True, eq=False)
class Node:
    """A tensor with names for its axes.

    Parameters
    ----------
    names : tuple of str
        The cores that it holds: one, none for the copy tensor of a hyper-index, several after a contraction.
    inds : tuple of str
        Edges and open legs.
    tensor : numpy.ndarray
        In float64.
    """

    names: tuple[str, ...]
    inds: Inds
    tensor: Float[np.ndarray, "..."]


class Graph:
    """A network of tensors with its edges and open legs.

    Parameters
    ----------
    nodes : sequence of Node
        No index is on more than two of them.
    """

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = tuple(nodes)
        places: dict[str, list[int]] = {}
        for n, node in enumerate(self.nodes):
            for ind in node.inds:
                places.setdefault(ind, []).append(n)
        self.edges: dict[str, tuple[int, int]] = {i: (p[0], p[1]) for i, p in places.items() if len(p) == 2}
        self.legs: dict[str, int] = {i: p[0] for i, p in places.items() if len(p) == 1}
        self.sizes = {i: d for node in self.nodes for i, d in zip(node.inds, node.tensor.shape, strict=True)}
        self._parents()

    def across(self, edge: str, node: int) -> int:
        """Return the node on the other side of an edge."""
        a, b = self.edges[edge]
        return b if node == a else a

    def edges_of(self, node: int) -> list[str]:
        """List the edges of a node."""
        return [i for i in self.nodes[node].inds if i in self.edges]

    def _parents(self) -> None:
        """Search every component from its first node, and mark the edges that lie on loops."""
        n = len(self.nodes)
        self.order: list[int] = []
        self.parent: list[str | None] = [None] * n
        self.component = [-1] * n
        depth = [0] * n
        rest: list[str] = []
        for root in range(n):
            if self.component[root] >= 0:
                continue
            self.component[root] = root
            queue = deque([root])
            while queue:
                u = queue.popleft()
                self.order.append(u)
                for edge in self.edges_of(u):
                    v = self.across(edge, u)
                    if edge == self.parent[u]:
                        continue
                    if self.component[v] >= 0:
                        rest.append(edge)
                        continue
                    self.component[v], self.parent[v], depth[v] = root, edge, depth[u] + 1
                    queue.append(v)
        self.loops: set[str] = set(rest)
        for edge in set(rest):
            a, b = self.edges[edge]
            while a != b:
                if depth[a] < depth[b]:
                    a, b = b, a
                up = self.parent[a]
                assert up is not None
                self.loops.add(up)
                a = self.across(up, a)

    def beyond(self, edge: str, node: int) -> set[int]:
        """Return the nodes on the side of ``node`` of an edge that is on no loop."""
        seen, queue = {node}, deque([node])
        while queue:
            u = queue.popleft()
            for other in self.edges_of(u):
                v = self.across(other, u)
                if other != edge and v not in seen:
                    seen.add(v)
                    queue.append(v)
        return seen

    def legs_of(self, nodes: set[int]) -> tuple[str, ...]:
        """List the open legs of some nodes."""
        return tuple(i for i, n in self.legs.items() if n in nodes)


def graph_of(
    segment: Segment,
    arrays: Mapping[str, np.ndarray],
    sizes: Mapping[str, int],
    state: Float[np.ndarray, "..."] | None = None,
) -> Graph:
    """Build the graph of a segment.

    The legs of the incoming state are open, or joined with it if it is given. A leg that is also an outgoing leg is
    called ``name:in``. Hyper-indices become chains of copy tensors with three axes.

    Parameters
    ----------
    segment : Segment
    arrays : mapping of str to numpy.ndarray
        Values by name of the parameter.
    sizes : mapping of str to int
        The dimension of every index.
    state : numpy.ndarray, optional
        The incoming state.
    """
    cores: list[tuple[str, Inds, np.ndarray]] = []
    if state is not None:
        cores.append((STATE, segment.inputs, np.asarray(state, np.float64)))
    cores += [_without_traces(core, np.asarray(arrays[core.param], np.float64)) for core in segment.cores]
    open_in = set() if state is not None else set(segment.inputs)
    uses: dict[str, list[int]] = {i: [] for i in (*segment.inputs, *segment.outputs)}
    for n, (_, inds, _) in enumerate(cores):
        for i in inds:
            uses.setdefault(i, []).append(n)
    labels = [list(inds) for _, inds, _ in cores]
    tensors = [tensor for _, _, tensor in cores]
    extra: list[Node] = []
    for i, nodes in uses.items():
        is_out = i in segment.outputs
        outer = ([i] if is_out else []) + ([i + INPUT if is_out else i] if i in open_in else [])
        if len(nodes) + len(outer) == 1 and not outer:  # summed on its own
            n = nodes[0]
            tensors[n] = tensors[n].sum(labels[n].index(i))
            labels[n].remove(i)
        elif len(nodes) + len(outer) > 2 or not nodes:
            for n in nodes:
                labels[n][labels[n].index(i)] = end_label(i, cores[n][0])
            ends = [*(end_label(i, cores[n][0]) for n in nodes), *outer]
            extra += _copies(i, ends, sizes[i])
    nodes = [Node((name,), tuple(inds), x) for (name, _, _), inds, x in zip(cores, labels, tensors, strict=True)]
    return Graph([*nodes, *extra])


def end_label(index: str, core: str) -> str:
    """Return the name of the edge between a core and the copy tensors of a hyper-index."""
    return f"{index}@{core}"


def _without_traces(core: Core, x: np.ndarray) -> tuple[str, Inds, np.ndarray]:
    """Take the diagonal of an index that a core has twice."""
    inds = tuple(dict.fromkeys(core.inds))
    if inds != core.inds:
        number = {i: k for k, i in enumerate(inds)}
        x = np.einsum(x, [number[i] for i in core.inds], list(range(len(inds))))
    return core.name, inds, x


def _copies(index: str, ends: list[str], d: int) -> list[Node]:
    """Join ends by a chain of copy tensors; two ends by an identity."""
    if len(ends) == 2:
        return [Node((), (ends[0], ends[1]), np.eye(d))]
    copy = np.zeros((d, d, d))
    diagonal = np.arange(d)
    copy[diagonal, diagonal, diagonal] = 1.0
    nodes: list[Node] = []
    left = ends[0]
    for k, end in enumerate(ends[1:-2]):
        nodes.append(Node((), (left, end, f"{index}@@{k}"), copy))
        left = f"{index}@@{k}"
    return [*nodes, Node((), (left, ends[-2], ends[-1]), copy)]


def contracted(nodes: Sequence[Node], outputs: Inds, most: int = MOST_ENTRIES) -> Float[np.ndarray, "..."]:
    """Contract some tensors to one with the given legs.

    Raises
    ------
    TopologyError
        If an intermediate has more than ``most`` entries.
    """
    cores = tuple(
        Core(name=str(n), inds=node.inds, shape=node.tensor.shape, param=str(n), kind="core", init="given")
        for n, node in enumerate(nodes)
    )
    sizes = {i: d for core in cores for i, d in zip(core.inds, core.shape, strict=True)}
    stage = plan_stage(Segment((), cores, outputs), sizes, False, None)
    entries = max([math.prod(stage.out_shape), *(step.entries for step in stage.steps)])
    if entries > most:
        raise TopologyError(
            f"This needs a tensor of {entries:,} entries; at most {most:,} are made. Use fewer or smaller legs."
        )
    arrays = {str(n): node.tensor for n, node in enumerate(nodes)}
    return np.asarray(forward_stage(stage, None, arrays, keep=False)[0])


def as_tree(graph: Graph, most: int = MOST_ENTRIES) -> Graph:
    """Contract everything that edges on loops join, so that a tree or several are left.

    Raises
    ------
    TopologyError
        If an intermediate has more than ``most`` entries.
    """
    if not graph.loops:
        return graph
    group = list(range(len(graph.nodes)))

    def head(n: int) -> int:
        while group[n] != n:
            n = group[n]
        return n

    for edge in graph.loops:
        a, b = (head(n) for n in graph.edges[edge])
        group[a] = b
    members: dict[int, list[int]] = {}
    for n in range(len(graph.nodes)):
        members.setdefault(head(n), []).append(n)
    merged: list[Node] = []
    for ns in members.values():
        nodes = [graph.nodes[n] for n in ns]
        if len(ns) == 1:
            merged.append(nodes[0])
            continue
        outputs = tuple(i for node in nodes for i in node.inds if i not in graph.loops)
        names = tuple(name for node in nodes for name in node.names)
        merged.append(Node(names, outputs, contracted(nodes, outputs, most)))
    return Graph(merged)
