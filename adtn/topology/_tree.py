"""Trees: TTN, augmented TTN and MERA, generated from the root to the physical legs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

import numpy as np

from .._checks import NotNegative, Range
from .._typing import Float, Inds, Shape
from ..errors import TopologyError
from ..layout import Layout
from ._decompositions import tree_svd
from ._segment import Core, Segment
from ._topology import Bond, Topology, register_topology

Group = tuple[int, ...]
Position = Annotated[int, Range(0)]
Bonds = Annotated[
    Bond | Annotated[tuple[Bond, ...], Range(1)], "a whole number of at least 1, or a tuple of them from root to legs"
]


@dataclass(frozen=True)
class Rank:
    """One rank of a tree: its legs, and how the rank above groups the legs of the rank below into children."""

    names: Inds
    dims: Shape
    groups: tuple[Group, ...] = ()


def _groups(n: int, arity: int) -> tuple[Group, ...]:
    """Split ``range(n)`` into ``ceil(n / arity)`` consecutive groups of nearly equal length."""
    parents = -(-n // arity)
    cuts = [round(i * n / parents) for i in range(parents + 1)]
    return tuple(tuple(range(a, b)) for a, b in pairwise(cuts))


def build_ranks(layout: Layout, bond: int | tuple[int, ...], arity: int, leaves: bool) -> list[Rank]:
    """Build the ranks of a tree over the legs of ``layout``, root first.

    A bond is at most the product of the dimensions of its children, since a larger one would be redundant. A
    parent with one child is that child: its leg passes through without a core.
    """
    shape: list[tuple[Group, ...]] = []
    n = layout.ndim_legs
    while n > arity:
        shape.append(_groups(n, arity))
        n = len(shape[-1])
    n_bonds = len(shape) + leaves
    if isinstance(bond, tuple) and len(bond) != n_bonds:
        raise TopologyError(
            f"Got {len(bond)} bonds {bond}; a tree of arity {arity} over {layout.ndim_legs} legs"
            f"{' with leaves' if leaves else ''} needs {n_bonds}, one per level."
        )
    bonds = list(bond) if isinstance(bond, tuple) else [bond] * n_bonds

    ranks = [Rank(layout.leg_names, layout.dims)]
    if leaves:
        chi = bonds.pop()
        dims = tuple(min(chi, d) for d in layout.dims)
        ranks.append(
            Rank(
                tuple(f"b{n_bonds}_{q}" for q in range(len(dims))),
                dims,
                tuple((q,) for q in range(len(dims))),
            )
        )
    for groups in shape:
        below, level, chi = ranks[-1], len(bonds), bonds.pop()
        names, dims = [], []
        for g, group in enumerate(groups):
            if len(group) == 1:
                names.append(below.names[group[0]])
                dims.append(below.dims[group[0]])
            else:
                names.append(f"b{level}_{g}")
                dims.append(min(chi, math.prod(below.dims[c] for c in group)))
        ranks.append(Rank(tuple(names), tuple(dims), groups))
    return ranks[::-1]


def _renamed(ranks: list[Rank], pairs: list[list[tuple[int, int]]]) -> list[Rank]:
    """Rename legs that pass through to the name of their child, or of the input of the disentangler on it."""
    out = [ranks[-1]]
    for t in range(len(ranks) - 1, 0, -1):
        lower, upper, paired = out[-1], ranks[t - 1], {leg for pair in pairs[t] for leg in pair}
        names = list(upper.names)
        for p, group in enumerate(upper.groups):
            if len(group) == 1 and upper.names[p] == ranks[t].names[group[0]]:
                names[p] = lower.names[group[0]] + ("_raw" if group[0] in paired else "")
        out.append(replace(upper, names=tuple(names)))
    return out[::-1]


def _straddling(rank: Rank, periodic: bool) -> list[tuple[int, int]]:
    """Pair neighbouring children of different parents, using each leg at most once."""
    pairs: list[tuple[int, int]] = []
    used: set[int] = set()
    edges = [(a[-1], b[0]) for a, b in zip(rank.groups, rank.groups[1:], strict=False)]
    if periodic and len(rank.groups) > 1:
        edges.append((rank.groups[-1][-1], rank.groups[0][0]))
    for i, j in edges:
        if i != j and not used & {i, j}:
            pairs.append((i, j))
            used |= {i, j}
    return pairs


def _isometries(upper: Rank, lower: Rank, level: int, kind: str, raw: dict[int, str]) -> list[Core]:
    """Build one core per parent and its children; ``raw`` renames children that a disentangler acts on next."""
    cores: list[Core] = []
    label = {"isometry": "iso", "leaf": "leaf"}[kind]
    for p, group in enumerate(upper.groups):
        out = tuple(raw.get(c, lower.names[c]) for c in group)
        if out == (upper.names[p],):
            continue
        name = f"{label}{level}_{p}"
        shape = (upper.dims[p], *(lower.dims[c] for c in group))
        cores.append(
            Core(
                name=name,
                inds=(upper.names[p], *out),
                shape=shape,
                param=name,
                kind=kind,
                level=level,
                fan_in=upper.dims[p],
                init="isometric",
            )
        )
    return cores


def _disentanglers(
    rank: Rank, pairs: list[tuple[int, int]], level: int, noise: float
) -> tuple[list[Core], dict[int, str]]:
    """Build disentanglers on pairs of legs, initially the identity; return them and the names of their input legs."""
    raw: dict[int, str] = {}
    cores: list[Core] = []
    for k, (i, j) in enumerate(pairs):
        name = f"dis{level}_{k}"
        raw[i], raw[j] = f"{rank.names[i]}_raw", f"{rank.names[j]}_raw"
        di, dj = rank.dims[i], rank.dims[j]
        inds = (rank.names[i], rank.names[j], raw[i], raw[j])
        cores.append(
            Core(
                name=name,
                inds=inds,
                shape=(di, dj, di, dj),
                param=name,
                kind="disentangler",
                level=level,
                fan_in=di * dj,
                init="identity",
                noise=noise,
            )
        )
    return cores, raw


@register_topology
@dataclass(frozen=True, kw_only=True, repr=False)
class TTN(Topology):
    r"""A tree tensor network: a root, isometries from one parent leg to ``arity`` children, and leaves.

    Parameters
    ----------
    bond : int or tuple of int
        Bond dimension χ, or one per level from root to legs, clipped to the dimension of the legs below.
    arity : int
        Children per core, at least 2.
    leaves : bool
        Give every physical leg a bond and a core ``(χ, d)`` of its own; without leaves, the physical legs are outputs
        of the last isometries.
    isometric : bool
        Keep all cores but the root isometries while they are trained, for networks without activations. An isometry
        :math:`w` takes the bond above it to the legs below, :math:`\sum_{ij} w_{a,ij} w_{b,ij} = \delta_{ab}\,
        d_i d_j / d_a`: up to a fixed factor, with which entries keep their variance, :math:`w w^\top = 1`.
        Disentanglers are orthogonal. The root is free, and has the norm of the state. Without this option, isometries
        are start values only.
    activation, where, share
        See :class:`Topology`.

    References
    ----------
    Y.-Y. Shi, L.-M. Duan, G. Vidal (2006), arXiv:quant-ph/0511070. Generators with activations between the
    levels: Cichocki and Wietczak (2026), arXiv:2606.00130. The leaves and the positions of the activations
    are choices of this library.

    Examples
    --------
    >>> import adtn
    >>> lay = adtn.Layout.of((1024, 1024), leg=32)
    >>> adtn.Generator((1024, 1024), adtn.TTN(bond=4), layout=lay).num_params
    656
    """

    bond: Bonds = 4
    arity: Annotated[int, Range(2)] = 2
    leaves: bool = True
    isometric: bool = False
    activation: str | None = "silu"

    # neighbouring legs share a parent, and with one row leg and one column leg the matrix can have full rank
    order: ClassVar[Literal["axis", "interleaved"]] = "interleaved"
    grows: ClassVar[str | None] = "bond"
    has_decomposition: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.isometric and self.activation != "identity" and self.where != ():
            raise TopologyError(
                f"Got isometric=True and activation={self.activation!r}; isometries keep norms only in networks "
                "without activations. Use activation=None."
            )

    def decompose(
        self, layout: Layout, state: Float[np.ndarray, "*legs"], initial: Mapping[str, Float[np.ndarray, "..."]]
    ) -> dict[str, Float[np.ndarray, "..."]]:
        """Compute the cores by SVDs from the legs to the root; disentanglers are identities, to start from."""
        ranks = build_ranks(layout, self.bond, self.arity, self.leaves)
        upwards = list(pairwise(ranks[::-1]))
        root, isometries = tree_svd(state, [upper.groups for _, upper in upwards], [upper.dims for _, upper in upwards])
        params = {"root": root}
        for level in self.levels(layout)[1:]:
            for core in level.cores:
                if core.kind == "disentangler":
                    params[core.param] = np.eye(math.prod(core.shape[:2])).reshape(core.shape)
                else:  # named by its level and its position in it
                    position = int(core.name.rpartition("_")[2])
                    params[core.param] = isometries[-core.level][position]
        return params

    def levels(self, layout: Layout) -> list[Segment]:
        """Build the levels from the root to the legs."""
        ranks = build_ranks(layout, self.bond, self.arity, self.leaves)
        return self._levels_of(ranks)

    def _pairs(self, ranks: list[Rank], t: int) -> list[tuple[int, int]]:
        """Return the pairs of legs of rank ``t`` that get a disentangler."""
        return []

    def _levels_of(self, ranks: list[Rank], noise: float = 0.0) -> list[Segment]:
        pairs = [[], *(self._pairs(ranks, t) for t in range(1, len(ranks)))]
        ranks = _renamed(ranks, pairs)
        dims = ranks[0].dims
        root = Core(name="root", inds=ranks[0].names, shape=dims, param="root", kind="root", init="isometric")
        levels = [Segment((), (root,), ranks[0].names)]
        for t, (upper, lower) in enumerate(pairwise(ranks), start=1):
            leaf = self.leaves and t == len(ranks) - 1
            dis, raw = _disentanglers(lower, pairs[t], t, noise)
            iso = _isometries(upper, lower, t, "leaf" if leaf else "isometry", raw)
            cores = tuple(replace(core, isometric=self.isometric) for core in (*iso, *dis))
            levels.append(Segment(upper.names, cores, lower.names))
        return levels


@register_topology
@dataclass(frozen=True, kw_only=True, repr=False)
class ATTN(TTN):
    """An augmented TTN: a TTN with disentanglers on physical legs that straddle neighbouring subtrees.

    Parameters
    ----------
    bond, arity, leaves, isometric
        See :class:`TTN`.
    pairs : "all" or tuple of (int, int)
        - ``"all"``: every pair of neighbouring legs with different parents, each leg at most once
        - a tuple of pairs of leg positions
    noise : float
        Standard deviation of the noise added to the identity at initialisation.
    activation, where, share
        See :class:`Topology`.

    References
    ----------
    T. Felser, S. Notarnicola, S. Montangero (2021), arXiv:2011.08200 (augmented trees). Use as a weight generator:
    arXiv:2606.00130.

    Examples
    --------
    >>> import adtn
    >>> gen = adtn.Generator((64, 64), adtn.ATTN(bond=2), layout=adtn.Layout.of((64, 64), leg=4))
    >>> sum(name.startswith("dis") for name in gen.params)
    2
    """

    pairs: Annotated[Literal["all"] | tuple[tuple[Position, Position], ...], "'all' or pairs of leg positions"] = "all"
    noise: NotNegative = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.pairs, str):
            return
        flat = [q for pair in self.pairs for q in pair]
        if len(set(flat)) != len(flat):
            raise TopologyError(f"Got pairs={self.pairs}; a leg can have at most one disentangler.")

    def levels(self, layout: Layout) -> list[Segment]:
        """Build the levels from the root to the legs; disentanglers belong to the last level."""
        if not isinstance(self.pairs, str) and any(q >= layout.ndim_legs for pair in self.pairs for q in pair):
            raise TopologyError(f"Got pairs={self.pairs}; this layout has legs 0..{layout.ndim_legs - 1}.")
        return self._levels_of(build_ranks(layout, self.bond, self.arity, self.leaves), self.noise)

    def _pairs(self, ranks: list[Rank], t: int) -> list[tuple[int, int]]:
        if t != len(ranks) - 1:
            return []
        if not isinstance(self.pairs, str):
            return list(self.pairs)
        # with leaves every leg has its own core, so the relevant subtrees are those one rank above
        above = ranks[t - 1] if self.leaves and t >= 2 else None
        return _straddling(ranks[t - 2] if above is not None else ranks[t - 1], periodic=False)


@register_topology
@dataclass(frozen=True, kw_only=True, repr=False)
class MERA(TTN):
    """A multi-scale entanglement renormalisation ansatz: isometries, then disentanglers, on every level.

    Disentanglers act on neighbouring legs of a level that come from different isometries. Leaves, when
    present, follow without disentanglers.

    Parameters
    ----------
    bond, arity, leaves, isometric
        See :class:`TTN`.
    periodic : bool
        Also pair the last leg with the first.
    noise : float
        Standard deviation of the noise added to the identity at initialisation.
    activation, where, share
        See :class:`Topology`.

    References
    ----------
    G. Vidal (2007), arXiv:cond-mat/0512165. Use as a weight generator: arXiv:2606.00130.

    Examples
    --------
    >>> import adtn
    >>> lay = adtn.Layout.of((4096, 4096), leg=8)
    >>> gen = adtn.Generator((4096, 4096), adtn.MERA(bond=2, periodic=True), layout=lay)
    >>> gen.num_params
    276
    """

    periodic: bool = False
    noise: NotNegative = 0.0

    def levels(self, layout: Layout) -> list[Segment]:
        """Build the levels from the root to the legs, with disentanglers after the isometries of their level."""
        return self._levels_of(build_ranks(layout, self.bond, self.arity, self.leaves), self.noise)

    def _pairs(self, ranks: list[Rank], t: int) -> list[tuple[int, int]]:
        if self.leaves and t == len(ranks) - 1:
            return []
        return _straddling(ranks[t - 1], self.periodic)
