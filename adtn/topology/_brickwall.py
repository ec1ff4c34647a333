"""The brick wall: columns of two-leg gates that act on a product of boundary vectors."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

from .._checks import NotNegative, Range, Seed
from ..errors import TopologyError
from ..layout import Layout
from ._segment import Core, Init, Segment
from ._topology import Pieces, Topology, register_topology

MAX_LAYERS = 1024


@register_topology
@dataclass(frozen=True, kw_only=True, repr=False)
class BrickWall(Topology):
    """The brick wall of ADTN: ``layers`` layers of ``Q - 1`` gates on ``Q`` legs, with activations between layers.

    One layer is a column of gates on legs (0,1), (2,3), ... and a column on (1,2), (3,4), ... . The wall acts
    on one vector per leg.

    Parameters
    ----------
    layers : int
        The number M of layers.
    boundary : {"fixed", "trainable", "random"}
        - ``"fixed"``: the first basis vector on every leg; only a slice of the first column is then active
        - ``"trainable"``: one trained vector per leg
        - ``"random"``: frozen seeded vectors
    near_identity : bool
        Initialise gates close to the identity instead of randomly.
    noise : float
        Standard deviation added to the identity.
    seed : int
        Seed of the random boundary.
    activation, where, share
        See :class:`Topology`.

    References
    ----------
    Y. Qing, K. Li, P.-F. Zhou, S.-J. Ran (2023), arXiv:2305.06058. Leg dimensions other than 2, trainable
    boundaries and the initialisation are choices of this library.

    Examples
    --------
    >>> import adtn
    >>> gen = adtn.Generator((4096, 4096), adtn.BrickWall(layers=1))
    >>> gen.layout.ndim_legs, gen.num_params, gen.num_active_params
    (24, 368, 224)
    """

    layers: Annotated[int, Range(1, MAX_LAYERS)] = 1
    boundary: Literal["fixed", "trainable", "random"] = "fixed"
    near_identity: bool = False
    noise: NotNegative = 0.1
    seed: Seed = 0
    activation: str | None = "silu"

    leg: ClassVar[int] = 2
    order: ClassVar[Literal["axis", "interleaved"]] = "interleaved"
    exact: ClassVar[bool] = True
    grows: ClassVar[str | None] = "layers"

    def levels(self, layout: Layout) -> list[Segment]:
        """Build one level per layer; the boundary belongs to the first level."""
        n, dims = layout.ndim_legs, layout.dims
        if n < 2:
            raise TopologyError(f"A brick wall needs at least 2 legs, this layout has {n}; choose smaller legs.")
        inputs = tuple(f"v{q}" for q in range(n))
        cores = [self._vector(q, dims[q]) for q in range(n)]
        levels: list[Segment] = []
        for m in range(1, self.layers + 1):
            outputs = layout.leg_names if m == self.layers else tuple(f"x{m}_{q}" for q in range(n))
            cores += self._layer(m, inputs, outputs, dims)
            levels.append(Segment(() if m == 1 else inputs, tuple(cores), outputs))
            inputs, cores = outputs, []
        return levels

    def parts(self, layout: Layout, entries: int) -> Pieces:
        """Return overlapping windows of legs, divided by their overlaps: distant legs of a wall hardly interact."""
        dims = layout.dims
        width = 2
        while width < len(dims) and math.prod(sorted(dims)[-width - 1 :]) <= entries:
            width += 1
        starts = list(range(0, max(len(dims) - width, 0) + 2, 2))  # a column of gates starts at even legs
        windows = [range(a, min(a + width, len(dims))) for a in starts if a + 2 <= len(dims)]
        overlaps = [range(b.start, a.stop) for a, b in itertools.pairwise(windows) if a.stop - b.start > 1]
        return [(1, self._window(layout, w)) for w in windows] + [(-1, self._window(layout, w)) for w in overlaps]

    def _window(self, layout: Layout, legs: range) -> tuple[Segment, ...]:
        dims = layout.dims[legs.start : legs.stop]
        small = Layout((math.prod(dims),), (dims,), tuple(range(len(dims))))

        def moved(core: Core) -> Core:
            kind, _, q = core.param.rpartition("_")
            return replace(core, param=f"{kind}_{int(q) + legs.start}")

        return tuple(replace(s, cores=tuple(map(moved, s.cores))) for s in self.segments(small))

    def _vector(self, q: int, d: int) -> Core:
        rules: dict[str, Init] = {"fixed": "basis", "trainable": "normal", "random": "seeded"}
        return Core(
            name=f"boundary_{q}",
            inds=(f"v{q}",),
            shape=(d,),
            param=f"boundary_{q}",
            kind="boundary",
            init=rules[self.boundary],
            trainable=self.boundary == "trainable",
            seed=self.seed + q,
        )

    def _layer(self, m: int, inputs: tuple[str, ...], outputs: tuple[str, ...], dims: tuple[int, ...]) -> list[Core]:
        n = len(dims)
        columns = (range(0, n - 1, 2), range(1, n - 1, 2))
        touched_again = {leg for i in columns[1] for leg in (i, i + 1)}
        now, gates = list(inputs), []
        for column, starts in enumerate(columns):
            for i in starts:
                out = [f"m{m}_{leg}" if column == 0 and leg in touched_again else outputs[leg] for leg in (i, i + 1)]
                name, (di, dj) = f"gate{m}_{i}", (dims[i], dims[i + 1])
                inds, shape = (*out, now[i], now[i + 1]), (di, dj, di, dj)
                init: Init = "identity" if self.near_identity else "normal"
                gates.append(
                    Core(
                        name=name,
                        inds=inds,
                        shape=shape,
                        param=name,
                        kind="gate",
                        level=m,
                        fan_in=di * dj,
                        init=init,
                        noise=self.noise,
                    )
                )
                now[i], now[i + 1] = out
        return gates
