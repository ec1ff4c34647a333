"""The bonds of generated layers: what is on them for an input, and changes of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
from adtn.backends import get_backend
from adtn.errors import TopologyError
from adtn.weight import Sweep
from flax import nnx

from ...shared._bond_names import Patches, checked_value, chosen, patches_of
from ...shared._geometry import check_input
from ._kind import Kind
from ._kinds import kind_of_generated
from ._places import modules_of
from ._weight import GeneratedWeight

Patch: TypeAlias = jax.Array | Callable[[jax.Array], jax.Array]

_CONTAINER = "bonds"


@dataclass(frozen=True, kw_only=True)
class Probed:
    """A layer whose products pass its bonds.

    Parameters
    ----------
    layer : Module
    kind : Kind
    sweep : Sweep
    """

    layer: Any
    kind: Kind
    sweep: Sweep


class Probe(Mapping[str, jax.Array]):
    """The bonds of a model by names, while it is open; see :func:`adtn.probe`.

    What is on a bond is a variable of the layer of type ``nnx.Intermediate``, so that it passes ``nnx.jit``.

    Parameters
    ----------
    model : Module
    names : sequence of str
        Patterns.
    patch : mapping of str to array or callable
    """

    def __init__(self, model: nnx.Module, names: Sequence[str], patch: Mapping[str, Patch]) -> None:
        self.model = model
        self.skipped: dict[str, str] = {}
        self._layers: dict[str, Probed] = {}
        self._found: dict[str, jax.Array] = {}
        self._classes: dict[str, type] = {}
        for name, layer in modules_of(model):
            kind = kind_of_generated(layer)
            if kind is None or any(own.layer is layer for own in self._layers.values()):
                continue
            if type(layer).__call__ not in {own.__call__ for own in kind.generated} and not _is_probed(layer):
                self.skipped[name] = f"the call of this {type(layer).__name__} was replaced"
                continue
            weight = layer.generated
            if kind.through is None or not isinstance(weight, GeneratedWeight):
                if "generated" in vars(layer):  # otherwise a layer inside has it
                    self.skipped[name] = f"a {type(layer).__name__} does not pass its input through the network"
                continue
            structure = weight.structure.generator
            try:
                sweep = Sweep(structure.segments, structure.weighting, get_backend("jax"))
            except TopologyError as error:
                self.skipped[name] = str(error)
                continue
            self._layers[name] = Probed(layer=layer, kind=kind, sweep=sweep)
        sizes = {
            f"{self._prefix(name)}{b}": n for name, own in self._layers.items() for b, n in own.sweep.sizes.items()
        }
        self.names = chosen(names, sizes, self.skipped)
        self._patches: Patches = patches_of(patch, sizes)

    @staticmethod
    def _prefix(name: str) -> str:
        return f"{name}.{_CONTAINER}." if name else f"{_CONTAINER}."

    def __enter__(self) -> Probe:
        """Make the layers pass their bonds."""
        if self._classes:
            raise TopologyError("This probe is open already; close it, or make another one.")
        wanted = {*self.names, *self._patches}
        for name, own in self._layers.items():
            if any(f"{self._prefix(name)}{bond}" in wanted for bond in own.sweep.bonds):
                if _is_probed(own.layer):
                    self.close()
                    raise TopologyError(f"Another probe is open in {name or 'the model'}; close it first.")
                self._classes[name] = type(own.layer)
                own.layer.__class__ = self._passing(name, own)
        return self

    def _passing(self, name: str, own: Probed) -> type:
        """Return a class of layers that pass their bonds."""
        prefix, patches, noted, kind, sweep = self._prefix(name), self._patches, set(self.names), own.kind, own.sweep
        base = type(own.layer)

        def product(layer: Any, x: jax.Array) -> jax.Array:
            check_input(x.shape, math.prod(layer.generated.shape[1:]))
            batch, rows = x.shape[:-1], x.reshape(-1, x.shape[-1]).astype(layer.generated.dtype)

            def visit(bond: str, value: jax.Array) -> jax.Array:
                given, full = value.reshape(*batch, *value.shape[1:]), f"{prefix}{bond}"
                seen = checked_value(full, patches[full](given), given) if full in patches else given
                if full in noted:
                    _note(layer, _variable(bond), seen)
                return seen.reshape(value.shape)

            y = sweep(layer.generated.arrays(), rows, visit)
            return y.reshape(*batch, y.shape[-1])

        def call(layer: Any, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
            assert kind.through is not None
            return kind.through(layer, lambda x: product(layer, x), inputs)

        return type(base.__name__, (base,), {"__call__": call, "_probed_class": base})

    def __exit__(self, *_: object) -> None:
        """Let the layers compute as before; what was found stays."""
        self.close()

    def close(self) -> None:
        """Let the layers compute as before; what was found stays."""
        for name, before in self._classes.items():
            self._layers[name].layer.__class__ = before
        self._classes = {}
        self._found = dict(self)
        self._forget()

    def clear(self) -> None:
        """Forget what was found."""
        self._found = {}
        self._forget()

    def _forget(self) -> None:
        for own in self._layers.values():
            for bond in own.sweep.bonds:
                if hasattr(own.layer, _variable(bond)):
                    delattr(own.layer, _variable(bond))

    def _present(self) -> dict[str, jax.Array]:
        return {
            f"{self._prefix(name)}{bond}": getattr(own.layer, _variable(bond))[...]
            for name, own in self._layers.items()
            for bond in own.sweep.bonds
            if hasattr(own.layer, _variable(bond))
        }

    def __getitem__(self, name: str) -> jax.Array:
        """Return what was on a bond in the last call of its layer, ``(*batch, rest, bond)``."""
        return {**self._found, **self._present()}[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of bonds that were passed."""
        return iter({**self._found, **self._present()})

    def __len__(self) -> int:
        """Return the number of bonds that were passed."""
        return len({**self._found, **self._present()})

    def __repr__(self) -> str:
        """Return a line."""
        return f"<{len(self.names)} bonds of {type(self.model).__name__}, {len(self)} passed>"


def _is_probed(layer: Any) -> bool:
    return hasattr(type(layer), "_probed_class")


def _note(layer: Any, name: str, value: jax.Array) -> None:
    if hasattr(layer, name):
        getattr(layer, name).set_value(value)
    else:
        setattr(layer, name, nnx.Intermediate(value))


def _variable(bond: str) -> str:
    return f"{_CONTAINER}_{bond}"
