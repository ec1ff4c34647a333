"""Cores and segments: the description of a network without arrays."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from .._typing import Inds, Shape
from ..errors import TopologyError

Init = Literal["normal", "isometric", "identity", "basis", "seeded", "given", "bumps"]
INITS: tuple[Init, ...] = ("normal", "isometric", "identity", "basis", "seeded", "given", "bumps")


@dataclass(frozen=True, kw_only=True)
class Core:
    """One tensor of a network, without its entries.

    Parameters
    ----------
    name : str
        Unique within a generator, such as ``"iso2_0"``.
    inds : tuple of str
        Index names; equal names are contracted, or multiplied elementwise if they are also outputs of the segment.
    shape : tuple of int
        Dimension of each index.
    param : str
        Name of its parameter. Cores with the same name share the parameter.
    kind : str
        Role of the core: root, isometry, disentangler, leaf, gate, boundary, site, factor, core.
    level : int
        Level, layer or site number, for tags.
    fan_in : int
        Product of the dimensions of its incoming legs.
    init : {"normal", "isometric", "identity", "basis", "seeded", "given", "bumps"}
        - ``"normal"``: independent normal entries of variance ``1 / fan_in``
        - ``"isometric"``: a random isometry from the first leg to the others, or its transpose where these are smaller,
          with entries of variance ``1 / fan_in``
        - ``"identity"``: identity from incoming to outgoing legs, plus ``noise``
        - ``"basis"``: the first basis vector
        - ``"seeded"``: entries of :class:`adtn.SeededBase`; never stored when it is not trainable
        - ``"given"``: no rule; the entries come with the network
        - ``"bumps"``: row i is a Gaussian around the i-th of evenly spaced positions, ``width`` spacings wide
    noise : float
        Standard deviation added to the identity.
    trainable : bool
        Whether the core is trained; a frozen core is rebuilt from its ``init``.
    seed : int
        Seed for ``"seeded"``.
    width : float
        Width for ``"bumps"``.
    isometric : bool
        Whether the core stays an isometry from its incoming legs while it is trained: as a matrix with ``fan_in`` rows,
        these are orthogonal, with entries of variance ``1 / fan_in``.
    """

    name: str
    inds: Inds
    shape: Shape
    param: str
    kind: str
    level: int = 0
    fan_in: int = 1
    init: Init = "normal"
    noise: float = 0.0
    trainable: bool = True
    seed: int = 0
    width: float = 1.0
    isometric: bool = False

    @property
    def size(self) -> int:
        """The number of entries."""
        return math.prod(self.shape)

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags of the quimb tensor: its name, its kind and its level, in capitals."""
        return (self.name.upper(), self.kind.upper(), f"LEVEL{self.level}")


@dataclass(frozen=True)
class Segment:
    """A multilinear part of a network, ``Z = C(X; A)``, followed by an activation ``X' = σ(Z)``.

    Parameters
    ----------
    inputs : tuple of str
        Legs of the incoming state, empty for the first segment.
    cores : tuple of Core
        The cores.
    outputs : tuple of str
        Legs of ``Z``, in order.
    activation : str
        Name of σ.
    """

    inputs: Inds
    cores: tuple[Core, ...]
    outputs: Inds
    activation: str = "identity"

    @property
    def terms(self) -> tuple[Inds, ...]:
        """The index names of all operands in slot order: the incoming state, if any, then the cores."""
        return ((self.inputs,) if self.inputs else ()) + tuple(core.inds for core in self.cores)


def cores_of(segments: Iterable[Segment]) -> tuple[Core, ...]:
    """Collect the cores of all segments."""
    return tuple(core for segment in segments for core in segment.cores)


def sizes_of(segments: Iterable[Segment]) -> dict[str, int]:
    """Collect the dimension of every index.

    Raises
    ------
    TopologyError
        If two cores have different dimensions for an index.
    """
    sizes: dict[str, int] = {}
    for segment in segments:
        for core in segment.cores:
            if len(core.inds) != len(core.shape):
                raise TopologyError(f"Core {core.name!r} has indices {core.inds} but shape {core.shape}.")
            for ind, d in zip(core.inds, core.shape, strict=True):
                if sizes.setdefault(ind, d) != d:
                    raise TopologyError(
                        f"Index {ind!r} has dimension {d} on core {core.name!r} but {sizes[ind]} elsewhere; "
                        "equal index names must have equal dimensions."
                    )
    return sizes


def check_links(segments: Iterable[Segment]) -> None:
    """Check that every leg comes from a core of its segment or from the previous segment.

    Raises
    ------
    TopologyError
        If an index has no origin.
    """
    previous: Inds = ()
    for t, segment in enumerate(segments):
        available = {*segment.inputs, *(i for core in segment.cores for i in core.inds)}
        unknown = [i for i in segment.outputs if i not in available]
        if unknown or len(set(segment.outputs)) < len(segment.outputs):
            raise TopologyError(
                f"Segment {t} has the outputs {segment.outputs}; expected each once, out of {sorted(available)[:9]}."
            )
        if sorted(segment.inputs) != sorted(previous):
            raise TopologyError(
                f"Segment {t} has the inputs {segment.inputs}; expected the outputs of the previous one, {previous}."
            )
        if not segment.cores and not segment.inputs:
            raise TopologyError(f"Segment {t} has no cores.")
        previous = segment.outputs


def place_activations(
    levels: list[Segment], activation: str, where: Literal["inner", "all"] | tuple[int, ...]
) -> tuple[Segment, ...]:
    """Place activations after the chosen levels and merge levels without an activation between them.

    A merged segment is multilinear, so its contraction order is free.
    """
    last = len(levels) - 1
    if where == "inner":
        positions = set(range(last))
    elif where == "all":
        positions = set(range(last + 1))
    else:
        positions = {i % len(levels) for i in where if -len(levels) <= i < len(levels)}
        if len(positions) != len(set(where)):
            raise TopologyError(f"Got activations after levels {where}; this network has levels 0..{last}.")
    if activation == "identity":
        positions = set()
    merged: list[Segment] = []
    inputs, cores = levels[0].inputs, ()
    for i, level in enumerate(levels):
        cores = (*cores, *level.cores)
        if i in positions or i == last:
            name = activation if i in positions else "identity"
            merged.append(Segment(inputs, cores, level.outputs, name))
            inputs, cores = level.outputs, ()
    return tuple(merged)


def shared(segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
    """Share one parameter between all cores of the same kind, level and shape."""
    names: dict[tuple[str, int, Shape, Init, bool], str] = {}
    out: list[Segment] = []
    for segment in segments:
        cores: list[Core] = []
        for core in segment.cores:
            key = (core.kind, core.level, core.shape, core.init, core.trainable)
            cores.append(replace(core, param=names.setdefault(key, core.param)))
        out.append(replace(segment, cores=tuple(cores)))
    return tuple(out)
