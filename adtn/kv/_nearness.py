"""Steps by how far tokens are from the end of a prefix: the last ones matter most to what reads it.

Errors of tokens count by the squared norms of gradients, whose mean at a distance from the end is F. The least loss of
equally many bits has steps in proportion to F^(-1/2). The root of that is used here, F^(-1/4): the quadratic model of
the loss breaks down for coarse steps, and the profile is that of the tokens which follow at once.
"""

from __future__ import annotations

import numpy as np

from .._typing import Float, Int
from ._tables import PER_OCTAVE

BUCKETS = 16
"""Distances 0, 1, 2 to 3, 4 to 7, and so on; the last bucket has no end."""
_EXPONENT = 0.25
_MOST = 2 * PER_OCTAVE  # of a shift


def buckets_of(tokens: int) -> Int[np.ndarray, " tokens"]:
    """Return the bucket of every token of a prefix.

    Examples
    --------
    >>> buckets_of(6).tolist()
    [3, 3, 2, 2, 1, 0]
    """
    distances = np.arange(tokens)[::-1]
    return np.minimum(np.frexp(distances.astype(np.float64))[1], BUCKETS - 1).astype(np.int64)


def shifts_of(
    nearness: Float[np.ndarray, "layers heads buckets"], near: Int[np.ndarray, " buckets"]
) -> Int[np.ndarray, " buckets"]:
    """Return how much coarser the steps of all buckets are, in points of the grid, as int8.

    Parameters
    ----------
    nearness : array, (layers, heads, buckets)
        Mean squared norms of gradients.
    near : array, (buckets,)
        The number of tokens they are means of; buckets without any take what their neighbours have.
    """
    mean = (nearness @ near) / max(int(near.sum()), 1)
    known = np.flatnonzero((near > 0) & np.all(nearness > 0.0, axis=(0, 1)))
    if not len(known):
        return np.zeros(BUCKETS, np.int8)
    ratios = (nearness[..., known] / mean[..., None]).mean((0, 1))
    shifts = np.interp(np.arange(BUCKETS), known, -_EXPONENT * PER_OCTAVE * np.log2(ratios))
    return np.rint(np.clip(shifts, -_MOST, _MOST)).astype(np.int8)
