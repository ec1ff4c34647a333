"""Linear baselines: MPO, tensor train, tensor ring, Tucker and CP."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from .._typing import Float
from ..errors import TopologyError
from ..layout import Layout
from ._decompositions import cp_als, hosvd, tt_svd
from ._segment import Core, Segment
from ._topology import Bond, Topology, register_topology


def chain_bonds(dims: list[int], bond: int) -> list[int]:
    """Return the bond dimensions of an open chain, clipped to the dimension of either side."""
    n = len(dims)
    return [min(bond, math.prod(dims[: k + 1]), math.prod(dims[k + 1 :])) for k in range(n - 1)]


def _chain(sites: list[tuple[int, ...]], layout: Layout, bonds: list[int]) -> list[Core]:
    """Build the cores of a chain; one more entry in ``bonds`` closes it to a ring."""
    n, closed = len(sites), len(bonds) == len(sites)
    cores: list[Core] = []
    for k, legs in enumerate(sites):
        left = k - 1 if k else (n - 1 if closed else None)
        right = k if k < n - 1 or closed else None
        ends = [(f"b{b}", bonds[b]) for b in (left, right) if b is not None]
        inds = (*(i for i, _ in ends), *(layout.leg_names[q] for q in legs))
        shape = (*(d for _, d in ends), *(layout.dims[q] for q in legs))
        fan_in = math.prod(d for _, d in ends[-1:]) if right is not None else 1
        cores.append(
            Core(name=f"site{k}", inds=inds, shape=shape, param=f"site{k}", kind="site", level=k, fan_in=fan_in)
        )
    return cores


@register_topology
@dataclass(frozen=True, kw_only=True, repr=False)
class TT(Topology):
    """A tensor train over the legs, with one leg per site.

    Parameters
    ----------
    bond : int
        Bond dimension, clipped to the dimension of either side of a bond.
    activation, where, share
        See :class:`Topology`.

    References
    ----------
    I. Oseledets (2011), SIAM J. Sci. Comput. 33, 2295.

    Examples
    --------
    >>> import adtn
    >>> adtn.Generator((64, 64), adtn.TT(bond=3)).num_params
    192
    """

    bond: Bond = 4

    grows: ClassVar[str | None] = "bond"
    has_decomposition: ClassVar[bool] = True

    def sites(self, layout: Layout) -> list[tuple[int, ...]]:
        """Return the positions of the legs on each site."""
        return [(q,) for q in range(layout.ndim_legs)]

    def levels(self, layout: Layout) -> list[Segment]:
        """Build a single level."""
        sites = self.sites(layout)
        if not sites:
            raise TopologyError("Got a layout without legs; a tensor train needs at least one site.")
        dims = [math.prod(layout.dims[q] for q in legs) for legs in sites]
        cores = _chain(sites, layout, chain_bonds(dims, self.bond))
        return [Segment((), tuple(cores), layout.leg_names)]

    def decompose(
        self, layout: Layout, state: Float[np.ndarray, "*legs"], initial: Mapping[str, Float[np.ndarray, "..."]]
    ) -> dict[str, Float[np.ndarray, "..."]]:
        """Compute the cores by truncated SVDs from left to right (TT-SVD)."""
        cores = tt_svd(state, self.sites(layout), self.bond)
        return {f"site{k}": core for k, core in enumerate(cores)}


@register_topology
@dataclass(frozen=True, kw_only=True, repr=False)
class MPO(TT):
    """A matrix product operator: site k carries the k-th leg of every axis.

    Parameters
    ----------
    bond : int
        Bond dimension, clipped to the dimension of either side of a bond.
    activation, where, share
        See :class:`Topology`.

    References
    ----------
    A. Novikov, D. Podoprikhin, A. Osokin, D. Vetrov (2015), arXiv:1509.06569.

    Examples
    --------
    >>> import adtn
    >>> adtn.Generator((64, 64), adtn.MPO(bond=3)).num_params
    384
    """

    order: ClassVar[Literal["axis", "interleaved"]] = "interleaved"

    def sites(self, layout: Layout) -> list[tuple[int, ...]]:
        """Return the positions of the legs on each site."""
        n = max((k for _, k in layout.leg_axes), default=-1) + 1
        return [tuple(q for q, (_, k) in enumerate(layout.leg_axes) if k == site) for site in range(n)]


@register_topology
@dataclass(frozen=True, kw_only=True, repr=False)
class TensorRing(TT):
    """A tensor ring: a tensor train whose last site is connected to its first.

    Parameters
    ----------
    bond : int
        Bond dimension, the same on every bond.
    activation, where, share
        See :class:`Topology`.

    References
    ----------
    Q. Zhao, G. Zhou, S. Xie, L. Zhang, A. Cichocki (2016), arXiv:1606.05535.

    Examples
    --------
    >>> import adtn
    >>> adtn.Generator((64, 64), adtn.TensorRing(bond=3)).num_params
    288
    """

    has_decomposition: ClassVar[bool] = False

    def levels(self, layout: Layout) -> list[Segment]:
        """Build a single level."""
        sites = self.sites(layout)
        if len(sites) < 3:
            return super().levels(layout)  # two sites connected twice are a tensor train with a larger bond
        return [Segment((), tuple(_chain(sites, layout, [self.bond] * len(sites))), layout.leg_names)]

    def decompose(
        self, layout: Layout, state: Float[np.ndarray, "*legs"], initial: Mapping[str, Float[np.ndarray, "..."]]
    ) -> dict[str, Float[np.ndarray, "..."]]:
        """Refuse to decompose, because a truncated tensor train does not close to a ring."""
        return Topology.decompose(self, layout, state, initial)


@register_topology
@dataclass(frozen=True, kw_only=True, repr=False)
class Tucker(Topology):
    """A Tucker decomposition over the legs: one core and one factor per leg.

    Parameters
    ----------
    bond : int
        Multilinear rank, clipped to the dimension of each leg.
    activation, where, share
        See :class:`Topology`.

    References
    ----------
    L. De Lathauwer, B. De Moor, J. Vandewalle (2000), SIAM J. Matrix Anal. Appl. 21, 1253.

    Examples
    --------
    >>> import adtn
    >>> adtn.Generator((64, 64), adtn.Tucker(bond=3)).num_params
    177
    """

    bond: Bond = 4

    grows: ClassVar[str | None] = "bond"
    has_decomposition: ClassVar[bool] = True

    def levels(self, layout: Layout) -> list[Segment]:
        """Build two levels: the core, then the factors."""
        ranks = tuple(min(self.bond, d) for d in layout.dims)
        bonds = tuple(f"b{q}" for q in range(layout.ndim_legs))
        core = Core(name="core", inds=bonds, shape=ranks, param="core", kind="core")
        factors = tuple(
            Core(
                name=f"factor{q}",
                inds=(bonds[q], name),
                shape=(r, d),
                param=f"factor{q}",
                kind="factor",
                level=q,
                fan_in=r,
            )
            for q, (name, r, d) in enumerate(zip(layout.leg_names, ranks, layout.dims, strict=True))
        )
        return [Segment((), (core,), bonds), Segment(bonds, factors, layout.leg_names)]

    def decompose(
        self, layout: Layout, state: Float[np.ndarray, "*legs"], initial: Mapping[str, Float[np.ndarray, "..."]]
    ) -> dict[str, Float[np.ndarray, "..."]]:
        """Project onto the leading singular vectors of every unfolding (HOSVD)."""
        core, factors = hosvd(state, [min(self.bond, d) for d in layout.dims])
        return {"core": core, **{f"factor{q}": factor for q, factor in enumerate(factors)}}


@register_topology
@dataclass(frozen=True, kw_only=True, repr=False)
class CP(Topology):
    """A canonical polyadic decomposition: a sum of ``bond`` products of one vector per leg.

    Parameters
    ----------
    bond : int
        Number of terms; all factors share their index.
    activation, where, share
        See :class:`Topology`.

    References
    ----------
    T. Kolda, B. Bader (2009), SIAM Review 51, 455.

    Examples
    --------
    >>> import adtn
    >>> adtn.Generator((64, 64), adtn.CP(bond=3)).num_params
    96
    """

    bond: Bond = 4

    grows: ClassVar[str | None] = "bond"
    has_decomposition: ClassVar[bool] = True

    def levels(self, layout: Layout) -> list[Segment]:
        """Build a single level of factors that share the index ``r``."""
        factors = tuple(
            Core(
                name=f"factor{q}",
                inds=("r", name),
                shape=(self.bond, d),
                param=f"factor{q}",
                kind="factor",
                level=q,
                fan_in=self.bond if q == 0 else 1,
            )
            for q, (name, d) in enumerate(zip(layout.leg_names, layout.dims, strict=True))
        )
        return [Segment((), factors, layout.leg_names)]

    def decompose(
        self, layout: Layout, state: Float[np.ndarray, "*legs"], initial: Mapping[str, Float[np.ndarray, "..."]]
    ) -> dict[str, Float[np.ndarray, "..."]]:
        """Improve the initial factors by alternating least squares (ALS)."""
        factors = cp_als(state, [np.asarray(initial[f"factor{q}"], np.float64) for q in range(state.ndim)])
        return {f"factor{q}": factor for q, factor in enumerate(factors)}
