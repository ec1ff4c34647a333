"""Networks within a number of bits: topologies, leg sizes and ranks."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._checks import shown
from .._typing import Float, Shape
from ..errors import ADTNError, LayoutError, OrderingError
from ..layout import Layout
from ..optim import best_within
from ..precision import Precision
from ..topology import MPO, TT, TTN, LowRank, TensorRing, Topology, Tucker, cores_of, get_topology
from ._bits import bits_of_cores

_LEGS = (4, 8, 20)
_MOST_PADDING = 1.1
_LARGEST_BOND = 4096
_TRIES = 12
AUTO: tuple[Topology, ...] = (LowRank(), TT(), Tucker(), MPO(), TTN(activation="identity"))


@dataclass(frozen=True)
class Form:
    """A topology, whose bond is not chosen yet, on a layout."""

    topology: Topology
    layout: Layout


def forms(shape: Shape, topology: Any, layout: Layout | None, is_flat: bool) -> list[Form]:
    """List the networks to try.

    Parameters
    ----------
    shape : tuple of int
        The shape of the tensor.
    topology : Topology, str
        A topology, the name of one, or ``"auto"``.
    layout : Layout or None
        The only layout to try.
    is_flat : bool
        Whether the entries are ordered, so that they become a single axis.

    Raises
    ------
    OrderingError
        If nothing fits.
    """
    tried = AUTO if topology == "auto" else (_topology(topology),)
    found: list[Form] = []
    for one in tried:
        for legs in [layout] if layout is not None else _layouts(shape, one):
            form = _flat(Form(one, legs)) if is_flat else Form(one, legs)
            if form not in found and _is_possible(form):
                found.append(form)
    if not found:
        raise OrderingError(f"Got {shown(topology)} for a tensor of shape {shape}, which has no layout with it.")
    return found


def _topology(given: Any) -> Topology:
    if isinstance(given, Topology):
        return given
    if not isinstance(given, str):
        raise OrderingError(f"Got topology={shown(given)}; expected 'auto', a name or a topology such as adtn.TT().")
    cls: Any = get_topology(given)
    return cls(activation="identity")


def _layouts(shape: Shape, topology: Topology) -> Iterator[Layout]:
    if isinstance(topology, LowRank):
        yield Layout.whole(shape)
        return
    if sum(n > 1 for n in shape) > 2 and isinstance(topology, TT | Tucker | TTN):
        yield Layout.whole(shape)
    if topology.exact:
        yield topology.default_layout(shape)
        return
    for leg in _LEGS:
        try:
            yield Layout.of(shape, leg, topology.order, max_padding=_MOST_PADDING)
        except LayoutError:  # another size has less padding
            continue


def _flat(form: Form) -> Form:
    """Make the same network of a tensor that is a single axis."""
    layout, topology = form.layout, form.topology
    legs = [f for fs in layout.factors for f in fs]
    if math.prod(legs) != layout.size:
        legs = [n for n in layout.shape if n > 1]
    if isinstance(topology, LowRank):  # of a single axis, a pair of factors is a train of two sites
        first = next((n for n in layout.shape if n > 1), 1)
        topology, legs = TT(), [n for n in (first, layout.size // first) if n > 1]
    return Form(topology, Layout.from_factors((layout.size,), (tuple(legs),)))


def _is_possible(form: Form) -> bool:
    if not form.layout.ndim_legs or (isinstance(form.topology, LowRank) and form.layout.ndim_legs < 2):
        return False
    try:
        form.topology.segments(form.layout)
    except ADTNError:
        return isinstance(form.topology, TT | Tucker)  # given ranks are for another number of legs
    return True


def within(
    form: Form, tensor: Float[np.ndarray, "*shape"], bits: float, precision: Precision | None
) -> Topology | None:
    """Return the topology that approximates a tensor best within a number of bits, scales included, or ``None``."""
    if bits <= 0.0:
        return None
    rate = 32.0 if precision is None else float(precision.bits)
    for _ in range(_TRIES):
        found = _of_size(form, tensor, int(bits / rate))
        if found is None:
            return None
        used = bits_of_cores(found, form.layout, precision)
        if used <= bits:
            return found
        rate *= 1.002 * used / bits
    return None


def _of_size(form: Form, tensor: Float[np.ndarray, "*shape"], params: int) -> Topology | None:
    topology = form.topology
    # between activations, every leg needs its factor, and spectra say nothing about ranks
    is_linear = topology.activation == "identity"
    if is_linear and isinstance(topology, LowRank | TT | Tucker) and not isinstance(topology, TensorRing):
        return best_within(topology, form.layout, tensor, None, params)
    if topology.grows is None:
        return topology if _size(topology, form.layout) <= params else None

    def size(bond: int) -> float:
        try:
            return _size(topology.grown(bond), form.layout)
        except ADTNError:
            return math.inf

    bond = bisect_right(range(1, _LARGEST_BOND), params, key=size)
    return topology.grown(bond) if bond else None


def _size(topology: Topology, layout: Layout) -> int:
    return sum(core.size for core in cores_of(topology.segments(layout)) if core.trainable)


def smallest_bits(candidates: Sequence[Form], precision: Precision | None) -> float:
    """Return the bits of the smallest of all networks, for error messages."""
    sizes: list[float] = []
    for form in candidates:
        try:
            smallest = form.topology if form.topology.grows is None else form.topology.grown(1)
            sizes.append(bits_of_cores(smallest, form.layout, precision))
        except ADTNError:
            continue
    return min(sizes, default=math.inf)
