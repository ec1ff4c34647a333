r"""Belief propagation on a network with loops.

Every message is a triangular factor R, where :math:`R^\top R` is the message of the doubled network; iterated to a
fixed point. On a tree these are the messages of two sweeps, and everything is exact. On loops the spectrum
:math:`\mathrm{svd}(R_a R_b^\top)` is that of the tree that looks the same from every bond, and no bound of any error:
in short loops it may be far from what a truncation costs.

References: J. Tindall, M. Fishman (2023), arXiv:2306.17837.
"""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np

from .._typing import Float
from ._messages import triangular, with_factors
from ._network import Graph

_ITERATIONS = 500
_TOLERANCE = 1e-9


class Beliefs:
    """The messages of belief propagation at their fixed point.

    Parameters
    ----------
    graph : Graph
        With or without loops.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._of = {
            (edge, n): np.eye(graph.sizes[edge]) / math.sqrt(graph.sizes[edge])
            for edge, ends in graph.edges.items()
            for n in ends
        }
        self.converged = False
        for self.iterations in range(1, _ITERATIONS + 1):
            if self._sweep() < _TOLERANCE:
                self.converged = True
                break

    def _sweep(self) -> float:
        """Update all messages, and return the largest change of one."""
        change = 0.0
        for n in (*reversed(self.graph.order), *self.graph.order):
            for edge in self.graph.edges_of(n):
                new, old = self._message(n, edge), self._of[edge, n]
                change = max(change, float(np.abs(new.T @ new - old.T @ old).max()))
                self._of[edge, n] = new
        return change

    def _message(self, n: int, edge: str) -> np.ndarray:
        node = self.graph.nodes[n]
        factors = {e: self._of[e, self.graph.across(e, n)] for e in self.graph.edges_of(n) if e != edge}
        x = np.moveaxis(with_factors(node.tensor, node.inds, factors), node.inds.index(edge), -1)
        factor = triangular(x.reshape(-1, x.shape[-1]))
        return factor / max(float(np.linalg.norm(factor)), 1e-300)

    def factor(self, edge: str, node: int) -> Float[np.ndarray, "rank bond"]:
        """Return the factor of the side of ``node``, one of the two ends of an edge."""
        return self._of[edge, node]

    @cached_property
    def norm(self) -> float:
        """The norm of the network in the approximation of Bethe, which is exact on a tree."""
        log = 0.0
        for n, node in enumerate(self.graph.nodes):
            factors = {e: self._of[e, self.graph.across(e, n)] for e in self.graph.edges_of(n)}
            log += math.log(max(float(np.linalg.norm(with_factors(node.tensor, node.inds, factors))), 1e-300))
        for edge in self.graph.edges:
            log -= math.log(max(float(np.linalg.norm(self._matrix(edge))), 1e-300))
        return math.exp(log)

    def _matrix(self, edge: str) -> np.ndarray:
        a, b = self.graph.edges[edge]
        return self._of[edge, a] @ self._of[edge, b].T

    def spectrum(self, edge: str) -> Float[np.ndarray, " rank"]:
        """Return the values of a bond, whose squares sum to that of :meth:`norm`, in descending order."""
        values = np.linalg.svd(self._matrix(edge), compute_uv=False)
        return values * (self.norm / max(float(np.linalg.norm(values)), 1e-300))
