"""Linear layers over the last axes."""

from __future__ import annotations

import math
from typing import Any

import jax
from adtn import Generator, Layout, Topology
from adtn._checks import checked
from adtn._typing import Params
from adtn.errors import LayoutError
from flax import nnx

from ...shared._fitted import Base
from ...shared._geometry import check_input
from ._kernels import as_dtype, filled, refuse_other
from ._shards import by_shards, parts_of, placed
from ._weight import GeneratedWeight, Mode, as_weight, bias_param, weight_for


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
    dtype : dtype, optional
        Of products and results, as layers of Flax have it; the numbers keep theirs. That of inputs and numbers together
        when not given.

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

    @checked(LayoutError)
    def __init__(
        self, weight: Generator | GeneratedWeight, bias: Any = True, mode: Mode | None = None, dtype: Any = None
    ) -> None:
        self.generated = as_weight(weight, 2, "a linear layer (n_out, n_in)")
        self.out_features, self.in_features = self.generated.shape
        self.mode: Mode | None = mode
        self.dtype = dtype
        self.bias = bias_param(bias, self.generated)

    @classmethod
    def from_linear(
        cls,
        linear: nnx.Linear,
        topology: Topology,
        layout: Layout | None = None,
        *,
        seed: int = 0,
        base: Base = None,
        mode: Mode | None = None,
        steps: int = 0,
        **options: Any,
    ) -> ADTNLinear:
        """A layer in place of a dense one, with its bias and dtype.

        Parameters
        ----------
        linear : flax.nnx.Linear
        topology, layout, seed, base
            See :class:`adtn.Generator`.
        mode
            See :class:`ADTNLinear`.
        steps : int
            Of a fit to the dense weight; without one only its spread is taken over.
        **options
            Of :func:`adtn.fit`.

        Raises
        ------
        LayoutError
            For other layers, subclasses, and layers with functions of their own.
        """
        refuse_other(linear, nnx.Linear)
        weight = weight_for(linear.kernel[...].T, topology, layout, seed=seed, base=base, steps=steps, **options)
        return cls(weight, False if linear.bias is None else linear.bias[...], mode, linear.dtype)

    @property
    def weight(self) -> jax.Array:
        """The weight, ``(n_out, n_in)``."""
        return self.generated()

    def to_dense(self) -> nnx.Linear:
        """An ordinary layer with the weight as it is now."""
        weight, has_bias = self.weight, self.bias is not None
        dense = nnx.Linear(
            self.in_features, self.out_features, use_bias=has_bias, dtype=self.dtype, param_dtype=weight.dtype,
            rngs=nnx.Rngs(0),
        )  # fmt: skip
        return filled(dense, weight, self.bias)

    def __call__(self, x: jax.Array, out_sharding: Any = None) -> jax.Array:
        """``(..., n_in)`` to ``(..., n_out)``."""
        check_input(x.shape, self.in_features)
        y = by_shards(self._product, self.generated.arrays(), x, 1, out_sharding)
        return y if self.bias is None else y + as_dtype(self.bias[...], self.dtype)

    def _product(self, arrays: Params, x: jax.Array) -> jax.Array:
        rows = x.reshape(-1, self.in_features)
        chosen, apply = self.generated.layer(rows, self.mode)
        if chosen.makes_weight and self.dtype is not None:
            y = as_dtype(rows, self.dtype) @ as_dtype(self.generated(arrays).T, self.dtype)
        else:  # the numbers keep their precision, as in norms
            rows = rows if self.dtype is None else rows.astype(self.generated.dtype)
            if chosen.merges_batch and (parts := parts_of(rows)) > 1:
                # merged with legs, the batch would lose its place in the mesh, and be gathered on every device
                apply, rows = jax.vmap(apply, (None, 0)), rows.reshape(parts, -1, self.in_features)
            y = as_dtype(apply(arrays, rows), self.dtype)
        return y.reshape(*x.shape[:-1], self.out_features)


class ADTNLinearGeneral(nnx.Module):
    """A product with several axes at once; takes the place of :class:`flax.nnx.LinearGeneral` on the last axes.

    Parameters
    ----------
    weight : Generator or GeneratedWeight
        Of the weight, ``(n_out, n_in)``, both flattened.
    bias : array or bool
        ``(n_out,)``, ``True`` for zeros, ``False`` for none.
    inputs : tuple of int, optional
        The last axes, which are summed; one when not given.
    outputs : tuple of int, optional
        The axes that take their place; one when not given.
    dtype : dtype, optional
        Of products and results, as layers of Flax have it; the numbers keep theirs. That of inputs and numbers together
        when not given.

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

    @checked(LayoutError)
    def __init__(
        self,
        weight: Generator | GeneratedWeight,
        bias: Any = True,
        inputs: tuple[int, ...] | None = None,
        outputs: tuple[int, ...] | None = None,
        dtype: Any = None,
    ) -> None:
        self.linear = ADTNLinear(weight, bias, dtype=dtype)
        self.inputs, self.outputs = inputs or (self.linear.in_features,), outputs or (self.linear.out_features,)
        if (math.prod(self.outputs), math.prod(self.inputs)) != self.linear.generated.shape:
            raise LayoutError(
                f"Got inputs={self.inputs} and outputs={self.outputs} for a weight of {self.linear.generated.shape}."
            )

    @property
    def generated(self) -> GeneratedWeight:
        """The weight."""
        return self.linear.generated

    def to_dense(self) -> nnx.LinearGeneral:
        """An ordinary layer with the weight as it is now."""
        weight, bias = self.linear.weight, self.linear.bias
        dense = nnx.LinearGeneral(
            self.inputs, self.outputs, axis=tuple(range(-len(self.inputs), 0)), use_bias=bias is not None,
            dtype=self.linear.dtype, param_dtype=weight.dtype, rngs=nnx.Rngs(0),
        )  # fmt: skip
        return filled(dense, weight, bias)

    def __call__(self, x: jax.Array, out_sharding: Any = None) -> jax.Array:
        """``(..., *inputs)`` to ``(..., *outputs)``."""
        lead = x.shape[: x.ndim - len(self.inputs)]
        rows = x.reshape(*lead, self.linear.in_features)
        return placed(self.linear(rows).reshape(*lead, *self.outputs), out_sharding)
