"""Caches that stay coded while a model generates: the options, and the code of one layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from autoray import do

from .._typing import Array
from ..errors import KVCacheError
from ._ans import Coded, decode_symbols, encode_symbols
from ._basis import Basis
from ._coefficients import Magnitudes
from ._order import Order
from ._pair import Pair
from ._parked import Coder
from ._rice import decode_symbols as decode_rice
from ._rice import encode_symbols as encode_rice

CODERS = {"ans": (encode_symbols, decode_symbols), "rice": (encode_rice, decode_rice)}


@dataclass(frozen=True, kw_only=True)
class LiveOptions:
    """The options of :meth:`adtn.kv.KVCodec.live`.

    Parameters
    ----------
    window : int
        The number of last tokens that are never coded.
    chunk : int
        The number of tokens that are coded at a time.
    coder : {"ans", "rice"}
    sinks : int
        The number of first tokens that are never coded.
    cached : bool
        Whether what was decoded is held until the cache changes in another way than by growing.
    offloading : bool
        Whether what is not coded waits in the memory of the host, too.
    order : {"ids", "natural"}
        Whether earlier tokens of the same id predict later ones, where the ids are known.

    Raises
    ------
    KVCacheError
        If a number is out of range, or there is no such coder.
    """

    window: int = 128
    chunk: int = 256
    coder: Coder = "ans"
    sinks: int = 4
    cached: bool = False
    offloading: bool = False
    order: Literal["ids", "natural"] = "ids"

    def __post_init__(self) -> None:
        if self.window < 0 or self.chunk < 1:
            raise KVCacheError(
                f"Got window={self.window} and chunk={self.chunk}; expected numbers of tokens, the second at least one."
            )
        if self.coder not in CODERS:
            raise KVCacheError(f"Got coder={self.coder!r}; expected one of {', '.join(CODERS)}.")
        if self.order not in ("ids", "natural"):
            raise KVCacheError(f"Got order={self.order!r}; expected 'ids' or 'natural'.")


@dataclass(frozen=True, kw_only=True)
class LayerCode:
    """The code of the states of one layer.

    Parameters
    ----------
    bases : Pair of Basis
    magnitudes : Pair of Magnitudes
    step : int
        A point of the grid of steps.
    coder : {"ans", "rice"}
    """

    bases: Pair[Basis]
    magnitudes: Pair[Magnitudes]
    step: int
    coder: Coder

    def encode(self, states: Pair[Array], order: Order, earlier: Pair[np.ndarray]) -> tuple[Coded, Pair[np.ndarray]]:
        """Encode keys before rotation, and values, ``(tokens, heads, channels)``, and return what they decode to.

        Parameters
        ----------
        states : Pair of array
        order : Order
            Of earlier tokens and these.
        earlier : Pair of array, (earlier, coefficients)
            The coefficients that earlier tokens decode to.
        """
        steps = np.full(len(order.counts), self.step)

        def of(kind: Literal["k", "v"]) -> tuple[np.ndarray, np.ndarray]:
            c = getattr(self.bases, kind).coefficients(getattr(states, kind)[:, None])
            own = np.asarray(do("to_numpy", c), np.float32)
            return getattr(self.magnitudes, kind).encode(own, order, steps, getattr(earlier, kind))

        (k, decoded_k), (v, decoded_v) = of("k"), of("v")
        tables = self._tables(order, len(k))
        return CODERS[self.coder][0](_flat(k, v), _flat(*tables)), Pair(k=decoded_k, v=decoded_v)

    def decode(
        self, coded: Sequence[Coded], tokens: Sequence[int], order: Order, earlier: Pair[np.ndarray]
    ) -> Pair[np.ndarray]:
        """Return the coefficients of what was encoded, one after the other; see :meth:`encode`."""
        parts: list[Pair[np.ndarray]] = []
        ends = len(order.counts) - sum(tokens) + np.cumsum(tokens)
        for own, n, end in zip(coded, tokens, ends, strict=True):
            k, v = self._tables(order, n, int(end))
            flat = CODERS[self.coder][1](own, _flat(k, v))
            parts.append(Pair(k=flat[: k.size].reshape(k.shape), v=flat[k.size :].reshape(v.shape)))
        steps = np.full(len(order.counts), self.step)

        def of(kind: Literal["k", "v"]) -> np.ndarray:
            symbols = np.concatenate([getattr(part, kind) for part in parts])
            return getattr(self.magnitudes, kind).decode(symbols, order, steps, getattr(earlier, kind))

        return Pair(k=of("k"), v=of("v"))

    def states(self, coefficients: Pair[np.ndarray], like: Array) -> Pair[Array]:
        """Return keys before rotation, and values, as float32 arrays of the framework and device of ``like``."""
        return Pair(
            k=self.bases.k.states(do("asarray", coefficients.k, like=like))[:, 0],
            v=self.bases.v.states(do("asarray", coefficients.v, like=like))[:, 0],
        )

    @property
    def none(self) -> Pair[np.ndarray]:
        """The coefficients of no tokens."""
        return self.magnitudes.map(lambda m: np.empty((0, m.indices.shape[1]), np.float32))

    def __deepcopy__(self, memo: object) -> LayerCode:
        """Return the same code, as it never changes: copies of a cache share it."""
        return self

    def values(self, tokens: int) -> int:
        """Return the number of values of keys and values of tokens."""
        return tokens * sum(basis.mean.size for basis in self.bases)

    def _tables(self, order: Order, tokens: int, end: int | None = None) -> Pair[np.ndarray]:
        """Return the tables of some tokens, by default the last ones."""
        last = len(order.counts) if end is None else end
        return self.magnitudes.map(lambda m: m.tables_of_classes(self.step)[order.classes[last - tokens : last]])


def _flat(k: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.concatenate([k.ravel(), v.ravel()])
