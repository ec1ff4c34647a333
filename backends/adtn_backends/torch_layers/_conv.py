"""Convolutions."""

from __future__ import annotations

from itertools import repeat
from typing import Any, ClassVar, Self

import torch
from adtn import Generator, Layout, Topology
from adtn._errors import LayoutError
from torch import nn

from ._weight import Base, GeneratedWeight, as_weight, bias_parameter, generator_of, is_traced

Size = int | tuple[int, ...]


class _ADTNConv(nn.Module):
    """Common part; see :class:`ADTNConv2d`."""

    axes: ClassVar[int]
    dense: ClassVar[Any]

    def __init__(
        self,
        weight: Generator | GeneratedWeight,
        bias: Any = True,
        *,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
    ) -> None:
        super().__init__()
        self.generated = as_weight(weight, (2 + self.axes,), f"{type(self).__name__} (out, in / groups, kernel)")
        self.out_channels, per_group, *kernel = self.generated.shape
        self.in_channels, self.kernel_size = per_group * groups, tuple(kernel)
        if self.out_channels % groups:
            raise LayoutError(f"Got groups={groups} for {self.out_channels} output channels; it must divide them.")
        self.stride, self.dilation = self._size(stride), self._size(dilation)
        self.padding = padding if isinstance(padding, str) else self._size(padding)
        self.groups, self.padding_mode = groups, padding_mode
        self.bias = bias_parameter(bias, self.out_channels, self.generated)

    @classmethod
    def from_conv(
        cls,
        conv: Any,
        topology: Topology,
        layout: Layout | None = None,
        *,
        seed: int = 0,
        base: Base = None,
        steps: int = 0,
        **options: Any,
    ) -> Self:
        """A layer in place of a dense one, with its bias, geometry, device and dtype.

        Parameters
        ----------
        conv : torch.nn.Conv1d, Conv2d or Conv3d
        topology, layout, seed, base
            See :class:`adtn.Generator`; the weight has shape ``(out, in / groups, *kernel)``.
        steps : int
            Of a fit to the dense weight; without one only its spread is taken over.
        **options
            Of :func:`adtn.fit`.

        Raises
        ------
        LayoutError
            If it has another number of axes.
        """
        if not isinstance(conv, cls.dense):
            raise LayoutError(f"Got {type(conv).__name__}; {cls.__name__} takes the place of {cls.dense.__name__}.")
        dense: torch.Tensor = conv.weight
        found = generator_of(dense, topology, layout, seed=seed, base=base, steps=steps, options=options)
        weight = GeneratedWeight(found).to(dense.device, dense.dtype)
        made = cls(
            weight, conv.bias, stride=conv.stride, padding=conv.padding, dilation=conv.dilation, groups=conv.groups,
            padding_mode=conv.padding_mode,
        )  # fmt: skip
        return made.train(conv.training)

    @property
    def weight(self) -> torch.Tensor:
        """The weight, ``(out, in / groups, *kernel)``, differentiable."""
        return self.generated()

    def to_dense(self) -> Any:
        """An ordinary layer with the weight as it is now."""
        dense = self.dense(
            self.in_channels, self.out_channels, self.kernel_size, self.stride, self.padding, self.dilation,
            self.groups, self.bias is not None, self.padding_mode, self.generated.device, self.generated.dtype,
        )  # fmt: skip
        with torch.no_grad():
            dense.weight.copy_(self.weight)
            if self.bias is not None:
                dense.bias.copy_(self.bias)
        return dense.train(self.training)

    def extra_repr(self) -> str:
        """As of the dense layer."""
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"]
        plain = {"padding": (0,) * self.axes, "dilation": (1,) * self.axes, "groups": 1, "padding_mode": "zeros"}
        parts += [f"{name}={getattr(self, name)!r}" for name, value in plain.items() if getattr(self, name) != value]
        return ", ".join([*parts, *(["bias=False"] if self.bias is None else [])])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(batch, in, *size)`` to ``(batch, out, *size)``; the batch may be missing."""
        keeps = not is_traced() and not (
            torch.is_grad_enabled() and any(p.requires_grad for p in self.generated.parameters())
        )
        weight = self.generated.kept() if keeps else self.weight
        padding = self.padding
        if self.padding_mode != "zeros":
            x = nn.functional.pad(x, self._around(), mode=self.padding_mode)
            padding = 0
        conv = (nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d)[self.axes - 1]
        return conv(x, weight, self.bias, self.stride, padding, self.dilation, self.groups)  # type: ignore[arg-type]

    def _around(self) -> list[int]:
        """What :func:`torch.nn.functional.pad` wants: last axis first, before and after."""
        if self.padding == "valid":
            return [0] * (2 * self.axes)
        around: list[int] = []
        for axis in reversed(range(self.axes)):
            if isinstance(self.padding, str):  # "same"
                total = self.dilation[axis] * (self.kernel_size[axis] - 1)
                around += [total // 2, total - total // 2]
            else:
                around += [self.padding[axis]] * 2
        return around

    def _size(self, value: Size) -> tuple[int, ...]:
        return tuple(repeat(value, self.axes)) if isinstance(value, int) else tuple(value)


class ADTNConv1d(_ADTNConv):
    """:class:`torch.nn.Conv1d` with a generated weight; see :class:`ADTNConv2d`."""

    axes = 1
    dense = nn.Conv1d


class ADTNConv2d(_ADTNConv):
    """:class:`torch.nn.Conv2d` with a generated weight.

    Parameters
    ----------
    weight : Generator or GeneratedWeight
        Of the weight, ``(out, in / groups, height, width)``. A module may be given to several layers, which are tied
        then.
    bias : array or bool
        ``(out,)``, ``True`` for zeros, ``False`` for none.
    stride, padding, dilation, groups, padding_mode
        See :class:`torch.nn.Conv2d`.

    Raises
    ------
    LayoutError
        If the weight has another number of axes, or the bias or the groups do not fit.

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
    """:class:`torch.nn.Conv3d` with a generated weight; see :class:`ADTNConv2d`."""

    axes = 3
    dense = nn.Conv3d
