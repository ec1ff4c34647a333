"""The best matrix of low rank in the metric of the inputs."""

from __future__ import annotations

import numpy as np

from .._typing import Float


def whitened_svd(
    weight: Float[np.ndarray, "n_out n_in"], moment: Float[np.ndarray, "n_in n_in"], rank: int
) -> tuple[Float[np.ndarray, "n_out rank"], Float[np.ndarray, "rank n_in"]]:
    r"""Compute the factors that minimise :math:`\mathrm{tr}((W - LR) M (W - LR)^\top)`.

    With the left singular vectors U of :math:`W M^{1/2}`, these are U and :math:`U^\top W`, which is the same as the
    truncated right factor times :math:`M^{-1/2}`, but needs no inverse of a moment that may be singular.

    Parameters
    ----------
    weight : numpy.ndarray
        W.
    moment : numpy.ndarray
        M, symmetric and positive semidefinite.
    rank : int
        The number of columns of L, at most the smaller dimension of W.

    Returns
    -------
    tuple of numpy.ndarray
        L and R, where each column of L has the norm of its row of R.
    """
    n_out, n_in = weight.shape
    if n_out <= n_in:
        left = _leading(weight @ moment @ weight.T, rank)
    else:  # the smaller Gram matrix
        values, vectors = np.linalg.eigh(moment)
        root = vectors * np.sqrt(np.maximum(values, 0.0))
        outputs = weight @ root
        left = outputs @ _leading(outputs.T @ outputs, rank)
    # eigenvectors of a Gram matrix have half of the digits; one step of subspace iteration recovers the others
    basis = np.linalg.qr(left)[0]
    basis = np.linalg.qr(weight @ (moment @ (weight.T @ basis)))[0]
    right = basis.T @ weight
    # the principal axes of the outputs, so that the ranks are in order and could be cut further
    _, vectors = np.linalg.eigh(right @ moment @ right.T)
    turn = vectors[:, ::-1]
    left, right = basis @ turn, turn.T @ right
    scale = np.sqrt(np.maximum(np.linalg.norm(right, axis=1), 1e-300))
    return left * scale, right / scale[:, None]


def _leading(gram: Float[np.ndarray, "n n"], rank: int) -> Float[np.ndarray, "n rank"]:
    return np.linalg.eigh(gram)[1][:, ::-1][:, :rank]
