"""Windows of images to which kernels are applied, as convolutions with unit kernels: of any number of axes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from adtn._typing import Float
from torch import nn


def conv_of(axes: int) -> Callable[..., Any]:
    """Return the convolution over this number of axes."""
    return (nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d)[axes - 1]


def transposed_conv_of(axes: int) -> Callable[..., Any]:
    """Return the transposed convolution over this number of axes."""
    return (nn.functional.conv_transpose1d, nn.functional.conv_transpose2d, nn.functional.conv_transpose3d)[axes - 1]


def unit_kernels(
    kernel: tuple[int, ...], like: torch.Tensor, channels: int | None = None
) -> Float[torch.Tensor, "..."]:
    """Return a kernel for each entry of a window, ``(channels * entries, 1, *kernel)``, in groups of one channel."""
    entries = math.prod(kernel)
    one = torch.eye(entries, dtype=like.dtype, device=like.device).reshape(entries, 1, *kernel)
    return one.repeat(like.shape[1] if channels is None else channels, *(1 for _ in one.shape[1:]))
