"""Sums of Kronecker products."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal, Self

import numpy as np

from .._checks import Range
from .._typing import Float, Shape
from ..layout import Layout
from ._decompositions import truncated_svd
from ._segment import Core, Segment
from ._topology import Topology, register_topology

_UNEVEN = 4  # the largest ratio of two factors of an axis; otherwise it is padded


@register_topology
@dataclass(frozen=True, kw_only=True, repr=False)
class KroneckerSum(Topology):
    r"""A sum of Kronecker products: :math:`W = \sum_{k=1}^{K} A_k \otimes B_k`.

    ``left`` holds all :math:`A_k`, with the first leg of every axis, and ``right`` all :math:`B_k`, with the others:
    an MPO of two sites, where every axis has two legs. A layer multiplies its input by ``right`` and then by ``left``,
    where that is faster than by the weight.

    Parameters
    ----------
    terms : int
        The number K of products, clipped to the number of entries of either factor.
    activation, where, share
        See :class:`Topology`.

    References
    ----------
    C. Van Loan, N. Pitsianis (1993), Approximation with Kronecker products, in Linear Algebra for Large Scale and
    Real-Time Applications, 293: the best factors are those of a singular value decomposition of the rearranged weight.

    Examples
    --------
    >>> import adtn, numpy as np
    >>> gen = adtn.Generator((64, 96), adtn.KroneckerSum(terms=3), scale=1.0, dtype="float64")
    >>> gen.params["left"].shape, gen.params["right"].shape
    ((3, 8, 12), (3, 8, 8))
    >>> bool(np.allclose(gen.weight(), sum(map(np.kron, gen.params["left"], gen.params["right"]))))
    True
    """

    terms: Annotated[int, Range(1, 2**20)] = 4

    order: ClassVar[Literal["axis", "interleaved"]] = "interleaved"
    grows: ClassVar[str | None] = "terms"
    has_decomposition: ClassVar[bool] = True

    def default_layout(self, shape: Shape) -> Layout:
        """Choose the layout used when none is given: two nearly equal legs for rows and columns, kernels whole."""
        cut = [_two_factors(n) if axis < 2 else _whole(n) for axis, n in enumerate(shape)]
        return Layout.from_factors(shape, cut, self.order)

    def sides(self, layout: Layout) -> tuple[list[int], list[int]]:
        """Return the positions of the legs of both factors, in the order of the axes of the weight."""
        legs = sorted(range(layout.ndim_legs), key=lambda q: layout.leg_axes[q])
        left = [q for q in legs if layout.leg_axes[q][1] == 0]
        return left, [q for q in legs if q not in left]

    def rank(self, layout: Layout) -> int:
        """Return the number of terms, clipped to the number of entries of either factor."""
        return min(self.terms, *(math.prod(layout.dims[q] for q in side) for side in self.sides(layout)))

    def resized(self, layout: Layout, sizes: Mapping[str, int]) -> Self | None:
        """Return this topology with another number of terms."""
        return replace(self, terms=sizes["k"])

    def levels(self, layout: Layout) -> list[Segment]:
        """Build a single level of both factors."""
        k = self.rank(layout)
        cores = [
            Core(
                name=name,
                inds=("k", *(layout.leg_names[q] for q in side)),
                shape=(k, *(layout.dims[q] for q in side)),
                param=name,
                kind="factor",
                level=level,
                fan_in=1 if level else k,
            )
            for level, (name, side) in enumerate(zip(("left", "right"), self.sides(layout), strict=True))
        ]
        return [Segment((), tuple(cores), layout.leg_names)]

    def decompose(
        self, layout: Layout, state: Float[np.ndarray, "*legs"], initial: Mapping[str, Float[np.ndarray, "..."]]
    ) -> dict[str, Float[np.ndarray, "..."]]:
        """Compute the factors by a truncated SVD of the weight, rearranged to entries of A by entries of B."""
        out, into = self.sides(layout)
        n_left, n_right = (tuple(layout.dims[q] for q in side) for side in (out, into))
        matrix = np.transpose(state, (*out, *into)).reshape(math.prod(n_left), math.prod(n_right))
        left, right = truncated_svd(matrix, self.rank(layout))
        return {"left": left.T.reshape(-1, *n_left), "right": right.reshape(-1, *n_right)}


def _two_factors(n: int) -> Shape:
    """Return two nearly equal factors of an axis, whose product is the least above it if it has none.

    Examples
    --------
    >>> _two_factors(384), _two_factors(512), _two_factors(1009), _two_factors(3)
    ((24, 16), (32, 16), (33, 31), (3,))
    """
    if n < 4:
        return _whole(n)
    root = math.isqrt(n)
    exact = next((f for f in range(root, 1, -1) if n % f == 0 and n <= _UNEVEN * f * f), None)
    return (n // exact, exact) if exact else (-(-n // root), root)


def _whole(n: int) -> Shape:
    return (n,) if n > 1 else ()
