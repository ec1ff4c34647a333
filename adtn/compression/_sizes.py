"""Numbers of parameters of topologies on layouts, without making generators."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right

from .._typing import Shape
from ..errors import ADTNError
from ..layout import Layout
from ..precision import Precision, stored_bytes
from ..topology import Topology

_LARGEST_BOND = 4096


def stored_params(topology: Topology, layout: Layout) -> int:
    """Return the number of parameters that a generator stores; nothing is computed.

    Examples
    --------
    >>> import adtn
    >>> stored_params(adtn.TTN(bond=3), adtn.Layout.of((64, 64), leg=8))
    159
    """
    return sum(math.prod(shape) for shape in stored_shapes(topology, layout))


def stored_shapes(topology: Topology, layout: Layout) -> list[Shape]:
    """Return the shapes of the parameters that a generator stores.

    Examples
    --------
    >>> import adtn
    >>> stored_shapes(adtn.LowRank(bond=3), adtn.Layout.whole((64, 32)))
    [(64, 3), (3, 32)]
    """
    cores = {c.param: c.shape for s in topology.segments(layout) for c in s.cores if c.trainable}
    return list(cores.values())


def rounded_bytes(topology: Topology, layout: Layout, precision: Precision) -> int:
    """Return the number of bytes of the parameters of a rounded generator without a base; nothing is computed.

    Examples
    --------
    >>> import adtn
    >>> layout = adtn.Layout.of((64, 64), leg=8)
    >>> rounded_bytes(adtn.MPO(bond=4), layout, adtn.Precision("int4"))
    278
    """
    cores = {c.param: c.shape for s in topology.segments(layout) for c in s.cores if c.trainable or c.init == "given"}
    return sum(stored_bytes(shape, precision.of(shape)) for shape in cores.values())


def largest_within(topology: Topology, layout: Layout, most: int) -> Topology | None:
    """Return the topology with the largest bond that stores at most ``most`` parameters, or ``None``.

    Parameters
    ----------
    topology : Topology
        The topology; its bond is ignored.
    layout : Layout
    most : int

    Examples
    --------
    >>> import adtn
    >>> largest_within(adtn.TTN(), adtn.Layout.of((64, 64), leg=8), 200)
    TTN(bond=3)
    """

    def size(bond: int) -> float:
        try:
            return stored_params(topology.grown(bond), layout)
        except ADTNError:
            return math.inf

    topology.grown(1)  # refuses topologies without a size
    # sizes grow with the bond until it is clipped to the legs: find the last one that fits, then the first of that size
    last = bisect_right(range(1, _LARGEST_BOND), most, key=size)
    if not last:
        return None
    return topology.grown(1 + bisect_left(range(1, last + 1), size(last), key=size))
