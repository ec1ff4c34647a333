"""Symbols as words: asymmetric numeral systems (Duda 2013, arXiv:1311.2540), by the package ``constriction``."""

from __future__ import annotations

from typing import Any

import constriction
import numpy as np

from .._typing import Float, Int

_STREAM: Any = constriction.stream  # pyright: ignore[reportAttributeAccessIssue] # a compiled module
_Model = _STREAM.model.Categorical


class Writer:
    """A stack of symbols: those that are pushed last are popped first."""

    def __init__(self) -> None:
        self._coder = _STREAM.stack.AnsCoder()

    def push(self, symbols: Int[np.ndarray, " n"], probabilities: Float[np.ndarray, " k"]) -> None:
        """Add symbols from 0 to ``k - 1`` with these probabilities; they are popped in their order."""
        if len(symbols) and len(probabilities) > 1:
            self._coder.encode_reverse(symbols.astype(np.int32), _Model(probabilities, perfect=False))

    @property
    def words(self) -> Int[np.ndarray, " words"]:
        """All symbols as words of 32 bits; the last one is not zero."""
        return self._coder.get_compressed()


class Reader:
    """The symbols that a :class:`Writer` pushed.

    Parameters
    ----------
    words : array of uint32
        Its words; zeros may follow.
    """

    def __init__(self, words: Int[np.ndarray, " words"]) -> None:
        self._coder = _STREAM.stack.AnsCoder(np.trim_zeros(np.asarray(words, np.uint32), "b"))

    def pop(self, n: int, probabilities: Float[np.ndarray, " k"]) -> Int[np.ndarray, " n"]:
        """Remove and return the next ``n`` symbols."""
        if not n or len(probabilities) == 1:
            return np.zeros(n, np.int32)
        return self._coder.decode(_Model(probabilities, perfect=False), n)

    @property
    def is_empty(self) -> bool:
        """Whether all symbols were popped, and no more."""
        return self._coder.is_empty()
