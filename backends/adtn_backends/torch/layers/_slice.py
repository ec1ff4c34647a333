"""A part of a generated weight as the weight of one layer, for layers that share a generator."""

from __future__ import annotations

import collections.abc
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import torch
from adtn._typing import Float, Int
from adtn.errors import LayoutError
from adtn.weight import Materialised, Mode
from torch import nn

from ...shared._slices import check_slice
from ._weight import GeneratedWeight, Use


@dataclass(frozen=True)
class _Cut:
    """The way in which a slice is applied: the whole weight is generated."""

    makes_weight: bool = True


class GeneratedSlice(nn.Module):
    """A block of a generated matrix as the weight of one layer.

    Slices of the same :class:`GeneratedWeight` train, move and save the same parameters, whose gradients are the sums
    of those of all slices. The whole weight is generated for each slice, unless it is cached: without gradients on the
    CPU, and inside :func:`cached_weights`.

    Parameters
    ----------
    whole : GeneratedWeight
        The matrix, ``(rows, columns)``.
    start : int
        The first row of the slice.
    shape : tuple of int
        The shape of the slice, ``(n_out, ...)``: ``n_out`` rows, of whose columns the first ones are the other axes.

    Raises
    ------
    LayoutError
        If the slice is not inside the matrix.

    Examples
    --------
    >>> import adtn
    >>> whole = GeneratedWeight(adtn.Generator((96, 32), adtn.TTN(bond=2)))
    >>> GeneratedSlice(whole, 64, (16, 3, 3, 3))().shape
    torch.Size([16, 3, 3, 3])
    """

    without = None  # compilers generate the weight

    def __init__(self, whole: GeneratedWeight, start: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.columns = check_slice(whole.shape, start, shape)
        self.whole, self.start, self.shape = whole, start, shape

    def extra_repr(self) -> str:
        """Return the rows and the shape."""
        return f"rows {self.start} to {self.start + self.shape[0] - 1}, shape={self.shape}"

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weight."""
        return self.whole.dtype

    @property
    def device(self) -> torch.device:
        """The device of the weight."""
        return self.whole.device

    @property
    def trains(self) -> bool:
        """Whether a core is trained."""
        return self.whole.trains

    @property
    def is_coded(self) -> bool:
        """Whether cores are stored as codes only."""
        return self.whole.is_coded

    @property
    def caches(self) -> bool:
        """Whether the whole weight is cached without gradients."""
        return self.whole.caches

    @property
    def made(self) -> bool:
        """Whether the code runs inside :meth:`once`."""
        return self.whole.made

    def order_for(self, x: Float[torch.Tensor, "*batch n_in"]) -> None:
        """Return ``None``: a slice has no order of its own."""
        return

    def forward(self, use: Use | None = None, *, in_groups: bool = False) -> torch.Tensor:
        """Compute the slice, or ``use(arrays)`` from the cores; both differentiable."""
        return self.whole(use or self.weight_of, in_groups=in_groups)

    def cut(self, whole: Float[torch.Tensor, "rows columns"]) -> Float[torch.Tensor, "*shape"]:
        """Return the slice of a matrix, a view where it has all columns."""
        return whole[self.start : self.start + self.shape[0], : self.columns].reshape(self.shape)

    def weight_of(self, arrays: dict[str, torch.Tensor]) -> Float[torch.Tensor, "*shape"]:
        """Compute the slice from these cores, differentiable."""
        return self.cut(self.whole.weight_of(arrays))

    def cached(self, arrays: dict[str, torch.Tensor]) -> Float[torch.Tensor, "*shape"]:
        """Return the slice of the cached weight, see :meth:`GeneratedWeight.cached`."""
        return self.cut(self.whole.cached(arrays))

    def now(self) -> Float[torch.Tensor, "*shape"]:
        """Return the slice for the present parameters, see :meth:`GeneratedWeight.now`."""
        return self.cut(self.whole.now())

    def own(self) -> Float[torch.Tensor, "*shape"]:
        """Return a slice that may be written to."""
        return self.cut(self.whole.own())

    def rows_of(
        self, arrays: dict[str, torch.Tensor], index: Int[torch.Tensor, " n"]
    ) -> Float[torch.Tensor, " n *inner"]:
        """Compute rows of the slice from these cores, without generating the others."""
        rows = self.whole.rows_of(arrays, index + self.start)
        return rows[:, : self.columns].reshape(-1, *self.shape[1:])

    @contextmanager
    def once(self) -> collections.abc.Generator[torch.Tensor, None, None]:
        """Generate the whole weight once inside this block, for all of its slices."""
        with self.whole.once() as whole:
            yield self.cut(whole)

    def layer(
        self, rows: torch.Tensor, mode: Mode | None, *, train: bool
    ) -> tuple[_Cut, Callable[[dict[str, torch.Tensor], torch.Tensor], torch.Tensor]]:
        """Return how the slice is applied, and the differentiable ``(arrays, x) -> y``.

        Raises
        ------
        LayoutError
            If the mode needs another weight than a whole one.
        """
        if mode not in (None, Materialised.mode):
            raise LayoutError(f"Got mode={mode!r} for a slice of a generated weight; expected 'materialise' or None.")
        return _Cut(), lambda arrays, x: x @ self.weight_of(arrays).mT

    def traced(self, mode: Mode | None) -> None:
        """Return ``None``: compilers generate the weight."""
        return


Weight: TypeAlias = GeneratedWeight | GeneratedSlice
"""What a layer reads its weight from."""
