"""Rows of a generated table."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from adtn import Generator, Layout, Topology
from adtn._checks import checked
from adtn._typing import Params
from adtn.errors import LayoutError
from flax import nnx

from ...shared._fitted import Base
from ._kernels import as_dtype, filled, refuse_other
from ._shards import by_shards, placed
from ._weight import GeneratedWeight, as_weight, weight_for

_FEW = 4  # up to a quarter of all rows, only those that are asked for are made


class ADTNEmbedding(nnx.Module):
    """Rows of a generated table; takes the place of :class:`flax.nnx.Embed`.

    Parameters
    ----------
    weight : Generator or GeneratedWeight
        Of the table, ``(num_embeddings, embedding_dim)``.
    dtype : dtype, optional
        Of rows and products, as layers of Flax have it; the numbers keep theirs.

    Examples
    --------
    >>> import adtn, jax.numpy as jnp
    >>> ADTNEmbedding(adtn.Generator((100, 16), adtn.TTN(bond=2)))(jnp.array([1, 99])).shape
    (2, 16)
    """

    @checked(LayoutError)
    def __init__(self, weight: Generator | GeneratedWeight, dtype: Any = None) -> None:
        self.generated = as_weight(weight, 2, "an embedding (num_embeddings, embedding_dim)")
        self.num_embeddings, self.embedding_dim = self.generated.shape
        self.dtype = dtype

    @classmethod
    def from_embedding(
        cls,
        embedding: nnx.Embed,
        topology: Topology,
        layout: Layout | None = None,
        *,
        seed: int = 0,
        base: Base = None,
        steps: int = 0,
        **options: Any,
    ) -> ADTNEmbedding:
        """A table in place of a dense one; parameters and errors as of :meth:`ADTNLinear.from_linear`."""
        refuse_other(embedding, nnx.Embed)
        dense = embedding.embedding[...]
        weight = weight_for(dense, topology, layout, seed=seed, base=base, steps=steps, **options)
        return cls(weight, embedding.dtype)

    @property
    def weight(self) -> jax.Array:
        """The table."""
        return self.generated()

    def to_dense(self) -> nnx.Embed:
        """An ordinary embedding with the table as it is now."""
        weight = self.weight
        dense = nnx.Embed(
            self.num_embeddings, self.embedding_dim, dtype=self.dtype, param_dtype=weight.dtype, rngs=nnx.Rngs(0)
        )
        return filled(dense, weight, None)

    def __call__(self, indices: jax.Array, out_sharding: Any = None) -> jax.Array:
        """``(...)`` of integers to ``(..., embedding_dim)``."""
        return by_shards(self._looked_up, self.generated.arrays(), indices, 0, out_sharding)

    def _looked_up(self, arrays: Params, indices: jax.Array) -> jax.Array:
        if not jnp.issubdtype(indices.dtype, jnp.integer):
            raise ValueError(f"Got indices of {indices.dtype}; expected integers, as of flax.nnx.Embed.")
        known = isinstance(indices.size, int)  # jax.export leaves batches open
        if not known or _FEW * indices.size > self.num_embeddings or not indices.size:
            return jnp.take(as_dtype(self.generated(arrays), self.dtype), indices, axis=0)
        index = indices.reshape(-1)
        index = index.astype(jnp.promote_types(index.dtype, jnp.int32))  # numbers of rows may be too large for bytes
        index = jnp.where(index < 0, index + self.num_embeddings, index)
        inside = jnp.clip(index, 0, self.num_embeddings - 1)
        rows = jnp.where((index == inside)[:, None], self.generated.rows(inside, arrays), jnp.nan)  # as jnp.take does
        return as_dtype(rows, self.dtype).reshape(*indices.shape, self.embedding_dim)

    def attend(self, query: jax.Array, out_sharding: Any = None) -> jax.Array:
        """``(..., embedding_dim)`` to products with all rows, ``(..., num_embeddings)``: a tied output layer."""
        return placed(as_dtype(query, self.dtype) @ as_dtype(self.weight.T, self.dtype), out_sharding)
