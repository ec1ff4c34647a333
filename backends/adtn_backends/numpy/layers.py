"""Layers for inference with NumPy, without training; they give the same results as with PyTorch and JAX.

Weights are generated once; those of generators that are rounded to integers in every call, so that only these stay in
memory.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from adtn import Generator
from adtn._arrays import finite_array
from adtn._checks import checked
from adtn._typing import Float, Int
from adtn.errors import LayoutError

from ..shared._geometry import NUMPY_PAD, Geometry, PaddingMode, Size, check_axes, check_bias


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
    ) -> None:
        self.generator = _checked(generator, 2 + self.axes, f"{type(self).__name__} (out, in / groups, kernel)")
        self.geometry = Geometry.of(generator.shape, stride, padding, dilation, groups, padding_mode)
        self.bias = _bias(bias, generator)

    def _weight(self) -> Float[np.ndarray, "groups out_per_group columns"]:
        return self._generated() if self.generator.decodes else self._cached

    @cached_property
    def _cached(self) -> Float[np.ndarray, "groups out_per_group columns"]:
        return self._generated()

    def _generated(self) -> Float[np.ndarray, "groups out_per_group columns"]:
        """Generate the weight of each group, ``(groups, out / groups, in / groups * kernel)``."""
        g = self.geometry
        return self.generator.weight().reshape(g.groups, g.out_channels // g.groups, -1)

    def __call__(self, x: Float[np.ndarray, "batch n_in *size_in"]) -> Float[np.ndarray, "batch n_out *size_out"]:
        """Map ``(batch, in, *size)`` to ``(batch, out, *size)``."""
        g, axes = self.geometry, self.axes
        if x.ndim != 2 + axes or x.shape[1] != g.in_channels:
            raise LayoutError(
                f"Got x of shape {x.shape}; expected (batch, {g.in_channels}, ...) with {axes} spatial axes."
            )
        mode: Any = NUMPY_PAD[g.padding_mode]
        x = np.pad(x, ((0, 0), (0, 0), *g.padding), mode=mode)
        reach = tuple(d * (k - 1) + 1 for d, k in zip(g.dilation, g.kernel_size, strict=True))
        windows = np.lib.stride_tricks.sliding_window_view(x, reach, axis=tuple(range(2, 2 + axes)))
        steps = tuple(slice(None, None, s) for s in g.stride)
        taps = tuple(slice(None, None, d) for d in g.dilation)
        windows = windows[(slice(None), slice(None), *steps, *taps)]
        batch, _, *size = windows.shape[: 2 + axes]
        # (batch, positions, groups, in / groups * kernel), then one product per group
        n_columns = g.in_channels // g.groups * math.prod(g.kernel_size)
        columns = np.moveaxis(windows, 1, 1 + axes).reshape(batch, math.prod(size), g.groups, n_columns)
        y = np.matmul(columns.transpose(2, 0, 1, 3), self._weight().transpose(0, 2, 1)[:, None])
        y = y.transpose(1, 0, 3, 2).reshape(batch, g.out_channels, *size)
        return y if self.bias is None else y + self.bias.reshape(-1, *(1,) * axes)


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

    Raises
    ------
    LayoutError
        If the arguments do not fit together.

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
