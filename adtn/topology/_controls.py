"""Baseline and controls for every claim: the dense weight, a scaled identity and a scaled frozen random weight."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .._checks import Seed
from ..layout import Layout
from ._segment import Core, Segment
from ._topology import Topology, register_topology


def _in_axis_order(layout: Layout) -> tuple[tuple[str, ...], tuple[int, ...], int]:
    """Return leg names and dimensions axis by axis, and the number of entries per index of the first axis."""
    legs = sorted(zip(layout.leg_axes, layout.leg_names, layout.dims, strict=True))
    fan_in = math.prod(d for (axis, _), _, d in legs if axis > 0)
    return tuple(name for _, name, _ in legs), tuple(d for _, _, d in legs), fan_in


_FACTOR = Core(name="factor", inds=(), shape=(), param="factor", kind="factor", init="basis")


@register_topology
@dataclass(frozen=True, kw_only=True, repr=False)
class Dense(Topology):
    """The dense weight as a single core, at a compression ratio of 1: the baseline.

    Parameters
    ----------
    activation, where, share
        See :class:`Topology`.

    Examples
    --------
    >>> import adtn
    >>> adtn.Generator((8, 8), adtn.Dense()).num_params
    64
    """

    def levels(self, layout: Layout) -> list[Segment]:
        """Build a single level with a single core."""
        names, dims, fan_in = _in_axis_order(layout)
        return [
            Segment(
                (),
                (Core(name="weight", inds=names, shape=dims, param="weight", kind="core", fan_in=fan_in),),
                layout.leg_names,
            )
        ]


@register_topology
@dataclass(frozen=True, kw_only=True, repr=False)
class ScaledIdentity(Topology):
    """A control: an identity, truncated to the shape, with one trained factor. A layer it can replace is redundant.

    Parameters
    ----------
    activation, where, share
        See :class:`Topology`.

    Examples
    --------
    >>> import adtn
    >>> adtn.Generator((8, 8), adtn.ScaledIdentity()).num_params
    1
    """

    def levels(self, layout: Layout) -> list[Segment]:
        """Build a single level of the factor and the frozen identity."""
        names, dims, fan_in = _in_axis_order(layout)
        parts = [(names, dims, fan_in)]
        if len(layout.factors) == 2 and layout.factors[0] == layout.factors[1]:
            # a product of small identities, which a batch passes at the cost of a copy
            n = len(layout.factors[0])
            parts = [((names[k], names[n + k]), (d, d), d) for k, d in enumerate(layout.factors[0])]
        eyes = (
            Core(
                name=f"identity{k}",
                inds=inds,
                shape=shape,
                param=f"identity{k}",
                kind="control",
                level=0,
                fan_in=fan_in,
                init="identity",
                trainable=False,
            )
            for k, (inds, shape, fan_in) in enumerate(parts)
        )
        return [Segment((), (_FACTOR, *eyes), layout.leg_names)]


@register_topology
@dataclass(frozen=True, kw_only=True, repr=False)
class ScaledRandom(Topology):
    """A control: a frozen seeded random weight with one trained factor.

    Parameters
    ----------
    seed : int
        Seed of the random weight, which is never stored.
    activation, where, share
        See :class:`Topology`.

    Examples
    --------
    >>> import adtn
    >>> adtn.Generator((8, 8), adtn.ScaledRandom(seed=3)).num_params
    1
    """

    seed: Seed = 0

    def levels(self, layout: Layout) -> list[Segment]:
        """Build a single level of the factor and the frozen noise."""
        names, dims, fan_in = _in_axis_order(layout)
        noise = Core(
            name="noise",
            inds=names,
            shape=dims,
            param="noise",
            kind="control",
            level=0,
            fan_in=fan_in,
            init="seeded",
            trainable=False,
            seed=self.seed,
        )
        return [Segment((), (_FACTOR, noise), layout.leg_names)]
