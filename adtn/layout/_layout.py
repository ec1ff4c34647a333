"""The layout: how the axes of a weight become the physical legs of a network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

from autoray import do

from .._checks import Range, check_fields, checked
from .._typing import Array, Float, Inds, Shape
from ..errors import LayoutError
from ._factorise import factorise, uniform

MAX_AXES = 5
MAX_LEGS = 64
MAX_ENTRIES = 2**48

Leg = Annotated[int, Range(2, 2**20)]
Order = Annotated[Literal["axis", "interleaved"] | Sequence[int], "'axis', 'interleaved' or a permutation of the legs"]
Padding = Annotated[float, Range(1.0)]


@dataclass(frozen=True)
class Layout:
    r"""A factorisation of axes into ordered legs, with padding at the end of each axis.

    An axis of length ``n`` is padded with zeros to :math:`\prod_k f_k \ge n` and reshaped to legs of sizes
    :math:`f_k`, most significant first. The legs of all axes, axis by axis, are then permuted by ``order``.

    Parameters
    ----------
    shape : tuple of int
        Shape of the weight, 1 to 5 axes: ``(n_out, n_in)``, ``(out, in, kh, kw)``, ``(words, features)``.
    factors : tuple of tuple of int
        Leg sizes of each axis; an axis of length 1 has none.
    order : tuple of int
        ``order[q]`` is the axis-by-axis index of the leg at position ``q`` of the network.
    max_padding : float
        Largest allowed ratio of generated entries to entries of the weight.

    Raises
    ------
    LayoutError
        If the legs are too small for an axis, the order is not a permutation, or the padding exceeds ``max_padding``.

    Examples
    --------
    >>> lay = Layout.of((10, 784), leg=4)
    >>> lay.factors, lay.dims
    (((5, 2), (7, 7, 4, 4)), (5, 2, 7, 7, 4, 4))
    >>> Layout.of((4, 6), leg=2, order="interleaved").leg_names
    ('a0_0', 'a1_0', 'a0_1', 'a1_1')
    """

    shape: Shape
    factors: tuple[Shape, ...]
    order: tuple[int, ...]
    max_padding: Padding = 1.5

    def __post_init__(self) -> None:
        check_fields(self, LayoutError)
        _check_shape(self.shape)
        if len(self.factors) != len(self.shape):
            raise LayoutError(
                f"Got factors for {len(self.factors)} axes, expected {len(self.shape)}: one tuple per axis."
            )
        n_legs = sum(map(len, self.factors))
        if n_legs > MAX_LEGS:
            raise LayoutError(f"Got {n_legs} legs, more than the maximum of {MAX_LEGS}; choose larger legs.")
        if any(f < 2 for fs in self.factors for f in fs):
            raise LayoutError(f"Got factors {self.factors}; every leg must have dimension 2 or more.")
        if math.prod(map(math.prod, self.factors)) > MAX_ENTRIES:
            raise LayoutError(f"Got factors {self.factors}, which make more than 2**48 entries; choose smaller legs.")
        for axis, (n, fs) in enumerate(zip(self.shape, self.factors, strict=True)):
            if math.prod(fs) < n:
                raise LayoutError(
                    f"Legs {fs} of axis {axis} hold {math.prod(fs)} entries, fewer than its {n}; "
                    f"{factorise(n, max(fs, default=2))} would be enough."
                )
        if sorted(self.order) != list(range(n_legs)):
            raise LayoutError(f"Got order {self.order}; expected a permutation of 0..{n_legs - 1}.")
        if self.padding > self.max_padding:
            better = tuple(factorise(n, _typical(fs)) for n, fs in zip(self.shape, self.factors, strict=True))
            raise LayoutError(
                f"Padding {self.shape} to {self.padded_shape} generates {self.padding:.2f} entries per entry of the "
                f"weight (limit {self.max_padding:g}), which is wasteful. Better: factors={better}, padded to "
                f"{tuple(map(math.prod, better))}; or allow it with max_padding={math.ceil(self.padding)}."
            )

    @classmethod
    @checked(LayoutError)
    def of(
        cls,
        shape: Sequence[int],
        leg: Annotated[Leg | Sequence[Leg], "a whole number from 2 to 2**20, or one per axis"] = 8,
        order: Order = "axis",
        *,
        exact: bool = False,
        max_padding: Padding = 1.5,
    ) -> Layout:
        """Choose legs of about a target size.

        Parameters
        ----------
        shape : sequence of int
            Shape of the weight.
        leg : int or sequence of int
            Target size of a leg, one for all axes or one per axis.
        order : {"axis", "interleaved"} or sequence of int
            - ``"axis"``: all legs of the first axis, then all of the second, ...
            - ``"interleaved"``: first leg of every axis, second leg of every axis, ... (as in an MPO)
            - a permutation of the legs in axis order
        exact : bool
            Make all legs exactly the size ``leg``, at the price of padding (as a brick wall of qubits needs).
        max_padding : float
            See :class:`Layout`.

        Returns
        -------
        Layout

        Raises
        ------
        LayoutError
            If a size is below 2 or the padding exceeds ``max_padding``.
        """
        shape = tuple(shape)
        legs = (leg,) * len(shape) if isinstance(leg, int) else tuple(leg)
        _check_shape(shape)
        if len(legs) != len(shape):
            raise LayoutError(f"Got leg={leg} for {len(shape)} axes; expected one size, or one size per axis.")
        cut = uniform if exact else factorise
        factors = tuple(cut(n, ell) for n, ell in zip(shape, legs, strict=True))
        return cls.from_factors(shape, factors, order, max_padding=max_padding)

    @classmethod
    @checked(LayoutError)
    def from_factors(
        cls,
        shape: Sequence[int],
        factors: Sequence[Sequence[int]],
        order: Order = "axis",
        *,
        max_padding: Padding = 1.5,
    ) -> Layout:
        """Create a layout with given legs, for instance ``((32, 32), (4, 7, 4, 7))`` for 28x28 images."""
        frozen = tuple(map(tuple, factors))
        return cls(tuple(shape), frozen, _resolve_order(order, frozen), max_padding)

    @classmethod
    @checked(LayoutError)
    def whole(cls, shape: Sequence[int]) -> Layout:
        """Make every axis a single leg, without padding, as factors of a matrix or of a convolution need.

        Examples
        --------
        >>> Layout.whole((1536, 127)).dims
        (1536, 127)
        """
        shape = tuple(shape)
        return cls.from_factors(shape, tuple((n,) if n > 1 else () for n in shape))

    @property
    def ndim_legs(self) -> int:
        """The number of physical legs."""
        return len(self.order)

    @cached_property
    def leg_axes(self) -> tuple[tuple[int, int], ...]:
        """The pair ``(axis, k)`` of every leg, in network order: leg ``k`` of that axis."""
        flat = [(axis, k) for axis, fs in enumerate(self.factors) for k in range(len(fs))]
        return tuple(flat[i] for i in self.order)

    @cached_property
    def leg_names(self) -> Inds:
        """The index names in network order: ``a{axis}_{k}``."""
        return tuple(f"a{axis}_{k}" for axis, k in self.leg_axes)

    @cached_property
    def dims(self) -> Shape:
        """The dimension of every leg, in network order."""
        return tuple(self.factors[axis][k] for axis, k in self.leg_axes)

    @cached_property
    def padded_shape(self) -> Shape:
        """The shape of the weight with its padding."""
        return tuple(math.prod(fs) for fs in self.factors)

    @cached_property
    def size(self) -> int:
        """The number of entries of the weight."""
        return math.prod(self.shape)

    @cached_property
    def padding(self) -> float:
        """The ratio of generated entries to entries of the weight, 1.0 without padding."""
        return math.prod(self.padded_shape) / self.size

    def to_legs(self, weight: Float[Array, "*shape"]) -> Float[Array, "*legs"]:
        """Pad, reshape and permute a weight of shape :attr:`shape` to a tensor of shape :attr:`dims`."""
        if tuple(weight.shape) != self.shape:
            raise LayoutError(f"Got a weight of shape {tuple(weight.shape)}; this layout is for {self.shape}.")
        if self.padded_shape != self.shape:
            for axis, (n, p) in enumerate(zip(self.shape, self.padded_shape, strict=True)):
                weight = pad(weight, axis, p - n)
        flat = tuple(f for fs in self.factors for f in fs)
        legs = do("reshape", weight, flat)
        if self.order == tuple(range(len(flat))):
            return legs
        return do("transpose", legs, self.order)

    def from_legs(self, legs: Float[Array, "*legs"]) -> Float[Array, "*shape"]:
        """Invert :meth:`to_legs`: permute back, reshape and crop the padding."""
        if tuple(legs.shape) != self.dims:
            raise LayoutError(f"Got a tensor of shape {tuple(legs.shape)}; this layout has legs {self.dims}.")
        if self.order != tuple(range(len(self.order))):
            inverse = [0] * len(self.order)
            for position, leg in enumerate(self.order):
                inverse[leg] = position
            legs = do("transpose", legs, tuple(inverse))
        padded = do("reshape", legs, self.padded_shape)
        if self.padded_shape == self.shape:
            return padded
        return padded[tuple(slice(0, n) for n in self.shape)]


def pad(x: Float[Array, "*shape"], axis: int, thickness: int) -> Float[Array, "*padded"]:
    """Append zeros to the end of one axis, on the framework, device and dtype of ``x``."""
    if not thickness:
        return x
    shape = list(x.shape)
    shape[axis] = thickness
    first = x[(*(slice(None) for _ in range(axis)), slice(0, 1))]  # other axes may be empty
    slab = do("broadcast_to", do("zeros_like", first), tuple(shape))
    return do("concatenate", (x, slab), axis=axis)


def _check_shape(shape: Shape) -> None:
    if not 1 <= len(shape) <= MAX_AXES:
        raise LayoutError(
            f"Got shape={shape}, a weight with {len(shape)} axes; expected 1 to {MAX_AXES}. Reshape it first."
        )
    if any(n < 1 for n in shape):
        raise LayoutError(f"Got shape {shape}; every axis must have at least one entry.")
    if math.prod(shape) > MAX_ENTRIES:
        raise LayoutError(f"Got shape {shape}, more than 2**48 entries; split it into several weights.")


def _typical(factors: Shape) -> int:
    """Return the geometric mean of the legs, at least 2."""
    if not factors:
        return 2
    return max(2, round(math.exp(sum(map(math.log, factors)) / len(factors))))


def _resolve_order(order: Order, factors: tuple[Shape, ...]) -> tuple[int, ...]:
    n_legs = sum(map(len, factors))
    if order == "axis":
        return tuple(range(n_legs))
    if order == "interleaved":
        numbered = [(k, axis) for axis, fs in enumerate(factors) for k in range(len(fs))]
        return tuple(sorted(range(n_legs), key=lambda i: numbered[i]))
    return tuple(order)
