"""Frozen weights that follow from a rule and are never stored; a generator may be added to one."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from .._typing import Shape


class RuleBase(ABC):
    """A frozen weight of which only the rule is stored; one trained factor goes with it."""

    @abstractmethod
    def values(self, shape: Shape) -> np.ndarray:
        """Entries as float32; rows have about the norm of noise of variance 1."""


@dataclass(frozen=True)
class IdentityBase(RuleBase):
    """The identity, cut to shape; for convolutions every channel passes through the middle of the kernel.

    What is generated starts at zero: a layer begins as one that passes on what it gets, and learns what differs.

    Examples
    --------
    >>> IdentityBase().values((2, 4)).tolist()
    [[2.0, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0]]
    """

    @staticmethod
    def entry(shape: Shape) -> float:
        """Those that are not zero, for a weight of this shape, as float32 has them."""
        return float(np.float32(math.sqrt(math.prod(shape[1:]))))

    def values(self, shape: Shape) -> np.ndarray:
        """Entries as float32; the rows that are not cut have the norm of noise of variance 1.

        Parameters
        ----------
        shape : tuple of int

        Returns
        -------
        numpy.ndarray
        """
        found = np.zeros(shape, np.float32)
        n = np.arange(min(shape[:2]))
        middle = tuple(k // 2 for k in shape[2:])
        found[(n, n, *middle)[: len(shape)]] = self.entry(shape)
        return found
