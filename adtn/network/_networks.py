"""Any list of quimb networks as a topology, and every topology as quimb networks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .._errors import TopologyError
from .._typing import Inds
from ._layout import Layout
from ._segment import INITS, Core, Segment, sizes_of
from ._topology import Topology, register_topology

if TYPE_CHECKING:
    import quimb.tensor as qtn

MAX_CORES = 4096
MAX_AXES = 64  # of an array of NumPy


@register_topology
@dataclass(frozen=True, kw_only=True, repr=False)
class Networks(Topology):
    """A list of networks whose outer indices feed the next; made by :meth:`adtn.Generator.from_networks`.

    Parameters
    ----------
    pieces : tuple of Segment
        The levels, without activations.
    activation, where, share
        See :class:`Topology`.
    """

    pieces: tuple[Segment, ...] = ()
    activation: str = "silu"

    def levels(self, layout: Layout) -> list[Segment]:
        """The given levels, their last legs renamed as the layout calls them."""
        if not self.pieces:
            raise TopologyError("Networks has no pieces; make one with Generator.from_networks([tn1, tn2, ...]).")
        last = self.pieces[-1]
        if len(last.outputs) != layout.ndim_legs:
            raise TopologyError(f"The networks put out {len(last.outputs)} legs; the layout has {layout.ndim_legs}.")
        new = dict(zip(last.outputs, layout.leg_names, strict=True))
        return [_renamed(piece, new) for piece in self.pieces]

    def default_layout(self, shape: tuple[int, ...]) -> Layout:
        """Whole output legs, grouped from the left into the axes of ``shape``."""
        sizes = sizes_of(self.pieces)
        dims = [sizes[i] for i in self.pieces[-1].outputs]
        return Layout.from_factors(shape, _grouped(dims, shape))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "pieces": [asdict(piece) for piece in self.pieces],
            "activation": self.activation,
            "where": self.where,
            "share": self.share,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Networks:
        """The inverse of :meth:`to_json`."""
        where: Any = data["where"] if isinstance(data["where"], str) else tuple(data["where"])
        pieces = tuple(
            Segment(tuple(p["inputs"]), tuple(_core(c) for c in p["cores"]), tuple(p["outputs"]), p["activation"])
            for p in data["pieces"]
        )
        if max(sum(len(p.cores) for p in pieces), len(pieces)) > MAX_CORES:
            raise TopologyError(f"Got more than {MAX_CORES} cores.")
        return cls(pieces=pieces, activation=data["activation"], where=where, share=bool(data["share"]))


def _core(data: dict[str, Any]) -> Core:
    known = {f.name for f in fields(Core)}
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items() if k in known}
    core = Core(**values)
    names = (core.name, core.param, core.kind, *core.inds)
    if not all(isinstance(x, str) for x in names) or not all(type(d) is int and d > 0 for d in core.shape):
        raise TopologyError(f"Core {core.name!r} has indices {core.inds} of shape {core.shape}; expected whole sizes.")
    if len(core.shape) > MAX_AXES:
        raise TopologyError(f"Core {core.name!r} has {len(core.shape)} axes; at most {MAX_AXES} are possible.")
    if core.init not in INITS:
        raise TopologyError(f"Core {core.name!r} has init={core.init!r}; expected one of {', '.join(INITS)}.")
    return core


def _renamed(piece: Segment, new: Mapping[str, str]) -> Segment:
    def name(inds: Iterable[str]) -> Inds:
        return tuple(new.get(i, i) for i in inds)

    cores = tuple(replace(core, inds=name(core.inds)) for core in piece.cores)
    return replace(piece, inputs=name(piece.inputs), cores=cores, outputs=name(piece.outputs))


def _grouped(dims: Sequence[int], shape: Sequence[int]) -> list[tuple[int, ...]]:
    """Consecutive legs per axis so that their product is the axis' length."""
    rest, groups = list(dims), []
    for n in shape:
        group: list[int] = []
        while math.prod(group) < n and rest:
            group.append(rest.pop(0))
        if math.prod(group) != n:
            raise TopologyError(f"Legs {tuple(dims)} do not group into the shape {tuple(shape)}; pass a layout.")
        groups.append(tuple(group))
    if rest:
        raise TopologyError(f"Legs {tuple(dims)} hold more than the shape {tuple(shape)}; pass a layout.")
    return groups


def read_networks(
    networks: Sequence[qtn.TensorNetwork],
    *,
    trainable: str | None,
    outputs: Sequence[str] | None,
    output_inds: Sequence[Sequence[str] | None] | None,
) -> tuple[tuple[Segment, ...], dict[str, np.ndarray]]:
    """Levels and numbers of quimb networks.

    Parameters
    ----------
    networks : sequence of quimb.tensor.TensorNetwork
        The outer indices of one that the previous one also has are its incoming legs; legs of the previous one
        that it does not mention pass through.
    trainable : str or None
        Tag of the trained tensors; ``None`` trains all. Others are frozen and stored.
    outputs : sequence of str or None
        Order of the last network's legs.
    output_inds : sequence or None
        Outgoing legs per network, for networks with hyper-indices.

    Returns
    -------
    tuple of Segment and dict of str to numpy.ndarray

    Raises
    ------
    TopologyError
        If the networks do not fit together.
    """
    if not networks:
        raise TopologyError("Got no networks; expected at least one quimb TensorNetwork.")
    pieces: list[Segment] = []
    numbers: dict[str, np.ndarray] = {}
    state: Inds = ()
    for t, tn in enumerate(networks):
        cores = tuple(_read_tensor(t, k, tensor, trainable, numbers) for k, tensor in enumerate(tn))
        own = {i for core in cores for i in core.inds}
        given = output_inds[t] if output_inds is not None else None
        if given is None:
            outer = tuple(i for i in tn.outer_inds() if i not in state)
            given = (*(i for i in state if i not in own), *outer)
        if t == len(networks) - 1 and outputs is not None:
            given = tuple(outputs)
        missing = [i for i in given if i not in own and i not in state]
        if missing:
            raise TopologyError(f"Network {t} should put out {missing}, which neither it nor the state before it has.")
        pieces.append(Segment(state, cores, tuple(given)))
        state = tuple(given)
    if not any(core.trainable for piece in pieces for core in piece.cores):
        raise TopologyError(f"No tensor carries the tag {trainable!r}; tag the tensors that are to be trained.")
    sizes_of(pieces)
    return tuple(pieces), numbers


def _read_tensor(t: int, k: int, tensor: Any, trainable: str | None, numbers: dict[str, np.ndarray]) -> Core:
    label = "_".join(str(tag) for tag in list(tensor.tags)[:1]) or "core"
    name = f"{label}.{t}_{k}"
    data = np.asarray(tensor.data)
    if np.iscomplexobj(data):
        raise TopologyError(f"Tensor {name!r} is complex; adtn works with real networks. Take its real part first.")
    numbers[name] = data
    is_trained = trainable is None or trainable in tensor.tags
    return Core(name, tuple(tensor.inds), data.shape, name, "core", t, init="given", trainable=is_trained)


def as_networks(
    segments: Sequence[Segment], arrays: Mapping[str, Any], states: Sequence[Any]
) -> list[qtn.TensorNetwork]:
    """One quimb network per segment; the incoming state, when there is one, is a tensor tagged ``STATE``."""
    import quimb.tensor as qtn

    networks: list[Any] = []
    for segment, state in zip(segments, states, strict=True):
        tensors: list[Any] = []
        if segment.inputs:
            tensors.append(qtn.Tensor(state, inds=segment.inputs, tags=("STATE",)))
        tensors += [qtn.Tensor(arrays[core.param], inds=core.inds, tags=core.tags) for core in segment.cores]
        networks.append(qtn.TensorNetwork(tensors))
    return networks
