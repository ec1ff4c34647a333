"""A generator with an axis of its weight in another order, for every framework."""

from __future__ import annotations

from adtn import Generator, Permutation
from adtn.errors import LayoutError


def permuted(generator: Generator, axis: int, order: Permutation) -> Generator:
    """Permute an axis of a weight, ``new[i] = old[order.array[i]]``, by its permutations alone.

    Raises
    ------
    LayoutError
        If the weight has a base, which keeps its order, or the permutation does not fit.
    """
    if generator.base is not None:
        raise LayoutError(f"Got a weight with the base {type(generator.base).__name__}, which keeps its order.")
    if len(order) != generator.shape[axis]:
        raise LayoutError(f"Got a permutation of {len(order)} entries for axis {axis} of {generator.shape}.")
    permutations = list(generator.permutations or [None] * len(generator.shape))
    before = permutations[axis]
    permutations[axis] = order if before is None else Permutation(before.array[order.array])
    kept = [None if p is None or p.is_identity else p for p in permutations]
    return generator.with_permutations(kept)
