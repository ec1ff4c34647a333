"""The base of all topologies and the registry that files are read with."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, ClassVar, Literal, TypeVar

from .._errors import LayoutError, TopologyError
from ._activation import get_activation
from ._layout import Layout
from ._segment import Segment, check_links, place_activations, shared, sizes_of

Where = Literal["inner", "all"] | tuple[int, ...]


@dataclass(frozen=True, kw_only=True, repr=False)
class Topology:
    """Which cores there are and how they are connected: frozen, hashable, without arrays.

    A new topology is a frozen dataclass that implements :meth:`levels`; it is then drawn, trained, stored and
    tested like the others.

    Parameters
    ----------
    activation : str
        Elementwise function between levels; see :func:`adtn.register_activation`.
    where : {"inner", "all"} or tuple of int
        - ``"inner"``: after every level but the last (a weight must be able to take any value)
        - ``"all"``: after the last one too
        - a tuple: after these levels only
    share : bool
        All cores of one kind, level and shape are one parameter.
    """

    activation: str = "identity"
    where: Where = "inner"
    share: bool = False

    leg: ClassVar[int] = 8
    """Wished leg size when the caller gives no layout."""
    order: ClassVar[Literal["axis", "interleaved"]] = "axis"
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        get_activation(self.activation)
        if isinstance(self.where, str) and self.where not in ("inner", "all"):
            raise TopologyError(f"Got where={self.where!r}; expected 'inner', 'all' or a tuple of level numbers.")
        if isinstance(self.where, list):
            object.__setattr__(self, "where", tuple(self.where))

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

    def segments(self, layout: Layout) -> tuple[Segment, ...]:
        """The program for one layout: levels with activations in place, merged where there is none."""
        return _segments(self, layout)


@lru_cache(maxsize=256)
def _segments(topology: Topology, layout: Layout) -> tuple[Segment, ...]:
    levels = topology.levels(layout)
    segments = place_activations(levels, topology.activation, topology.where)
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


TopologyT = TypeVar("TopologyT", bound=Topology)

_TOPOLOGIES: dict[str, type[Topology]] = {}


def register_topology(cls: type[TopologyT]) -> type[TopologyT]:
    """Class decorator: let files and the command line name this topology."""
    if cls.__name__.lower() in _TOPOLOGIES:
        raise TopologyError(f"A topology called {cls.__name__!r} exists already; choose another name.")
    _TOPOLOGIES[cls.__name__.lower()] = cls
    return cls


def topology_names() -> tuple[str, ...]:
    """Names that :func:`get_topology` knows, in lower case."""
    return tuple(_TOPOLOGIES)


def get_topology(name: str) -> type[Topology]:
    """The topology class called ``name``, in any case.

    Raises
    ------
    TopologyError
        If there is none.
    """
    try:
        return _TOPOLOGIES[name.lower()]
    except KeyError:
        raise TopologyError(f"Got topology {name!r}; known are {', '.join(_TOPOLOGIES)}.") from None


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
    cls = get_topology(str(options.pop("name", "")))
    custom = getattr(cls, "from_json", None)
    try:
        if custom is not None:
            return custom(options)
        return cls(**{k: _frozen(v) for k, v in options.items()})
    except (TypeError, KeyError, AttributeError) as error:
        raise TopologyError(f"These options do not make a {cls.__name__}: {error}.") from error


def _frozen(value: Any) -> Any:
    return tuple(_frozen(v) for v in value) if isinstance(value, list) else value
