"""Convolutions with generated weights, with channels last."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
from adtn import Generator
from adtn._checks import checked
from adtn._typing import Float
from adtn.errors import LayoutError
from adtn.schedule import Images
from adtn.weight import Factored, Materialised
from flax import nnx

from ...shared._from_dense import Fit, FromConv
from ...shared._geometry import NUMPY_PAD, ConvMode, Geometry, PaddingMode, Size
from ...shared._passage import Passage, Products
from ._kind import Kind, as_dtype
from ._parts import as_weight, bias_param, fitted_weight
from ._shards import placed
from ._slice import Weight
from ._weight import GeneratedWeight


class _ADTNConv(FromConv, nnx.Module):
    """The common base of convolutions; see :class:`ADTNConv2d`."""

    axes: ClassVar[int]

    @checked(LayoutError)
    def __init__(
        self,
        weight: Generator | Weight,
        bias: Any = True,
        *,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        padding_mode: PaddingMode = "zeros",
        dtype: Any = None,
        mode: ConvMode | None = None,
    ) -> None:
        self.generated = as_weight(weight, 2 + self.axes, f"{type(self).__name__} (out, in / groups, kernel)")
        self.rule = padding if padding in ("SAME", "VALID") else None  # JAX's rules, which allow any stride
        around = 0 if self.rule else padding
        self.geometry = Geometry.of(self.generated.shape, stride, around, dilation, groups, padding_mode)
        self.bias = bias_param(bias, self.generated)
        self.dtype = dtype
        self.mode: ConvMode | None = mode
        if mode == Factored.mode:  # refuse what is not possible at once
            self._chained(Images(batch=1, pixels_in=1, pixels_out=1, train=True))

    @classmethod
    def _in_place_of(cls, dense: Any, fit: Fit, **options: Any) -> Self:
        reason = CONV.reason(dense) if type(dense) is nnx.Conv else f"no generated form of {type(dense).__name__}"
        if reason or dense.kernel.ndim != 2 + cls.axes:
            why = reason or f"its kernel is {dense.kernel.shape}"
            raise LayoutError(f"Got a {type(dense).__name__} that {cls.__name__} cannot replace: {why}.")
        bias = False if dense.bias is None else dense.bias[...]
        return cls(fitted_weight(CONV.weight(dense), fit), bias, **_options(dense), **options)

    @property
    def weight(self) -> Float[jax.Array, "n_out in_per_group *kernel"]:
        """The weight, ``(out, in / groups, *kernel)``."""
        return self.generated()

    def to_dense(self) -> nnx.Conv:
        """Make an ordinary layer with the present weight.

        Raises
        ------
        LayoutError
            If Flax does not have this padding mode.
        """
        g, weight = self.geometry, self.weight
        if g.padding_mode != "zeros":
            raise LayoutError(f"Got padding_mode={g.padding_mode!r}; convolutions of Flax support only 'zeros'.")
        dense = nnx.Conv(
            g.in_channels,
            g.out_channels,
            g.kernel_size,
            g.stride,
            padding=self.rule or g.padding,
            kernel_dilation=g.dilation,
            feature_group_count=g.groups,
            use_bias=self.bias is not None,
            dtype=self.dtype,
            param_dtype=weight.dtype,
            rngs=nnx.Rngs(0),
        )
        return CONV.filled(dense, weight, self.bias)

    def __call__(
        self, inputs: Float[jax.Array, " batch *size_in"], out_sharding: Any = None
    ) -> Float[jax.Array, " batch *size_out"]:
        """Map ``(batch, *size, in)`` to ``(batch, *size, out)``."""
        x = as_dtype(inputs, self.dtype)  # a name that callers of flax.nnx use
        chained = self._chained_for(x)
        if chained is None:
            y = self._convolved(x, self.weight.astype(x.dtype), self.geometry.groups)
        else:
            chain, makes = chained
            arrays = self.generated.arrays()
            weights = [make(arrays, jnp.zeros(())).astype(x.dtype) for make in makes]
            y = chain(weights, x, self._convolved, last=True)
        y = placed(y, out_sharding)
        return y if self.bias is None else y + as_dtype(self.bias[...], self.dtype)

    def _convolved(self, x: Any, kernel: Any, groups: int) -> Any:
        """Convolve with any kernel, in the geometry of this layer."""
        g, (x, padding) = self.geometry, self.padded(x)
        size = "DHW"[3 - self.axes :]
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            g.stride,
            padding,
            rhs_dilation=g.dilation,
            feature_group_count=groups,
            dimension_numbers=(f"N{size}C", f"OI{size}", f"N{size}C"),
        )

    def _chained_for(self, x: Any) -> Any:
        """Return the chain that computes the layer without its weight, where that is faster."""
        g = self.geometry
        fits = x.ndim == 2 + self.axes and x.shape[-1] == g.in_channels and all(isinstance(n, int) for n in x.shape)
        if not fits or any(jax.typeof(x).sharding.spec):  # merged with legs, a batch would lose its sharding
            return None
        size = x.shape[1:-1]
        pixels_out = math.prod(-(-n // s) for n, s in zip(size, g.stride, strict=True))
        pixels_out = pixels_out if self.rule == "SAME" else math.prod(g.size_out(size))
        images = Images(batch=x.shape[0], pixels_in=math.prod(size), pixels_out=pixels_out, train=True)
        return self._chained(images)

    def _chained(self, images: Images) -> Any:
        if self.mode == Materialised.mode or not isinstance(self.generated, GeneratedWeight):
            return None
        return self.generated.chained(images, self.geometry.groups, self.mode)

    def padded(self, x: Float[jax.Array, " batch *size_in"]) -> tuple[Float[jax.Array, " batch *size_in"], Any]:
        """Return the input with all padding that a convolution cannot add itself, and what is left to add."""
        g, x = self.geometry, as_dtype(x, self.dtype)
        if g.padding_mode == "zeros":
            return x, self.rule or g.padding
        return jnp.pad(x, ((0, 0), *g.padding, (0, 0)), mode=NUMPY_PAD[g.padding_mode]), "VALID"


class ADTNConv1d(_ADTNConv):
    """A convolution over ``(batch, length, in)``; see :class:`ADTNConv2d`."""

    axes = 1


class ADTNConv2d(_ADTNConv):
    """A convolution over ``(batch, height, width, in)`` that replaces :class:`flax.nnx.Conv`.

    Parameters
    ----------
    weight : Generator or GeneratedWeight
        The weight, ``(out, in / groups, height, width)``, as in PyTorch.
    bias : array or bool
        The bias, ``(out,)``; ``True`` for zeros, ``False`` for none.
    stride, padding, dilation, groups, padding_mode
        See :class:`torch.nn.Conv2d`; ``padding`` may also be JAX's ``"SAME"`` or ``"VALID"``.
    dtype : dtype, optional
        The dtype of products and results, as in layers of Flax; parameters keep theirs. By default, it follows from
        the inputs and parameters.
    mode : {"materialise", "factored"}, optional
        Whether the weight is generated, or the layer is computed as a chain: a matrix on the channels of the input, a
        smaller convolution, and a matrix on the channels of the output. By default, the scheduler chooses it by the
        number of images and their size.

    Raises
    ------
    LayoutError
        If the arguments do not fit together.
    ScheduleError
        If ``mode="factored"`` is not possible: with groups or a base, or for a network of a single tensor.

    Examples
    --------
    >>> import adtn, jax.numpy as jnp
    >>> layer = ADTNConv2d(adtn.Generator((8, 4, 3, 3), adtn.TTN(bond=2)), padding=1)
    >>> layer(jnp.zeros((2, 6, 6, 4))).shape
    (2, 6, 6, 8)
    """

    axes = 2


class ADTNConv3d(_ADTNConv):
    """A convolution over ``(batch, depth, height, width, in)``; see :class:`ADTNConv2d`."""

    axes = 3


def _build(dense: Any, weight: Weight, bias: Any) -> _ADTNConv:
    return _BY_AXES[dense.kernel.ndim - 2](weight, bias, **_options(dense))


def _refusal(dense: Any) -> str:
    axes = dense.kernel.ndim - 2
    if axes not in _BY_AXES or dense.mask is not None or set(_each(dense.input_dilation, axes)) != {1}:
        return "a masked, transposed or higher-dimensional convolution"
    return f"padding {dense.padding!r}" if _padding(dense) is None else ""


def _options(dense: nnx.Conv) -> dict[str, Any]:
    """Return the geometry and dtype as options of :class:`ADTNConv2d`."""
    axes = dense.kernel.ndim - 2
    return {
        "stride": _each(dense.strides, axes),
        "padding": _padding(dense),
        "dilation": _each(dense.kernel_dilation, axes),
        "groups": dense.feature_group_count,
        "dtype": dense.dtype,
    }


def _patches(dense: Any, x: Any) -> Any | None:
    """Return the windows of images to which the kernel is applied; not for groups, as their windows differ."""
    if dense.kernel.ndim != 4 or dense.feature_group_count > 1:
        return None
    padding: Any = _padding(dense)
    columns = jax.lax.conv_general_dilated_patches(
        x,
        dense.kernel.shape[:2],
        _each(dense.strides, 2),
        [(p, p) for p in padding] if isinstance(padding, tuple) else padding,
        rhs_dilation=_each(dense.kernel_dilation, 2),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return columns.reshape(-1, columns.shape[-1])


def _through(layer: _ADTNConv, products: Products, inputs: Any, out_sharding: Any = None) -> Any:
    """Apply the layer to windows, ``(batch, *size, groups, in / groups * kernel)``; one group has no axis."""
    g, (x, padding) = layer.geometry, layer.padded(inputs)
    size = "DHW"[3 - layer.axes :]
    windows = jax.lax.conv_general_dilated_patches(
        x,
        g.kernel_size,
        g.stride,
        padding,
        rhs_dilation=g.dilation,
        dimension_numbers=(f"N{size}C", f"{size}IO", f"N{size}C"),
    )
    if g.groups > 1:  # all rows of the weight for every group, of which each has its own
        y = products[""](windows.reshape(*windows.shape[:-1], g.groups, -1))
        y = y.reshape(*y.shape[:-1], g.groups, -1)
        y = jnp.moveaxis(jnp.diagonal(y, axis1=-3, axis2=-2), -1, -2).reshape(*windows.shape[:-1], -1)
    else:
        y = products[""](windows)
    y = placed(as_dtype(y, x.dtype), out_sharding)
    return y if layer.bias is None else y + as_dtype(layer.bias[...], layer.dtype)


def _each(value: Any, axes: int) -> tuple[int, ...]:
    return (int(value),) * axes if isinstance(value, int) else tuple(map(int, value))


def _padding(dense: Any) -> Any:
    """Return the padding as an option of :class:`ADTNConv2d`; ``None`` if that does not support it."""
    padding, axes = dense.padding, dense.kernel.ndim - 2
    if isinstance(padding, str):
        return padding if padding in ("SAME", "VALID") else None
    if isinstance(padding, int):
        return (padding,) * axes
    around = [(p, p) if isinstance(p, int) else tuple(p) for p in padding]
    return tuple(a for a, _ in around) if len(around) == axes and all(a == b for a, b in around) else None


_BY_AXES: dict[int, type[_ADTNConv]] = {layer.axes: layer for layer in (ADTNConv1d, ADTNConv2d, ADTNConv3d)}
CONV = Kind(
    dense=nnx.Conv,
    generated=tuple(_BY_AXES.values()),
    build=_build,
    axes=lambda dense: 2 + len(dense.kernel_size),
    read=lambda dense, kernel: jnp.moveaxis(kernel, (-1, -2), (0, 1)),
    write=lambda dense, weight: jnp.moveaxis(weight, (0, 1), (-1, -2)),
    refusal=_refusal,
    rows=_patches,
    passage=Passage(through=_through),
)
KINDS = (CONV,)
"""Convolutions over any number of axes."""
