"""Base weights: frozen weights defined by a rule and never stored, to which a generator can be added."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from .._typing import Float, Shape


class RuleBase(ABC):
    """A frozen weight of which only the rule is stored, multiplied by one trained factor."""

    @abstractmethod
    def values(self, shape: Shape) -> Float[np.ndarray, "*shape"]:
        """Compute the entries as float32; rows have about the norm of noise of variance 1."""


@dataclass(frozen=True)
class IdentityBase(RuleBase):
    """The identity, truncated to the shape; in convolutions every channel passes through the centre of the kernel.

    The generated part starts at zero, so a layer starts as the identity map and learns the difference from it.

    Examples
    --------
    >>> IdentityBase().values((2, 4)).tolist()
    [[2.0, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0]]
    """

    @staticmethod
    def entry(shape: Shape) -> float:
        """Return the value of the nonzero entries of a weight of this shape, rounded to float32."""
        return float(np.float32(math.sqrt(math.prod(shape[1:]))))

    def values(self, shape: Shape) -> Float[np.ndarray, "*shape"]:
        """Compute the entries as float32; rows that are not truncated have the norm of noise of variance 1.

        Parameters
        ----------
        shape : tuple of int

        Returns
        -------
        numpy.ndarray
        """
        weight = np.zeros(shape, np.float32)
        n = np.arange(min(shape[:2]))
        middle = tuple(k // 2 for k in shape[2:])
        weight[(n, n, *middle)[: len(shape)]] = self.entry(shape)
        return weight
