"""Symbols as bytes: asymmetric numeral systems, symbols of one table after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .._typing import Int
from ..errors import FileFormatError
from ..precision import Reader, Writer
from ._tables import FIRST, LAST, table


@dataclass(frozen=True, kw_only=True)
class Coded:
    """A sequence of symbols, as words of 32 bits.

    Parameters
    ----------
    words : array, (n,), uint32
    beyond : array, (m,), int32
        The symbols that are beyond their tables, in order.
    """

    words: Int[np.ndarray, " n"]
    beyond: Int[np.ndarray, " m"]

    @property
    def nbytes(self) -> int:
        """The bytes of both."""
        return self.words.nbytes + self.beyond.nbytes


def runs(tables: Int[np.ndarray, " n"]) -> list[tuple[int, Int[np.ndarray, " k"]]]:
    """Return tables that have symbols, in order, with the positions of their symbols."""
    at = np.argsort(tables.astype(np.int16), kind="stable")
    counts = np.bincount(tables - (FIRST - 1), minlength=LAST - FIRST + 2)
    parts = np.split(at, np.cumsum(counts)[:-1])
    return [(FIRST - 1 + k, part) for k, part in enumerate(parts) if k and len(part)]


def encode_symbols(symbols: Int[np.ndarray, " n"], tables: Int[np.ndarray, " n"]) -> Coded:
    """Encode symbols, each with the table of its index; those without a table are zero."""
    writer = Writer()
    beyond: list[np.ndarray] = []
    for i, at in reversed(runs(tables)):
        own, most = symbols[at], table(i).most
        far = np.abs(own) > most
        beyond.append(own[far])
        writer.push(np.where(far, 2 * most + 1, own + most), table(i).probabilities)
    return Coded(words=writer.words, beyond=np.concatenate([*reversed(beyond), np.empty(0, np.int32)]))


def decode_symbols(coded: Coded, tables: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Return the symbols, zero where there is no table.

    Raises
    ------
    FileFormatError
        If the words are not those of symbols with these tables.
    """
    reader = Reader(coded.words)
    symbols = np.zeros(tables.shape, np.int32)
    used = 0
    for i, at in runs(tables):
        most = table(i).most
        own = reader.pop(len(at), table(i).probabilities) - most
        far = own > most
        n = int(far.sum())
        if used + n > len(coded.beyond):
            raise FileFormatError("The coded cache was modified: it has more symbols beyond its tables than values.")
        own[far] = coded.beyond[used : used + n]
        used += n
        symbols[at] = own
    if used != len(coded.beyond) or not reader.is_empty:
        raise FileFormatError("The coded cache was modified: its words do not end with its last symbol.")
    return symbols


def ideal_bits(symbols: Sequence[np.ndarray], tables: Sequence[np.ndarray]) -> float:
    """Return the code length of symbols by their probabilities."""
    total = 0.0
    for own, indices in zip(symbols, tables, strict=True):
        for i, at in runs(indices.reshape(-1)):
            most = table(i).most
            values = own.reshape(-1)[at]
            total += float(table(i).bits[np.where(np.abs(values) > most, 2 * most + 1, values + most)].sum())
    return total
