r"""Environments of bonds on loops, and of any bond in the metric of samples.

The network with an open bond is contracted with a copy of itself over its legs (the double layer), so the weight is
never made. Legs of an axis with a metric go through its root, which is one more tensor of both layers; a root of many
rows is replaced by random combinations of them, whose second moment is an estimate of the same.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from .._typing import Float
from ..errors import TopologyError
from ._metric import Metric
from ._network import MOST_ENTRIES, Graph, Node, contracted
from ._source import Source

_OPEN = "(open)"
_SAMPLES = 256  # random combinations of the rows of a root


def double_layer(source: Source, edge: str, core: str, metric: Metric | None) -> Float[np.ndarray, "k l m n"]:
    r"""Compute :math:`Y_{kl,mn} = \langle W_{kl}, W_{mn}\rangle` with its scale, on trees and on loops.

    Raises
    ------
    TopologyError
        If the weight has activations, or a tensor is too large.
    """
    if not source.is_linear:
        raise TopologyError("Got a network with activations, in which a segment is not the weight.")
    graph = source.view(0).graph
    roots = (None, None) if metric is None else metric.factors(source.generator.weighting)
    nodes = _opened(graph, edge, core)
    for axis, root in enumerate(roots):
        if root is not None:
            nodes.append(_root(source, axis, root))
    legs = {i for i in graph.legs if not any(i in node.inds for node in nodes[len(graph.nodes) :])}
    shared = legs | {f"(root{axis})" for axis in (0, 1)}
    copy = [replace(node, inds=tuple(i if i in shared else f"{i}'" for i in node.inds)) for node in nodes]
    outputs = (edge, _OPEN, f"{edge}'", f"{_OPEN}'")
    return contracted([*nodes, *copy], outputs, MOST_ENTRIES) * source.generator.scale**2


def _opened(graph: Graph, edge: str, core: str) -> list[Node]:
    """Rename the edge at the node of a core."""
    nodes = list(graph.nodes)
    n = next(n for n in graph.edges[edge] if core in nodes[n].names)
    nodes[n] = replace(nodes[n], inds=tuple(_OPEN if i == edge else i for i in nodes[n].inds))
    return nodes


def _root(source: Source, axis: int, root: Float[np.ndarray, "rows n"]) -> Node:
    """Return a root on the legs of the outputs or of the inputs, with few rows."""
    layout = source.generator.layout
    legs = sorted(zip(layout.leg_axes, layout.leg_names, layout.dims, strict=True))
    own = [(name, d) for (place, _), name, d in legs if (place > 0) == bool(axis)]
    if len(root) > _SAMPLES:
        random = np.random.default_rng(0).standard_normal((_SAMPLES, len(root)))
        root = random @ root / math.sqrt(_SAMPLES)
    return Node((), (f"(root{axis})", *(name for name, _ in own)), root.reshape(len(root), *(d for _, d in own)))
