"""A convolution as a chain: a matrix on its input, a smaller convolution, and a matrix on its output."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from autoray import do

from .._typing import Array, Float, Inds, Shape
from ..layout import Layout, pad
from ..program import Division, Part
from ..topology import Core, Segment
from ._weighting import Weighting


@dataclass(frozen=True)
class Piece:
    """A part of a generator as a generator of its own, without parameters: a matrix or a kernel.

    Parameters
    ----------
    segments : tuple of Segment
        The segments.
    weighting : Weighting
        The formula of the matrix or kernel.
    topology, dtype : str
        See :class:`adtn.Generator`.
    """

    segments: tuple[Segment, ...]
    weighting: Weighting
    topology: str
    dtype: str

    @property
    def layout(self) -> Layout:
        """The layout of the matrix or kernel."""
        return self.weighting.layout

    @property
    def shape(self) -> Shape:
        """The shape of the matrix or kernel."""
        return self.layout.shape


@dataclass(frozen=True)
class Reorder:
    """A permutation of the legs that channels consist of, which are then merged into two groups.

    Parameters
    ----------
    dims : tuple of int
        The dimensions of the legs as they are given.
    order : tuple of int
        The positions of the given legs in the result.
    groups : tuple of int
        The sizes of the groups.
    """

    dims: Shape
    order: tuple[int, ...]
    groups: Shape

    @classmethod
    def of(cls, given: Inds, first: Inds, second: Inds, sizes: Mapping[str, int]) -> Reorder:
        """Make the permutation of given legs to two groups of them."""
        return cls(
            tuple(sizes[i] for i in given),
            tuple(given.index(i) for i in (*first, *second)),
            (math.prod(sizes[i] for i in first), math.prod(sizes[i] for i in second)),
        )

    @property
    def permutes(self) -> bool:
        """Whether legs change their order, which takes a copy."""
        return self.order != tuple(range(len(self.order)))

    def __call__(self, x: Float[Array, "batch ..."], last: bool) -> Float[Array, "batch ..."]:
        """Convert ``(batch, channels, *size)``, or ``(batch, *size, channels)`` if ``last``."""
        size = tuple(x.shape[1:-1] if last else x.shape[2:])
        if self.permutes:
            n, first = len(self.dims), 1 + len(size) if last else 1
            x = do("reshape", x, _shaped(x.shape[0], self.dims, size, last))
            legs = (first + i for i in self.order)
            x = do("transpose", x, (*range(first), *legs, *range(first + n, 1 + n + len(size))))
        return do("reshape", x, _shaped(x.shape[0], self.groups, size, last))


@dataclass(frozen=True)
class Chain:
    r"""A convolution as a chain of three, for which the weight is never generated.

    The tensors of the last segment are divided into three parts, a matrix P on legs of the input, a kernel K that has
    all legs of the window, and a matrix Q from which the other legs of the output come,

    .. math:: W_{o c k} = \sum_{s n} Q_{o n} K_{n s k} P_{s c}.

    Legs that a part does not have pass by it: for the kernel, they are more images. Hyper-indices of all parts are
    groups of the convolution.

    Parameters
    ----------
    before, after : Piece or None
        The matrices ``(s, c)`` and ``(o, n)``.
    kernel : Piece
        The kernel ``(groups * n, s, *window)``.
    groups : int
        The groups of the convolution.
    reorders : tuple of Reorder
        The orders of legs before each part, and of the output.
    weighting : Weighting
        The formula of the whole weight, of which a base is not part of the chain.
    """

    before: Piece | None
    kernel: Piece
    after: Piece | None
    groups: int
    reorders: tuple[Reorder, Reorder, Reorder, Reorder]
    weighting: Weighting

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """The parts that there are, in the order in which they are applied."""
        return tuple(piece for piece in (self.before, self.kernel, self.after) if piece is not None)

    def __call__(
        self,
        weights: Sequence[Float[Array, "..."]],
        x: Float[Array, "batch ..."],
        convolve: Callable[[Any, Any, int], Any],
        *,
        last: bool = False,
        by_convolution: bool = False,
    ) -> Float[Array, "batch ..."]:
        """Apply the layer.

        Parameters
        ----------
        weights : sequence of array
            The weights of :attr:`pieces`.
        x : array
            ``(batch, in, *size)``, or ``(batch, *size, in)`` if ``last``.
        convolve : callable
            The convolution ``(x, kernel, groups) -> y``, without a bias; also with a matrix ``(m, n)`` instead of a
            kernel if ``by_convolution``.
        last : bool
            Whether channels are the last axis.
        by_convolution : bool
            Whether matrices are applied as convolutions with windows of one pixel, instead of as products.

        Returns
        -------
        array
            ``(batch, out, *size)``, or ``(batch, *size, out)``.
        """
        rest, batch = iter(weights), x.shape[0]

        def times(matrix: Any, x: Any) -> Any:
            if by_convolution:
                y = convolve(_as_images(x, last), matrix, 1)
                return _unmerged(y, batch, x.shape[-2 if last else 1], last)
            return _times(matrix, x, last)

        start, middle, result, end = self.reorders
        x = start(_generated_order(self.weighting, x, last), last)
        if self.before is not None:
            x = times(next(rest), x)
        x = _as_images(middle(_merged(x, last), last), last)
        x = convolve(x, next(rest), self.groups)
        x = result(_merged(_unmerged(x, batch, middle.groups[0], last), last), last)
        if self.after is not None:
            x = times(next(rest), x)
        return _weight_order(self.weighting, _merged(end(_merged(x, last), last), last), last)


def chain_of(division: Division, segments: tuple[Segment, ...], weighting: Weighting, dtype: str) -> Chain:
    """Make the chain of a divided convolution.

    Parameters
    ----------
    division : Division
        The division of the last segment.
    segments : tuple of Segment
        All segments.
    weighting : Weighting
        The formula of the weight.
    dtype : str
        The dtype of the generator.
    """
    d, layout = division, weighting.layout
    sizes = d.sizes
    window: list[Shape] = list(layout.factors[2:])
    permutations = (None, None, *weighting.permutations[2:]) if any(weighting.permutations[2:]) else ()

    def piece(part: Part, rows: Inds, columns: Inds) -> Piece:
        is_kernel = part == "kernel"
        factors = [tuple(sizes[i] for i in rows), tuple(sizes[i] for i in columns), *(window if is_kernel else ())]
        shape = (math.prod(factors[0]), math.prod(factors[1]), *(layout.shape[2:] if is_kernel else ()))
        own = Layout.from_factors(shape, factors, max_padding=layout.max_padding)
        legs = (*rows, *columns, *(d.window if is_kernel else ()))
        cores = tuple(core for core in segments[-1].cores if d.parts[core.name] == part)
        last = Segment(segments[-1].inputs if is_kernel else (), cores, legs)
        within = _renamed((*(segments[:-1] if is_kernel else ()), last), dict(zip(legs, own.leg_names, strict=True)))
        formula = (
            Weighting(layout=own, scale=weighting.scale, permutations=permutations)
            if is_kernel
            else Weighting(layout=own, scale=1.0)
        )
        return Piece(within, formula, f"the part {part!r} of a chain", dtype)

    return Chain(
        before=piece("before", d.before_out, d.before_in) if d.before_in else None,
        kernel=piece("kernel", (*d.groups, *d.kernel_out), d.kernel_in),
        after=piece("after", d.after_out, d.after_in) if d.after_out else None,
        groups=math.prod(sizes[i] for i in d.groups),
        reorders=(
            Reorder.of(d.columns, tuple(i for i in d.columns if i not in d.before_in), d.before_in, sizes),
            Reorder.of(d.input, d.passing, (*d.groups, *d.kernel_in), sizes),
            Reorder.of(d.output, d.done, d.after_in, sizes),
            Reorder.of((*d.done, *d.after_out), d.rows, (), sizes),
        ),
        weighting=weighting,
    )


def _renamed(segments: tuple[Segment, ...], outer: Mapping[str, str]) -> tuple[Segment, ...]:
    """Rename all indices: the outer ones as given, the others so that they differ from these."""

    def name(inds: Inds) -> Inds:
        return tuple(outer.get(i, f"inner/{i}") for i in inds)

    def renamed(core: Core) -> Core:
        return replace(core, inds=name(core.inds))

    return tuple(Segment(name(s.inputs), tuple(map(renamed, s.cores)), name(s.outputs), s.activation) for s in segments)


def _shaped(batch: int, channels: Shape, size: Shape, last: bool) -> Shape:
    return (batch, *size, *channels) if last else (batch, *channels, *size)


def _generated_order(weighting: Weighting, x: Any, last: bool) -> Any:
    """Convert channels of the input to generated order, with zeros for padding."""
    axis = x.ndim - 1 if last else 1
    p = weighting.permutations[1] if weighting.permutations else None
    layout = weighting.layout
    return pad(x if p is None else p.restore(x, axis), axis, layout.padded_shape[1] - layout.shape[1])


def _weight_order(weighting: Weighting, y: Any, last: bool) -> Any:
    """Convert channels of the output from generated order, with their padding."""
    axis, n = y.ndim - 1 if last else 1, weighting.layout.shape[0]
    y = y if y.shape[axis] == n else y[(*(slice(None) for _ in range(axis)), slice(0, n))]
    p = weighting.permutations[0] if weighting.permutations else None
    return y if p is None else p.permute(y, axis)


def _times(matrix: Any, x: Any, last: bool) -> Any:
    """Multiply ``(batch, rest, n, *size)`` by a matrix ``(m, n)`` to ``(batch, rest, m, *size)``."""
    if last:
        return x @ matrix.mT
    batch, rest, n, *size = x.shape
    y = matrix @ do("reshape", x, (batch * rest, n, math.prod(size)))
    return do("reshape", y, (batch, rest, matrix.shape[0], *size))


def _merged(x: Any, last: bool) -> Any:
    """Merge the two groups of channels, ``(batch, rest, n, *size)``."""
    shape = tuple(x.shape)
    merged = (*shape[:-2], shape[-2] * shape[-1]) if last else (shape[0], shape[1] * shape[2], *shape[3:])
    return do("reshape", x, merged)


def _as_images(x: Any, last: bool) -> Any:
    """Convert ``(batch, rest, n, *size)`` to more images, ``(batch * rest, n, *size)``."""
    if last:
        x = do("transpose", x, (0, x.ndim - 2, *range(1, x.ndim - 2), x.ndim - 1))
    return do("reshape", x, (x.shape[0] * x.shape[1], *x.shape[2:]))


def _unmerged(y: Any, batch: int, rest: int, last: bool) -> Any:
    """Invert :func:`_as_images`."""
    y = do("reshape", y, (batch, rest, *y.shape[1:]))
    return do("transpose", y, (0, *range(2, y.ndim - 1), 1, y.ndim - 1)) if last else y
