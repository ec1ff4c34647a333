"""The permutations that a model takes over: orders of hidden units cost nothing."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from adtn import Permutation
from adtn.errors import LayoutError
from flax import nnx


def absorb_hidden(first: nnx.Linear | Sequence[nnx.Linear], second: nnx.Linear, order: Permutation) -> None:
    """Permute the hidden units between linear layers with elementwise functions between them, in place.

    Outputs change by rounding only.

    Parameters
    ----------
    first : nnx.Linear, or a sequence of them
        The layers whose outputs are the hidden units: columns of their kernels and biases are permuted.
    second : nnx.Linear
        The layer whose inputs they are: the rows of its kernel are permuted.
    order : Permutation
        Hidden unit ``order.array[i]`` comes to place ``i``.

    Raises
    ------
    LayoutError
        If a shape does not fit; nothing is changed then.
    """
    layers = list(first) if isinstance(first, Sequence) else [first]
    sizes = [*(layer.out_features for layer in layers), second.in_features]
    if any(n != len(order) for n in sizes):
        raise LayoutError(f"Got an order of {len(order)} for layers of {sizes} hidden units; expected equal sizes.")
    index = jnp.asarray(order.array)
    for layer in layers:
        layer.kernel[...] = layer.kernel[...][:, index]
        if layer.bias is not None:
            layer.bias[...] = layer.bias[...][index]
    second.kernel[...] = second.kernel[...][index]
