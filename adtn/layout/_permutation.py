"""Permutations of the entries of one axis."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from autoray import compose, do

from .._typing import Array, Float, Int
from ..errors import LayoutError

_DIGEST_BYTES = 16


class Permutation:
    """A permutation ``p`` of ``range(n)``: ``permute`` puts entry ``p[i]`` at position ``i``.

    Permutations are compared and hashed by a digest of their entries, so that objects that contain one remain cheap
    cache keys (hashing a tuple of 4,096 entries takes 22 microseconds).

    Parameters
    ----------
    entries : sequence of int
        Each number from 0 to n - 1 exactly once.

    Raises
    ------
    LayoutError
        If the entries are not a permutation.

    Examples
    --------
    >>> p = Permutation([2, 0, 1])
    >>> p.permute(np.array([10, 20, 30]), 0).tolist()
    [30, 10, 20]
    >>> p.restore(p.permute(np.array([10, 20, 30]), 0), 0).tolist()
    [10, 20, 30]
    """

    __slots__ = ("_digest", "_forward", "_inverse")

    def __init__(self, entries: Sequence[int] | Int[np.ndarray, " n"]) -> None:
        values = np.asarray(entries)
        if values.ndim != 1 or (values.size and not np.issubdtype(values.dtype, np.integer)):
            raise LayoutError(
                f"Got a permutation of shape {values.shape} and dtype {values.dtype}; expected a list of whole numbers."
            )
        forward = values.astype(np.int64)
        inverse = np.empty_like(forward)
        in_range = bool(np.all((forward >= 0) & (forward < forward.size)))
        if not in_range or np.unique(forward).size != forward.size:
            raise LayoutError(
                f"Got a permutation of {forward.size} entries that lacks some of 0..{forward.size - 1}; expected "
                "every number exactly once. numpy.argsort returns a permutation."
            )
        inverse[forward] = np.arange(forward.size)
        forward.setflags(write=False)
        inverse.setflags(write=False)
        self._forward, self._inverse = forward, inverse
        self._digest = hashlib.blake2b(forward.tobytes(), digest_size=_DIGEST_BYTES).digest()

    @classmethod
    def random(cls, n: int, seed: int = 0) -> Permutation:
        """Draw a permutation of ``n`` entries; equal seeds give equal permutations."""
        return cls(np.random.default_rng(seed).permutation(n))

    @property
    def array(self) -> Int[np.ndarray, " n"]:
        """The entries, ``(n,)``, int64, read-only."""
        return self._forward

    @property
    def inverse(self) -> Int[np.ndarray, " n"]:
        """The entries of the inverse, ``(n,)``, int64, read-only."""
        return self._inverse

    @property
    def is_identity(self) -> bool:
        """Whether the permutation leaves every entry in place."""
        return bool(np.array_equal(self._forward, np.arange(self._forward.size)))

    def permute(self, x: Float[Array, "*shape"], axis: int) -> Float[Array, "*shape"]:
        """Gather ``x`` along an axis, ``y[i] = x[p[i]]``, on the framework and device of ``x``."""
        return x[(*(slice(None) for _ in range(axis)), do("index_on", x, self, False, like=x))]

    def restore(self, y: Float[Array, "*shape"], axis: int) -> Float[Array, "*shape"]:
        """Invert :meth:`permute`; this is also its adjoint, since a permutation is orthogonal."""
        return y[(*(slice(None) for _ in range(axis)), do("index_on", y, self, True, like=y))]

    def __len__(self) -> int:
        return self._forward.size

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Permutation) and self._digest == other._digest

    def __hash__(self) -> int:
        return hash(self._digest)

    def __repr__(self) -> str:
        return f"Permutation({len(self)} entries, {self._digest.hex()[:8]})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Permutation, (self._forward,)


def _index_on(x: Float[Array, "..."], permutation: Permutation, inverse: bool) -> Int[Array, " n"]:
    """Convert the entries to an array that can index ``x``."""
    return do("asarray", permutation.inverse if inverse else permutation.array, like=x)


index_on: Any = compose(_index_on, name="index_on")
"""The conversion of a permutation to an index array; backends with several devices register their own."""
