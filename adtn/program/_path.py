"""The default contraction path of a segment: the least roofline cost, searched once per structure."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from .._typing import Inds

# operations per element moved, between 'flops' and 'write': the best fixed factor measured on CPUs
_MINIMIZE = "limit-64"
_EXHAUSTIVE = 9


@lru_cache(maxsize=1024)
def find_path(
    inputs: tuple[Inds, ...], output: Inds, sizes: tuple[tuple[str, int], ...]
) -> tuple[tuple[int, int], ...]:
    """Find a contraction path in the convention of :func:`numpy.einsum_path`, deterministically.

    Notes
    -----
    Optimizer objects are stateful, and ``optimize="auto"`` of cotengra starts worker processes; hence a new
    optimizer for each structure, without workers.
    """
    if len(inputs) == 2:
        return ((0, 1),)
    import cotengra as ctg
    from cotengra.pathfinders.path_basic import OptimalOptimizer

    # cotengrust requires single characters
    symbol = {i: ctg.get_symbol(n) for n, i in enumerate(dict.fromkeys(i for inds in (*inputs, output) for i in inds))}
    terms = [tuple(symbol[i] for i in inds) for inds in inputs]
    target = tuple(symbol[i] for i in output)
    dims = {symbol[i]: d for i, d in sizes if i in symbol}
    if len(inputs) <= _EXHAUSTIVE:
        optimizer: Any = OptimalOptimizer(minimize=_MINIMIZE)
    else:
        # False is valid: cotengra annotates only the type of the default
        optimizer = ctg.RandomGreedyOptimizer(max_repeats=32, seed=0, parallel=False)  # pyright: ignore[reportArgumentType]
    tree = ctg.array_contract_tree(terms, target, size_dict=dims, optimize=optimizer, canonicalize=False)
    if len(inputs) > _EXHAUSTIVE:
        tree.subtree_reconfigure_(minimize=_MINIMIZE)
    return tuple((min(i, j), max(i, j)) for i, j in tree.get_path())
