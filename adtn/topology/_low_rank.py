"""Pairs of factors: a low-rank matrix, and a convolution that is separable in space."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import numpy as np

from .._typing import Float
from ..errors import TopologyError
from ..layout import Layout
from ._decompositions import truncated_svd
from ._segment import Core, Segment
from ._topology import Bond, Topology, register_topology

_LEFT = {"axes": (0,), "spatial": (0, 2)}


@register_topology
@dataclass(frozen=True, kw_only=True, repr=False)
class LowRank(Topology):
    """A pair of factors: ``left``, of shape ``(*legs, r)``, and ``right``, of shape ``(r, *legs)``.

    Parameters
    ----------
    bond : int
        Rank r, clipped to the dimension of either side.
    split : {"axes", "spatial"}
        - ``"axes"``: ``left`` has the first axis of the weight, ``right`` all others: a matrix ``(n_out, n_in)`` of
          rank r
        - ``"spatial"``: ``left`` has the axes out and kh of a convolution ``(out, in, kh, kw)``, ``right`` in and kw: a
          convolution with kernels 1 x kw to r channels, then one with kernels kh x 1
    activation, where, share
        See :class:`Topology`.

    References
    ----------
    M. Jaderberg, A. Vedaldi, A. Zisserman (2014), arXiv:1405.3866 (convolutions that are separable in space).

    Examples
    --------
    >>> import adtn
    >>> adtn.Generator((64, 32), adtn.LowRank(bond=4)).num_params
    384
    >>> adtn.Generator((64, 32, 3, 3), adtn.LowRank(bond=4, split="spatial")).num_params
    1152
    """

    bond: Bond = 4
    split: Literal["axes", "spatial"] = "axes"

    grows: ClassVar[str | None] = "bond"
    has_decomposition: ClassVar[bool] = True

    def default_layout(self, shape: tuple[int, ...]) -> Layout:
        """Choose the layout used when none is given: one leg per axis, without padding."""
        return Layout.whole(shape)

    def sides(self, layout: Layout) -> tuple[list[int], list[int]]:
        """Return the positions of the legs of both factors, in the order of the axes of the weight."""
        if self.split == "spatial" and len(layout.shape) != 4:
            raise TopologyError(
                f"Got split='spatial' for a weight of shape {layout.shape}; expected a convolution (out, in, kh, kw). "
                "Use split='axes'."
            )
        legs = sorted(range(layout.ndim_legs), key=lambda q: layout.leg_axes[q])
        left = [q for q in legs if layout.leg_axes[q][0] in _LEFT[self.split]]
        return left, [q for q in legs if q not in left]

    def rank(self, layout: Layout) -> int:
        """Return the rank, clipped to the dimension of either side."""
        return min(self.bond, *(math.prod(layout.dims[q] for q in side) for side in self.sides(layout)))

    def resized(self, layout: Layout, sizes: Mapping[str, int]) -> Self | None:
        """Return this topology with another rank."""
        return replace(self, bond=sizes["r"])

    def levels(self, layout: Layout) -> list[Segment]:
        """Build a single level of both factors."""
        r = self.rank(layout)
        (out, n_out), (into, n_in) = (
            (tuple(layout.leg_names[q] for q in side), tuple(layout.dims[q] for q in side))
            for side in self.sides(layout)
        )
        left = Core(name="left", inds=(*out, "r"), shape=(*n_out, r), param="left", kind="factor", fan_in=r)
        right = Core(name="right", inds=("r", *into), shape=(r, *n_in), param="right", kind="factor", level=1)
        return [Segment((), (left, right), layout.leg_names)]

    def decompose(
        self, layout: Layout, state: Float[np.ndarray, "*legs"], initial: Mapping[str, Float[np.ndarray, "..."]]
    ) -> dict[str, Float[np.ndarray, "..."]]:
        """Compute the factors by a truncated SVD."""
        out, into = self.sides(layout)
        n_out, n_in = (tuple(layout.dims[q] for q in side) for side in (out, into))
        matrix = np.transpose(state, (*out, *into)).reshape(math.prod(n_out), math.prod(n_in))
        left, right = truncated_svd(matrix, self.rank(layout))
        return {"left": left.reshape(*n_out, -1), "right": right.reshape(-1, *n_in)}
