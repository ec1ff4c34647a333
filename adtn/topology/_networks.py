"""Conversion of a list of quimb networks to a topology, and of any topology to quimb networks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .._checks import shown
from .._typing import Inds
from ..errors import TopologyError
from ..layout import Layout
from ._segment import INITS, Core, Segment, sizes_of
from ._topology import Topology, register_topology

if TYPE_CHECKING:
    import quimb.tensor as qtn

MAX_CORES = 4096
MAX_AXES = 64  # NumPy's limit


@register_topology
@dataclass(frozen=True, kw_only=True, repr=False)
class Networks(Topology):
    """A list of networks, each fed by the outer indices of the one before; see :meth:`adtn.Generator.from_networks`.

    Parameters
    ----------
    pieces : tuple of Segment
        The levels, without activations.
    activation, where, share
        See :class:`Topology`.
    """

    pieces: tuple[Segment, ...] = ()
    activation: str | None = "silu"

    def levels(self, layout: Layout) -> list[Segment]:
        """Return the given levels, with the last legs renamed to those of the layout."""
        if not self.pieces:
            raise TopologyError("Networks has no pieces; create one with Generator.from_networks([tn1, tn2, ...]).")
        last = self.pieces[-1]
        if len(last.outputs) != layout.ndim_legs:
            raise TopologyError(
                f"The networks have {len(last.outputs)} outgoing legs; the layout has {layout.ndim_legs} legs."
            )
        new = dict(zip(last.outputs, layout.leg_names, strict=True))
        return [_renamed(piece, new) for piece in self.pieces]

    def default_layout(self, shape: tuple[int, ...]) -> Layout:
        """Group the output legs from the left into the axes of ``shape``, without splitting any."""
        sizes = sizes_of(self.pieces)
        dims = [sizes[i] for i in self.pieces[-1].outputs]
        return Layout.from_factors(shape, _grouped(dims, shape))

    def to_json(self) -> dict[str, Any]:
        """Convert to plain JSON values."""
        return {
            "pieces": [asdict(piece) for piece in self.pieces],
            "activation": self.activation,
            "where": self.where,
            "share": self.share,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Networks:
        """Invert :meth:`to_json`."""
        where: Any = data["where"] if isinstance(data["where"], str) else tuple(data["where"])
        pieces = tuple(
            Segment(tuple(p["inputs"]), tuple(_core(c) for c in p["cores"]), tuple(p["outputs"]), p["activation"])
            for p in data["pieces"]
        )
        if max(sum(len(p.cores) for p in pieces), len(pieces)) > MAX_CORES:
            raise TopologyError(f"Got more than {MAX_CORES} cores or levels; the file is not one that adtn writes.")
        return cls(pieces=pieces, activation=data["activation"], where=where, share=bool(data["share"]))


def _core(data: dict[str, Any]) -> Core:
    field_names = {f.name for f in fields(Core)}
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items() if k in field_names}
    core = Core(**values)
    names = (core.name, core.param, core.kind, *core.inds)
    if not all(isinstance(x, str) for x in names) or not all(type(d) is int and d > 0 for d in core.shape):
        raise TopologyError(
            f"Core {core.name!r} has indices {core.inds} of shape {core.shape}; expected names and sizes of at least 1."
        )
    if len(core.shape) > MAX_AXES:
        raise TopologyError(f"Core {core.name!r} has {len(core.shape)} axes; the maximum is {MAX_AXES}.")
    if core.init not in INITS:
        raise TopologyError(f"Core {core.name!r} has init={core.init!r}; expected one of {', '.join(INITS)}.")
    return core


def _renamed(piece: Segment, new: Mapping[str, str]) -> Segment:
    def name(inds: Iterable[str]) -> Inds:
        return tuple(new.get(i, i) for i in inds)

    cores = tuple(replace(core, inds=name(core.inds)) for core in piece.cores)
    return replace(piece, inputs=name(piece.inputs), cores=cores, outputs=name(piece.outputs))


def _grouped(dims: Sequence[int], shape: Sequence[int]) -> list[tuple[int, ...]]:
    """Group consecutive legs so that the product of each group is the length of an axis."""
    rest, groups = list(dims), []
    for n in shape:
        group: list[int] = []
        while math.prod(group) < n and rest:
            group.append(rest.pop(0))
        if math.prod(group) != n:
            raise TopologyError(f"Legs {tuple(dims)} cannot be grouped into the shape {tuple(shape)}; pass a layout.")
        groups.append(tuple(group))
    if rest:
        raise TopologyError(f"Legs {tuple(dims)} have more entries than the shape {tuple(shape)}; pass a layout.")
    return groups


def read_networks(
    networks: Sequence[qtn.TensorNetwork],
    *,
    trainable: str | None,
    outputs: Sequence[str] | None,
    output_inds: Sequence[Sequence[str] | None] | None,
    shape: Sequence[int] | None = None,
    layout: Layout | None = None,
) -> tuple[tuple[Segment, ...], dict[str, np.ndarray]]:
    """Read the levels and arrays of quimb networks.

    Parameters
    ----------
    networks : sequence of quimb.tensor.TensorNetwork
        The outer indices that a network shares with the previous one are its incoming legs; other legs of the
        previous network pass through.
    trainable : str or None
        Tag of the trained tensors; ``None`` trains all. The other tensors are frozen and stored.
    outputs : sequence of str or None
        Order of the last network's legs.
    output_inds : sequence or None
        Outgoing legs per network, for networks with hyper-indices.
    shape, layout : optional
        Shape and layout of the weight.

    Returns
    -------
    tuple of Segment and dict of str to numpy.ndarray

    Raises
    ------
    TopologyError
        If the networks do not fit together.
    """
    if not isinstance(networks, list | tuple) or not networks or not all(hasattr(tn, "outer_inds") for tn in networks):
        raise TopologyError(f"Got networks={shown(networks)}; expected a list of at least one quimb TensorNetwork.")
    if output_inds is not None and len(output_inds) != len(networks):
        raise TopologyError(
            f"Got {len(output_inds)} output_inds for {len(networks)} networks; expected one entry per network."
        )
    pieces: list[Segment] = []
    arrays: dict[str, np.ndarray] = {}
    state: Inds = ()
    for t, tn in enumerate(networks):
        cores = tuple(_read_tensor(t, k, tensor, trainable, arrays) for k, tensor in enumerate(tn))
        network_inds = {i for core in cores for i in core.inds}
        outer_legs = output_inds[t] if output_inds is not None else None
        if outer_legs is None:
            outer = tuple(i for i in tn.outer_inds() if i not in state)
            outer_legs = (*(i for i in state if i not in network_inds), *outer)
        if t == len(networks) - 1 and outputs is not None:
            _check_outputs(outputs, outer_legs)
            outer_legs = tuple(outputs)
        elif t == len(networks) - 1 and (output_inds is None or output_inds[t] is None):
            outer_legs = _in_axis_order(tn, outer_legs, shape, layout)
        missing = [i for i in outer_legs if i not in network_inds and i not in state]
        if missing:
            raise TopologyError(
                f"Got the outputs {missing} for network {t}, which has no such indices; expected indices of it or of "
                "the previous network."
            )
        pieces.append(Segment(state, cores, tuple(outer_legs)))
        state = tuple(outer_legs)
    if not any(core.trainable for piece in pieces for core in piece.cores):
        raise TopologyError(
            f"Got trainable={trainable!r}, a tag that no tensor has; expected the tag of the tensors to be trained."
        )
    _check_layout(sizes_of(pieces), networks[-1], state, layout)
    return tuple(pieces), arrays


def _site_inds(tn: Any) -> tuple[Inds, ...]:
    """Return the indices of a quimb operator or vector per axis of its ``to_dense()``; empty for other networks."""
    if hasattr(tn, "upper_inds"):
        return tuple(tn.upper_inds_present), tuple(tn.lower_inds_present)
    return (tuple(tn.site_inds_present),) if hasattr(tn, "site_inds_present") else ()


def _in_axis_order(tn: Any, legs: Sequence[str], shape: Sequence[int] | None, layout: Layout | None) -> Inds:
    """Order the last legs, those of an operator as in its ``to_dense()`` or as the layout requires.

    Raises
    ------
    TopologyError
        If it is ambiguous which legs make up an axis.
    """
    axes = [tuple(i for i in axis if i in legs) for axis in _site_inds(tn)]
    axes = [axis for axis in axes if axis]
    is_complete = {i for axis in axes for i in axis} == set(legs)
    if layout is not None and is_complete and _fits(layout, axes):
        return tuple(axes[axis][k] for axis, k in layout.leg_axes)
    target = layout.shape if layout is not None else shape
    sizes = [math.prod(tn.ind_size(i) for i in axis) for axis in axes]
    if target is None or len(target) == len(legs):
        return tuple(i for axis in axes for i in axis) if is_complete else tuple(legs)
    if layout is None and is_complete and list(target) == sizes:
        return tuple(i for axis in axes for i in axis)
    raise TopologyError(
        f"Got shape={tuple(target)} for legs {list(legs)}, and it is ambiguous which of them make up an axis; expected "
        "outputs= with all legs in the order of the axes (or of the legs of the layout, if there is one)."
    )


def _fits(layout: Layout, axes: Sequence[Inds]) -> bool:
    return [len(factors) for factors in layout.factors] == [len(axis) for axis in axes]


def _check_outputs(outputs: Sequence[str], legs: Sequence[str]) -> None:
    if len(set(outputs)) != len(outputs) or (set(outputs) < set(legs)):
        raise TopologyError(f"Got outputs={list(outputs)}; expected each of {list(legs)} exactly once.")


def _check_layout(sizes: Mapping[str, int], tn: Any, outputs: Inds, layout: Layout | None) -> None:
    """Refuse a layout whose legs are not the outputs in the same order."""
    if layout is None:
        return
    dims = tuple(sizes.get(i, 0) for i in outputs)
    axes = _site_inds(tn)
    position = {i: (a, k) for a, axis in enumerate(axes) for k, i in enumerate(axis)}
    places = [(position[i], leg) for i, leg in zip(outputs, layout.leg_axes, strict=False) if i in position]
    mixed = len(axes) == len(layout.shape) and len({(a, b) for (a, _), (b, _) in places}) > len(axes)
    if dims != layout.dims or mixed or (axes and any(k != n for (_, k), (_, n) in places)):
        raise TopologyError(
            f"Got outputs={list(outputs)} of dimensions {dims} and a layout of legs {list(layout.leg_names)} of "
            f"dimensions {layout.dims}; expected the same legs in the same order. Pass outputs= in the order of the "
            "layout's legs, or omit one of the two."
        )


def _read_tensor(t: int, k: int, tensor: Any, trainable: str | None, arrays: dict[str, np.ndarray]) -> Core:
    label = "_".join(str(tag) for tag in list(tensor.tags)[:1]) or "core"
    name = f"{label}.{t}_{k}"
    data = np.asarray(tensor.data)
    if np.iscomplexobj(data):
        raise TopologyError(f"Tensor {name!r} is complex; adtn supports real networks only. Take its real part first.")
    arrays[name] = data
    is_trained = trainable is None or trainable in tensor.tags
    return Core(
        name=name,
        inds=tuple(tensor.inds),
        shape=data.shape,
        param=name,
        kind="core",
        level=t,
        init="given",
        trainable=is_trained,
    )


def as_networks(
    segments: Sequence[Segment], arrays: Mapping[str, Any], states: Sequence[Any]
) -> list[qtn.TensorNetwork]:
    """Build one quimb network per segment; the incoming state, if any, is a tensor tagged ``STATE``."""
    import quimb.tensor as qtn

    networks: list[Any] = []
    for segment, state in zip(segments, states, strict=True):
        tensors: list[Any] = []
        if segment.inputs:
            tensors.append(qtn.Tensor(state, inds=segment.inputs, tags=("STATE",)))
        tensors += [qtn.Tensor(arrays[core.param], inds=core.inds, tags=core.tags) for core in segment.cores]
        networks.append(qtn.TensorNetwork(tensors))
    return networks
