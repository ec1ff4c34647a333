"""Probes of the bonds of generated layers: which layers have bonds for inputs, under which names, and how it opens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn, Self

from adtn.errors import TopologyError

from ._bond_names import Patches, checked_value, chosen, patches_of
from ._passage import NoPassage, Passage, Passed

CONTAINER = "bonds"
_PLAIN, _OWN = "_class_without_probe", "_probe"


@dataclass(frozen=True, kw_only=True)
class ProbedLayer:
    """A layer whose inputs pass bonds.

    Parameters
    ----------
    name : str
        Its name in the model.
    layer : Module
    passage : Passage
    parts : mapping of str to Passed
        Its weights.
    """

    name: str
    layer: Any
    passage: Passage
    parts: Mapping[str, Passed]

    def full(self, part: str, bond: str) -> str:
        """Return the name of a bond in the model."""
        return joined(self.name, CONTAINER, part, bond)

    @property
    def sizes(self) -> dict[str, int]:
        """The dimensions of all bonds by their names in the model."""
        return {self.full(part, b): n for part, own in self.parts.items() for b, n in own.sweep.sizes.items()}


class BondProbe(Mapping[str, Any], ABC):
    """The bonds of a model by names, while it is open; see :func:`adtn.probe`.

    While a layer is probed, it has a class of its own that is derived from its class and has the same name. Copies and
    pickles have the original one.

    Parameters
    ----------
    model : Module
    names : str or sequence of str
        Patterns.
    patch : mapping of str to array or callable
    """

    call: ClassVar[str]
    """The name of the method with the forward pass of a layer."""
    not_seen: ClassVar[str]
    """What can be done if a bond was not passed."""

    def __init__(self, model: Any, names: str | Sequence[str], patch: Mapping[str, Any]) -> None:
        self.model = model
        self.skipped: dict[str, str] = {}
        self._layers: dict[str, ProbedLayer] = {}
        self._open: dict[str, ProbedLayer] = {}
        self._find_layers()
        sizes = {name: n for own in self._layers.values() for name, n in own.sizes.items()}
        self.names = chosen(names, sizes, self.skipped)
        self._noted = frozenset(self.names)
        self._patches: Patches = patches_of(patch, sizes)

    @abstractmethod
    def places(self) -> Iterable[tuple[str, Any]]:
        """Return all modules of the model with their names, also those that have several."""

    @abstractmethod
    def passage_of(self, module: Any) -> Passage | NoPassage | None:
        """Return how inputs pass a module, or why they do not; ``None`` if that is up to the modules inside."""

    @abstractmethod
    def passed(self, layer: Any, path: str, passage: Passage) -> Passed:
        """Return a generated weight of a layer whose products pass its bonds."""

    @abstractmethod
    def is_weight(self, module: Any) -> bool:
        """Return whether a module is a generated weight or a slice of one."""

    @abstractmethod
    def passing(self, own: ProbedLayer) -> Callable[..., Any]:
        """Return the forward pass of a layer, ``(layer, *inputs, **options)``, that passes its bonds."""

    @abstractmethod
    def without_bonds(self, state: Any) -> Any:
        """Return the state of a probed layer, which copies get, without what the probe has put into it."""

    def opened(self, own: ProbedLayer) -> None:
        """Put more into a layer that is probed now."""

    def closed(self, own: ProbedLayer) -> None:
        """Take it out again."""

    def _find_layers(self) -> None:
        inside, seen = list[str](), dict[int, str]()
        for name, module in self.places():
            if name.startswith(tuple(inside)):
                continue
            passage = self.passage_of(module)
            if passage is None and not self.is_weight(module):
                continue
            whole = not isinstance(passage, NoPassage) or passage.whole
            inside.append(joined(name, "" if whole else "generated") + "." if name or not whole else "")
            if passage is None:  # those of layers are inside them
                self.skipped[name] = "this weight is read outside of a generated layer"
            elif id(module) in seen:
                self.skipped[name] = f"the same layer as {seen[id(module)] or 'the model'}"
            elif isinstance(passage, NoPassage):
                self.skipped[name] = passage.reason
            else:
                self._find_parts(name, module, passage)
            seen[id(module)] = name

    def _find_parts(self, name: str, layer: Any, passage: Passage) -> None:
        parts: dict[str, Passed] = {}
        for part, path in passage.weights.items():
            try:
                parts[part] = self.passed(layer, path, passage)
            except TopologyError as error:
                self.skipped[joined(name, part)] = str(error)
        if len(parts) == len(passage.weights):
            self._layers[name] = ProbedLayer(name=name, layer=layer, passage=passage, parts=parts)
        else:
            self.skipped |= {joined(name, part): "another part of the layer has no bonds for inputs" for part in parts}

    def __enter__(self) -> Self:
        """Let everything pass the bonds."""
        if self._open:
            raise TopologyError("This probe is open already; close it, or make another one.")
        wanted = {*self.names, *self._patches}
        for name, own in self._layers.items():
            if wanted.isdisjoint(own.sizes):
                continue
            if is_probed(own.layer):
                self.close()
                raise TopologyError(f"Another probe is open in {name or 'the model'}; close it first.")
            _reclassed(own.layer, _class_of_probed(self, own))
            self._open[name] = own
            self.opened(own)
        return self

    def patched(self, name: str, value: Any) -> Any:
        """Return what goes on from a bond by its patch."""
        return checked_value(name, self._patches[name](value), value) if name in self._patches else value

    def holds(self, own: ProbedLayer) -> bool:
        """Return whether a layer is probed by this probe now."""
        return own.name in self._open

    def __exit__(self, *_: object) -> None:
        """Let the layers compute as before; what was found stays."""
        self.close()

    def close(self) -> None:
        """Let the layers compute as before; what was found stays."""
        stopped, self._open = self._open, {}
        for own in stopped.values():
            self.closed(own)
            _reclassed(own.layer, plain_class(own.layer))

    def refuse(self, name: str) -> NoReturn:
        """Raise the error for a bond that was not passed.

        Raises
        ------
        KeyError
            Always; the message says what to do.
        """
        if name not in self.names:
            raise KeyError(f"Got the bond {name!r}; expected one of {', '.join(self.names) or 'none'}.")
        raise KeyError(f"The bond {name!r} was not passed, or not seen. {self.not_seen}")

    def __repr__(self) -> str:
        """Return a line."""
        return f"<{len(self.names)} bonds of {type(self.model).__name__}, {len(self)} passed>"


def joined(*parts: str) -> str:
    """Return a name in a model; parts may be empty."""
    return ".".join(filter(None, parts))


def plain_class(layer: Any) -> type:
    """Return the class of a layer without a probe."""
    return getattr(type(layer), _PLAIN, type(layer))


def is_probed(layer: Any) -> bool:
    """Return whether a probe is open in a layer; not in copies of such layers."""
    found = vars(type(layer)).get(_OWN)
    return found is not None and found[1].layer is layer and found[0].holds(found[1])


def _reclassed(layer: Any, cls: type) -> None:
    object.__setattr__(layer, "__class__", cls)  # the state of the model does not change


def _blank(cls: Any) -> Any:
    return cls.__new__(cls)


def _class_of_probed(probe: BondProbe, own: ProbedLayer) -> type:
    base: Any = plain_class(own.layer)

    def reduced(layer: Any, protocol: Any) -> Any:
        make, args, state, *rest = base.__reduce_ex__(layer, protocol)
        if type(layer) in args:  # that of copyreg, which checks the class
            make, args = _blank, (base,)
        return make, args, probe.without_bonds(state), *rest

    attributes: dict[str, Any] = {_PLAIN: base, _OWN: (probe, own), probe.call: probe.passing(own)}
    attributes |= {name: getattr(base, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(base.__name__, (base,), {**attributes, "__reduce_ex__": reduced})
