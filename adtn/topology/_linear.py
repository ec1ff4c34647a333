"""Linear baselines: MPO, tensor train, tensor ring, Tucker and CP."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal, Self

import numpy as np

from .._checks import Range
from .._typing import Float
from ..errors import TopologyError
from ..layout import Layout
from ._decompositions import cp_als, hosvd, tr_svd, tt_svd
from ._segment import Core, Segment
from ._topology import Bond, Topology, register_topology

Bonds = Annotated[
    Bond | Annotated[tuple[Bond, ...], Range(1)],
    "a whole number from 1 to 2**20, or a tuple of them, one per bond",
]
Ranks = Annotated[
    Bond | Annotated[tuple[Bond | None, ...], Range(1)],
    "a whole number from 1 to 2**20, or a tuple with one per leg, None for a leg without a factor",
]


def chain_bonds(dims: list[int], bonds: Sequence[int]) -> list[int]:
    """Return the bond dimensions of an open chain, clipped to what the sites and bonds of either side can use."""
    clipped = [1, *bonds, 1]
    for k, d in enumerate(dims[:-1], 1):
        clipped[k] = min(clipped[k], clipped[k - 1] * d)
    for k, d in reversed(list(enumerate(dims[1:], 1))):
        clipped[k] = min(clipped[k], clipped[k + 1] * d)
    return clipped[1:-1]


def in_proportion(bonds: tuple[int | None, ...], size: int) -> tuple[int | None, ...]:
    """Scale bond dimensions so that the largest is ``size`` and their proportions are kept."""
    largest = max((b for b in bonds if b is not None), default=1)
    return tuple(None if b is None else max(1, round(b * size / largest)) for b in bonds)


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
    bond : int or tuple of int
        Bond dimension, or one per bond from the first site to the last, clipped to the dimension of either side.
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

    bond: Bonds = 4

    grows: ClassVar[str | None] = "bond"
    has_decomposition: ClassVar[bool] = True

    def grown(self, size: int) -> Self:
        """Return this topology with ``size`` as its largest bond; the proportions of given bonds are kept."""
        return replace(self, bond=size if isinstance(self.bond, int) else in_proportion(self.bond, size))

    def resized(self, layout: Layout, sizes: Mapping[str, int]) -> Self | None:
        """Return this topology with one dimension per bond."""
        dims = tuple(sizes[f"b{k}"] for k in range(len(self.bonds(layout))))
        return replace(self, bond=dims) if dims else None

    def bonds(self, layout: Layout) -> list[int]:
        """Return the bond dimensions from the first site to the last."""
        dims = [math.prod(layout.dims[q] for q in legs) for legs in self.sites(layout)]
        return chain_bonds(dims, self._given(len(dims) - 1))

    def _given(self, n: int) -> tuple[int, ...]:
        if isinstance(self.bond, int):
            return (self.bond,) * n
        if len(self.bond) != n:
            raise TopologyError(f"Got {len(self.bond)} bonds {self.bond}; this layout needs {n}, one per bond.")
        return self.bond

    def sites(self, layout: Layout) -> list[tuple[int, ...]]:
        """Return the positions of the legs on each site."""
        return [(q,) for q in range(layout.ndim_legs)]

    def levels(self, layout: Layout) -> list[Segment]:
        """Build a single level."""
        sites = self.sites(layout)
        if not sites:
            raise TopologyError("Got a layout without legs; a tensor train needs at least one site.")
        return [Segment((), tuple(_chain(sites, layout, self.bonds(layout))), layout.leg_names)]

    def decompose(
        self, layout: Layout, state: Float[np.ndarray, "*legs"], initial: Mapping[str, Float[np.ndarray, "..."]]
    ) -> dict[str, Float[np.ndarray, "..."]]:
        """Compute the cores by truncated SVDs from left to right (TT-SVD)."""
        cores = tt_svd(state, self.sites(layout), self.bonds(layout))
        return {f"site{k}": core for k, core in enumerate(cores)}


@register_topology
@dataclass(frozen=True, kw_only=True, repr=False)
class MPO(TT):
    """A matrix product operator: site k carries the k-th leg of every axis.

    Parameters
    ----------
    bond : int or tuple of int
        Bond dimension, or one per bond from the first site to the last, clipped to the dimension of either side.
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
    bond : int or tuple of int
        Bond dimension, or one per bond: those after each site, so that the last one closes the ring.
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

    def levels(self, layout: Layout) -> list[Segment]:
        """Build a single level."""
        if len(self.sites(layout)) < 3:
            return super().levels(layout)  # two sites connected twice are a tensor train with a larger bond
        return [Segment((), tuple(_chain(self.sites(layout), layout, self.bonds(layout))), layout.leg_names)]

    def bonds(self, layout: Layout) -> list[int]:
        """Return the bond dimensions, the last of which closes the ring."""
        n = len(self.sites(layout))
        return super().bonds(layout) if n < 3 else list(self._given(n))

    def decompose(
        self, layout: Layout, state: Float[np.ndarray, "*legs"], initial: Mapping[str, Float[np.ndarray, "..."]]
    ) -> dict[str, Float[np.ndarray, "..."]]:
        """Compute the cores by truncated SVDs around the ring (TR-SVD)."""
        sites = self.sites(layout)
        if len(sites) < 3:
            return super().decompose(layout, state, initial)
        names = [f"site{k}" for k in range(len(sites))]
        cores = tr_svd(state, sites, self.bonds(layout), [initial[name] for name in names])
        return dict(zip(names, cores, strict=True))


@register_topology
@dataclass(frozen=True, kw_only=True, repr=False)
class Tucker(Topology):
    """A Tucker decomposition over the legs: one core and one factor per leg.

    Parameters
    ----------
    bond : int or tuple of (int or None)
        Multilinear rank, clipped to the dimension of each leg, or one per leg. ``None`` is a leg without a factor,
        which is a leg of the core itself: ``(r_out, r_in, None, None)`` is the Tucker-2 form of a convolution, a
        1x1 convolution before and after a small one. With a tuple, the default layout has one leg per axis.
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
    >>> adtn.Generator((64, 32, 3, 3), adtn.Tucker(bond=(16, 8, None, None))).num_params
    2432
    """

    bond: Ranks = 4

    grows: ClassVar[str | None] = "bond"
    has_decomposition: ClassVar[bool] = True

    def grown(self, size: int) -> Self:
        """Return this topology with ``size`` as its largest rank; the proportions of given ranks are kept."""
        return replace(self, bond=size if isinstance(self.bond, int) else in_proportion(self.bond, size))

    def resized(self, layout: Layout, sizes: Mapping[str, int]) -> Self | None:
        """Return this topology with one rank per leg."""
        return replace(
            self, bond=tuple(None if r is None else sizes[f"b{q}"] for q, r in enumerate(self.ranks(layout)))
        )

    def default_layout(self, shape: tuple[int, ...]) -> Layout:
        """Choose the layout used when none is given: one leg per axis if ranks are given one by one."""
        return super().default_layout(shape) if isinstance(self.bond, int) else Layout.whole(shape)

    def ranks(self, layout: Layout) -> list[int | None]:
        """Return the rank of every leg, ``None`` for those without a factor."""
        bonds = self.bond
        if isinstance(bonds, int):
            bonds = (bonds,) * layout.ndim_legs
        elif len(bonds) == len(layout.shape) and all(len(legs) < 2 for legs in layout.factors):
            bonds = tuple(bonds[axis] for axis, _ in layout.leg_axes)  # axes of length 1 have no leg
        if len(bonds) != layout.ndim_legs:
            raise TopologyError(
                f"Got {len(bonds)} ranks {bonds}; this layout has {layout.ndim_legs} legs {layout.dims}. Give one per "
                "leg, or use a layout with one leg per axis, Layout.whole(shape)."
            )
        return [None if b is None else min(b, d) for b, d in zip(bonds, layout.dims, strict=True)]

    def levels(self, layout: Layout) -> list[Segment]:
        """Build two levels: the core, then the factors."""
        legs = list(enumerate(zip(layout.leg_names, layout.dims, self.ranks(layout), strict=True)))
        bonds = tuple(name if r is None else f"b{q}" for q, (name, _, r) in legs)
        shape = tuple(d if r is None else r for _, (_, d, r) in legs)
        core = Core(name="core", inds=bonds, shape=shape, param="core", kind="core")
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
            for q, (name, d, r) in legs
            if r is not None
        )
        return [Segment((), (core,), bonds), Segment(bonds, factors, layout.leg_names)]

    def decompose(
        self, layout: Layout, state: Float[np.ndarray, "*legs"], initial: Mapping[str, Float[np.ndarray, "..."]]
    ) -> dict[str, Float[np.ndarray, "..."]]:
        """Project onto the leading singular vectors of every unfolding (HOSVD)."""
        core, factors = hosvd(state, self.ranks(layout))
        return {"core": core, **{f"factor{q}": factor for q, factor in factors.items()}}


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

    def resized(self, layout: Layout, sizes: Mapping[str, int]) -> Self | None:
        """Return this topology with another number of terms."""
        return replace(self, bond=sizes["r"])

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
