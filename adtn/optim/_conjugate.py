"""Preconditioned conjugate gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .._typing import Float

_TOLERANCE = 1e-6  # of the squared residual


def conjugate_gradients(
    times: Callable[[Any], Any], divide: Callable[[Any], Any], residual: Float[np.ndarray, "..."], steps: int
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    """Solve a linear system approximately, from zero.

    Parameters
    ----------
    times, divide : callable
        Products with a positive semidefinite matrix, and with an estimate of its inverse.
    residual : numpy.ndarray
        The right side.
    steps : int
        The largest number of products.

    Returns
    -------
    tuple of numpy.ndarray
        The solution, and its product with the matrix.
    """
    x = image = np.zeros_like(residual)
    p = z = divide(residual)
    rz = first = float(np.vdot(residual, z))
    for _ in range(steps):
        bent = times(p)
        curvature = float(np.vdot(p, bent))
        if not (rz > _TOLERANCE * first and curvature > 0.0):
            break
        step = rz / curvature
        x, image, residual = x + step * p, image + step * bent, residual - step * bent
        z = divide(residual)
        rz, before = float(np.vdot(residual, z)), rz
        p = z + (rz / before) * p
    return x, image
