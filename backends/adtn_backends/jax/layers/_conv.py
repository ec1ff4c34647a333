"""Convolutions, channels last."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
from adtn import Generator, Layout, Topology
from adtn._checks import checked
from adtn.errors import LayoutError
from flax import nnx

from ...shared._fitted import Base
from ...shared._geometry import NUMPY_PAD, Geometry, PaddingMode, Size
from ._kernels import as_dtype, conv_options, filled, weight_of
from ._shards import placed
from ._weight import GeneratedWeight, as_weight, bias_param, weight_for


class _ADTNConv(nnx.Module):
    """Common part; see :class:`ADTNConv2d`."""

    axes: ClassVar[int]

    @checked(LayoutError)
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
        dtype: Any = None,
    ) -> None:
        self.generated = as_weight(weight, 2 + self.axes, f"{type(self).__name__} (out, in / groups, kernel)")
        self.rule = padding if padding in ("SAME", "VALID") else None  # JAX's own, for any stride
        around = 0 if self.rule else padding
        self.geometry = Geometry.of(self.generated.shape, stride, around, dilation, groups, padding_mode)
        self.bias = bias_param(bias, self.generated)
        self.dtype = dtype

    @classmethod
    def from_conv(
        cls,
        conv: nnx.Conv,
        topology: Topology,
        layout: Layout | None = None,
        *,
        seed: int = 0,
        base: Base = None,
        steps: int = 0,
        **options: Any,
    ) -> Self:
        """A convolution in place of a dense one; parameters as of :meth:`ADTNLinear.from_linear`.

        Raises
        ------
        LayoutError
            If it has another number of axes, or there is no generated form of it.
        """
        dense, reason = weight_of(conv)
        if dense is None or dense.ndim != 2 + cls.axes:
            why = reason or f"its kernel is {conv.kernel.shape}"
            raise LayoutError(f"Got a {type(conv).__name__} that {cls.__name__} cannot take the place of: {why}.")
        weight = weight_for(dense, topology, layout, seed=seed, base=base, steps=steps, **options)
        return cls(weight, False if conv.bias is None else conv.bias[...], **conv_options(conv))

    @property
    def weight(self) -> jax.Array:
        """The weight, ``(out, in / groups, *kernel)``."""
        return self.generated()

    def to_dense(self) -> nnx.Conv:
        """An ordinary layer with the weight as it is now.

        Raises
        ------
        LayoutError
            If Flax has no such padding.
        """
        g, weight = self.geometry, self.weight
        if g.padding_mode != "zeros":
            raise LayoutError(f"Got padding_mode={g.padding_mode!r}, which convolutions of Flax do not have.")
        dense = nnx.Conv(
            g.in_channels, g.out_channels, g.kernel_size, g.stride, padding=self.rule or g.padding,
            kernel_dilation=g.dilation, feature_group_count=g.groups, use_bias=self.bias is not None,
            dtype=self.dtype, param_dtype=weight.dtype, rngs=nnx.Rngs(0),
        )  # fmt: skip
        return filled(dense, weight, self.bias)

    def __call__(self, x: jax.Array, out_sharding: Any = None) -> jax.Array:
        """``(batch, *size, in)`` to ``(batch, *size, out)``."""
        g, x = self.geometry, as_dtype(x, self.dtype)
        padding: Any = self.rule or g.padding
        if g.padding_mode != "zeros":
            x = jnp.pad(x, ((0, 0), *g.padding, (0, 0)), mode=NUMPY_PAD[g.padding_mode])
            padding = "VALID"
        size = "DHW"[3 - self.axes :]
        y = jax.lax.conv_general_dilated(
            x, self.weight.astype(x.dtype), g.stride, padding, rhs_dilation=g.dilation, feature_group_count=g.groups,
            dimension_numbers=(f"N{size}C", f"OI{size}", f"N{size}C"),
        )  # fmt: skip
        y = placed(y, out_sharding)
        return y if self.bias is None else y + as_dtype(self.bias[...], self.dtype)


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
    dtype : dtype, optional
        Of products and results, as layers of Flax have it; the numbers keep theirs. That of inputs and numbers together
        when not given.

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
