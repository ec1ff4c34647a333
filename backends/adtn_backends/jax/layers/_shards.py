"""Batches that are spread over a mesh of devices: every device makes its own part."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec


def by_shards(
    apply: Callable[[Any, jax.Array], jax.Array], arrays: Any, x: jax.Array, whole: int, out_sharding: Any = None
) -> jax.Array:
    """``apply(arrays, x)``, where axes of a mesh are explicit by each device for what it has of ``x``.

    Parameters
    ----------
    apply : callable
        Row by row over the leading axes of ``x``, which are those of the result, too.
    arrays : pytree of jax.Array
        Whole on every device, and so is the sum of their gradients.
    x : jax.Array
    whole : int
        How many last axes of ``x`` a row has; they are gathered.
    out_sharding : jax.sharding.PartitionSpec or NamedSharding, optional
        Of the result, as layers of Flax take it.
    """
    kind = jax.typeof(x).sharding
    lead = kind.spec[: x.ndim - whole]
    if any(kind.spec[x.ndim - whole :]):
        x = jax.sharding.reshard(x, PartitionSpec(*lead))
    if any(lead):
        spec = PartitionSpec(*lead)
        apply = jax.shard_map(apply, mesh=kind.mesh, in_specs=(PartitionSpec(), spec), out_specs=spec, check_vma=False)
    return placed(apply(arrays, x), out_sharding)


def placed(y: jax.Array, out_sharding: Any) -> jax.Array:
    """Put a result where a caller asks for it."""
    if out_sharding is None:
        return y
    if AxisType.Explicit in jax.typeof(y).sharding.mesh.axis_types:
        return jax.sharding.reshard(y, out_sharding)
    return jax.lax.with_sharding_constraint(y, out_sharding)


def replicated(x: jax.Array) -> jax.Array:
    """Gather an array on every device, where axes of its mesh are explicit."""
    return jax.sharding.reshard(x, PartitionSpec()) if any(jax.typeof(x).sharding.spec) else x


def parts_of(rows: jax.Array) -> int:
    """Over how many devices a compiler may have spread rows; 1 when they cannot be cut into so many."""
    mesh = jax.typeof(rows).sharding.mesh
    auto = [size for size, kind in zip(mesh.axis_sizes, mesh.axis_types, strict=True) if kind is AxisType.Auto]
    return math.prod(auto) if rows.shape[0] % math.prod(auto) == 0 else 1
