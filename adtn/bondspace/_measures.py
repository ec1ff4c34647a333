"""Numbers that describe a spectrum."""

from __future__ import annotations

import numpy as np

from .._typing import Float


def weights_of(values: Float[np.ndarray, " rank"]) -> Float[np.ndarray, " rank"]:
    """Return the squares of singular values, which sum to one."""
    squares = np.square(values / max(float(np.max(values, initial=0.0)), 1e-300))
    return squares / max(float(squares.sum()), 1e-300)


def entropy(values: Float[np.ndarray, " rank"]) -> float:
    """Compute the von Neumann entropy of a spectrum in nats."""
    p = weights_of(values)
    p = p[p > 0.0]
    return max(float(-np.sum(p * np.log(p))), 0.0)


def effective_rank(values: Float[np.ndarray, " rank"]) -> float:
    """Compute the exponential of the entropy: the number of equal values with the same entropy."""
    return float(np.exp(entropy(values)))


def participation(values: Float[np.ndarray, " rank"]) -> float:
    """Compute the participation ratio, one over the sum of the squared weights; at most the effective rank."""
    p = weights_of(values)
    return 1.0 / max(float(np.sum(np.square(p))), 1e-300) if p.any() else 0.0
