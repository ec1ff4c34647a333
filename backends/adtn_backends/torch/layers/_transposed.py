"""Transposed convolutions whose input passes the network of their weight."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from ...shared._passage import Passage, Products
from ._windows import transposed_conv_of, unit_kernels

_AXES: dict[type, int] = {nn.ConvTranspose1d: 1, nn.ConvTranspose2d: 2, nn.ConvTranspose3d: 3}


def transposed_passage(dense: type) -> Passage | None:
    """Return how inputs pass a transposed convolution, ``None`` if the dense class is another one."""
    return _PASSAGE if dense in _AXES else None


def _through(layer: Any, products: Products, input: torch.Tensor, output_size: Any = None) -> torch.Tensor:
    """Multiply channels, ``(batch, positions, groups, in)``, and add up windows; one group has no axis.

    The weight is ``(in, out / groups, *kernel)``; every group has channels of all groups, of which the others are zero.
    """
    axes, groups = len(layer.kernel_size), layer.groups
    args = (output_size, layer.stride, layer.padding, layer.kernel_size, axes, layer.dilation)
    more = layer._output_padding(input, *args)  # pyright: ignore[reportPrivateUsage]
    x = input if input.ndim == axes + 2 else input[None]
    size, rows = x.shape[2:], x.flatten(2).transpose(1, 2)
    if groups > 1:
        own = torch.eye(groups, dtype=x.dtype, device=x.device)[:, :, None]
        rows = (rows.unflatten(-1, (1, groups, -1)) * own).flatten(-2)
    y = products[""](rows).flatten(2)
    y = y.transpose(1, 2).unflatten(2, size)
    n = y.shape[1] // math.prod(layer.kernel_size)
    kernels = unit_kernels(layer.kernel_size, y, n)
    y = transposed_conv_of(axes)(y, kernels, layer.bias, layer.stride, layer.padding, more, n, layer.dilation)
    return y if input.ndim == axes + 2 else y[0]


_PASSAGE = Passage(through=_through, weights={"": "generated.weight"}, enters="rows")
