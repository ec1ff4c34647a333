"""The bonds of generated layers: what is on them for an input, and changes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import jax
from adtn.backends import get_backend
from adtn.errors import TopologyError
from flax import nnx
from flax.errors import TraceContextError
from jax.core import Tracer
from jax.custom_batching import custom_vmap
from jax.extend.core import get_opaque_trace_state
from jax.interpreters.partial_eval import DynamicJaxprTracer

from ...shared._bond_probe import CONTAINER, BondProbe, ProbedLayer, plain_class
from ...shared._passage import NoPassage, Passage, Passed
from ._kinds import GENERATED, passage_of
from ._places import modules_of
from ._slice import GeneratedSlice
from ._weight import GeneratedWeight

Patch: TypeAlias = jax.Array | Callable[[jax.Array], jax.Array]

_INSIDE = (
    "Open the probe inside the function that JAX transforms, on the module that it calls, and return dict(found); or "
    "use nnx.jit and nnx.remat, which pass the state of modules."
)


class Probe(BondProbe):
    """The bonds of a model of Flax.

    What is on a bond is a variable of the layer of type ``nnx.Intermediate``, so that it passes ``nnx.jit``; where a
    transform does not let modules change, the probe holds the values.

    Parameters
    ----------
    model : Module
    names : str or sequence of str
        Patterns.
    patch : mapping of str to array or callable
    """

    call: ClassVar[str] = "__call__"
    not_seen: ClassVar[str] = f"Call the model inside the block. With modules of nnx.merge: {_INSIDE}"

    def __init__(self, model: nnx.Module, names: str | Sequence[str], patch: Mapping[str, Patch]) -> None:
        self._held: dict[str, tuple[jax.Array, Any]] = {}  # with the value of the variable at that time
        self._trace = get_opaque_trace_state()
        super().__init__(model, names, patch)
        self._places = {name: own for own in self._layers.values() for name in own.sizes}

    def opened(self, own: ProbedLayer) -> None:
        """Remember which transforms are around."""
        self._trace = get_opaque_trace_state()

    def places(self) -> Iterable[tuple[str, nnx.Module]]:
        """Return all modules of the model with their names, also those that have several."""
        return modules_of(self.model)

    def passage_of(self, module: nnx.Module) -> Passage | NoPassage | None:
        """Return how inputs pass a module, or why they do not; ``None`` if that is up to the modules inside."""
        passage = passage_of(module)
        if passage is not None and plain_class(module).__call__ not in {cls.__call__ for cls in GENERATED}:
            return NoPassage(reason=f"the call of this {type(module).__name__} was replaced")
        return passage

    def passed(self, layer: nnx.Module, path: str, passage: Passage) -> Passed:
        """Return a generated weight of a layer whose products pass its bonds."""
        weight = _at(layer, path)
        whole: GeneratedWeight = getattr(weight, "whole", weight)
        return Passed.of(weight, whole.structure.generator, passage.enters, get_backend("jax"))

    def is_weight(self, module: nnx.Module) -> bool:
        """Return whether a module is a generated weight or a slice of one."""
        return isinstance(module, GeneratedWeight | GeneratedSlice)

    def passing(self, own: ProbedLayer) -> Callable[..., Any]:
        """Return the call of a layer that passes its bonds; copies that were made beside it compute as before."""

        def call(layer: Any, *args: Any, **options: Any) -> Any:
            is_copy = layer is not own.layer and get_opaque_trace_state() == self._trace
            if is_copy or not self.holds(own):
                return plain_class(layer).__call__(layer, *args, **options)  # type: ignore[operator]
            products = {part: self._product(layer, own, part) for part in own.parts}
            return own.passage.through(layer, products, *args, **options)

        return call

    def _product(self, layer: Any, own: ProbedLayer, part: str) -> Callable[[jax.Array], jax.Array]:
        weight, passed = _at(layer, own.passage.weights[part]), own.parts[part]
        whole = getattr(weight, "whole", weight)

        def visit(bond: str, value: jax.Array) -> jax.Array:
            name = own.full(part, bond)
            seen = self.patched(name, value)
            if name in self._noted:
                self._note(layer, own, name, seen)
            return seen

        def one_hot(digits: jax.Array, d: int) -> jax.Array:
            return jax.nn.one_hot(digits, d, dtype=whole.dtype)

        def product(x: jax.Array) -> jax.Array:
            if passed.sweep.enters == "lookup":
                return passed.rows(whole.arrays(), x, one_hot, visit)
            passed.check(x.shape)
            return passed.product(whole.arrays(), x.astype(whole.dtype), visit)

        return product

    def _note(self, layer: Any, own: ProbedLayer, name: str, value: jax.Array) -> None:
        """Hold a value without the tracers of the transforms inside, or else write it to a variable of the layer."""
        variable, is_here = _variable(own, name), get_opaque_trace_state() == self._trace

        def keep(value: jax.Array) -> None:
            self._held[name] = value, _raw(own.layer, variable)

        # compilers pass variables only; transforms without compilation may not let variables out
        if (is_here and _written(layer, variable, value)) or (not is_here and _without_tracers(value, keep)):
            return
        if is_here:  # in a transform: the function that opened the probe can return it
            keep(value)
        elif not _written(layer, variable, value):
            raise TopologyError(
                f"Got a call of {own.name or 'the model'} inside a function that JAX traces, as of jax.jit, "
                f"jax.checkpoint or jax.lax.scan, out of which nothing on bonds can pass. {_INSIDE}"
            )

    def without_bonds(self, state: Any) -> Any:
        """Return the state of a probed layer without variables of bonds."""
        kept = {key: value for key, value in state.items() if not _is_noted(key, value)}
        nodes = kept["_pytree__nodes"]
        return {**kept, "_pytree__nodes": type(nodes)({key: x for key, x in nodes.items() if key in kept})}

    def close(self) -> None:
        """Let the layers compute as before; what was found stays."""
        super().close()
        self._held = {name: (value, None) for name in self if (value := self._value(name)) is not None}
        self._forget()

    def clear(self) -> None:
        """Forget what was found."""
        self._held = {}
        self._forget()

    def _forget(self) -> None:
        for name, own in self._places.items():
            if hasattr(own.layer, _variable(own, name)):
                delattr(own.layer, _variable(own, name))

    def _value(self, name: str) -> jax.Array | None:
        """Return what was on a bond last: the held value, unless a variable was written after it."""
        own = self._places.get(name)
        present = None if own is None else _raw(own.layer, _variable(own, name))
        value, before = self._held.get(name, (present, None))
        return value if present is None or present is before else present

    def __getitem__(self, name: str) -> jax.Array:
        """Return what was on a bond in the last call of its layer, ``(*batch, rest, bond)``."""
        value = self._value(name)
        if value is None:
            self.refuse(name)
        if isinstance(value, Tracer) and not self._open and get_opaque_trace_state() != self._trace:
            raise TopologyError(
                f"What was on {name!r} exists only inside the function that JAX transforms and that opened the probe. "
                "Return dict(found) from that function."
            )
        return value

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of bonds that were passed."""
        return (name for name in self._places if self._value(name) is not None)

    def __len__(self) -> int:
        """Return the number of bonds that were passed."""
        return sum(1 for _ in self)


def _at(layer: Any, path: str) -> Any:
    for part in path.split("."):
        layer = getattr(layer, part)
    return layer


def _variable(own: ProbedLayer, name: str) -> str:
    """Return the attribute of a layer for a bond: the rest of its name, with underscores."""
    return name.removeprefix(own.name).removeprefix(".").replace(".", "_")


def _is_noted(key: str, value: Any) -> bool:
    return key.startswith(f"{CONTAINER}_") and isinstance(value, nnx.Intermediate)


def _raw(layer: Any, variable: str) -> Any:
    return getattr(layer, variable).get_raw_value() if hasattr(layer, variable) else None


def _written(layer: Any, variable: str, value: jax.Array) -> bool:
    """Write a variable, and return whether the present transform lets this module change."""
    try:
        if hasattr(layer, variable):
            getattr(layer, variable).set_value(value)
        else:
            setattr(layer, variable, nnx.Intermediate(value))
    except TraceContextError:
        return False
    return True


def _without_tracers(value: jax.Array, keep: Callable[[jax.Array], None]) -> bool:
    """Keep a value without derivatives, and with all samples of ``jax.vmap`` along its first axis.

    Return whether that is possible; it is not where a compiler traces the function.
    """
    value = jax.lax.stop_gradient(value)  # the value itself, outside of derivatives
    if isinstance(value, DynamicJaxprTracer):
        return False
    if not isinstance(value, Tracer):
        keep(value)
        return True
    done: list[bool] = []

    @custom_vmap
    def tap(value: jax.Array) -> jax.Array:
        return value

    @tap.def_vmap
    def rule(size: int, batched: list[bool], value: jax.Array) -> tuple[jax.Array, bool]:
        done.append(_without_tracers(value, keep))
        return value, batched[0]

    tap(value)
    return any(done)
