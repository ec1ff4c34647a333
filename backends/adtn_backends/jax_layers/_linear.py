"""Linear layers over the last axes."""

from __future__ import annotations

import math
from typing import Any

import jax
from adtn import Generator
from adtn._errors import LayoutError
from flax import nnx

from ._weight import GeneratedWeight, Mode, as_weight, bias_param


class ADTNLinear(nnx.Module):
    """``y = x Wᵀ + b`` with W generated from a few trained numbers; takes the place of :class:`flax.nnx.Linear`.

    Parameters
    ----------
    weight : Generator or GeneratedWeight
        Of the weight, ``(n_out, n_in)``, as in PyTorch.
    bias : array or bool
        ``(n_out,)``, ``True`` for zeros, ``False`` for none.
    mode : {"materialise", "stream", "factored"}, optional
        The scheduler chooses by the batch when not given.

    Raises
    ------
    LayoutError
        If the weight is not a matrix, or the bias does not fit.

    Examples
    --------
    >>> import adtn, jax.numpy as jnp
    >>> ADTNLinear(adtn.Generator((64, 32), adtn.TTN(bond=2)))(jnp.zeros((5, 32))).shape
    (5, 64)
    """

    def __init__(self, weight: Generator | GeneratedWeight, bias: Any = True, mode: Mode | None = None) -> None:
        self.generated = as_weight(weight, 2, "a linear layer (n_out, n_in)")
        self.out_features, self.in_features = self.generated.shape
        self.mode: Mode | None = mode
        self.bias = bias_param(bias, self.generated)

    @property
    def weight(self) -> jax.Array:
        """The weight, ``(n_out, n_in)``."""
        return self.generated()

    def __call__(self, x: jax.Array) -> jax.Array:
        """``(..., n_in)`` to ``(..., n_out)``."""
        rows = x.reshape(-1, self.in_features)
        y = self.generated.layer(rows, self.mode)(self.generated.arrays(), rows)
        y = y.reshape(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias[...]


class ADTNLinearGeneral(nnx.Module):
    """A product with several axes at once; takes the place of :class:`flax.nnx.LinearGeneral` on the last axes.

    Parameters
    ----------
    weight : Generator or GeneratedWeight
        Of the weight, ``(n_out, n_in)``, both flattened.
    bias : array or bool
        ``(n_out,)``, ``True`` for zeros, ``False`` for none.
    inputs : int
        How many of the last axes are summed.
    outputs : tuple of int
        The axes that take their place.

    Raises
    ------
    LayoutError
        If the weight is not a matrix, or sizes do not fit.

    Examples
    --------
    >>> import adtn, jax.numpy as jnp
    >>> heads = ADTNLinearGeneral(adtn.Generator((32, 32), adtn.TTN(bond=2)), outputs=(4, 8))
    >>> heads(jnp.zeros((5, 7, 32))).shape
    (5, 7, 4, 8)
    """

    def __init__(
        self,
        weight: Generator | GeneratedWeight,
        bias: Any = True,
        inputs: int = 1,
        outputs: tuple[int, ...] | None = None,
    ) -> None:
        self.linear = ADTNLinear(weight, bias)
        self.inputs, self.outputs = inputs, outputs or (self.linear.out_features,)
        if math.prod(self.outputs) != self.linear.out_features:
            raise LayoutError(f"Got outputs={self.outputs} for {self.linear.out_features} rows of the weight.")

    @property
    def generated(self) -> GeneratedWeight:
        """The weight."""
        return self.linear.generated

    def __call__(self, x: jax.Array, out_sharding: Any = None) -> jax.Array:
        """``(..., *inputs)`` to ``(..., *outputs)``."""
        lead = x.shape[: x.ndim - self.inputs]
        y = self.linear(x.reshape(*lead, -1)).reshape(*lead, *self.outputs)
        return y if out_sharding is None else jax.lax.with_sharding_constraint(y, out_sharding)
