"""The order of tokens by their ids, and what earlier tokens of the same id predict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .._typing import Int

CLASSES = 4
"""Tokens whose id occurred 0, 1, 2, and 3 or more times before them."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """The number of earlier tokens of the same id, and the place of the last one, for every token.

    Parameters
    ----------
    counts : array, (tokens,)
    previous : array, (tokens,)
        Positions of the last token of the same id; 0 for first ones, where it means nothing.
    """

    counts: Int[np.ndarray, " tokens"]
    previous: Int[np.ndarray, " tokens"]

    @classmethod
    def by_id(cls, token_ids: Int[np.ndarray, " tokens"]) -> Order:
        """Order tokens by their ids.

        Examples
        --------
        >>> Order.by_id(np.array([7, 5, 7, 7])).counts.tolist()
        [0, 0, 1, 2]
        """
        ids = np.asarray(token_ids)
        at = np.argsort(ids, kind="stable")
        repeats = np.concatenate(([False], ids[at][1:] == ids[at][:-1]))
        starts = np.maximum.accumulate(np.where(repeats, 0, np.arange(len(ids))))
        counts, previous = np.empty(len(ids), np.int64), np.zeros(len(ids), np.int64)
        counts[at] = np.arange(len(ids)) - starts
        previous[at[1:]] = np.where(repeats[1:], at[:-1], 0)
        return cls(counts=counts, previous=previous)

    @classmethod
    def of_chains(cls, ids: Sequence[Int[np.ndarray, " n"]], chains: Sequence[Sequence[int]]) -> Order:
        """Order the tokens of several sequences that consist of parts, of which they can share the first ones.

        Parameters
        ----------
        ids : sequence of arrays
            The token ids of every part; negative ones are unknown, and unlike all others.
        chains : sequence of sequence of int
            The parts of every sequence. A part that is in several of them has the same parts before it in all.

        Returns
        -------
        Order
            Of all tokens, part after part.

        Examples
        --------
        >>> Order.of_chains([np.array([7, 5]), np.array([7, -1]), np.array([5])], [[0, 1], [0, 2]]).counts.tolist()
        [0, 0, 1, 0, 1]
        """
        ends = np.cumsum([len(own) for own in ids], dtype=np.int64)
        counts, previous = np.zeros((2, int(ends[-1]) if len(ends) else 0), np.int64)
        for chain in chains:
            at = np.concatenate([np.arange(ends[k] - len(ids[k]), ends[k]) for k in chain])
            own = np.concatenate([ids[k] for k in chain]).astype(np.int64)
            order = cls.by_id(np.where(own < 0, -1 - np.arange(len(own)), own))
            counts[at], previous[at] = order.counts, at[order.previous]
        return cls(counts=counts, previous=previous)

    @classmethod
    def natural(cls, n: int) -> Order:
        """Treat all tokens as different."""
        return cls(counts=np.zeros(n, np.int64), previous=np.zeros(n, np.int64))

    @property
    def classes(self) -> Int[np.ndarray, " tokens"]:
        """The class of every token, ``(tokens,)``."""
        return np.minimum(self.counts, CLASSES - 1)

    @cached_property
    def rounds(self) -> list[Int[np.ndarray, " n"]]:
        """The positions of the tokens of every count; each round depends on the rounds before it only."""
        at = np.argsort(self.counts, kind="stable")
        return np.split(at, np.cumsum(np.bincount(self.counts, minlength=1))[:-1])
