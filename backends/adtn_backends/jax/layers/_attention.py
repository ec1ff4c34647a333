"""Attention with generated projections."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from adtn import Generator
from adtn.errors import LayoutError
from flax import nnx

from ...shared._passage import Passage, Products
from ._linear import LINEAR_GENERAL, ADTNLinear
from ._parts import as_weight, bias_param
from ._slice import Weight


class ADTNMultiheadAttention(nnx.Module):
    """A self- or cross-attention with generated projections, whose weights are ordered as in PyTorch.

    Parameters
    ----------
    projections : Generator or GeneratedWeight
        The projections of query, key and value, ``(3 embed_dim, embed_dim)``.
    output : Generator or GeneratedWeight
        The projection of the output, ``(embed_dim, embed_dim)``.
    num_heads : int
        The number of heads, a divisor of ``embed_dim``.
    bias, output_bias : array or bool
        The biases, ``(3 embed_dim,)`` and ``(embed_dim,)``; ``True`` for zeros, ``False`` for none.

    Raises
    ------
    LayoutError
        If the weights do not fit together.
    """

    def __init__(
        self,
        projections: Generator | Weight,
        output: Generator | Weight,
        num_heads: int,
        bias: Any = True,
        output_bias: Any = True,
    ) -> None:
        self.generated = as_weight(projections, 2, "attention (3 embed_dim, embed_dim)")
        self.out_proj = ADTNLinear(output, output_bias)
        n = self.generated.shape[1]
        if self.generated.shape != (3 * n, n) or self.out_proj.generated.shape != (n, n) or n % num_heads:
            shapes = f"{self.generated.shape} and {self.out_proj.generated.shape} with num_heads={num_heads}"
            raise LayoutError(f"Got projections {shapes}; expected (3 n, n) and (n, n), with n divisible by num_heads.")
        self.num_heads = num_heads
        self.bias = bias_param(bias, self.generated)

    def __call__(self, query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Attend; inputs have shape ``(batch, length, embed_dim)``, and ``mask`` is true where attention is allowed."""
        weights = jnp.split(self.generated(), 3)
        biases = [0.0] * 3 if self.bias is None else jnp.split(self.bias[...], 3)
        q, k, v = (x @ w.T + b for x, w, b in zip((query, key, value), weights, biases, strict=True))
        return self.out_proj(self.attended(q, k, v, mask))

    def attended(self, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> jax.Array:
        """Combine projections of all heads, ``(batch, length, embed_dim)``."""
        q, k, v = (x.reshape(*x.shape[:2], self.num_heads, x.shape[-1] // self.num_heads) for x in (q, k, v))
        y = jax.nn.dot_product_attention(q, k, v, mask=mask)
        return y.reshape(*y.shape[:2], y.shape[2] * y.shape[3])

    def to_dense(self) -> nnx.MultiHeadAttention:
        """Make an ordinary layer with the present weights, where the mask is a keyword argument."""
        n, weight = self.generated.shape[1], self.generated()
        dense = nnx.MultiHeadAttention(
            self.num_heads,
            n,
            decode=False,
            use_bias=self.bias is not None or self.out_proj.bias is not None,
            param_dtype=weight.dtype,
            rngs=nnx.Rngs(0),
        )
        biases = [None] * 3 if self.bias is None else jnp.split(self.bias[...], 3)
        for part, w, b in zip(("query", "key", "value"), jnp.split(weight, 3), biases, strict=True):
            LINEAR_GENERAL.filled(getattr(dense, part), w, b)
        LINEAR_GENERAL.filled(dense.out, self.out_proj.weight, self.out_proj.bias)
        return dense


def _through(
    layer: ADTNMultiheadAttention,
    products: Products,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Apply all projections to each input, usually the same, and use those that are its own."""
    made: dict[int, list[jax.Array]] = {}
    for x in (query, key, value):
        if id(x) not in made:
            y = products["in_proj"](x)
            made[id(x)] = jnp.split(y if layer.bias is None else y + layer.bias[...], 3, -1)
    q, k, v = (made[id(x)][n] for n, x in enumerate((query, key, value)))
    y = products["out_proj"](layer.attended(q, k, v, mask))
    return y if layer.out_proj.bias is None else y + layer.out_proj.bias[...]


PASSAGES: dict[type[nnx.Module], Passage] = {
    ADTNMultiheadAttention: Passage(
        through=_through, weights={"in_proj": "generated", "out_proj": "out_proj.generated"}
    )
}
"""Generated layers without a kind, as the projections of an attention of Flax are replaced one by one."""


def is_attention(module: Any) -> bool:
    """Return whether a module is an attention with generated projections."""
    return isinstance(module, ADTNMultiheadAttention)
