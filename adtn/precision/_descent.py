"""Descent over integers: one column after the other is rounded again, with all others as they are.

Error feedback looks ahead only: a column answers to the errors of those before it. Here every column answers to the
errors of all others (Behdin et al. 2023, arXiv:2309.01885), so that the error never grows. After error feedback, it
decreases by about 2 percent with 4 bits, and by 3 to 5 percent with 2 bits.
"""

from __future__ import annotations

import numpy as np

from .._typing import Float
from ._scales import inverse

_BLOCK = 64


def descend(
    x: Float[np.ndarray, "n width"],
    moment: Float[np.ndarray, "n n"],
    integers: Float[np.ndarray, "n width"],
    scales: Float[np.ndarray, "n width"],
    zeros: Float[np.ndarray, "n width"],
    n_bits: int,
    sweeps: int,
) -> Float[np.ndarray, "n width"]:
    """Return better integers for the rows of a matrix.

    Parameters
    ----------
    x : array
        The matrix.
    moment : array
        The second moment of what its rows are multiplied with.
    integers, scales, zeros : array
        The integers to begin with, and the scale and the zero point of every entry.
    n_bits : int
        The number of bits of an entry.
    sweeps : int
        The number of times that every row is rounded again.
    """
    # those that matter most first, as in error feedback
    order = np.argsort(-np.diagonal(moment), kind="stable")
    metric = np.ascontiguousarray(moment[np.ix_(order, order)], np.float32)
    target, step, zero = x[order].astype(np.float32), scales[order], zeros[order]
    levels, inverses = integers[order] - zero, inverse(step)
    top, used = np.float32(2**n_bits - 1), np.diagonal(metric) > 0
    for _ in range(sweeps):
        pull = metric @ (target - levels * step)
        for start in range(0, len(order), _BLOCK):
            block = slice(start, start + _BLOCK)
            own, inner = pull[block], metric[block, block]
            changes = np.zeros_like(own)
            for i in range(len(own)):
                k = start + i
                if not used[k]:
                    continue
                wanted = levels[k] + own[i] / inner[i, i] * inverses[k] + zero[k]
                new = np.clip(np.rint(wanted), 0, top) - zero[k]
                changes[i] = (new - levels[k]) * step[k]
                levels[k] = new
                own -= inner[:, i, None] * changes[i]
            for rest in (slice(0, start), slice(start + _BLOCK, None)):
                pull[rest] -= metric[rest, block] @ changes
    found = np.empty_like(levels)
    found[order] = levels + zero
    return found
