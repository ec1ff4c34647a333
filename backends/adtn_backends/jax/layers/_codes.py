"""Codes of rounded generators as variables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from adtn._typing import Float, Int
from adtn.precision import Bits, Codes, Parts, Straight, decoded, gains_shape, parts_of, rounded_again, rounded_through
from adtn.precision import in_groups as grouped
from adtn.precision import order_in_groups as order_of
from flax import nnx


def _sort(x: Int[jax.Array, " n"], end: int) -> Int[jax.Array, " n"]:
    n = len(x)
    if n * end > 2**31:
        return jnp.argsort(x)
    # one array of different numbers is sorted three times as fast as pairs of them
    return jnp.sort(x.astype(jnp.int32) * n + jnp.arange(n, dtype=jnp.int32)) % n


def _invert(x: Int[jax.Array, " n"]) -> Int[jax.Array, " n"]:
    return jnp.zeros_like(x).at[x].set(jnp.arange(len(x), dtype=x.dtype), unique_indices=True)


_BITS = Bits(
    view=lambda x, dtype: jax.lax.bitcast_convert_type(x, jnp.dtype(dtype)),
    cast=lambda x, dtype: x.astype(dtype),
    join=lambda arrays, axis: jnp.concatenate(arrays, axis),
    stack=lambda arrays, axis: jnp.stack(arrays, axis),
    count=lambda n, like: jnp.arange(n, dtype=jnp.int32),
    sort=_sort,
    invert=_invert,
    take=lambda x, indices: jnp.take(x, indices, axis=1, mode="clip"),  # as no index is out of range
)
_STRAIGHT = Straight(
    clip=jnp.clip,
    round=jnp.round,
    stop=jax.lax.stop_gradient,
    repeat=lambda x, n: jnp.repeat(x, n, axis=1),
    take=lambda x, indices: jnp.take(x, indices, axis=1),
)


class Coded(nnx.Variable[Any]):
    """A variable with the bytes of a rounded core, which is not trained."""


def array_of(codes: Codes) -> Int[jax.Array, " bytes"]:
    """Copy the bytes of codes to an array."""
    return jnp.asarray(np.array(codes.data))


def codes_of(data: Int[jax.Array, " bytes"], parts: Parts) -> Codes:
    """Copy an array of bytes to codes on the host."""
    return Codes(parts.shape, parts.precision, np.array(data))


class TrainedCodes(nnx.Module):
    """An array that is trained with the values that would be stored; see :func:`adtn.precision.rounded_through`.

    Floating-point formats are so exact that they are rounded at the end only.

    Parameters
    ----------
    codes : Codes
        The codes at the start.
    """

    def __init__(self, codes: Codes) -> None:
        self.parts = parts_of(codes.shape, codes.precision)
        self.shift = codes.shift
        self.values = nnx.Param(jnp.asarray(codes.decode()))
        if codes.precision.is_coarse:
            self.gains = nnx.Param(jnp.ones(gains_shape(self.parts), jnp.float32))
            self.scales, self.zeros = Coded(jnp.asarray(codes.scales)), Coded(jnp.asarray(codes.zeros))
            self.groups = Coded(jnp.asarray(codes.groups)) if self.parts.is_ordered else None

    def __call__(self) -> Float[jax.Array, "..."]:
        """Return the values."""
        if not self.parts.precision.is_coarse:
            return self.values[...]
        scales = self.gains[...] * self.scales[...]
        groups = None if self.groups is None else self.groups[...]
        return rounded_through(self.values[...], scales, self.zeros[...], self.parts, _STRAIGHT, self.shift, groups)

    def rounded(self, start: Codes) -> Codes:
        """Return the codes, given those at the start."""
        gains = np.asarray(self.gains[...]) if self.parts.precision.is_coarse else None
        return rounded_again(start, np.asarray(self.values[...]), gains)


def order_in_groups(data: Int[jax.Array, " bytes"], parts: Parts) -> Int[jax.Array, " columns"]:
    """Read the columns of the first group of ordered integers, of the second and so on."""
    return order_of(data, parts, _BITS)


def decoder(
    parts: Mapping[str, Parts], *, in_groups: bool = False
) -> Callable[[dict[str, jax.Array], Any], dict[str, jax.Array]]:
    """Compile a function that decodes the bytes of cores to a dtype; entropy codes are decoded on the host.

    With ``in_groups``, the columns of ordered integers come group by group, see :func:`order_in_groups`.
    """

    def decode(data: dict[str, jax.Array], dtype: Any) -> dict[str, jax.Array]:
        if in_groups:
            return {k: grouped(x, parts[k], _BITS).reshape(parts[k].shape).astype(dtype) for k, x in data.items()}
        return {name: decoded(x, parts[name], _BITS).astype(dtype) for name, x in data.items()}

    compiled = jax.jit(decode, static_argnums=1)

    def all_of(data: dict[str, jax.Array], dtype: Any) -> dict[str, jax.Array]:
        on_host = {name: x for name, x in data.items() if parts[name].precision.is_coded}
        found = {name: jnp.asarray(codes_of(x, parts[name]).decode(), dtype) for name, x in on_host.items()}
        others = {name: x for name, x in data.items() if name not in on_host}
        return {**found, **(compiled(others, dtype) if others else {})}

    return all_of
