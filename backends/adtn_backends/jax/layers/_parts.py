"""Parts of generated layers: weights and biases."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from adtn import Generator
from adtn._arrays import host_array
from adtn.errors import LayoutError
from flax import nnx

from ...shared._from_dense import Fit
from ...shared._geometry import check_axes, check_bias
from ._slice import Weight
from ._weight import GeneratedWeight


def as_weight(weight: Generator | Weight, axes: int, what: str) -> Weight:
    """Convert a generator to a module, and refuse weights with another number of axes."""
    check_axes(weight.shape, axes, what)
    return GeneratedWeight(weight) if isinstance(weight, Generator) else weight


def fitted_weight(dense: jax.Array, fit: Fit) -> GeneratedWeight:
    """Make a generated weight from a dense one, with its dtype."""
    return GeneratedWeight(fit(np.asarray(dense, np.float64))).astype(dense.dtype)


def bias_param(bias: Any, like: Weight) -> nnx.Param[Any] | None:
    """Make the parameter of a bias: zeros for ``True``, none for ``False`` or ``None``, or the given values."""
    if bias is False or bias is None:
        return None
    n, dtype = like.shape[0], like.dtype
    if not isinstance(bias, bool | jax.Array):
        bias = host_array("bias", bias, LayoutError)
    values = jnp.zeros(n, dtype) if bias is True else jnp.asarray(bias, dtype=dtype)
    check_bias(values.shape, n)
    return nnx.Param(values)
