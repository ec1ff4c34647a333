"""Layers for inference with NumPy, without training; they give the same results as with PyTorch and JAX.

Weights are generated once; those of generators that are rounded to integers in every call, so that only these stay in
memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from adtn import Generator
from adtn._arrays import finite_array
from adtn._checks import checked
from adtn._typing import Float, Int
from adtn.backends import get_backend
from adtn.errors import LayoutError
from adtn.schedule import Images, Plan, decide, decide_convolution
from adtn.weight import Chain, Factored, Materialised

from ..shared._cache import remember
from ..shared._geometry import NUMPY_PAD, ConvMode, Geometry, PaddingMode, Size, check_axes, check_bias


class ADTNLinear:
    """A linear layer ``y = x Wᵀ + b`` with a generated weight.

    Parameters
    ----------
    generator : Generator
        The generator of the weight, ``(n_out, n_in)``.
    bias : array, optional
        The bias, ``(n_out,)``.

    Raises
    ------
    LayoutError
        If the weight is not a matrix, or the bias does not fit.

    Examples
    --------
    >>> import adtn, numpy as np
    >>> ADTNLinear(adtn.Generator((64, 32), adtn.TTN(bond=2)))(np.zeros((5, 32), "float32")).shape
    (5, 64)
    """

    @checked(LayoutError)
    def __init__(self, generator: Generator, bias: Any = None) -> None:
        self.generator = _checked(generator, 2, "a linear layer (n_out, n_in)")
        self.bias = _bias(bias, generator)

    def __call__(self, x: Float[np.ndarray, "*batch n_in"]) -> Float[np.ndarray, "*batch n_out"]:
        """Map ``(..., n_in)`` to ``(..., n_out)``, in the mode that the scheduler chooses."""
        y = self.generator.apply(x)
        return y if self.bias is None else y + self.bias


class ADTNEmbedding:
    """An embedding whose table is generated.

    Parameters
    ----------
    generator : Generator
        The generator of the table, ``(num_embeddings, embedding_dim)``.

    Examples
    --------
    >>> import adtn, numpy as np
    >>> ADTNEmbedding(adtn.Generator((100, 16), adtn.TTN(bond=2)))(np.array([1, 99])).shape
    (2, 16)
    """

    @checked(LayoutError)
    def __init__(self, generator: Generator) -> None:
        self.generator = _checked(generator, 2, "an embedding (num_embeddings, embedding_dim)")

    def _table(self) -> Float[np.ndarray, "num_embeddings embedding_dim"]:
        return self.generator.weight() if self.generator.decodes else self._cached

    @cached_property
    def _cached(self) -> Float[np.ndarray, "num_embeddings embedding_dim"]:
        return self.generator.weight()

    def __call__(self, indices: Int[np.ndarray, "*batch"]) -> Float[np.ndarray, "*batch embedding_dim"]:
        """Look up rows, from integers ``(...)`` to ``(..., embedding_dim)``.

        Raises
        ------
        LayoutError
            If the indices are not integers.
        IndexError
            If an index is out of range; as in PyTorch, negative ones do not count from the end.
        """
        index, n = np.asarray(indices), self.generator.shape[0]
        if not np.issubdtype(index.dtype, np.integer) and index.size:
            raise LayoutError(f"Got indices of {index.dtype}; expected integers.")
        outside = index[(index < 0) | (index >= n)]
        if outside.size:
            raise IndexError(f"Got the index {outside[0]}; expected 0 to {n - 1}, the rows of this embedding.")
        return self._table()[index.astype(np.intp)]


class _ADTNConv:
    """The common base of convolutions; see :class:`ADTNConv2d`."""

    axes: ClassVar[int]

    @checked(LayoutError)
    def __init__(
        self,
        generator: Generator,
        bias: Any = None,
        *,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        padding_mode: PaddingMode = "zeros",
        mode: ConvMode | None = None,
    ) -> None:
        self.generator = _checked(generator, 2 + self.axes, f"{type(self).__name__} (out, in / groups, kernel)")
        self.geometry = Geometry.of(generator.shape, stride, padding, dilation, groups, padding_mode)
        self.bias = _bias(bias, generator)
        self.mode: ConvMode | None = mode
        self._chains: dict[Images, _Parts | None] = {}
        if mode == Factored.mode:  # refuse what is not possible at once
            self._planned(Images(batch=1, pixels_in=1, pixels_out=1, train=False))

    def __call__(self, x: Float[np.ndarray, "batch n_in *size_in"]) -> Float[np.ndarray, "batch n_out *size_out"]:
        """Map ``(batch, in, *size)`` to ``(batch, out, *size)``."""
        g, axes = self.geometry, self.axes
        if x.ndim != 2 + axes or x.shape[1] != g.in_channels:
            raise LayoutError(
                f"Got x of shape {x.shape}; expected (batch, {g.in_channels}, ...) with {axes} spatial axes."
            )
        size = x.shape[2:]
        pixels_in, pixels_out = math.prod(size), math.prod(g.size_out(size))
        parts = self._planned(Images(batch=x.shape[0], pixels_in=pixels_in, pixels_out=pixels_out, train=False))
        if parts is None:
            y = self._convolved(x, self._weight(), g.groups)
        else:
            y = parts.chain(parts.weights or self._generated(parts.plans), x, self._convolved)
        return y if self.bias is None else y + self.bias.reshape(-1, *(1,) * axes)

    def _planned(self, images: Images) -> _Parts | None:
        """Return the chain that computes the layer without its weight, where that is faster."""
        key, gen = images.rounded, self.generator
        if self.mode == Materialised.mode or key in self._chains:
            return self._chains.get(key)
        place: Any = {"device": "numpy:cpu", "dtype": gen.dtype}
        chain = decide_convolution(gen, key, groups=self.geometry.groups, mode=self.mode, **place).chain
        if chain is None:
            return remember(self._chains, key, None)
        plans = tuple(decide(piece, "generate", **place) for piece in chain.pieces)
        weights = () if gen.decodes else self._generated(plans)
        return remember(self._chains, key, _Parts(chain, plans, weights))

    def _generated(self, plans: Sequence[Plan]) -> tuple[np.ndarray, ...]:
        """Generate the parts of a chain."""
        arrays = self.generator.arrays("numpy:cpu", self.generator.dtype)
        return tuple(plan.materialised.on(get_backend("numpy")).weight(arrays) for plan in plans)

    def _weight(self) -> Float[np.ndarray, "n_out in_per_group *kernel"]:
        return self.generator.weight() if self.generator.decodes else self._cached

    @cached_property
    def _cached(self) -> Float[np.ndarray, "n_out in_per_group *kernel"]:
        return self.generator.weight()

    def _convolved(self, x: np.ndarray, kernel: np.ndarray, groups: int) -> np.ndarray:
        """Convolve with any kernel, in the geometry of this layer: one product per group with all windows."""
        g, axes = self.geometry, self.axes
        mode: Any = NUMPY_PAD[g.padding_mode]
        x = np.pad(x, ((0, 0), (0, 0), *g.padding), mode=mode)
        reach = tuple(d * (k - 1) + 1 for d, k in zip(g.dilation, g.kernel_size, strict=True))
        windows = np.lib.stride_tricks.sliding_window_view(x, reach, axis=tuple(range(2, 2 + axes)))
        steps = tuple(slice(None, None, s) for s in g.stride)
        taps = tuple(slice(None, None, d) for d in g.dilation)
        windows = windows[(slice(None), slice(None), *steps, *taps)]
        batch, channels, *size = windows.shape[: 2 + axes]
        # (batch, positions, groups, in / groups * kernel)
        n_columns = channels // groups * math.prod(g.kernel_size)
        columns = np.moveaxis(windows, 1, 1 + axes).reshape(batch, math.prod(size), groups, n_columns)
        weights = kernel.reshape(groups, kernel.shape[0] // groups, n_columns)
        y = np.matmul(columns.transpose(2, 0, 1, 3), weights.transpose(0, 2, 1)[:, None])
        return y.transpose(1, 0, 3, 2).reshape(batch, kernel.shape[0], *size)


@dataclass(frozen=True)
class _Parts:
    """A chain, the plans by which its parts are generated, and these parts, unless they are decoded in every call."""

    chain: Chain
    plans: tuple[Plan, ...]
    weights: tuple[np.ndarray, ...]


class ADTNConv1d(_ADTNConv):
    """A convolution over ``(batch, in, length)``; see :class:`ADTNConv2d`."""

    axes = 1


class ADTNConv2d(_ADTNConv):
    """A convolution over ``(batch, in, height, width)``.

    Parameters
    ----------
    generator : Generator
        The generator of the weight, ``(out, in / groups, height, width)``.
    bias : array, optional
        The bias, ``(out,)``.
    stride, padding, dilation, groups, padding_mode
        See :class:`torch.nn.Conv2d`.
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
    >>> import adtn, numpy as np
    >>> layer = ADTNConv2d(adtn.Generator((8, 4, 3, 3), adtn.TTN(bond=2)), padding=1)
    >>> layer(np.zeros((2, 4, 6, 6), "float32")).shape
    (2, 8, 6, 6)
    """

    axes = 2


class ADTNConv3d(_ADTNConv):
    """A convolution over ``(batch, in, depth, height, width)``; see :class:`ADTNConv2d`."""

    axes = 3


def _checked(generator: Generator, axes: int, what: str) -> Generator:
    check_axes(generator.shape, axes, what)
    return generator


def _bias(bias: Any, generator: Generator) -> np.ndarray | None:
    if bias is None:
        return None
    values = finite_array("bias", bias, LayoutError).astype(generator.dtype)
    check_bias(values.shape, generator.shape[0])
    return values
