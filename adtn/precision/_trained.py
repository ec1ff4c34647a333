"""Training of an array that is stored as integers (quantisation-aware training).

The entries ``x`` and a factor ``g`` per group are trained with the values that would be stored:

    q = round(clip(x / (g s) + z, 0, 2^b - 1))        x̂ = (q - z) g s

with the scales ``s`` and the zero points ``z`` of the codes at the start. The derivative of rounding is taken as one
(the straight-through estimator, Bengio et al. 2013, arXiv:1308.3432), so that ``dx̂/dx`` is one inside the range and
zero beyond it, and the scales follow the derivative of learned step sizes (Esser et al. 2020, arXiv:1902.08153). As
``g`` begins at one, optimizers change all scales by about the same relative amount in a step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._typing import Array, Float, Int
from ._coded import LARGEST
from ._codes import Codes
from ._precision import Parts, array_of, matrix_of
from ._round import round_to, with_scales, with_step


@dataclass(frozen=True, kw_only=True)
class Straight:
    """The operations that frameworks call differently.

    Parameters
    ----------
    clip : callable
        ``(x, low, high)``.
    round : callable
        To the nearest integers, half to even.
    stop : callable
        The same array, of which no derivative is taken.
    repeat : callable
        ``(x, n)``: every column ``n`` times.
    take : callable
        ``(x, indices)``: the columns of a matrix with these indices.
    """

    clip: Callable[[Any, float, float], Any]
    round: Callable[[Any], Any]
    stop: Callable[[Any], Any]
    repeat: Callable[[Any, int], Any]
    take: Callable[[Any, Any], Any]


def rounded_through(
    x: Float[Array, "..."],
    scales: Float[Array, "rows groups"],
    zeros: Float[Array, "rows groups"],
    parts: Parts,
    ops: Straight,
    shift: float = 0.0,
    groups: Int[Array, " columns"] | None = None,
) -> Float[Array, "..."]:
    """Round an array to integers with given scales, differentiably.

    Parameters
    ----------
    x : array
        The array that is trained.
    scales, zeros : array
        The scale, also trained, and the zero point of every group.
    parts : Parts
        The shape of the array and its precision.
    ops : Straight
        The functions of the framework.
    shift : float
        What magnitudes are smaller than their integers, of entropy codes.
    groups : array, optional
        The group of each column, where columns are ordered.
    """
    if groups is None:
        step, zero = (ops.repeat(every, parts.group)[:, : parts.columns] for every in (scales, zeros))
    else:
        step, zero = (ops.take(every, groups) for every in (scales, zeros))
    used = step != 0  # a group of zeros stays zero
    levels = matrix_of(x, parts) / (step + ~used)
    if parts.precision.is_coded:
        magnitudes = ops.clip(ops.round(abs(levels) - shift), 0, LARGEST)
        rounded = (magnitudes - shift * (magnitudes > 0)) * (2.0 * (levels > 0) - 1.0)
        return array_of((levels + ops.stop(rounded - levels)) * step, parts)
    levels = ops.clip(levels + zero, 0, 2**parts.precision.n_bits - 1)
    levels = levels + ops.stop(ops.round(levels) - levels)
    return array_of((levels - zero) * step, parts)


def gains_shape(parts: Parts) -> tuple[int, int]:
    """Return the shape of the trained factors of scales: one per group, or a single one for entropy codes."""
    return (1, 1) if parts.precision.is_coded else (parts.rows, parts.groups)


def rounded_again(codes: Codes, x: Float[np.ndarray, "..."], gains: Float[np.ndarray, "rows groups"] | None) -> Codes:
    """Return the codes of a trained array: the nearest integers with the scales of the codes times factors.

    Parameters
    ----------
    codes : Codes
        The codes at the start.
    x : array
        The trained array.
    gains : array or None
        The trained factors of the scales, of entropy codes a single one; ``None`` for floating-point formats.

    Examples
    --------
    >>> import numpy as np
    >>> from adtn.precision import Precision, round_to
    >>> codes = round_to(np.eye(8), Precision("int4"))
    >>> bool((rounded_again(codes, codes.decode(), np.ones((8, 1))).decode() == codes.decode()).all())
    True
    """
    if gains is None:
        return round_to(x, codes.precision)
    if codes.precision.is_coded:
        return with_step(x, codes, float(gains.item()))
    return with_scales(x, codes, codes.scales * gains)
