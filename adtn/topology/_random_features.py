"""Random features: frozen noise that a few trained cores smooth and localise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .._checks import Positive, Seed
from ..errors import TopologyError
from ..layout import Layout
from ._segment import Core, Segment
from ._topology import Bond, Topology, register_topology


@register_topology
@dataclass(frozen=True, kw_only=True, repr=False)
class RandomFeatures(Topology):
    r"""A weight of seeded noise on a coarse grid, interpolated to the input legs and masked by windows.

    With output legs :math:`o_k`, input legs :math:`i_k` and frozen noise R::

        W[o_1 o_2 ..., i_1 i_2 ...] = Σ_u R[o_1 o_2 ..., u_1 u_2 ...] Π_k U[u_k, i_k] Π_k P[o_k, i_k]

    The smoothing factors U start as narrow bumps and the windows P as wide ones, so each output starts as a
    random receptive field whose position is given by its legs. Input legs should be coordinates of the data, such as
    the rows and columns of an image.

    Parameters
    ----------
    bond : int
        Dimension of each coarse leg u, clipped to that of the input leg.
    windows : bool
        Whether the first output legs carry windows; otherwise every output sees the whole input.
    seed : int
        Seed of the noise, which is never stored.
    width : float
        Initial width of the windows, in units of the spacing of their centres.
    activation, where, share
        See :class:`Topology`. Parameters are shared by default, between rows and columns.

    References
    ----------
    A. Rahimi, B. Recht (2007), "Random features for large-scale kernel machines"; M. McDonnell et al. (2015),
    arXiv:1412.8307 (random receptive fields). Their use as a generator is a choice of this library.

    Examples
    --------
    >>> import adtn
    >>> lay = adtn.Layout.from_factors((1024, 784), ((8, 8, 16), (28, 28)))
    >>> adtn.Generator((1024, 784), adtn.RandomFeatures(bond=14), layout=lay).num_params
    616
    """

    bond: Bond = 4
    windows: bool = True
    seed: Seed = 0
    width: Positive = 1.0
    share: bool = True

    leg: ClassVar[int] = 32
    grows: ClassVar[str | None] = "bond"

    def levels(self, layout: Layout) -> list[Segment]:
        """Build two levels: the noise with its smoothing, then the windows."""
        legs = list(zip(layout.leg_names, layout.dims, layout.leg_axes, strict=True))
        outs = [(name, d) for name, d, (axis, _) in legs if axis == 0]
        ins = [(name, d) for name, d, (axis, _) in legs if axis > 0]
        if not outs or not ins:
            raise TopologyError(f"RandomFeatures needs output and input axes; got a weight of shape {layout.shape}.")
        grid = [(f"u{k}", min(self.bond, d)) for k, (_, d) in enumerate(ins)]
        inds, shape = tuple(i for i, _ in (*outs, *grid)), tuple(d for _, d in (*outs, *grid))
        noise = Core(
            name="noise",
            inds=inds,
            shape=shape,
            param="noise",
            kind="noise",
            init="seeded",
            trainable=False,
            seed=self.seed,
        )
        smooth = tuple(
            Core(
                name=f"smooth{k}",
                inds=(u, i),
                shape=(b, d),
                param=f"smooth{k}",
                kind="smoothing",
                fan_in=b,
                init="bumps",
                width=0.5,
            )
            for k, ((u, b), (i, d)) in enumerate(zip(grid, ins, strict=True))
        )
        if not self.windows:
            return [Segment((), (noise, *smooth), layout.leg_names)]
        windows = tuple(
            Core(
                name=f"window{k}",
                inds=(o, i),
                shape=(n, d),
                param=f"window{k}",
                kind="window",
                level=1,
                init="bumps",
                width=self.width,
            )
            for k, ((o, n), (i, d)) in enumerate(zip(outs, ins, strict=False))
        )
        return [
            Segment((), (noise, *smooth), layout.leg_names),
            Segment(layout.leg_names, windows, layout.leg_names),
        ]
