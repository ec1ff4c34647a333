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
_KINDS: tuple[Literal["k", "v"], ...] = ("k", "v")


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

    def __post_init__(self) -> None:
        if self.window < 0 or self.chunk < 1:
            raise KVCacheError(
                f"Got window={self.window} and chunk={self.chunk}; expected numbers of tokens, the second at least one."
            )
        if self.coder not in CODERS:
            raise KVCacheError(f"Got coder={self.coder!r}; expected one of {', '.join(CODERS)}.")


@dataclass(frozen=True, kw_only=True)
class LayerCode:
    """The code of the states of one layer, in natural order.

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

    def encode(self, states: Pair[Array]) -> Coded:
        """Encode keys before rotation, and values, ``(tokens, heads, channels)``."""
        symbols: list[np.ndarray] = []
        for kind in _KINDS:
            x, basis, magnitudes = getattr(states, kind), getattr(self.bases, kind), getattr(self.magnitudes, kind)
            c = np.asarray(do("to_numpy", basis.coefficients(x[:, None])), np.float32)
            symbols.append(magnitudes.encode(c, Order.natural(len(c)), np.full(len(c), self.step))[0].ravel())
        return CODERS[self.coder][0](np.concatenate(symbols), np.concatenate([*self._tables(len(states.k))]))

    def decode(self, coded: Sequence[Coded], tokens: Sequence[int], like: Array) -> Pair[Array]:
        """Return what was encoded, one after the other, as float32 arrays of the framework and device of ``like``."""
        tables = [self._tables(n) for n in tokens]
        decode = CODERS[self.coder][1]
        flat = [decode(own, np.concatenate([*table])) for own, table in zip(coded, tables, strict=True)]
        split = [np.split(own, [table.k.size]) for own, table in zip(flat, tables, strict=True)]

        def of(kind: Literal["k", "v"], symbols: np.ndarray) -> Array:
            basis, magnitudes = getattr(self.bases, kind), getattr(self.magnitudes, kind)
            n, columns = sum(tokens), basis.columns.shape[1]
            c = magnitudes.decode(symbols.reshape(n, columns), Order.natural(n), np.full(n, self.step))
            return basis.states(do("asarray", c, like=like))[:, 0]

        return Pair(k=of("k", np.concatenate([k for k, _ in split])), v=of("v", np.concatenate([v for _, v in split])))

    def __deepcopy__(self, memo: object) -> LayerCode:
        """Return the same code, as it never changes: copies of a cache share it."""
        return self

    def values(self, tokens: int) -> int:
        """Return the number of values of keys and values of tokens."""
        return tokens * sum(basis.mean.size for basis in self.bases)

    def _tables(self, tokens: int) -> Pair[np.ndarray]:
        return self.magnitudes.map(lambda m: np.tile(m.tables_of_classes(self.step)[0], tokens))
