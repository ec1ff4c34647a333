"""Batches that are sharded over a mesh of devices, each of which computes its own part."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec


def by_shards(
    apply: Callable[[Any, jax.Array], jax.Array], arrays: Any, x: jax.Array, whole: int, out_sharding: Any = None
) -> jax.Array:
    """Compute ``apply(arrays, x)``; on a mesh with explicit axes, each device computes its part of ``x``.

    Parameters
    ----------
    apply : callable
        A function that acts row by row over the leading axes of ``x``, which are also those of the result.
    arrays : pytree of jax.Array
        Arrays that are replicated on every device, as is the sum of their gradients.
    x : jax.Array
        The input.
    whole : int
        The number of last axes of ``x`` that make up a row; they are gathered.
    out_sharding : jax.sharding.PartitionSpec or NamedSharding, optional
        The sharding of the result, as in layers of Flax.
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
    """Give a result the sharding that the caller asked for."""
    if out_sharding is None:
        return y
    if AxisType.Explicit in jax.typeof(y).sharding.mesh.axis_types:
        return jax.sharding.reshard(y, out_sharding)
    return jax.lax.with_sharding_constraint(y, out_sharding)


def replicated(x: jax.Array) -> jax.Array:
    """Gather an array on every device if it is sharded over explicit axes of a mesh."""
    return jax.sharding.reshard(x, PartitionSpec()) if any(jax.typeof(x).sharding.spec) else x


def parts_of(rows: jax.Array) -> int:
    """Return over how many devices the compiler may have sharded rows; 1 if they cannot be split evenly."""
    mesh = jax.typeof(rows).sharding.mesh
    auto = [size for size, kind in zip(mesh.axis_sizes, mesh.axis_types, strict=True) if kind is AxisType.Auto]
    return math.prod(auto) if rows.shape[0] % math.prod(auto) == 0 else 1
