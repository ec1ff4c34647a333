"""Linear layers with generated weights."""

from __future__ import annotations

import math
from typing import Any, Self

import jax
import jax.numpy as jnp
from adtn import Generator
from adtn._checks import checked
from adtn._typing import Float, Params
from adtn.errors import LayoutError
from flax import nnx

from ...shared._from_dense import Fit, FromLinear
from ...shared._geometry import check_input
from ...shared._passage import Passage, Products
from ._kind import Kind, as_dtype
from ._parts import as_weight, bias_param, fitted_weight
from ._shards import by_shards, parts_of, placed
from ._slice import Weight
from ._weight import Mode


class ADTNLinear(FromLinear, nnx.Module):
    """A linear layer ``y = x Wᵀ + b`` with a generated weight; it replaces :class:`flax.nnx.Linear`.

    Parameters
    ----------
    weight : Generator or GeneratedWeight
        The weight, ``(n_out, n_in)``, as in PyTorch.
    bias : array or bool
        The bias, ``(n_out,)``; ``True`` for zeros, ``False`` for none.
    mode : {"materialise", "stream", "factored"}, optional
        The mode of execution. By default, the scheduler chooses it by the batch size.
    dtype : dtype, optional
        The dtype of products and results, as in layers of Flax; parameters keep theirs. By default, it follows from
        the inputs and parameters.

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
        self, weight: Generator | Weight, bias: Any = True, mode: Mode | None = None, dtype: Any = None
    ) -> None:
        self.generated = as_weight(weight, 2, "a linear layer (n_out, n_in)")
        self.out_features, self.in_features = self.generated.shape
        self.mode: Mode | None = mode
        self.dtype = dtype
        self.bias = bias_param(bias, self.generated)

    @classmethod
    def _in_place_of(cls, dense: Any, fit: Fit, mode: Mode | None = None, **options: Any) -> Self:
        LINEAR.refuse_other(dense)
        bias = False if dense.bias is None else dense.bias[...]
        return cls(fitted_weight(LINEAR.weight(dense), fit), bias, mode, dense.dtype)

    @property
    def weight(self) -> Float[jax.Array, "n_out n_in"]:
        """The weight, ``(n_out, n_in)``."""
        return self.generated()

    def to_dense(self) -> nnx.Linear:
        """Make an ordinary layer with the present weight."""
        weight, has_bias = self.weight, self.bias is not None
        dense = nnx.Linear(
            self.in_features,
            self.out_features,
            use_bias=has_bias,
            dtype=self.dtype,
            param_dtype=weight.dtype,
            rngs=nnx.Rngs(0),
        )
        return LINEAR.filled(dense, weight, self.bias)

    def __call__(
        self, inputs: Float[jax.Array, "*batch n_in"], out_sharding: Any = None
    ) -> Float[jax.Array, "*batch n_out"]:
        """Map ``(..., n_in)`` to ``(..., n_out)``."""
        x = inputs  # a name that callers of flax.nnx use
        check_input(x.shape, self.in_features)
        order = self.generated.order_for(x)  # of ordered columns; then it is the input that is permuted
        given = x if order is None else jnp.take(x, order, axis=-1, mode="clip")
        y = by_shards(self._product, self.generated.arrays(in_groups=order is not None), given, 1, out_sharding)
        return y if self.bias is None else y + as_dtype(self.bias[...], self.dtype)

    def _product(self, arrays: Params, x: Float[jax.Array, "*batch n_in"]) -> Float[jax.Array, "*batch n_out"]:
        rows = x.reshape(-1, self.in_features)
        chosen, apply = self.generated.layer(rows, self.mode)
        if chosen.makes_weight and self.dtype is not None:
            y = as_dtype(rows, self.dtype) @ as_dtype(self.generated(arrays).T, self.dtype)
        else:  # computed in the precision of the parameters, as norms are
            rows = rows if self.dtype is None else rows.astype(self.generated.dtype)
            if chosen.merges_batch and (parts := parts_of(rows)) > 1:
                # a batch that is merged with legs would lose its sharding and be gathered on every device
                apply, rows = jax.vmap(apply, (None, 0)), rows.reshape(parts, -1, self.in_features)
            y = as_dtype(apply(arrays, rows), self.dtype)
        return y.reshape(*x.shape[:-1], self.out_features)


class ADTNLinearGeneral(nnx.Module):
    """A linear layer over several axes, which replaces :class:`flax.nnx.LinearGeneral` on the last axes.

    Parameters
    ----------
    weight : Generator or GeneratedWeight
        The weight, ``(n_out, n_in)``, with all output axes and all input axes flattened.
    bias : array or bool
        The bias, ``(n_out,)``; ``True`` for zeros, ``False`` for none.
    inputs : tuple of int, optional
        The sizes of the last axes, which are summed; by default, one axis.
    outputs : tuple of int, optional
        The sizes of the axes that replace them; by default, one axis.
    dtype : dtype, optional
        The dtype of products and results, as in layers of Flax; parameters keep theirs. By default, it follows from
        the inputs and parameters.

    Raises
    ------
    LayoutError
        If the weight is not a matrix, or sizes do not match.

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
        weight: Generator | Weight,
        bias: Any = True,
        inputs: tuple[int, ...] | None = None,
        outputs: tuple[int, ...] | None = None,
        dtype: Any = None,
    ) -> None:
        self.linear = ADTNLinear(weight, bias, dtype=dtype)
        self.inputs, self.outputs = inputs or (self.linear.in_features,), outputs or (self.linear.out_features,)
        if (math.prod(self.outputs), math.prod(self.inputs)) != self.linear.generated.shape:
            raise LayoutError(
                f"Got inputs={self.inputs} and outputs={self.outputs} for a weight of shape "
                f"{self.linear.generated.shape}; expected sizes whose products are n_in and n_out."
            )

    @property
    def generated(self) -> Weight:
        """The generated weight."""
        return self.linear.generated

    def to_dense(self) -> nnx.LinearGeneral:
        """Make an ordinary layer with the present weight."""
        weight, bias = self.linear.weight, self.linear.bias
        dense = nnx.LinearGeneral(
            self.inputs,
            self.outputs,
            axis=tuple(range(-len(self.inputs), 0)),
            use_bias=bias is not None,
            dtype=self.linear.dtype,
            param_dtype=weight.dtype,
            rngs=nnx.Rngs(0),
        )
        return LINEAR_GENERAL.filled(dense, weight, bias)

    def __call__(
        self, inputs: Float[jax.Array, "*batch_inputs"], out_sharding: Any = None
    ) -> Float[jax.Array, "*batch_outputs"]:
        """Map ``(..., *inputs)`` to ``(..., *outputs)``."""
        x = inputs  # a name that callers of flax.nnx use
        lead = x.shape[: x.ndim - len(self.inputs)]
        rows = x.reshape(*lead, self.linear.in_features)
        return placed(self.linear(rows).reshape(*lead, *self.outputs), out_sharding)


def _batch(layer: ADTNLinear, x: Any) -> int:
    return x.size // layer.in_features


def _through(layer: ADTNLinear, products: Products, inputs: Any, out_sharding: Any = None) -> Any:
    y = placed(as_dtype(products[""](inputs), layer.dtype), out_sharding)
    return y if layer.bias is None else y + as_dtype(layer.bias[...], layer.dtype)


def _general(dense: Any, weight: Weight, bias: Any) -> ADTNLinearGeneral:
    flat = bias if bias is False else bias.reshape(-1)
    return ADTNLinearGeneral(weight, flat, dense.in_features, dense.out_features, dense.dtype)


def _general_refusal(dense: nnx.LinearGeneral) -> str:
    axes = (dense.axis,) if isinstance(dense.axis, int) else tuple(dense.axis)
    plain = not dense.batch_axis and axes == tuple(range(-len(axes), 0))
    return "" if plain else "it contracts axes other than the last ones"


LINEAR = Kind(
    dense=nnx.Linear,
    generated=(ADTNLinear,),
    build=lambda dense, weight, bias: ADTNLinear(weight, bias, dtype=dense.dtype),
    axes=lambda dense: 2,
    read=lambda dense, kernel: kernel.T,
    write=lambda dense, weight: weight.T,
    rows=lambda dense, x: x.reshape(-1, x.shape[-1]),
    batch=_batch,
    passage=Passage(through=_through),
)
LINEAR_GENERAL = Kind(
    dense=nnx.LinearGeneral,
    generated=(ADTNLinearGeneral,),
    build=_general,
    axes=lambda dense: sum(map(len, (dense.in_features, dense.out_features, dense.batch_axis))),
    read=lambda dense, kernel: kernel.reshape(-1, math.prod(dense.out_features)).T,
    write=lambda dense, weight: weight.T.reshape(dense.kernel.shape),
    refusal=_general_refusal,
    rows=lambda dense, x: x.reshape(-1, math.prod(dense.in_features)),
)
KINDS = (LINEAR, LINEAR_GENERAL)
"""Linear layers over one axis, and over several."""


def is_linear(module: Any) -> bool:
    """Return whether a module is a linear layer over one axis or several, dense or generated."""
    return any(type(module) is kind.dense for kind in KINDS) or type(module) in (ADTNLinear, ADTNLinearGeneral)


def is_general(module: Any) -> bool:
    """Return whether a module is a generated linear layer over several axes."""
    return isinstance(module, ADTNLinearGeneral)
