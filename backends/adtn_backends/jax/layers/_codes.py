"""Codes of rounded generators as variables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from adtn._typing import Int
from adtn.precision import Bits, Codes, Parts, decoded
from flax import nnx

_BITS = Bits(
    view=lambda x, dtype: jax.lax.bitcast_convert_type(x, jnp.dtype(dtype)),
    cast=lambda x, dtype: x.astype(dtype),
    join=lambda arrays, axis: jnp.concatenate(arrays, axis),
    stack=lambda arrays, axis: jnp.stack(arrays, axis),
)


class Coded(nnx.Variable[Any]):
    """A variable with the bytes of a rounded core, which is not trained."""


def array_of(codes: Codes) -> Int[jax.Array, " bytes"]:
    """Copy the bytes of codes to an array."""
    return jnp.asarray(np.array(codes.data))


def codes_of(data: Int[jax.Array, " bytes"], parts: Parts) -> Codes:
    """Copy an array of bytes to codes on the host."""
    return Codes(parts.shape, parts.precision, np.array(data))


def decoder(parts: Mapping[str, Parts]) -> Callable[[dict[str, jax.Array], Any], dict[str, jax.Array]]:
    """Compile a function that decodes the bytes of all cores to a dtype."""

    def decode(data: dict[str, jax.Array], dtype: Any) -> dict[str, jax.Array]:
        return {name: decoded(x, parts[name], _BITS).astype(dtype) for name, x in data.items()}

    return jax.jit(decode, static_argnums=1)
