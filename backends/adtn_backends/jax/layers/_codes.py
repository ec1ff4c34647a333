"""Codes of rounded generators as variables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from adtn._typing import Float, Int
from adtn.precision import Bits, Codes, Parts, Straight, decoded, gains_shape, parts_of, rounded_again, rounded_through
from flax import nnx

_BITS = Bits(
    view=lambda x, dtype: jax.lax.bitcast_convert_type(x, jnp.dtype(dtype)),
    cast=lambda x, dtype: x.astype(dtype),
    join=lambda arrays, axis: jnp.concatenate(arrays, axis),
    stack=lambda arrays, axis: jnp.stack(arrays, axis),
    sort=jnp.argsort,
    take=lambda x, indices: jnp.take(x, indices, axis=1),
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


def decoder(parts: Mapping[str, Parts]) -> Callable[[dict[str, jax.Array], Any], dict[str, jax.Array]]:
    """Compile a function that decodes the bytes of cores to a dtype; entropy codes are decoded on the host."""

    def decode(data: dict[str, jax.Array], dtype: Any) -> dict[str, jax.Array]:
        return {name: decoded(x, parts[name], _BITS).astype(dtype) for name, x in data.items()}

    compiled = jax.jit(decode, static_argnums=1)

    def all_of(data: dict[str, jax.Array], dtype: Any) -> dict[str, jax.Array]:
        on_host = {name: x for name, x in data.items() if parts[name].precision.is_coded}
        found = {name: jnp.asarray(codes_of(x, parts[name]).decode(), dtype) for name, x in on_host.items()}
        others = {name: x for name, x in data.items() if name not in on_host}
        return {**found, **(compiled(others, dtype) if others else {})}

    return all_of
