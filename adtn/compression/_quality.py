"""Warnings about a result that is much worse than the dense model."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ._rows import LayerRow, ModelCost

_LARGEST_ERROR = 0.5  # relative; beyond it a layer that nothing is trained for hardly resembles the dense one
_POINTS = 2.0  # of accuracy or score
_SHARE = 0.05  # of a score, as scores between 0 and 1 never fall by 2 points
_GROWTH = 0.1  # of the loss on the test data
_NATS = 0.1  # the least growth of a loss beside an accuracy, as a loss near 0 grows manifold without any harm
_NAMED = 5  # layers that a warning names


def faults_of(layers: Sequence[LayerRow], before: ModelCost, after: ModelCost, *, trained: bool) -> list[str]:
    """Describe what is bad about a result, with one sentence per kind of fault and what to do about it.

    Parameters
    ----------
    layers : sequence of LayerRow
        The replaced layers.
    before, after : ModelCost
    trained : bool
        Whether generators were trained after the local fits, whose errors then say little.
    """
    found = [] if trained else _local(layers)
    return [*found, *_lost(before, after)]


def _local(layers: Sequence[LayerRow]) -> list[str]:
    far = {r.name: max(r.local_errors) for r in layers if not max(r.local_errors, default=0.0) <= _LARGEST_ERROR}
    if not far:
        return []
    # the largest first, as the first ones are named
    names = [f"{name} ({error:.2f})" for name, error in sorted(far.items(), key=lambda item: -item[1])]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return [
        f"{len(far)} of {len(layers)} layers have a relative error above {_LARGEST_ERROR}, and nothing was trained: "
        f"{', '.join(names[:_NAMED])}{more}. Allow a larger size, exclude these layers, or pass data= to train."
    ]


def _lost(before: ModelCost, after: ModelCost) -> list[str]:
    if before.quality is not None and after.quality is not None:
        lost = before.quality - after.quality
        is_score = before.score is not None
        if not math.isfinite(after.quality):  # an infinite score is no better than NaN
            what, other = ("score", ", or correct the function score=") if is_score else ("accuracy", "")
            return [
                f"The {what} was {before.quality:.4g} and is {after.quality} now, which says nothing about the result. "
                f"Allow a larger size, or lower tune_lr{other}."
            ]
        most = min(_POINTS, _SHARE * abs(before.quality)) if is_score else _POINTS
        if not lost <= most:
            what, digits = ("score", ".4g") if is_score else ("accuracy", ".2f")
            return [
                f"The {what} falls by {lost:{digits}}, from {before.quality:{digits}} to {after.quality:{digits}}. "
                "Allow a larger size, or train longer (tune_steps)."
            ]
    if before.loss is not None and after.loss is not None and math.isfinite(before.loss):
        grown = after.loss - before.loss
        least = 0.0 if before.quality is None else _NATS
        if not grown <= max(_GROWTH * abs(before.loss), least):
            return [
                f"The loss on the test data grows from {before.loss:.4f} to {after.loss:.4f}. Allow a larger size, or "
                "train longer (tune_steps)."
            ]
    return []
