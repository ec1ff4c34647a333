"""Flax NNX modules whose weights are generated; parameters are plain ``nnx.Param``."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from adtn import Generator
from adtn._backend import get_backend
from adtn._errors import LayoutError
from adtn.generator import generated_rows
from adtn.schedule import TiledWeight, decide, generate, with_base
from flax import nnx

from ._geometry import NUMPY_PAD, Geometry, PaddingMode, Size, check_axes, check_bias

Mode = Literal["materialise", "stream", "factored"]
_BACKEND = get_backend("jax")
_FEW = 4  # up to a quarter of all rows, only those that are asked for are made


class Frozen(nnx.Variable[Any]):
    """Numbers that are not trained: bases, and cores that a network gave as fixed."""


class GeneratedWeight(nnx.Module):
    """The trained numbers of a generator, and its weight as an array.

    Layers that are given the same one are tied.

    Parameters
    ----------
    generator : Generator
        Its numbers are the first values.

    Examples
    --------
    >>> import adtn
    >>> GeneratedWeight(adtn.Generator((64, 32), adtn.TTN(bond=2)))().shape
    (64, 32)
    """

    def __init__(self, generator: Generator) -> None:
        self.structure = _Static(generator)
        self.names = {name: name.replace(".", "_") for name in generator.params}
        for name, key in self.names.items():
            setattr(self, key, nnx.Param(jnp.asarray(generator.params[name])))
        constants = {name: x for name, x in generator.constants(implied=False).items() if name not in generator.params}
        self.constants = {name: f"frozen_{name.replace('.', '_')}" for name in constants}
        for name, key in self.constants.items():
            setattr(self, key, Frozen(jnp.asarray(np.asarray(constants[name]), dtype=generator.dtype)))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight."""
        return self.structure.generator.shape

    def arrays(self) -> dict[str, jax.Array]:
        """Trained and frozen numbers by the names of the generator."""
        return {name: getattr(self, key)[...] for name, key in (self.names | self.constants).items()}

    def generator(self) -> Generator:
        """A generator with the numbers as they are now."""
        numbers = {name: np.asarray(getattr(self, key)[...], np.float64) for name, key in self.names.items()}
        return self.structure.generator.with_params(numbers)

    def __call__(self) -> jax.Array:
        """The weight, with the library's adjoint."""
        make = self.structure.weight()
        return make(self.arrays(), jnp.zeros(()))

    def rows(self, index: jax.Array) -> jax.Array:
        """Rows of the weight by their numbers, ``(n,)``, differentiable; the others are not made."""
        arrays = self.arrays()
        dtype = next(iter(arrays.values())).dtype

        def one_hot(digits: Any, d: int) -> jax.Array:
            return jax.nn.one_hot(digits, d, dtype=dtype)

        return generated_rows(self.structure.generator, arrays, index, one_hot)

    def layer(self, rows: jax.Array, mode: Mode | None) -> Any:
        """``(arrays, x) -> y`` for a batch of this size."""
        return self.structure.layer(rows.shape[0], str(rows.dtype), mode)


class _Static:
    """What is known while tracing: the same object in all copies of a module, so that jitted functions are shared."""

    def __init__(self, generator: Generator) -> None:
        self.generator = generator
        self._made: dict[tuple[Any, ...], Any] = {}

    def weight(self) -> Any:
        if ("weight",) not in self._made:
            plan = decide(self.generator, "generate", device=_device())
            assert plan.weight is not None
            self._made["weight",] = _generating(plan.weight)
        return self._made["weight",]

    def layer(self, batch: int, dtype: str, mode: Mode | None) -> Any:
        key = (1 << max(batch - 1, 0).bit_length(), dtype, mode)
        if key not in self._made:
            plan = decide(self.generator, "train", device=_device(), dtype=dtype, batch=key[0], mode=mode)
            self._made[key] = plan.function(_BACKEND)
        return self._made[key]


def _device() -> str:
    platform = jax.default_backend()
    return "jax:cpu" if platform == "cpu" else f"jax:{platform}:0"


def _generating(weight: TiledWeight) -> Any:
    """``(arrays, nothing) -> W`` with the library's adjoint."""

    def fn(arrays: dict[str, Any], _: Any) -> Any:
        return generate(weight, _BACKEND, arrays)

    def vjp(arrays: dict[str, Any], nothing: Any, wbar: Any) -> tuple[dict[str, Any], Any]:
        padded = weight.pad_rows(wbar)
        _, grads = weight.run(
            _BACKEND, with_base(weight, arrays), lambda w, i, carry: (carry, padded), None, adjoint=True
        )
        return grads, jnp.zeros_like(nothing)

    return _BACKEND.with_vjp(fn, vjp)


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
        self.generated = _as_weight(weight, 2, "a linear layer (n_out, n_in)")
        self.out_features, self.in_features = self.generated.shape
        self.mode: Mode | None = mode
        self.bias = _bias_param(bias, self.generated)

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


class ADTNEmbedding(nnx.Module):
    """Rows of a generated table; takes the place of :class:`flax.nnx.Embed`.

    Parameters
    ----------
    weight : Generator or GeneratedWeight
        Of the table, ``(num_embeddings, embedding_dim)``.

    Examples
    --------
    >>> import adtn, jax.numpy as jnp
    >>> ADTNEmbedding(adtn.Generator((100, 16), adtn.TTN(bond=2)))(jnp.array([1, 99])).shape
    (2, 16)
    """

    def __init__(self, weight: Generator | GeneratedWeight) -> None:
        self.generated = _as_weight(weight, 2, "an embedding (num_embeddings, embedding_dim)")
        self.num_embeddings, self.embedding_dim = self.generated.shape

    @property
    def weight(self) -> jax.Array:
        """The table."""
        return self.generated()

    def __call__(self, indices: jax.Array) -> jax.Array:
        """``(...)`` of integers to ``(..., embedding_dim)``."""
        if _FEW * indices.size > self.num_embeddings or not indices.size:
            return jnp.take(self.weight, indices, axis=0)
        index = indices.reshape(-1)
        index = jnp.where(index < 0, index + self.num_embeddings, index)
        inside = jnp.clip(index, 0, self.num_embeddings - 1)
        rows = jnp.where((index == inside)[:, None], self.generated.rows(inside), jnp.nan)  # as jnp.take does
        return rows.reshape(*indices.shape, self.embedding_dim)

    def attend(self, query: jax.Array) -> jax.Array:
        """``(..., embedding_dim)`` to products with all rows, ``(..., num_embeddings)``: a tied output layer."""
        return query @ self.weight.T


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


class _ADTNConv(nnx.Module):
    """Common part; see :class:`ADTNConv2d`."""

    axes: ClassVar[int]

    def __init__(
        self,
        weight: Generator | GeneratedWeight,
        bias: Any = True,
        *,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        padding_mode: PaddingMode = "zeros",
    ) -> None:
        self.generated = _as_weight(weight, 2 + self.axes, f"{type(self).__name__} (out, in / groups, kernel)")
        self.rule = padding if padding in ("SAME", "VALID") else None  # JAX's own, for any stride
        around = 0 if self.rule else padding
        self.geometry = Geometry.of(self.generated.shape, stride, around, dilation, groups, padding_mode)
        self.bias = _bias_param(bias, self.generated)

    @property
    def weight(self) -> jax.Array:
        """The weight, ``(out, in / groups, *kernel)``."""
        return self.generated()

    def __call__(self, x: jax.Array) -> jax.Array:
        """``(batch, *size, in)`` to ``(batch, *size, out)``."""
        g = self.geometry
        padding: Any = self.rule or g.padding
        if g.padding_mode != "zeros":
            x = jnp.pad(x, ((0, 0), *g.padding, (0, 0)), mode=NUMPY_PAD[g.padding_mode])
            padding = "VALID"
        size = "DHW"[3 - self.axes :]
        y = jax.lax.conv_general_dilated(
            x, self.weight.astype(x.dtype), g.stride, padding, rhs_dilation=g.dilation, feature_group_count=g.groups,
            dimension_numbers=(f"N{size}C", f"OI{size}", f"N{size}C"),
        )  # fmt: skip
        return y if self.bias is None else y + self.bias[...]


class ADTNConv1d(_ADTNConv):
    """See :class:`ADTNConv2d`."""

    axes = 1


class ADTNConv2d(_ADTNConv):
    """A convolution over ``(batch, height, width, in)``; takes the place of :class:`flax.nnx.Conv`.

    Parameters
    ----------
    weight : Generator or GeneratedWeight
        Of the weight, ``(out, in / groups, height, width)``, as in PyTorch.
    bias : array or bool
        ``(out,)``, ``True`` for zeros, ``False`` for none.
    stride, padding, dilation, groups, padding_mode
        As of :class:`torch.nn.Conv2d`; ``padding`` may be JAX's ``"SAME"`` and ``"VALID"``, too.

    Raises
    ------
    LayoutError
        If they do not fit together.

    Examples
    --------
    >>> import adtn, jax.numpy as jnp
    >>> layer = ADTNConv2d(adtn.Generator((8, 4, 3, 3), adtn.TTN(bond=2)), padding=1)
    >>> layer(jnp.zeros((2, 6, 6, 4))).shape
    (2, 6, 6, 8)
    """

    axes = 2


class ADTNConv3d(_ADTNConv):
    """See :class:`ADTNConv2d`."""

    axes = 3


class ADTNMultiheadAttention(nnx.Module):
    """Self- or cross-attention with generated projections; the weights of PyTorch's ``MultiheadAttention``.

    Parameters
    ----------
    projections : Generator or GeneratedWeight
        Of query, key and value, ``(3 embed_dim, embed_dim)``.
    output : Generator or GeneratedWeight
        Of the output, ``(embed_dim, embed_dim)``.
    num_heads : int
    bias, output_bias : array or bool
        ``(3 embed_dim,)`` and ``(embed_dim,)``.

    Raises
    ------
    LayoutError
        If the weights do not fit together.
    """

    def __init__(
        self,
        projections: Generator | GeneratedWeight,
        output: Generator | GeneratedWeight,
        num_heads: int,
        bias: Any = True,
        output_bias: Any = True,
    ) -> None:
        self.generated = _as_weight(projections, 2, "attention (3 embed_dim, embed_dim)")
        self.out_proj = ADTNLinear(output, output_bias)
        n = self.generated.shape[1]
        if self.generated.shape != (3 * n, n) or self.out_proj.generated.shape != (n, n) or n % num_heads:
            shapes = f"{self.generated.shape} and {self.out_proj.generated.shape} with num_heads={num_heads}"
            raise LayoutError(f"Got projections {shapes}; expected (3 n, n) and (n, n), with n divided by num_heads.")
        self.num_heads = num_heads
        self.bias = _bias_param(bias, self.generated)

    def __call__(self, query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """``(batch, length, embed_dim)`` each; ``mask`` is ``True`` where attention is allowed."""
        weights = jnp.split(self.generated(), 3)
        biases = [0.0] * 3 if self.bias is None else jnp.split(self.bias[...], 3)
        q, k, v = (
            (x @ w.T + b).reshape(*x.shape[:2], self.num_heads, -1)
            for x, w, b in zip((query, key, value), weights, biases, strict=True)
        )
        y = jax.nn.dot_product_attention(q, k, v, mask=mask)
        return self.out_proj(y.reshape(*query.shape[:2], -1))


def _as_weight(weight: Generator | GeneratedWeight, axes: int, what: str) -> GeneratedWeight:
    check_axes(weight.shape, axes, what)
    return weight if isinstance(weight, GeneratedWeight) else GeneratedWeight(weight)


def _bias_param(bias: Any, like: GeneratedWeight) -> nnx.Param[Any] | None:
    if bias is False or bias is None:
        return None
    n, dtype = like.shape[0], next(iter(like.arrays().values())).dtype
    values = jnp.zeros(n, dtype) if bias is True else jnp.asarray(bias, dtype=dtype)
    check_bias(values.shape, n)
    return nnx.Param(values)
