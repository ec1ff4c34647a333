"""Random arrays of tests."""

from __future__ import annotations

import numpy as np


def weights(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def moment(columns: int, seed: int = 0) -> np.ndarray:
    """Make a second moment of correlated inputs of different sizes."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((4 * columns, max(columns // 4, 1))) @ rng.standard_normal((max(columns // 4, 1), columns))
    x = (x + 0.3 * rng.standard_normal(x.shape)) * np.exp(0.5 * rng.standard_normal(columns))
    return x.T @ x / len(x)
