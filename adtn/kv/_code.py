"""The code of the states of a prefix: bases and magnitudes of all groups of layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from autoray import do

from .._typing import Array, Int
from ..errors import KVCacheError
from ._ans import Coded, ideal_bits
from ._basis import Basis
from ._calibrate import to_host
from ._coefficients import Magnitudes
from ._decoder import States
from ._live import CODERS
from ._nearness import BUCKETS
from ._order import Order
from ._pair import Pair
from ._parked import Coder
from ._tables import FIRST

_OF_BASIS = ("mean", "inverse", "components", "codes", "scales", "nibbles", "nibble_scales")
_OF_MAGNITUDES = ("indices", "parts", "shifts")
_NEW = (".shifts", ".nibbles", ".nibble_scales")  # which the first format of files did not have
_KINDS: tuple[Literal["k", "v"], ...] = ("k", "v")


@dataclass(frozen=True, kw_only=True)
class Places:
    """The order of the coded tokens of a prefix, and their step.

    Parameters
    ----------
    order : Order
    step : int
        A point of the grid.
    is_even : bool
        Whether all tokens have this step; otherwise those near the end have finer ones.
    """

    order: Order
    step: int
    is_even: bool

    def steps(self, magnitudes: Magnitudes) -> Int[np.ndarray, " tokens"]:
        """Return the steps of the coefficients of a group."""
        n = len(self.order.counts)
        return np.full(n, self.step) if self.is_even else magnitudes.steps(self.step, n)


@dataclass(frozen=True, kw_only=True)
class StatesCode:
    """The code of the states of all layers, ``(tokens, layers, heads, channels)``.

    Parameters
    ----------
    groups : tuple of tuple of int
        Layers that share a basis.
    bases : Pair of tuple of Basis
        By group.
    magnitudes : Pair of tuple of Magnitudes
        By group.
    """

    groups: tuple[tuple[int, ...], ...]
    bases: Pair[tuple[Basis, ...]]
    magnitudes: Pair[tuple[Magnitudes, ...]]

    def parts(self, kind: Literal["k", "v"]) -> list[tuple[Basis, Magnitudes, tuple[int, ...]]]:
        """Return basis, magnitudes and layers of all groups."""
        bases, magnitudes = getattr(self.bases, kind), getattr(self.magnitudes, kind)
        return list(zip(bases, magnitudes, self.groups, strict=True))

    def check(self, states: States, tokens: int) -> None:
        """Refuse states of another shape.

        Raises
        ------
        KVCacheError
            If there are not as many as tokens, or they are not those of this model.
        """
        layers = sum(map(len, self.groups))
        for kind in _KINDS:
            shape, (heads, channels) = getattr(states, kind).shape, getattr(self.bases, kind)[0].mean.shape[1:]
            expected = (tokens, layers, heads, channels)
            if tuple(shape) != expected:
                raise KVCacheError(
                    f"Got states of shape {tuple(shape)} for {tokens} token ids; expected {expected}: tokens, layers, "
                    "heads, channels."
                )

    def encode(self, states: States, places: Places, coder: Coder) -> Coded:
        """Encode states of any framework."""
        symbols: list[np.ndarray] = []
        for kind in _KINDS:
            for basis, magnitudes, group in self.parts(kind):
                c = to_host(basis.coefficients(getattr(states, kind)[:, list(group)]))
                symbols.append(magnitudes.encode(c, places.order, places.steps(magnitudes))[0].ravel())
        return CODERS[coder][0](np.concatenate(symbols), np.concatenate([x.ravel() for x in self._tables(places)]))

    def decode(self, coded: Coded, places: Places, coder: Coder, like: Array) -> States:
        """Return what was encoded, as float32 arrays of the framework and device of ``like``."""
        tables = self._tables(places)
        flat = CODERS[coder][1](coded, np.concatenate([x.ravel() for x in tables]))
        sizes = np.cumsum([x.size for x in tables])[:-1]
        symbols = iter([part.reshape(x.shape) for part, x in zip(np.split(flat, sizes), tables, strict=True)])

        def of(kind: Literal["k", "v"]) -> Array:
            own = [
                basis.states(
                    do("asarray", magnitudes.decode(next(symbols), places.order, places.steps(magnitudes)), like=like)
                )
                for basis, magnitudes, _ in self.parts(kind)
            ]
            return do("concatenate", own, axis=1)

        keys = of("k")
        return Pair(k=keys, v=of("v"))

    def recoded(self, states: States, places: Places) -> States:
        """Return states as they are after coding, without making bytes of them."""

        def of(kind: Literal["k", "v"], x: Array) -> Array:
            own = [
                basis.states(do("asarray", magnitudes.encode(c, places.order, places.steps(magnitudes))[1], like=x))
                for basis, magnitudes, group in self.parts(kind)
                for c in [to_host(basis.coefficients(x[:, list(group)]))]
            ]
            return do("concatenate", own, axis=1)

        return Pair(k=of("k", states.k), v=of("v", states.v))

    def ideal_bits(self, states: States, places: Places) -> Pair[list[float]]:
        """Return the code lengths of states by their probabilities, of all groups."""

        def of(kind: Literal["k", "v"], x: Array) -> list[float]:
            found: list[float] = []
            for basis, magnitudes, group in self.parts(kind):
                steps = places.steps(magnitudes)
                c = to_host(basis.coefficients(x[:, list(group)]))
                symbols = magnitudes.encode(c, places.order, steps)[0]
                found.append(ideal_bits([symbols], [magnitudes.tables(places.order, steps)]))
            return found

        return Pair(k=of("k", states.k), v=of("v", states.v))

    def shares(self, states: States, places: Places, layers: Sequence[int]) -> dict[str, float]:
        """Return the parts of the bits of states, by kinds and groups of layers."""
        bits = self.ideal_bits(states, places)
        names = [f"layers {layers[group[0]]} to {layers[group[-1]]}" for group in self.groups]
        found = {f"keys of {name}": x for name, x in zip(names, bits.k, strict=True)}
        found |= {f"values of {name}": x for name, x in zip(names, bits.v, strict=True)}
        total = sum(found.values()) or 1.0
        return {name: own / total for name, own in found.items()}

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all arrays, by names that end with those of their group."""
        found: dict[str, np.ndarray] = {}
        for kind in _KINDS:
            for g, (basis, magnitudes, _) in enumerate(self.parts(kind)):
                found |= {f"{kind}.{g}.{name}": getattr(basis, name) for name in _OF_BASIS}
                found |= {f"{kind}.{g}.{name}": getattr(magnitudes, name) for name in _OF_MAGNITUDES}
        return {n: x for n, x in found.items() if not (self.is_first and n.endswith(_NEW))}

    @property
    def least(self) -> int:
        """Index of the smallest ratio that has symbols."""
        return self.magnitudes.k[0].least

    @property
    def is_first(self) -> bool:
        """Whether the first format of files can hold it: one step for all tokens, and no columns in 4 bits."""
        shifted = any(m.shifts.any() for own in self.magnitudes for m in own)
        return self.least == FIRST and not shifted and not any(b.nibbles.size for own in self.bases for b in own)

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, np.ndarray], groups: tuple[tuple[int, ...], ...], least: int) -> StatesCode:
        """Build the code of what :meth:`arrays` returned; the first format of files lacked some."""
        absent = (np.zeros(BUCKETS, np.int8), np.zeros((0, 0), np.uint8), np.zeros(0, np.float16))
        none = {
            f"{kind}.{g}{name}": x
            for kind in _KINDS
            for g in range(len(groups))
            for name, x in zip(_NEW, absent, strict=True)
        }
        found = {**none, **arrays}

        def own(kind: str, names: Sequence[str], make: Any, **more: int) -> tuple[Any, ...]:
            return tuple(make(**{n: found[f"{kind}.{g}.{n}"] for n in names}, **more) for g in range(len(groups)))

        magnitudes = [own(kind, _OF_MAGNITUDES, Magnitudes, least=least) for kind in _KINDS]
        return cls(
            groups=groups,
            bases=Pair(k=own("k", _OF_BASIS, Basis), v=own("v", _OF_BASIS, Basis)),
            magnitudes=Pair(k=magnitudes[0], v=magnitudes[1]),
        )

    def _tables(self, places: Places) -> Sequence[np.ndarray]:
        return [
            magnitudes.tables(places.order, places.steps(magnitudes)) for own in self.magnitudes for magnitudes in own
        ]
