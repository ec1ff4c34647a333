"""Named host arrays as one vector, and back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..._typing import Float, Params


def flat(arrays: Params, names: Sequence[str]) -> Float[np.ndarray, " parameters"]:
    """Return the entries of the arrays, in the order of the names, in float64."""
    return np.concatenate([np.ravel(arrays[name]).astype(np.float64) for name in names])


def unflat(
    x: Float[np.ndarray, " parameters"], names: Sequence[str], like: Params
) -> dict[str, Float[np.ndarray, "..."]]:
    """The inverse of :func:`flat`, with the shapes of ``like``; views of ``x``."""
    arrays: dict[str, np.ndarray] = {}
    begin = 0
    for name in names:
        end = begin + like[name].size
        arrays[name] = x[begin:end].reshape(like[name].shape)
        begin = end
    return arrays
