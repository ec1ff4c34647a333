"""The stride, padding and dilation of a convolution, for every framework."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from adtn._checks import Count, Range, checked, rule_of
from adtn.errors import LayoutError

Size = int | tuple[int, ...]
Steps = Annotated[Count | tuple[Count, ...], "a whole number of at least 1, or one for each axis"]
_PADDING = rule_of(
    Annotated[
        Annotated[int, Range(0)] | tuple[Annotated[int, Range(0)], ...] | Literal["same", "valid"],
        "'same', 'valid' or whole numbers of at least 0",
    ]
)
ConvMode = Literal["materialise", "factored"]
"""Whether a convolution generates its weight, or is a chain of smaller ones."""
PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
NUMPY_PAD = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}  # names in numpy.pad


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """The options of a convolution without its weight.

    Parameters
    ----------
    out_channels, in_channels : int
        Channels of the output and the input.
    kernel_size, stride, dilation : tuple of int
        One entry per spatial axis.
    padding : tuple of (int, int)
        The padding before and after each spatial axis.
    groups : int
        The number of groups of channels.
    padding_mode : str
        See :class:`torch.nn.Conv2d`.
    """

    out_channels: int
    in_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int
    padding_mode: PaddingMode

    @classmethod
    @checked(LayoutError)
    def of(
        cls,
        shape: tuple[int, ...],
        stride: Steps = 1,
        padding: Size | str = 0,
        dilation: Steps = 1,
        groups: Count = 1,
        padding_mode: PaddingMode = "zeros",
    ) -> Geometry:
        """Make the geometry of a weight ``(out, in / groups, *kernel)`` from the options of PyTorch's convolutions.

        Raises
        ------
        LayoutError
            If the options do not fit together.
        """
        checked_padding: Any = padding if _PADDING is None else _PADDING("padding", padding, LayoutError)
        out, per_group, *kernel = shape
        axes = len(kernel)
        steps, widths = _each("stride", stride, axes), _each("dilation", dilation, axes)
        if out % groups:
            raise LayoutError(f"Got groups={groups} for {out} output channels; expected a divisor of {out}.")
        if padding == "same":
            if any(s != 1 for s in steps):
                raise LayoutError(f"Got padding='same' with stride={steps}; 'same' requires a stride of 1.")
            totals = [d * (k - 1) for d, k in zip(widths, kernel, strict=True)]
            around = tuple((total // 2, total - total // 2) for total in totals)
        elif padding == "valid":
            around = ((0, 0),) * axes
        else:
            around = tuple((p, p) for p in _each("padding", checked_padding, axes))
        return cls(
            out_channels=out,
            in_channels=per_group * groups,
            kernel_size=tuple(kernel),
            stride=steps,
            padding=around,
            dilation=widths,
            groups=groups,
            padding_mode=padding_mode,
        )

    @property
    def axes(self) -> int:
        """The number of spatial axes."""
        return len(self.kernel_size)

    def size_out(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Return the size of the output for images of a size, at least 1.

        Examples
        --------
        >>> Geometry.of((8, 4, 3, 3), stride=2, padding=1).size_out((32, 31))
        (16, 16)
        """
        each = zip(size, self.padding, self.dilation, self.kernel_size, self.stride, strict=True)
        return tuple(max((n + sum(around) - d * (k - 1) - 1) // s + 1, 1) for n, around, d, k, s in each)

    def __str__(self) -> str:
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"]
        if any(a or b for a, b in self.padding):
            parts.append(f"padding={self.padding}")
        plain = {"dilation": (1,) * self.axes, "groups": 1, "padding_mode": "zeros"}
        parts += [f"{name}={getattr(self, name)!r}" for name, value in plain.items() if getattr(self, name) != value]
        return ", ".join(parts)


def check_axes(shape: tuple[int, ...], axes: int, what: str) -> None:
    """Refuse weights with another number of axes."""
    if len(shape) != axes:
        raise LayoutError(f"Got a weight of shape {shape}; {what} needs {axes} axes.")


def check_input(shape: tuple[int, ...], n_in: int) -> None:
    """Refuse inputs whose last axis does not match the weight."""
    if not shape or shape[-1] != n_in:
        raise LayoutError(f"Got an input of shape {tuple(shape)}; expected (..., {n_in}).")


def check_bias(shape: tuple[int, ...], n_out: int) -> None:
    """Refuse biases that do not have one entry per output."""
    if tuple(shape) != (n_out,):
        raise LayoutError(f"Got a bias of shape {tuple(shape)}; expected ({n_out},).")


def _each(name: str, value: Size, axes: int) -> tuple[int, ...]:
    values = (value,) * axes if isinstance(value, int) else tuple(value)
    if len(values) != axes:
        raise LayoutError(f"Got {name}={value} for {axes} spatial axes; expected one number or one for each.")
    return values
