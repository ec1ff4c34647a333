"""The error of a truncated singular value decomposition, beside which every other error is shown."""

from __future__ import annotations

import math

import numpy as np

from .._typing import Float


def low_rank_errors(
    weight: Float[np.ndarray, "n_out columns"], moment: Float[np.ndarray, "columns columns"] | None
) -> Float[np.ndarray, " ranks"]:
    """Compute the squared relative error of the outputs for every rank, from 0 on.

    Parameters
    ----------
    weight : numpy.ndarray
    moment : numpy.ndarray or None
        The second moment of the inputs.

    Examples
    --------
    >>> low_rank_errors(np.diag([2.0, 1.0]), None).round(12).tolist()
    [1.0, 0.2, 0.0]
    """
    if moment is not None and len(weight) <= len(moment):
        gram = weight @ moment @ weight.T
    else:
        if moment is not None:
            values, vectors = np.linalg.eigh(moment)
            weight = weight @ (vectors * np.sqrt(np.maximum(values, 0.0)))
        gram = weight @ weight.T if len(weight) <= weight.shape[1] else weight.T @ weight
    powers = np.maximum(np.linalg.eigvalsh(gram), 0.0)[::-1]  # much faster than a singular value decomposition
    left = np.cumsum(powers[::-1])[::-1]
    return np.append(left, 0.0) / max(left[0], np.finfo(float).tiny)


def svd_error(
    weight: Float[np.ndarray, "*shape"], params: int, moment: Float[np.ndarray, "columns columns"] | None = None
) -> float:
    """Compute the relative error of a truncated singular value decomposition of at most that many parameters.

    Parameters
    ----------
    weight : numpy.ndarray
        A weight with at least two axes, whose axes after the first one are columns.
    params : int
        The size: a decomposition of rank r has r times the sum of rows and columns. With less than rank 1, the error is
        1; a size for which the weight itself fits has none.
    moment : numpy.ndarray, optional
        The second moment of the inputs; if given, the error is that of the outputs.

    Examples
    --------
    >>> svd_error(np.diag([2.0, 1.0]), 4 - 1)
    1.0
    >>> round(svd_error(np.diag([3.0, 4.0, 0.0]), 6), 12)
    0.6
    """
    matrix = np.asarray(weight, np.float64).reshape(len(weight), -1)
    if params >= matrix.size:
        return 0.0
    errors = low_rank_errors(matrix, moment)
    return math.sqrt(max(float(errors[min(params // sum(matrix.shape), len(errors) - 1)]), 0.0))
