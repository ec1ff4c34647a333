"""Frozen random weights that are never stored, from a counter-based generator and exact arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .._checks import Seed, check_fields
from .._typing import Float, Shape
from ..errors import TopologyError
from ._base import RuleBase


@dataclass(frozen=True)
class SeededBase(RuleBase):
    """A frozen random weight of which only the seed is stored, identical bit for bit on every platform.

    Entry ``i`` comes from the ``i``-th 64-bit word of Philox4x64-10 with key ``(seed, 0)``. Its upper 24 bits
    become a float32 by operations that IEEE 754 rounds exactly (no logarithm, no cosine).

    Parameters
    ----------
    seed : int
        A number from 0 to 2**64 - 1.
    distribution : {"uniform", "sign"}
        - ``"uniform"``: uniform with mean 0 and variance 1
        - ``"sign"``: +1 or -1

    References
    ----------
    J. Salmon, M. Moraes, R. Dror, D. Shaw (2011), "Parallel random numbers: as easy as 1, 2, 3", SC11.

    Examples
    --------
    >>> SeededBase(seed=1).values((2, 2)).dtype
    dtype('float32')
    """

    seed: Seed
    distribution: Literal["uniform", "sign"] = "uniform"

    def __post_init__(self) -> None:
        check_fields(self, TopologyError)

    def values(self, shape: Shape) -> Float[np.ndarray, "*shape"]:
        """Compute the entries, of variance 1, as float32 in row-major order.

        Parameters
        ----------
        shape : tuple of int

        Returns
        -------
        numpy.ndarray
        """
        # NumPy guarantees a stable stream for raw bits only, not for Generator.normal and similar methods
        words = np.random.Philox(key=np.array([self.seed, 0], dtype=np.uint64)).random_raw(math.prod(shape))
        if self.distribution == "sign":
            return np.where(words >> np.uint64(63), np.float32(1), np.float32(-1)).reshape(shape)
        steps = (words >> np.uint64(40)).astype(np.float64) - (2**23 - 0.5)
        return (steps * (math.sqrt(3.0) * 2.0**-23)).astype(np.float32).reshape(shape)
