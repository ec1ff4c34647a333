"""Embeddings with generated tables."""

from __future__ import annotations

from typing import Any, Self

import jax
import jax.numpy as jnp
from adtn import Generator
from adtn._checks import checked
from adtn._typing import Float, Int, Params
from adtn.errors import LayoutError
from flax import nnx

from ...shared._from_dense import Fit, FromEmbedding
from ...shared._passage import Passage, Products
from ._kind import Kind, as_dtype
from ._parts import as_weight, fitted_weight
from ._shards import by_shards, placed
from ._slice import Weight

_FEW = 4  # up to one row in four, only the requested rows are generated


class ADTNEmbedding(FromEmbedding, nnx.Module):
    """An embedding whose table is generated; it replaces :class:`flax.nnx.Embed`.

    Parameters
    ----------
    weight : Generator or GeneratedWeight
        The table, ``(num_embeddings, embedding_dim)``.
    dtype : dtype, optional
        The dtype of rows and products, as in layers of Flax; parameters keep theirs.

    Examples
    --------
    >>> import adtn, jax.numpy as jnp
    >>> ADTNEmbedding(adtn.Generator((100, 16), adtn.TTN(bond=2)))(jnp.array([1, 99])).shape
    (2, 16)
    """

    @checked(LayoutError)
    def __init__(self, weight: Generator | Weight, dtype: Any = None) -> None:
        self.generated = as_weight(weight, 2, "an embedding (num_embeddings, embedding_dim)")
        self.num_embeddings, self.embedding_dim = self.generated.shape
        self.dtype = dtype

    @classmethod
    def _in_place_of(cls, dense: Any, fit: Fit, **options: Any) -> Self:
        EMBED.refuse_other(dense)
        return cls(fitted_weight(EMBED.weight(dense), fit), dense.dtype)

    @property
    def weight(self) -> Float[jax.Array, "num_embeddings embedding_dim"]:
        """The generated table."""
        return self.generated()

    def to_dense(self) -> nnx.Embed:
        """Make an ordinary embedding with the present table."""
        weight = self.weight
        dense = nnx.Embed(
            self.num_embeddings, self.embedding_dim, dtype=self.dtype, param_dtype=weight.dtype, rngs=nnx.Rngs(0)
        )
        return EMBED.filled(dense, weight, None)

    def __call__(
        self, inputs: Int[jax.Array, "*batch"], out_sharding: Any = None
    ) -> Float[jax.Array, "*batch embedding_dim"]:
        """Look up rows, from integers ``(...)`` to ``(..., embedding_dim)``."""
        indices = inputs  # a name that callers of flax.nnx use
        return by_shards(self._looked_up, self.generated.arrays(), indices, 0, out_sharding)

    def _looked_up(self, arrays: Params, indices: jax.Array) -> jax.Array:
        _check(indices)
        has_size = isinstance(indices.size, int)  # not with jax.export and a symbolic batch size
        if not has_size or _FEW * indices.size > self.num_embeddings or not indices.size:
            return jnp.take(as_dtype(self.generated(arrays), self.dtype), indices, axis=0)
        index, is_row = _inside(indices.reshape(-1), self.num_embeddings)
        # as jnp.take does, NaN where there is no such row
        rows = jnp.where(is_row[:, None], self.generated.rows(index, arrays), jnp.nan)
        return as_dtype(rows, self.dtype).reshape(*indices.shape, self.embedding_dim)

    def attend(
        self, query: Float[jax.Array, "*batch embedding_dim"], out_sharding: Any = None
    ) -> Float[jax.Array, "*batch num_embeddings"]:
        """Multiply ``(..., embedding_dim)`` with all rows to ``(..., num_embeddings)``, as a tied output layer."""
        return placed(as_dtype(query, self.dtype) @ as_dtype(self.weight.T, self.dtype), out_sharding)


def _check(indices: jax.Array) -> None:
    if not jnp.issubdtype(indices.dtype, jnp.integer):
        raise ValueError(f"Got indices of {indices.dtype}; expected integers, as of flax.nnx.Embed.")


def _inside(index: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
    """Return indices of rows, and which of them are those that were given; negative ones count from the end."""
    index = index.astype(jnp.promote_types(index.dtype, jnp.int32))  # the number of rows may be too large for int8
    index = jnp.where(index < 0, index + n, index)
    inside = jnp.clip(index, 0, n - 1)
    return inside, index == inside


def _through(layer: ADTNEmbedding, products: Products, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
    _check(inputs)
    index, is_row = _inside(inputs, layer.num_embeddings)
    rows = jnp.where(is_row[..., None], products[""](index), jnp.nan)
    return placed(as_dtype(rows, layer.dtype), out_sharding)


EMBED = Kind(
    dense=nnx.Embed,
    generated=(ADTNEmbedding,),
    build=lambda dense, weight, bias: ADTNEmbedding(weight, dense.dtype),
    axes=lambda dense: 2,
    variable="embedding",
    passage=Passage(through=_through, enters="lookup"),
)
KINDS = (EMBED,)
"""Embeddings."""
