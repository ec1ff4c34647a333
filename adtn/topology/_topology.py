"""The base class of all topologies, and the registry by which files name them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

import numpy as np

from .._checks import Range, check_fields, checked, shown
from .._plugins import load_plugin, unregistered
from .._typing import Float
from ..errors import LayoutError, TopologyError
from ..layout import Layout
from ._activation import get_activation
from ._segment import Segment, check_links, place_activations, shared, sizes_of

Bond = Annotated[int, Range(1, 2**20)]
Where = Annotated[Literal["inner", "all"] | tuple[int, ...], "'inner', 'all' or a tuple of level numbers"]
Pieces = list[tuple[int, tuple[Segment, ...]]]


@dataclass(frozen=True, kw_only=True, repr=False)
class Topology:
    """The cores of a network and their connections: immutable, hashable, without arrays.

    A new topology is a frozen dataclass that implements :meth:`levels`; it can then be drawn, trained, stored and
    tested like the others.

    Parameters
    ----------
    activation : str or None
        Elementwise function between levels; see :func:`adtn.register_activation`. ``None`` is ``"identity"``.
    where : {"inner", "all"} or tuple of int
        - ``"inner"``: after every level except the last (so that a weight can take any value)
        - ``"all"``: after every level
        - a tuple: after these levels only
    share : bool
        Share one parameter between all cores of the same kind, level and shape.

    Examples
    --------
    >>> from dataclasses import dataclass
    >>> import adtn
    >>> from adtn.topology import Core, Segment
    >>> @dataclass(frozen=True, kw_only=True)
    ... class Outer(adtn.Topology):  # the outer product of one vector per leg
    ...     def levels(self, layout):
    ...         legs = zip(layout.leg_names, layout.dims)
    ...         cores = [Core(name=f"v_{i}", inds=(i,), shape=(d,), param=f"v_{i}", kind="vector") for i, d in legs]
    ...         return [Segment((), tuple(cores), layout.leg_names)]
    >>> adtn.Generator((64, 64), Outer()).num_params
    32
    """

    activation: str | None = "identity"
    where: Where = "inner"
    share: bool = False

    leg: ClassVar[int] = 8
    """Target leg size when no layout is given."""
    order: ClassVar[Literal["axis", "interleaved"]] = "axis"
    exact: ClassVar[bool] = False
    grows: ClassVar[str | None] = None
    """Name of the field that sets the size of the network, such as ``"bond"``; ``None`` if there is none."""
    has_decomposition: ClassVar[bool] = False
    """Whether :meth:`decompose` is supported."""

    def __post_init__(self) -> None:
        check_fields(self, TopologyError)
        if self.activation is None:
            object.__setattr__(self, "activation", "identity")
        get_activation("identity" if self.activation is None else self.activation)

    def __repr__(self) -> str:
        """Return the constructor call, without arguments that have their default values."""
        shown = [f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if getattr(self, f.name) != f.default]
        return f"{type(self).__name__}({', '.join(shown)})"

    @abstractmethod
    def levels(self, layout: Layout) -> list[Segment]:
        """Build the levels from root to legs, without activations; the outputs of the last are ``layout.leg_names``."""

    def default_layout(self, shape: tuple[int, ...]) -> Layout:
        """Choose the layout used when none is given: equal legs if the topology needs them and the padding permits."""
        if self.exact:
            try:
                return Layout.of(shape, self.leg, self.order, exact=True)
            except LayoutError:
                pass  # too much padding: use mixed legs
        return Layout.of(shape, self.leg, self.order)

    def parts(self, layout: Layout, entries: int) -> Pieces:
        """Split the network into smaller ones with the same parameters.

        The product of their standard deviations is about that of the whole network.

        Parameters
        ----------
        layout : Layout
            The layout of the weight.
        entries : int
            Largest number of entries of a state of a part.

        Returns
        -------
        list of (int, tuple of Segment)
            The parts, each with its exponent, 1 or -1, in the product; empty if the topology cannot be split.
        """
        del layout, entries
        return []

    def grown(self, size: int) -> Self:
        """Return this topology with another bond dimension, rank or number of layers.

        Raises
        ------
        TopologyError
            If no field sets the size of the network.
        """
        if self.grows is None:
            raise TopologyError(f"Got {self}, which has no bond dimension to choose; use it without a budget.")
        return replace(self, **{self.grows: size})

    def resized(self, layout: Layout, sizes: Mapping[str, int]) -> Self | None:
        """Return this topology with bonds of the dimensions ``sizes``, by index.

        Returns
        -------
        Topology or None
            A topology that may have these bonds; ``None`` if its options cannot express them.
        """
        del layout, sizes
        return None

    def decompose(
        self, layout: Layout, state: Float[np.ndarray, "*legs"], initial: Mapping[str, Float[np.ndarray, "..."]]
    ) -> dict[str, Float[np.ndarray, "..."]]:
        """Find parameters that approximate a given state, for networks without activations.

        Parameters
        ----------
        layout : Layout
            The layout of the weight.
        state : numpy.ndarray
            The state, of shape ``layout.dims`` and dtype float64.
        initial : mapping of str to numpy.ndarray
            Initial values of the parameters, for iterative decompositions.

        Raises
        ------
        TopologyError
            If the topology has no decomposition.
        """
        raise TopologyError(f"There is no decomposition for {type(self).__name__}; train it instead.")

    def segments(self, layout: Layout) -> tuple[Segment, ...]:
        """Build the segments for one layout: the levels with their activations, merged where there is none."""
        return _segments(self, layout)


def _levels_without_legs(topology: Topology, layout: Layout) -> list[Segment]:
    """Build the levels for a weight of a single entry, dropping levels without cores."""
    try:
        levels = [level for level in topology.levels(layout) if level.cores]
    except TopologyError:
        levels = []
    if not levels:
        raise TopologyError(
            f"Got shape {layout.shape}, a single entry without legs; {topology} needs legs. Store it unchanged."
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
    dims = tuple(sizes[i] for i in segments[-1].outputs)
    if segments[-1].outputs != layout.leg_names or dims != layout.dims:
        raise TopologyError(
            f"{type(topology).__name__} has outgoing legs {segments[-1].outputs} of dimensions {dims}; the layout "
            f"expects {layout.leg_names} of dimensions {layout.dims}."
        )
    return segments


TopologyArgument = Annotated[Topology, "a topology with its options, such as adtn.TTN(bond=4)"]
TopologyT = TypeVar("TopologyT", bound=Topology)

_TOPOLOGIES: dict[str, type[Topology]] = {}


def register_topology(cls: type[TopologyT]) -> type[TopologyT]:
    """Register a topology class, so that files and the command line can refer to it by name; a class decorator.

    Parameters
    ----------
    cls : type
        A frozen dataclass that extends :class:`Topology`. Its name in lower case must be new.

    Returns
    -------
    type
        The class itself.

    Raises
    ------
    TopologyError
        If the class is not a dataclass that extends :class:`Topology`, or the name is taken.

    Examples
    --------
    >>> import os, tempfile
    >>> from dataclasses import dataclass
    >>> import adtn
    >>> @adtn.register_topology
    ... @dataclass(frozen=True, kw_only=True, repr=False)
    ... class NarrowTree(adtn.TTN):
    ...     bond: int = 2
    >>> gen = adtn.Generator((64, 64), NarrowTree())
    >>> path = os.path.join(tempfile.mkdtemp(), "layer.safetensors")
    >>> adtn.save(path, gen)
    >>> adtn.load(path).topology == gen.topology
    True
    """
    if not (isinstance(cls, type) and issubclass(cls, Topology) and is_dataclass(cls)):
        raise TopologyError(f"Got cls={shown(cls)}; expected a frozen dataclass that extends adtn.Topology.")
    if cls.__name__.lower() in _TOPOLOGIES:
        raise TopologyError(f"A topology called {cls.__name__!r} is already registered; choose another name.")
    _TOPOLOGIES[cls.__name__.lower()] = cls
    return cls


def topology_names() -> tuple[str, ...]:
    """List the names known to :func:`get_topology`, in lower case."""
    return tuple(_TOPOLOGIES)


@checked(TopologyError)
def get_topology(name: str) -> type[Topology]:
    """Return the topology class called ``name``, ignoring case, also from the entry points ``adtn.topologies``.

    Raises
    ------
    TopologyError
        If no topology has that name.
    """
    if name.lower() not in _TOPOLOGIES:
        plugin = load_plugin("topologies", name)  # importing the module should register the class
        if plugin is not None and name.lower() not in _TOPOLOGIES:
            register_topology(plugin)
    if name.lower() not in _TOPOLOGIES:
        raise unregistered("topologies", name, topology_names())
    return _TOPOLOGIES[name.lower()]


def topology_to_json(topology: Topology) -> dict[str, Any]:
    """Convert a topology to plain JSON values."""
    custom = getattr(topology, "to_json", None)
    if custom is not None:
        return {"name": type(topology).__name__, **custom()}
    return {"name": type(topology).__name__, **{f.name: getattr(topology, f.name) for f in fields(topology)}}


def topology_from_json(data: dict[str, Any]) -> Topology:
    """Invert :func:`topology_to_json`.

    Raises
    ------
    TopologyError
        If a field is missing, unknown or has the wrong type.
    """
    options = dict(data)
    name = options.pop("name", None)
    if not isinstance(name, str) or not name:
        raise TopologyError(f"Got topology name={shown(name)}; expected the name of a topology.")
    cls = get_topology(name)
    custom = getattr(cls, "from_json", None)
    try:
        if custom is not None:
            return custom(options)
        return cls(**{k: _frozen(v) for k, v in options.items()})
    except (TypeError, KeyError, AttributeError) as error:
        raise TopologyError(f"These options are not valid for {cls.__name__}: {error}.") from error


def _frozen(value: Any) -> Any:
    return tuple(_frozen(v) for v in value) if isinstance(value, list) else value
