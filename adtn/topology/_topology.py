"""The base of all topologies and the registry that files are read with."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

import numpy as np

from .._checks import Range, check_fields, checked, shown
from .._plugins import load_plugin, unregistered
from ..errors import LayoutError, TopologyError
from ..layout import Layout
from ._activation import get_activation
from ._segment import Segment, check_links, place_activations, shared, sizes_of

Bond = Annotated[int, Range(1, 2**20)]
Where = Annotated[Literal["inner", "all"] | tuple[int, ...], "'inner', 'all' or a tuple of level numbers"]
Pieces = list[tuple[int, tuple[Segment, ...]]]


@dataclass(frozen=True, kw_only=True, repr=False)
class Topology:
    """Which cores there are and how they are connected: frozen, hashable, without arrays.

    A new topology is a frozen dataclass that implements :meth:`levels`; it is then drawn, trained, stored and
    tested like the others.

    Parameters
    ----------
    activation : str or None
        Elementwise function between levels; see :func:`adtn.register_activation`. ``None`` is ``"identity"``.
    where : {"inner", "all"} or tuple of int
        - ``"inner"``: after every level but the last (a weight must be able to take any value)
        - ``"all"``: after the last one too
        - a tuple: after these levels only
    share : bool
        All cores of one kind, level and shape are one parameter.
    """

    activation: str | None = "identity"
    where: Where = "inner"
    share: bool = False

    leg: ClassVar[int] = 8
    """Wished leg size when the caller gives no layout."""
    order: ClassVar[Literal["axis", "interleaved"]] = "axis"
    exact: ClassVar[bool] = False
    grows: ClassVar[str | None] = None
    """Name of the field that makes it larger, such as ``"bond"``; ``None`` where there is none."""
    has_decomposition: ClassVar[bool] = False
    """Whether :meth:`decompose` finds parameters for a given weight."""

    def __post_init__(self) -> None:
        check_fields(self, TopologyError)
        if self.activation is None:
            object.__setattr__(self, "activation", "identity")
        get_activation("identity" if self.activation is None else self.activation)

    def __repr__(self) -> str:
        """The call that makes it, without what has its default value."""
        shown = [f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if getattr(self, f.name) != f.default]
        return f"{type(self).__name__}({', '.join(shown)})"

    @abstractmethod
    def levels(self, layout: Layout) -> list[Segment]:
        """The levels from root to legs, without activations; the last one puts out ``layout.leg_names``."""

    def default_layout(self, shape: tuple[int, ...]) -> Layout:
        """The layout used when none is given: equal legs where the topology wants them and padding allows."""
        if self.exact:
            try:
                return Layout.of(shape, self.leg, self.order, exact=True)
            except LayoutError:
                pass  # padding would cost more than it saves: mixed legs
        return Layout.of(shape, self.leg, self.order)

    def parts(self, layout: Layout, entries: int) -> Pieces:
        """Smaller networks that read the same parameters, and whose spreads multiply to about that of the whole.

        Parameters
        ----------
        layout : Layout
        entries : int
            Of the largest state of a piece.

        Returns
        -------
        list of (int, tuple of Segment)
            With the power, 1 or -1, of each; empty where there is no such way.
        """
        del layout, entries
        return []

    def grown(self, size: int) -> Self:
        """Give the same topology with another bond, rank or number of layers.

        Raises
        ------
        TopologyError
            If it has nothing that grows.
        """
        if self.grows is None:
            raise TopologyError(f"Got {self}, which has no bond to choose; give it without a budget.")
        return replace(self, **{self.grows: size})

    def decompose(self, layout: Layout, state: np.ndarray, initial: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Find parameters whose state is close to a given one; only without activations.

        Parameters
        ----------
        layout : Layout
        state : numpy.ndarray
            ``layout.dims``, float64.
        initial : mapping of str to numpy.ndarray
            Parameters to start from, where an iteration needs them.

        Raises
        ------
        TopologyError
            If there is no decomposition for it.
        """
        raise TopologyError(f"No decomposition for {type(self).__name__}; train it instead.")

    def segments(self, layout: Layout) -> tuple[Segment, ...]:
        """The program for one layout: levels with activations in place, merged where there is none."""
        return _segments(self, layout)


def _levels_without_legs(topology: Topology, layout: Layout) -> list[Segment]:
    """Of a single entry: levels without a core fall away."""
    try:
        levels = [level for level in topology.levels(layout) if level.cores]
    except TopologyError:
        levels = []
    if not levels:
        raise TopologyError(
            f"Got shape {layout.shape}, a single entry without a leg; {topology} needs legs. Store it as it is."
        )
    return levels


@lru_cache(maxsize=256)
def _segments(topology: Topology, layout: Layout) -> tuple[Segment, ...]:
    levels = topology.levels(layout) if layout.ndim_legs else _levels_without_legs(topology, layout)
    segments = place_activations(levels, topology.activation or "identity", topology.where)
    if topology.share:
        segments = shared(segments)
    check_links(segments)
    sizes = sizes_of(segments)
    got = tuple(sizes[i] for i in segments[-1].outputs)
    if segments[-1].outputs != layout.leg_names or got != layout.dims:
        raise TopologyError(
            f"{type(topology).__name__} puts out legs {segments[-1].outputs} of dimensions {got}; the layout "
            f"expects {layout.leg_names} of {layout.dims}."
        )
    return segments


TopologyArgument = Annotated[Topology, "a topology with its options, such as adtn.TTN(bond=4)"]
TopologyT = TypeVar("TopologyT", bound=Topology)

_TOPOLOGIES: dict[str, type[Topology]] = {}


def register_topology(cls: type[TopologyT]) -> type[TopologyT]:
    """Class decorator: let files and the command line name this topology.

    Raises
    ------
    TopologyError
        If it is no dataclass that extends :class:`Topology`, or the name is taken.
    """
    if not (isinstance(cls, type) and issubclass(cls, Topology) and is_dataclass(cls)):
        raise TopologyError(f"Got cls={shown(cls)}; expected a frozen dataclass that extends adtn.Topology.")
    if cls.__name__.lower() in _TOPOLOGIES:
        raise TopologyError(f"A topology called {cls.__name__!r} exists already; choose another name.")
    _TOPOLOGIES[cls.__name__.lower()] = cls
    return cls


def topology_names() -> tuple[str, ...]:
    """Names that :func:`get_topology` knows, in lower case."""
    return tuple(_TOPOLOGIES)


@checked(TopologyError)
def get_topology(name: str) -> type[Topology]:
    """The topology class called ``name``, in any case; entry points in the group ``adtn.topologies`` are asked, too.

    Raises
    ------
    TopologyError
        If there is none.
    """
    if name.lower() not in _TOPOLOGIES:
        found = load_plugin("topologies", name)  # its import registers the class, or should have
        if found is not None and name.lower() not in _TOPOLOGIES:
            register_topology(found)
    if name.lower() not in _TOPOLOGIES:
        raise unregistered("topologies", name, topology_names())
    return _TOPOLOGIES[name.lower()]


def topology_to_json(topology: Topology) -> dict[str, Any]:
    """A topology as plain JSON values."""
    custom = getattr(topology, "to_json", None)
    if custom is not None:
        return {"name": type(topology).__name__, **custom()}
    return {"name": type(topology).__name__, **{f.name: getattr(topology, f.name) for f in fields(topology)}}


def topology_from_json(data: dict[str, Any]) -> Topology:
    """The inverse of :func:`topology_to_json`.

    Raises
    ------
    TopologyError
        If a field is missing, unknown or has the wrong type.
    """
    options = dict(data)
    name = options.pop("name", None)
    if not isinstance(name, str) or not name:
        raise TopologyError(f"Got topology name={shown(name)}; expected the name of one.")
    cls = get_topology(name)
    custom = getattr(cls, "from_json", None)
    try:
        if custom is not None:
            return custom(options)
        return cls(**{k: _frozen(v) for k, v in options.items()})
    except (TypeError, KeyError, AttributeError) as error:
        raise TopologyError(f"These options do not make a {cls.__name__}: {error}.") from error


def _frozen(value: Any) -> Any:
    return tuple(_frozen(v) for v in value) if isinstance(value, list) else value
