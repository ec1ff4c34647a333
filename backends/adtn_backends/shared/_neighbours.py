"""The layers next to a generated weight that can take over its permutations."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from adtn import Permutation
from adtn._typing import Int
from adtn.errors import LayoutError
from adtn.ordering import Absorbed, Absorption, Kept, bits_of_permutation
from adtn.ordering._absorption import SIDES, Kind

from ._blocks import apart, divisors, gathered, joined, moved_blocks, of_blocks, pairs_in_blocks, same, spread
from ._probes import Heads, LinearLayer, Mask, OrderedModel, Probe, Trace, moved_parts

_NEAREST = 4  # layers before an input that are tried
_PARTS = 3  # of outputs that are computed together: queries, keys and values, or a gate and what it multiplies
_OUT, _IN = 0, 1

Index = Int[np.ndarray, " n"]


@dataclass(frozen=True)
class _Move:
    """Axes and frequencies that are permuted together, without an effect on the outputs of the model."""

    kind: Kind
    axes: dict[tuple[str, int], Index]
    tables: dict[str, Index] = field(default_factory=dict)


@dataclass(frozen=True)
class _Together:
    """Orders of outputs, and of frequencies, that may belong together; those of heads with their number."""

    gathers: dict[str, Index]
    tables: dict[str, Index] = field(default_factory=dict)
    heads: int = 0


class _NothingFound(Exception):
    """No neighbour takes an order over, for the reason given."""


def absorb_all(model: OrderedModel) -> Absorption:
    """Move the permutations of generated weights into neighbouring layers, wherever a call of the model shows how.

    Raises
    ------
    LayoutError
        If two calls of the model with the same inputs differ.
    """
    search = _Search(model)
    absorbed = list(search.moves())
    return Absorption(absorbed=tuple(absorbed), kept=tuple(search.kept()))


class _Search:
    """The permutations of a model, one after the other."""

    def __init__(self, model: OrderedModel) -> None:
        self.model = model
        self.trace = Trace.of(model)
        self.outputs = self.trace.outputs
        self.reasons: dict[tuple[str, int, Permutation], str] = {}
        if not model.all_close(Trace.of(model).outputs, self.outputs):
            raise LayoutError(
                "Got a model whose outputs differ between two calls with the same inputs; expected equal ones. Fix its "
                "random numbers, or switch them off."
            )

    def orders(self) -> list[tuple[str, int, Permutation]]:
        """List the permutations that are there now."""
        layers = self.model.layers().items()
        return [(name, k, p) for name, layer in layers for k, p in enumerate(layer.orders or ()) if p is not None]

    def kept(self) -> Iterator[Kept]:
        """Yield what is left."""
        for name, axis, p in self.orders():
            bits = bits_of_permutation(len(p))
            yield Kept(layer=name, axis=axis, reason=self.reasons[name, axis, p], bits=bits)

    def moves(self) -> Iterator[Absorbed]:
        """Move one permutation after the other until nothing is saved any more."""
        moved = True
        while moved:
            moved = False
            for name, axis, p in self.orders():
                key = (name, axis, p)
                if key in self.reasons or key not in self.orders():  # gone with another one
                    continue
                try:
                    yield self._moved(self._move(name, axis, p))
                    moved = True
                    # what saved nothing may save something now
                    self.reasons = {k: r for k, r in self.reasons.items() if r != _SAVES_NOTHING}
                except _NothingFound as why:
                    self.reasons[key] = str(why)

    def _moved(self, move: _Move) -> Absorbed:
        """Permute everything, and undo it if the outputs change."""
        before = self.model.layers()
        freed, others, bits = _balance(before, move)
        if bits <= 0.0:
            raise _NothingFound(_SAVES_NOTHING)
        self._apply(move, inverse=False)
        trace = Trace.of(self.model)
        if not self.model.all_close(trace.outputs, self.outputs):
            self._apply(move, inverse=True)
            raise _NothingFound("the outputs of the model would change by more than rounding")
        self.trace = trace
        return Absorbed(kind=move.kind, freed=freed, into=(*others, *move.tables), bits=bits)

    def _apply(self, move: _Move, *, inverse: bool) -> None:
        for (name, axis), index in move.axes.items():
            self.model.gather(name, axis, np.argsort(index) if inverse else index)
        for name, index in move.tables.items():
            self.model.gather_table(name, np.argsort(index) if inverse else index)

    # what belongs together

    def _move(self, name: str, axis: int, p: Permutation) -> _Move:
        """Find what has to be permuted so that a permutation is no longer needed."""
        layers, index = self.model.layers(), np.array(p.inverse)
        if layers[name].reason:
            raise _NothingFound(layers[name].reason)
        for attention in self.model.attentions():
            if (name, axis) in ((attention.into, _OUT), (attention.out, _IN)):
                return self._inside(attention, axis, index)
        if axis == _OUT:
            return self._from(name, index, layers, None)
        reasons: list[str] = []
        for first, short in self._before(name, index, layers):
            try:
                return self._from(first, short, layers, (name, index))
            except _NothingFound as why:
                reasons.append(str(why))
        raise _NothingFound(reasons[0] if reasons else "no layer before it has outputs of this size")

    def _before(self, name: str, index: Index, layers: Mapping[str, LinearLayer]) -> Iterator[tuple[str, Index]]:
        """Yield the nearest layers before an input with the orders of their outputs that may give that of the input."""
        called = self.trace.order
        if name not in called:
            raise _NothingFound("the examples do not call this layer")
        earlier = list(dict.fromkeys(called[: called.index(name)][::-1]))
        fitting = [one for one in earlier if _fits(layers[one].n_out, len(index)) and not layers[one].reason]
        for one in fitting[:_NEAREST]:
            n = layers[one].n_out
            if n > len(index):
                yield from ((one, wide) for wide in _with_parts(index, n // len(index)))
                continue
            times = len(index) // n
            sizes = [n] if times == 1 else divisors(n)
            shorts = (gathered(index, d, times) for d in sizes)
            yield from ((one, short) for short in shorts if short is not None)

    def _from(
        self, first: str, index: Index, layers: Mapping[str, LinearLayer], wanted: tuple[str, Index] | None
    ) -> _Move:
        """Find what takes over the order of the outputs of a layer, alone or together with others beside it."""
        alone = self._probed({first: index}, {})
        if not alone.failed:
            return self._checked(alone, _Together({first: index}), layers, wanted)
        if wanted is not None and alone.failed != wanted[0]:
            raise _NothingFound(f"{alone.failed} reads what is before it as well")
        beside = self._beside(first, alone.failed)
        for group in self._together(first, index, beside, layers):
            probe = self._probed(group.gathers, group.tables)
            if not probe.failed:
                return self._checked(probe, group, layers, wanted)
        raise _NothingFound(
            f"a sum, a normalisation or another operation is between {first} and {alone.failed}, or part of it is fixed"
        )

    def _probed(self, gathers: Mapping[str, Index], tables: Mapping[str, Index]) -> Probe:
        return Probe(self.trace, gathers).run(self._frequencies(tables))

    @contextmanager
    def _frequencies(self, tables: Mapping[str, Index]) -> Generator[None, None, None]:
        """Permute frequencies inside this block."""
        for name, index in tables.items():
            self.model.gather_table(name, index)
        try:
            yield
        finally:
            for name, index in tables.items():
                self.model.gather_table(name, np.argsort(index))

    def _beside(self, first: str, failed: str) -> list[str]:
        """List the layers in the same module that are called before the one where another order was seen."""
        called = self.trace.order
        earlier = called[: called.index(failed)] if failed in called else called
        parent = first.rpartition(".")[0]
        return [one for one in dict.fromkeys(earlier) if one != first and one.rpartition(".")[0] == parent]

    def _together(
        self, first: str, index: Index, beside: list[str], layers: Mapping[str, LinearLayer]
    ) -> Iterator[_Together]:
        """Yield orders of several outputs, and of frequencies, that may belong together."""
        n = len(index)
        for one in beside:  # the gate of a gated layer, the keys of queries
            for other in _like(index, layers[one].n_out):
                yield _Together({first: index, one: other})
        for d in (d for d in divisors(n)[::-1] if 1 < d < n):
            order = moved_blocks(index, d)
            if order is not None and not same(order, np.arange(n // d)):
                sizes = {one: layers[one].n_out for one in beside if layers[one].n_out % (n // d) == 0}
                blocks = {one: of_blocks(order, m * d // n) for one, m in sizes.items()}
                yield _Together({**blocks, first: index}, heads=n // d)
        frequencies = self.model.tables()
        for half in sorted(set(frequencies.values())):  # rotary pairs, in all layers of these names
            order = pairs_in_blocks(index, 2 * half) if n % (2 * half) == 0 else None
            if order is None:
                continue
            for one in beside:
                leaves = {first.rpartition(".")[2], one.rpartition(".")[2]}
                alike = [k for k in self.trace.inputs if k.rpartition(".")[2] in leaves]
                if all(layers[k].n_out % (2 * half) == 0 for k in alike):
                    gathers = {k: _in_blocks(index[: 2 * half], layers[k].n_out) for k in alike}
                    yield _Together(gathers, {name: order for name, m in frequencies.items() if m == half})

    def _checked(
        self,
        probe: Probe,
        group: _Together,
        layers: Mapping[str, LinearLayer],
        wanted: tuple[str, Index] | None,
    ) -> _Move:
        """Make the move of a probe in which everything fits together."""
        if wanted is not None and not same(probe.found.get(wanted[0], np.arange(0)), wanted[1]):
            raise _NothingFound("no layer before it changes its inputs in the examples")
        if not probe.found and len(probe.gathers) < 2 and not any(map(_moves_two_parts, probe.gathers.values())):
            raise _NothingFound("the examples do not show which layer reads it")
        for name in (*probe.gathers, *probe.found):
            if layers[name].reason:
                raise _NothingFound(f"{name} cannot take it over, {layers[name].reason}")
        kind = self._kind(probe, group)
        if kind is None:
            raise _NothingFound(f"there are more than elementwise functions before {', '.join(probe.found)}")
        outputs = {(name, _OUT): index for name, index in probe.gathers.items()}
        return _Move(kind, outputs | {(name, _IN): index for name, index in probe.found.items()}, dict(group.tables))

    def _kind(self, probe: Probe, group: _Together) -> Kind | None:
        """Return what was permuted, ``None`` if entries, or heads, depend on more than their own ones."""
        if not probe.found:
            return "rotary" if group.tables else "keys"
        first = next(iter(probe.gathers))
        moved = moved_parts(probe.gathers[first], probe.parts.get(first, len(probe.gathers[first])))
        if not group.heads and Mask(probe, None).run():
            sizes = {len(index) for index in probe.gathers.values()}
            # a head of its own has channels, while all hidden units are alike
            mixed = np.random.default_rng(0).permutation(probe.parts.get(first, max(sizes)))
            every = dict.fromkeys(probe.gathers, mixed)
            if probe.parts:
                parts = [np.arange(len(mixed))] * (len(probe.gathers[first]) // len(mixed))
                every[first] = joined([mixed if k in moved else part for k, part in enumerate(parts)])
            return "values" if len(sizes) > 1 or self._probed(every, {}).failed else "hidden"
        heads = 0 if probe.parts else group.heads
        heads = heads or (_blocks_moved(next(iter(moved.values()))) if moved else 0)
        return "heads" if heads and Mask(probe, heads).run() else None

    def _inside(self, attention: Heads, axis: int, index: Index) -> _Move:
        """Find the orders of queries, keys, values and outputs of an attention whose projections are one weight."""
        d, n = attention.channels, self.model.layers()[attention.out].n_in
        if axis == _OUT:
            parts = apart(index, n)
            if parts is None:
                raise _NothingFound("it mixes queries, keys and values")
        else:
            order = moved_blocks(index, d)
            if order is None:
                raise _NothingFound("it mixes channels of different heads")
            parts = [of_blocks(order, d)] * 2 + [index]
        rows = joined(parts)
        moves_heads = any(not same(part // d, np.arange(n) // d) for part in parts)
        moves_values = not same(parts[2], np.arange(n))
        kind: Kind = "heads" if moves_heads else "values" if moves_values else "keys"
        return _Move(kind, {(attention.into, _OUT): rows, (attention.out, _IN): parts[2]})


_SAVES_NOTHING = "its neighbours are generated as well and would need an order instead"


def _blocks_moved(index: Index) -> int:
    """Return the number of blocks that move as a whole, 0 if there are none."""
    n = len(index)
    for d in (d for d in divisors(n)[::-1] if 1 < d < n):
        order = moved_blocks(index, d)
        if order is not None and same(of_blocks(order, d), index):
            return n // d
    return 0


def _like(index: Index, n: int) -> list[Index]:
    """List the orders of n outputs that may belong to this one: the same, or that of more or fewer heads."""
    m = len(index)
    if n == m:
        return [index]
    if n % m == 0:
        found = [spread(index, d, n // m) for d in divisors(m)]
    elif m % n == 0:
        found = [gathered(index, d, m // n) for d in divisors(n)]
    else:
        return []
    known = [one for one in found if one is not None]
    return [one for k, one in enumerate(known) if not any(same(one, other) for other in known[:k])]


def _fits(n_out: int, n_in: int) -> bool:
    """Return whether inputs may be outputs of this number, copies of their blocks, or one of a few parts of them."""
    return n_in % n_out == 0 or (n_out % n_in == 0 and n_out <= _PARTS * n_in)


def _with_parts(index: Index, times: int) -> Iterator[Index]:
    """Yield orders of outputs of several parts that may give that of an input: one part, all, or also whole heads."""
    stay = np.arange(len(index))
    for k in range(times)[::-1]:  # values are the last ones
        yield joined([index if j == k else stay for j in range(times)])
    yield joined([index] * times)
    for d in divisors(len(index))[-2:0:-1]:
        order = moved_blocks(index, d)
        if order is not None and not same(order, np.arange(len(order))):
            whole = of_blocks(order, d)
            for k in range(times)[::-1]:
                yield joined([index if j == k else whole for j in range(times)])


def _moves_two_parts(index: Index) -> bool:
    """Return whether two parts of outputs move alike, such as queries and keys, whose order nothing else sees."""
    for size in (len(index) // times for times in range(2, _PARTS + 1) if len(index) % times == 0):
        moved = list(moved_parts(index, size).values())
        if len(moved) > 1 and all(same(part, moved[0]) for part in moved):
            return True
    return False


def _in_blocks(inner: Index, n: int) -> Index:
    """Return the permutation of n entries that permutes every block alike."""
    return (np.arange(n // len(inner))[:, None] * len(inner) + inner).reshape(-1)


def _balance(layers: Mapping[str, LinearLayer], move: _Move) -> tuple[tuple[str, ...], tuple[str, ...], float]:
    """Return the axes that a move frees from their orders, the others, and the bits that it saves."""
    freed, others, bits = [], [], 0.0
    for (name, axis), index in move.axes.items():
        orders, place, size = layers[name].orders, f"{name} {SIDES[axis]}".strip(), bits_of_permutation(len(index))
        p = None if orders is None else orders[axis]
        was = np.arange(len(index)) if p is None else np.asarray(p.array)
        is_free = same(was[index], np.arange(len(index)))
        (freed if p is not None and is_free else others).append(place)
        if orders is not None:
            bits += size * ((p is not None) - (not is_free))
    return tuple(freed), tuple(others), bits
