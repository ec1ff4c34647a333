"""The distance between the outputs of a compressed model and those of the dense one, without labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .._typing import Float


def divergence(
    dense: Sequence[Float[np.ndarray, "..."]], compressed: Sequence[Float[np.ndarray, "..."]], *, classes: bool
) -> float:
    """Compute the distance between outputs, means over all batches.

    Parameters
    ----------
    dense, compressed : sequence of numpy.ndarray
        The outputs by batch.
    classes : bool
        Whether the last axis has scores of classes: then it is the Kullback-Leibler divergence of their probabilities
        in nats. Otherwise it is the squared distance over the variance of the dense outputs.

    Examples
    --------
    >>> x = [np.array([[1.0, 0.0], [0.0, 1.0]])]
    >>> divergence(x, x, classes=True)
    0.0
    >>> divergence(x, [np.zeros((2, 2))], classes=False)
    2.0
    """
    a, b = (np.concatenate([y.reshape(-1, y.shape[-1]) for y in ys]).astype(np.float64) for ys in (dense, compressed))
    if not np.isfinite(b).all():
        return float("inf")
    if classes:
        log_p, log_q = _log_softmax(a), _log_softmax(b)
        return float((np.exp(log_p) * (log_p - log_q)).sum(-1).mean())
    return float(((a - b) ** 2).sum() / max(((a - a.mean(0)) ** 2).sum(), np.finfo(float).tiny))


def _log_softmax(x: Float[np.ndarray, "n classes"]) -> Float[np.ndarray, "n classes"]:
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))
