"""The singular values of a tree of tensors across any bipartition of its legs."""

from __future__ import annotations

import math
from collections.abc import Collection
from functools import reduce

import numpy as np

from .._typing import Float
from ..errors import TopologyError
from ._messages import triangular
from ._network import MOST_ENTRIES, Graph


def cut_spectrum(tree: Graph, first: Collection[str]) -> Float[np.ndarray, " rank"]:
    """Compute the singular values of a tree across the legs ``first`` and all others.

    From the leaves to the root, the legs of either side are compressed by QR to as few as the rest can tell apart, so a
    subtree with the legs of one side costs what its message does, and the weight is made only where the cut needs it.

    Parameters
    ----------
    tree : Graph
        Without loops.
    first : collection of str
        The legs of one side.

    Raises
    ------
    TopologyError
        If the cut needs a tensor that is too large.
    """
    parts: dict[int, np.ndarray] = {}
    roots: list[np.ndarray] = []
    for n in reversed(tree.order):
        up = tree.parent[n]
        part = _part(tree, n, first, parts)
        if up is not None:
            parts[n] = part
        else:
            roots.append(np.linalg.svd(part[:, :, 0], compute_uv=False))
    values = reduce(lambda a, b: np.outer(a, b).ravel(), roots, np.ones(1))
    return np.sort(values)[::-1]


def _part(
    tree: Graph, n: int, first: Collection[str], parts: dict[int, np.ndarray]
) -> Float[np.ndarray, "first second bond"]:
    """Contract a node with the parts behind it, as (first side, second side, bond to its parent)."""
    node, up = tree.nodes[n], tree.parent[n]
    x, inds = node.tensor, list(node.inds)
    sides: dict[str, list[str]] = {"first": [], "second": []}
    for i in node.inds:
        if i == up:
            continue
        if i in tree.edges:
            part = parts.pop(tree.across(i, n))
            if x.size // part.shape[2] * part.shape[0] * part.shape[1] > MOST_ENTRIES:
                raise TopologyError(
                    f"Got legs={sorted(first)}, a cut that needs a tensor of more than {MOST_ENTRIES:,} entries; "
                    "expected legs that are together in the tree."
                )
            x = np.tensordot(x, part, axes=(inds.index(i), 2))
            inds.remove(i)
            inds += [f"{i}/1", f"{i}/2"]
            sides["first"].append(f"{i}/1")
            sides["second"].append(f"{i}/2")
        else:
            sides["first" if i in first else "second"].append(i)
    order = [*sides["first"], *sides["second"], *([up] if up is not None else [])]
    x = np.transpose(x, [inds.index(i) for i in order])
    k = len(sides["first"])
    bond = 1 if up is None else x.shape[-1]
    a = math.prod(x.shape[:k])
    return _compressed(x.reshape(a, -1, bond))


def _compressed(x: Float[np.ndarray, "first second bond"]) -> Float[np.ndarray, "rank rank2 bond"]:
    """Replace the first two axes by the rows of triangular factors where these are fewer."""
    for _ in range(2):
        a, b, d = x.shape
        if a > b * d:
            x = triangular(x.reshape(a, b * d)).reshape(-1, b, d)
        x = np.swapaxes(x, 0, 1)
    return x
