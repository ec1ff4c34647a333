"""The tensors of a generator in the forms in which bonds are read: graphs of segments, states, the weight."""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np

from .._typing import Float
from ..calculus import forward_stage
from ..errors import TopologyError
from ..generator import Generator
from ..topology import BondIndex, Segment, sizes_of
from ._belief import Beliefs
from ._messages import Messages
from ._network import MOST_ENTRIES, Graph, Node, as_tree, contracted, graph_of

_LOOPS = 1 << 22  # entries of what is made of cores on loops, 32 MiB
_SPAN = 1 << 22


class SegmentView:
    """One segment: its graph, and what is computed from it when it is first needed.

    Parameters
    ----------
    graph : Graph
    scale : float
        The factor of all values.
    """

    def __init__(self, graph: Graph, scale: float) -> None:
        self.graph, self.scale = graph, abs(scale)

    @cached_property
    def tree(self) -> Graph | None:
        """The graph with its loops contracted; ``None`` where that needs a large tensor."""
        try:
            return as_tree(self.graph, _LOOPS)
        except TopologyError:
            return None

    @cached_property
    def messages(self) -> Messages | None:
        """The messages of :attr:`tree`."""
        return None if self.tree is None else Messages(self.tree)

    @cached_property
    def beliefs(self) -> Beliefs:
        """The messages of belief propagation."""
        return Beliefs(self.graph)

    def is_exact(self, edge: str) -> bool:
        """Return whether an edge is on no loop, so that its spectrum is that of a cut."""
        return edge not in self.graph.loops and self.tree is not None

    def spectrum(self, edge: str) -> Float[np.ndarray, " rank"]:
        """Compute the values of an edge: those of the cut, or those of belief propagation."""
        if self.messages is not None and self.is_exact(edge):
            return self.messages.spectrum(edge) * self.scale
        return self.beliefs.spectrum(edge) * self.scale

    def factors(self, edge: str, core: str) -> tuple[Float[np.ndarray, "first dim"], Float[np.ndarray, "second dim"]]:
        """Return the triangular factors of both sides of an edge, that of ``core`` second; on loops, beliefs."""
        found = self.messages if self.messages is not None and self.is_exact(edge) else self.beliefs
        graph = found.graph
        a, b = graph.edges[edge]
        if core in graph.nodes[a].names:
            a, b = b, a
        return found.factor(edge, a), found.factor(edge, b)

    def span(self, edge: str) -> int | None:
        """Return the dimension of the span of the networks with fixed values at both ends of a cut edge.

        It is at most the square of the bond, and less where other ways round a loop repeat what the bond carries.
        ``None`` if the opened network has too many entries.
        """
        if self.messages is not None and self.is_exact(edge):
            ends = self.messages.graph.edges[edge]
            return math.prod(_rank(self.messages.factor(edge, n)) for n in ends)
        graph, d = self.graph, self.graph.sizes[edge]
        if math.prod(graph.sizes[i] for i in graph.legs) * d * d > _SPAN:
            return None
        second = graph.edges[edge][1]
        nodes = list(graph.nodes)
        nodes[second] = Node(
            nodes[second].names, tuple("(open)" if i == edge else i for i in nodes[second].inds), nodes[second].tensor
        )
        try:
            opened = contracted(nodes, (edge, "(open)", *graph.legs), _SPAN)
        except TopologyError:
            return None
        return _rank(opened.reshape(d * d, -1))

    def legs_below(self, edge: str, core: str) -> tuple[str, ...]:
        """Return the open legs on the side of a core; those that are reached without the edge if it is on a loop."""
        if edge in self.graph.loops:
            return ()
        node = next(n for n in self.graph.edges[edge] if core in self.graph.nodes[n].names)
        return self.graph.legs_of(self.graph.beyond(edge, node))


def _rank(matrix: Float[np.ndarray, "m n"]) -> int:
    values = np.linalg.svd(matrix, compute_uv=False)
    least = max(matrix.shape) * np.finfo(np.float64).eps * 8.0
    return int((values > least * values[0]).sum()) if values.size and values[0] > 0.0 else 0


class Source:
    """A generator, with its cores in float64.

    Parameters
    ----------
    generator : Generator
    """

    def __init__(self, generator: Generator) -> None:
        self.generator = generator
        self.segments: tuple[Segment, ...] = generator.segments
        self.sizes = sizes_of(self.segments)
        cores = {core.param for segment in self.segments for core in segment.cores}
        found = {**generator.params, **generator.constants(implied=False)}
        self.arrays = {k: np.asarray(x, np.float64) for k, x in found.items() if k in cores}
        if broken := sorted(k for k, x in self.arrays.items() if not np.isfinite(x).all()):
            raise TopologyError(
                f"Got a generator whose core {broken[0]!r} has entries that are NaN or infinite; expected finite ones, "
                "as bonds have no spectra otherwise. Train it again, or load it from an earlier checkpoint."
            )
        self._views: dict[int, SegmentView] = {}
        self._states: dict[int, np.ndarray] = {}

    @property
    def is_linear(self) -> bool:
        """Whether the weight is a single multilinear segment."""
        return len(self.segments) == 1 and self.segments[0].activation == "identity"

    def view(self, t: int) -> SegmentView:
        """Return a segment with its incoming legs open; that of a linear program has the scale of the weight."""
        if t not in self._views:
            graph = graph_of(self.segments[t], self.arrays, self.sizes)
            self._views[t] = SegmentView(graph, self.generator.scale if self.is_linear else 1.0)
        return self._views[t]

    def state(self, t: int, *, activated: bool = True) -> Float[np.ndarray, "*legs"]:
        """Compute the state behind segment ``t``, before or after its activation.

        Raises
        ------
        TopologyError
            If it is too large.
        """
        if activated and t in self._states:
            return self._states[t]
        stage = self.generator.program.stages[t]
        if math.prod(stage.out_shape) > MOST_ENTRIES:
            raise TopologyError(
                f"This needs a state of {math.prod(stage.out_shape):,} entries; at most {MOST_ENTRIES:,} are made."
            )
        before = None if t == 0 else self.state(t - 1)
        found = np.asarray(forward_stage(stage, before, self.arrays, keep=False, activate=activated)[0])
        if activated and t < len(self.segments) - 1:
            self._states[t] = found
        return found

    @cached_property
    def weight_tree(self) -> Graph:
        """The generated tensor as a tree of tensors: the last state joined with the last segment, where that is linear.

        Raises
        ------
        TopologyError
            If a tensor is too large.
        """
        last = self.segments[-1]
        if last.activation != "identity":
            return Graph([Node(("state",), last.outputs, self.state(len(self.segments) - 1))])
        if self.is_linear:
            view = self.view(0)
            return as_tree(view.graph) if view.tree is None else view.tree
        state = self.state(len(self.segments) - 2)
        return as_tree(graph_of(last, self.arrays, self.sizes, state))

    def weight_legs(self, bond: BondIndex, legs: tuple[str, ...]) -> tuple[str, ...]:
        """Return the legs of the weight that depend on some legs of the segment or state of a bond."""
        below = set(legs) & set(self.segments[bond.segment].outputs)
        for segment in self.segments[bond.segment + 1 :]:
            below = _reached(segment, below)
        return tuple(i for i in self.segments[-1].outputs if i in below)


def _reached(segment: Segment, legs: set[str]) -> set[str]:
    """Return the outgoing legs that are connected with some incoming ones."""
    reached, grown = set(legs), True
    while grown:
        grown = False
        for core in segment.cores:
            if reached & set(core.inds) and not set(core.inds) <= reached:
                reached |= set(core.inds)
                grown = True
    return {i for i in segment.outputs if i in reached}
