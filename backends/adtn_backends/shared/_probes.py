"""Experiments that show which layers see an order: outputs of some layers are permuted, inputs of others compared."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from adtn import Permutation
from adtn._typing import Int

from ._blocks import apart, divisors, same, spread

_PER_ROUNDING = 256.0  # rounding errors that add up in a model
_MOST = 0.05  # relative error in half precision


@dataclass(frozen=True, kw_only=True)
class LinearLayer:
    """A linear layer whose rows and columns can be permuted, unless there is a reason against it.

    Parameters
    ----------
    n_out, n_in : int
        The shape of its weight.
    orders : tuple of (Permutation or None), optional
        The permutations of a generated weight; ``None`` for a dense one, which takes any order for nothing.
    reason : str
        Why it cannot be permuted; empty if it can.
    """

    n_out: int
    n_in: int
    orders: tuple[Permutation | None, Permutation | None] | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Heads:
    """An attention whose projections are one weight: queries, keys, values; its parts are called by nobody else.

    Parameters
    ----------
    into, out : str
        The names of the linear layers of in- and out-projection.
    channels : int
        The number of channels of a head.
    """

    into: str
    out: str
    channels: int


class Watch:
    """A view of the inputs and outputs of layers during a call of a model; the base class changes nothing."""

    def before(self, name: str, x: Any) -> Any:
        """Return the input of a layer, ``(..., n_in)``, or what replaces it."""
        return x

    def after(self, name: str, y: Any) -> Any:
        """Return the output of a layer, ``(..., n_out)``, or what replaces it."""
        return y


class OrderedModel(ABC):
    """A model whose linear layers can be watched and permuted; every framework has its own."""

    eps: float
    """The largest relative rounding error of one operation."""

    @abstractmethod
    def layers(self) -> dict[str, LinearLayer]:
        """Return the linear layers by name, as they are now."""

    @abstractmethod
    def attentions(self) -> list[Heads]:
        """List the attentions whose projections are one weight."""

    @abstractmethod
    def tables(self) -> dict[str, int]:
        """Return the numbers of frequencies of rotary positions by the name of the array."""

    @abstractmethod
    def call(self, watch: Watch) -> list[np.ndarray]:
        """Call the model with the examples, in evaluation mode, and return its outputs."""

    @abstractmethod
    def gather(self, name: str, axis: int, index: Int[np.ndarray, " n"]) -> None:
        """Permute the rows of a weight with its bias, or its columns, in place."""

    @abstractmethod
    def gather_table(self, name: str, index: Int[np.ndarray, " n"]) -> None:
        """Permute frequencies in place."""

    @abstractmethod
    def values(self, x: Any) -> np.ndarray:
        """Copy an array of the framework to the host, in float64."""

    @property
    def tolerance(self) -> float:
        """The relative difference up to which two arrays are equal but for rounding."""
        # sums of normalisations are often in float32, whatever the dtype
        return min(_PER_ROUNDING * max(self.eps, float(np.finfo(np.float32).eps)), _MOST)

    def close(self, found: np.ndarray, wanted: np.ndarray) -> bool:
        """Return whether two arrays differ by rounding only."""
        if found.shape != wanted.shape:
            return False
        return float(np.linalg.norm(found - wanted)) <= self.tolerance * float(np.linalg.norm(wanted))

    def all_close(self, found: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> bool:
        """Return whether all arrays differ by rounding only."""
        return len(found) == len(wanted) and all(map(self.close, found, wanted))


@dataclass
class Trace(Watch):
    """The inputs of all calls of layers, in the framework and on the host, and the outputs of the model."""

    model: OrderedModel
    inputs: dict[str, list[tuple[Any, np.ndarray]]] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    outputs: list[np.ndarray] = field(default_factory=list)

    def before(self, name: str, x: Any) -> Any:
        """Record an input."""
        self.inputs.setdefault(name, []).append((x, self.model.values(x)))
        self.order.append(name)
        return x

    @classmethod
    def of(cls, model: OrderedModel) -> Trace:
        """Call a model, and record everything."""
        trace = cls(model)
        trace.outputs = model.call(trace)
        return trace


class _Stop(Exception):
    """The rest of the call cannot change the result."""


class Probe(Watch):
    """The outputs of some layers in another order: which layers see that order at their inputs?

    Parameters
    ----------
    trace : Trace
        A call of the model as it is.
    gathers : mapping of str to array
        The orders of outputs by the name of the layer.
    """

    def __init__(self, trace: Trace, gathers: Mapping[str, Int[np.ndarray, " n"]]) -> None:
        self.trace, self.gathers = trace, gathers
        self.found: dict[str, Int[np.ndarray, " m"]] = {}
        self.sizes: dict[str, tuple[int, int]] = {}  # blocks that are repeated, and how often, of what was found
        self.parts: dict[str, int] = {}  # sizes of the parts of outputs, of which a layer reads one
        self.failed = ""  # where something else than that order is seen
        self._calls: Counter[str] = Counter()

    def run(self, frequencies: AbstractContextManager[Any]) -> Probe:
        """Call the model while frequencies are permuted, too, and return the probe."""
        model = self.trace.model
        with frequencies, suppress(_Stop):
            if not model.all_close(model.call(self), self.trace.outputs):
                self.failed = "the outputs of the model"
        return self

    def before(self, name: str, x: Any) -> Any:
        """Compare an input with what it was, and undo an order that is found."""
        calls, k = self.trace.inputs.get(name, []), self._calls[name]
        self._calls[name] += 1
        if k >= len(calls) or name in self.gathers:
            return x
        model, (given, was) = self.trace.model, calls[k]
        now, started = model.values(x), any(self._calls[one] for one in self.gathers)
        orders = self._orders(was.shape[-1]) if started else []
        if model.close(now, was):
            if name in self.found or any(model.close(was[..., index], was) for index, _, _ in orders):
                self._fail(name)  # another call sees an order, or an order would not be seen here
            return given
        for index, size, whole in orders:
            if model.close(now, was[..., index]):
                if k and not (name in self.found and same(self.found[name], index)):
                    break
                self.found[name], self.sizes[name] = index, size
                if whole:
                    self.parts[whole] = len(index)
                return given
        return self._fail(name)

    def after(self, name: str, y: Any) -> Any:
        """Permute an output."""
        return y[..., self.gathers[name]] if name in self.gathers else y

    def _fail(self, name: str) -> None:
        self.failed = name
        raise _Stop

    def _orders(self, n: int) -> list[tuple[Int[np.ndarray, " n"], tuple[int, int], str]]:
        """List the orders in which an input of this width may be, with the outputs of which they are a part."""
        orders = []
        for name, index in self.gathers.items():
            if n % len(index) == 0:
                times = n // len(index)
                blocks = [len(index)] if times == 1 else divisors(len(index))
                orders += [(wide, (d, times), "") for d in blocks if (wide := spread(index, d, times)) is not None]
            elif len(index) % n == 0:
                orders += [(part, (n, 1), name) for part in moved_parts(index, n).values()]
        return orders


def moved_parts(index: Int[np.ndarray, " n"], size: int) -> dict[int, Int[np.ndarray, " size"]]:
    """Return the orders of parts that are not as they were, by their places; none if entries of parts are mixed."""
    return {k: part for k, part in enumerate(apart(index, size) or []) if not same(part, np.arange(size))}


class Mask(Watch):
    """A change of half of some outputs, which shows whether inputs of other layers depend on more than their own.

    Parameters
    ----------
    probe : Probe
        What was found.
    blocks : int or None
        The number of blocks inside which entries may depend on each other; by default, every entry for itself.
    """

    def __init__(self, probe: Probe, blocks: int | None) -> None:
        self.probe, self.blocks = probe, blocks
        self.mixes = False
        self._calls: Counter[str] = Counter()

    def run(self) -> bool:
        """Call the model, and return whether every entry depends on its own ones only."""
        with suppress(_Stop):
            self.probe.trace.model.call(self)
        return not self.mixes

    def before(self, name: str, x: Any) -> Any:
        """Compare the entries that must not change."""
        calls, k = self.probe.trace.inputs.get(name, []), self._calls[name]
        self._calls[name] += 1
        if name not in self.probe.found or k >= len(calls):
            return x
        given, was = calls[k]
        kept, model = ~self._marked(was.shape[-1], self.probe.sizes[name]), self.probe.trace.model
        if not model.close(model.values(x)[..., kept], was[..., kept]):
            self.mixes = True
            raise _Stop
        return given

    def after(self, name: str, y: Any) -> Any:
        """Return an output of which half is changed."""
        gathers = self.probe.gathers
        if name not in gathers:
            return y
        n = len(gathers[name])
        size = self.probe.parts.get(name, n)
        marked = np.zeros((n // size, size), bool)
        marked[list(moved_parts(gathers[name], size))] = self._marked(size, (size, 1))
        entries = np.where(marked.reshape(-1), (np.arange(n) + 1) % n, np.arange(n))
        return y[..., entries] * 0.5 + y * 0.5  # a mean of neighbours is as large as what it replaces

    def _marked(self, n: int, size: tuple[int, int]) -> np.ndarray:
        """Return which of n entries are changed, or come from changed ones."""
        d, times = size
        marked = np.random.default_rng(0).random(n // times if self.blocks is None else self.blocks) < 0.5
        marked[0], marked[-1] = True, False
        if self.blocks is not None:
            return marked.repeat(n // self.blocks)
        return marked if times == 1 else marked.reshape(-1, 1, d).repeat(times, 1).reshape(-1)
