"""Convolutions with generated weights."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, ClassVar, Self

import torch
from adtn import Generator
from adtn._checks import checked
from adtn._typing import Float
from adtn.errors import LayoutError
from adtn.schedule import Images
from torch import nn
from torch.nn.utils import skip_init

from ...shared._from_dense import Fit, FromConv
from ...shared._geometry import ConvMode, Geometry, PaddingMode, Size
from ...shared._passage import Passage, Products
from ._calls import is_traced, recomputed, refuse_tracers
from ._chain import Chained, Chains
from ._kind import Kind, Weights
from ._parts import as_weight, bias_parameter, filled, fitted_weight, refuse_subclass
from ._slice import Weight
from ._windows import conv_of, unit_kernels


class _ADTNConv(FromConv, nn.Module):
    """The common base of convolutions; see :class:`ADTNConv2d`."""

    axes: ClassVar[int]
    dense: ClassVar[Any]

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
        mode: ConvMode | None = None,
    ) -> None:
        super().__init__()
        self.generated = as_weight(weight, 2 + self.axes, f"{type(self).__name__} (out, in / groups, kernel)")
        self.geometry = Geometry.of(self.generated.shape, stride, padding, dilation, groups, padding_mode)
        self.padding = padding if isinstance(padding, str) else tuple(before for before, _ in self.geometry.padding)
        self.transposed, self.output_padding = False, (0,) * self.axes
        for name in ("in_channels", "out_channels", "kernel_size", "stride", "dilation", "groups", "padding_mode"):
            setattr(self, name, getattr(self.geometry, name))  # for code that reads attributes of dense layers
        self.bias = bias_parameter(bias, self.geometry.out_channels, self.generated)
        self.mode: ConvMode | None = mode
        self._chains = Chains(self.generated, groups, mode)

    @classmethod
    def _in_place_of(cls, dense: Any, fit: Fit, **options: Any) -> Self:
        refuse_subclass(dense, cls.dense)
        return cls.like(dense, fitted_weight(dense.weight, fit), bias=True, **options)

    @classmethod
    def like(cls, dense: Any, weight: Weight, *, bias: bool, mode: ConvMode | None = None) -> Self:
        """Make the layer with a given weight, and the geometry of a dense one."""
        layer = cls(
            weight,
            dense.bias if bias else False,
            stride=dense.stride,
            padding=dense.padding,
            dilation=dense.dilation,
            groups=dense.groups,
            padding_mode=dense.padding_mode,
            mode=mode,
        )
        return layer.train(dense.training)

    @property
    def weight(self) -> Float[torch.Tensor, "n_out in_per_group *kernel"]:
        """The weight, ``(out, in / groups, *kernel)``, differentiable."""
        return self.generated.own()

    def to_dense(self) -> Any:
        """Make an ordinary layer with the present weight."""
        g = self.geometry
        dense = skip_init(
            self.dense,
            g.in_channels,
            g.out_channels,
            g.kernel_size,
            g.stride,
            self.padding,
            g.dilation,
            g.groups,
            self.bias is not None,
            g.padding_mode,
            device=self.generated.device,
            dtype=self.generated.dtype,
        )
        return filled(dense, self)

    def extra_repr(self) -> str:
        """Return the options as the dense layer prints them, and the mode."""
        mode = f", mode={self.mode!r}" if self.mode else ""
        return f"{self.geometry}{'' if self.bias is not None else ', bias=False'}{mode}"

    def forward(self, input: Float[torch.Tensor, "*batch_in_size"]) -> Float[torch.Tensor, "*batch_out_size"]:
        """Map ``(batch, in, *size)`` to ``(batch, out, *size)``; the axis of the batch may be missing."""
        x = input  # a name that callers of torch.nn use
        refuse_tracers(self, x)
        traced = is_traced()
        chained = self._chained(x, traced)
        apply = self._dense if chained is None else partial(self._as_chain, chained)
        if self.generated.is_coded and not traced and not self.generated.made:
            return recomputed(apply, x)
        return apply(x)

    def _dense(self, x: Float[torch.Tensor, "*batch_in_size"]) -> Float[torch.Tensor, "*batch_out_size"]:
        return self._convolved(x, self.generated.now(), self.bias, self.geometry.groups)

    def _convolved(self, x: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor | None, groups: int) -> torch.Tensor:
        """Convolve with any kernel, in the geometry of this layer."""
        g = self.geometry
        x, padding = self.padded(x)
        return conv_of(self.axes)(x, kernel, bias, g.stride, padding, g.dilation, groups)

    def _chained(self, x: torch.Tensor, traced: bool) -> Chained | None:
        """Return the chain that computes the layer without its weight, where that is faster."""
        g, weight = self.geometry, self.generated
        channels_fit = x.ndim - self.axes in (1, 2) and x.shape[-1 - self.axes] == g.in_channels
        if not channels_fit:  # what does not fit is refused by the convolution
            return None
        if traced:
            return self._chains.traced if self._has_traced_chain() else None
        if weight.made or x.is_nested:
            return None
        size = tuple(x.shape[-self.axes :])
        images = Images(
            batch=x.shape[0] if x.ndim == self.axes + 2 else 1,
            pixels_in=math.prod(size),
            pixels_out=math.prod(g.size_out(size)),
            train=torch.is_grad_enabled() and weight.trains,
        )
        return self._chains(weight, images)

    def _has_traced_chain(self) -> bool:
        """Plan for compilers: the scheduler runs during compilation, and its choice is part of the graph."""
        return self._chains.trace(self.generated)

    def _as_chain(
        self, chained: Chained, x: Float[torch.Tensor, "*batch_in_size"]
    ) -> Float[torch.Tensor, "*batch_out_size"]:
        return self.generated(lambda arrays: self._through_chain(chained, arrays, x))

    def _through_chain(self, chained: Chained, arrays: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        chain, parts = chained
        weights = self._chains.weights(self.generated, arrays, parts)  # pyright: ignore[reportArgumentType]
        images = x if x.ndim == self.axes + 2 else x[None]
        # compilers of sizes that are not constant do not know the strides of a product of pixels
        traced = is_traced()
        last = not traced and not images.is_contiguous() and images.movedim(1, -1).is_contiguous()

        def convolve(x: torch.Tensor, kernel: torch.Tensor, groups: int) -> torch.Tensor:
            x = x.movedim(-1, 1) if last else x
            if kernel.ndim == 2:
                y = conv_of(self.axes)(x, kernel.reshape(*kernel.shape, *(1 for _ in x.shape[2:])))
            else:
                y = self._convolved(x, kernel, None, groups)
            return y.movedim(1, -1) if last else y

        given = images.movedim(1, -1) if last else images
        y = chain(weights, given, convolve, last=last, by_convolution=traced)
        if self.bias is not None:  # in the dtype of autocast, as a convolution adds it
            bias = self.bias.to(y.dtype)
            y = y + (bias if last else bias.reshape(-1, *(1 for _ in y.shape[2:])))
        y = y.movedim(-1, 1) if last else y
        return y if x.ndim == self.axes + 2 else y[0]

    def padded(self, x: Float[torch.Tensor, "*batch_in_size"]) -> tuple[Float[torch.Tensor, "*batch_in_size"], Any]:
        """Return the input with all padding that a convolution cannot add itself, and what is left to add."""
        g = self.geometry
        if g.padding_mode == "zeros" and all(before == after for before, after in g.padding):
            return x, tuple(before for before, _ in g.padding)
        around = [n for pair in reversed(g.padding) for n in pair]  # last axis first
        return nn.functional.pad(x, around, mode="constant" if g.padding_mode == "zeros" else g.padding_mode), 0


# as torch.compiler.assume_constant_result does, but without importing the compiler
_ADTNConv._has_traced_chain._dynamo_marked_constant = True  # type: ignore[attr-defined]


class ADTNConv1d(_ADTNConv):
    """A :class:`torch.nn.Conv1d` with a generated weight; see :class:`ADTNConv2d`."""

    axes = 1
    dense = nn.Conv1d


class ADTNConv2d(_ADTNConv):
    """A :class:`torch.nn.Conv2d` with a generated weight.

    Parameters
    ----------
    weight : Generator or GeneratedWeight
        The weight, ``(out, in / groups, height, width)``. Layers that use the same module share their weight.
    bias : array or bool
        The bias, ``(out,)``; ``True`` for zeros, ``False`` for none.
    stride, padding, dilation, groups, padding_mode
        See :class:`torch.nn.Conv2d`.
    mode : {"materialise", "factored"}, optional
        Whether the weight is generated, or the layer is computed as a chain: a matrix on the channels of the input, a
        smaller convolution, and a matrix on the channels of the output. By default, the scheduler chooses it by the
        number of images and their size.

    Raises
    ------
    LayoutError
        If the weight has another number of axes, or the bias or the groups do not fit.
    ScheduleError
        If ``mode="factored"`` is not possible: with groups or a base, or for a network of a single tensor.

    Examples
    --------
    >>> import adtn, torch
    >>> layer = ADTNConv2d(adtn.Generator((8, 4, 3, 3), adtn.TTN(bond=2)), padding=1)
    >>> layer(torch.zeros(2, 4, 6, 6)).shape
    torch.Size([2, 8, 6, 6])
    """

    axes = 2
    dense = nn.Conv2d


class ADTNConv3d(_ADTNConv):
    """A :class:`torch.nn.Conv3d` with a generated weight; see :class:`ADTNConv2d`."""

    axes = 3
    dense = nn.Conv3d


def _build(dense: Any, weights: Weights, bias: bool) -> _ADTNConv:
    return _BY_DENSE[type(dense)].like(dense, weights[""], bias=bias)


def _patches(dense: Any, x: torch.Tensor) -> torch.Tensor | None:
    """Return the windows of images to which the kernel is applied; not for groups, as their windows differ."""
    if dense.groups > 1:
        return None
    padding: Any = dense.padding
    if isinstance(padding, str) or dense.padding_mode != "zeros":
        around = list(dense._reversed_padding_repeated_twice)
        mode = "constant" if dense.padding_mode == "zeros" else dense.padding_mode
        x, padding = nn.functional.pad(x, around, mode=mode), 0
    columns = nn.functional.unfold(x, dense.kernel_size, dense.dilation, padding, dense.stride)
    return columns.transpose(1, 2).reshape(-1, columns.shape[1])


def _through(layer: _ADTNConv, products: Products, input: torch.Tensor) -> torch.Tensor:
    """Apply the layer to windows, ``(batch, positions, groups, in / groups * kernel)``; one group has no axis."""
    g, (x, padding) = layer.geometry, layer.padded(input)
    batched = x.ndim == layer.axes + 2
    x = x if batched else x[None]
    windows = conv_of(layer.axes)(x, unit_kernels(g.kernel_size, x), None, g.stride, padding, g.dilation, x.shape[1])
    size, windows = windows.shape[2:], windows.flatten(2).transpose(1, 2)
    if g.groups > 1:  # all rows of the weight for every group, of which each has its own
        y = products[""](windows.unflatten(-1, (g.groups, -1))).unflatten(-1, (g.groups, -1))
        y = y.diagonal(dim1=-3, dim2=-2).transpose(-2, -1).flatten(-2)
    else:
        y = products[""](windows)
    y = y.transpose(1, 2).unflatten(2, size)
    y = y if layer.bias is None else y + layer.bias.reshape(-1, *(1 for _ in size))
    return y if batched else y[0]


_PASSAGE = Passage(through=_through)
_BY_DENSE: dict[type, type[_ADTNConv]] = {layer.dense: layer for layer in (ADTNConv1d, ADTNConv2d, ADTNConv3d)}
KINDS = (
    Kind(dense=(nn.Conv1d,), generated=ADTNConv1d, build=_build, passage=lambda layer: _PASSAGE, adaptable=True),
    Kind(
        dense=(nn.Conv2d,),
        generated=ADTNConv2d,
        build=_build,
        rows=_patches,
        outputs=-3,
        passage=lambda layer: _PASSAGE,
        adaptable=True,
    ),
    Kind(dense=(nn.Conv3d,), generated=ADTNConv3d, build=_build, passage=lambda layer: _PASSAGE, adaptable=True),
)
"""Convolutions by the number of their axes."""
