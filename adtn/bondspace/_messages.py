"""Messages of a tree of tensors: triangular factors of everything behind an edge."""

from __future__ import annotations

import math

import numpy as np

from .._typing import Float
from ._network import Graph

_BLOCK = 1024  # rows


def with_factors(
    tensor: Float[np.ndarray, "..."], inds: tuple[str, ...], factors: dict[str, Float[np.ndarray, "rows bond"]]
) -> Float[np.ndarray, "..."]:
    """Multiply some axes of a tensor with triangular factors."""
    for axis, ind in enumerate(inds):
        if ind in factors:
            tensor = np.moveaxis(np.tensordot(factors[ind], tensor, axes=(1, axis)), 0, axis)
    return tensor


def triangular(matrix: Float[np.ndarray, "rows bond"]) -> Float[np.ndarray, "rank bond"]:
    """Return a factor R of few rows with the same :math:`R^\\top R`."""
    rows, columns = matrix.shape
    if rows <= columns:
        return matrix
    blocks = rows // max(_BLOCK, 4 * columns)
    if blocks > 1:  # blocks that fit in the cache: a tall matrix at once takes several times as long
        whole = blocks * (rows // blocks)
        factors = np.linalg.qr(matrix[:whole].reshape(blocks, -1, columns), mode="r")
        matrix = np.concatenate((np.asarray(factors).reshape(-1, columns), matrix[whole:]))
        return triangular(matrix)
    return np.asarray(np.linalg.qr(matrix, mode="r"))


class Messages:
    r"""The triangular factors of both sides of every edge of a tree.

    With :math:`W = A B^\top` across an edge, these are R of :math:`A = Q R` and of :math:`B`, so that the singular
    values of W are those of :math:`R_A R_B^\top`. Two sweeps compute all of them from the tensors alone.

    Parameters
    ----------
    graph : Graph
        Without loops.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._of: dict[tuple[str, int], np.ndarray] = {}
        self.norms: dict[int, float] = {}
        for n in reversed(graph.order):
            up = graph.parent[n]
            if up is not None:
                self._of[up, n] = self._message(n, up)
            else:
                factors = {e: self._of[e, graph.across(e, n)] for e in graph.edges_of(n)}
                node = graph.nodes[n]
                self.norms[n] = float(np.linalg.norm(with_factors(node.tensor, node.inds, factors)))
        for n in graph.order:
            for edge in graph.edges_of(n):
                if edge != graph.parent[n]:
                    self._of[edge, n] = self._message(n, edge)

    def _message(self, n: int, edge: str) -> np.ndarray:
        graph, node = self.graph, self.graph.nodes[n]
        factors = {e: self._of[e, graph.across(e, n)] for e in graph.edges_of(n) if e != edge}
        x = np.moveaxis(with_factors(node.tensor, node.inds, factors), node.inds.index(edge), -1)
        return triangular(x.reshape(-1, x.shape[-1]))

    def factor(self, edge: str, node: int) -> Float[np.ndarray, "rank bond"]:
        """Return the factor of the side of ``node``, one of the two ends of an edge."""
        return self._of[edge, node]

    def outside(self, edge: str) -> float:
        """Return the norm of all components but that of an edge."""
        own = self.graph.component[self.graph.edges[edge][0]]
        return math.prod(norm for root, norm in self.norms.items() if root != own)

    def spectrum(self, edge: str) -> Float[np.ndarray, " rank"]:
        """Compute the singular values of the network across an edge, in descending order."""
        a, b = self.graph.edges[edge]
        values = np.linalg.svd(self._of[edge, a] @ self._of[edge, b].T, compute_uv=False)
        return values * self.outside(edge)
