"""The comparison of a model's outputs with those of the dense one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import CompressError
from ._divergence import divergence
from ._model import Model
from ._samples import first_samples

SAMPLES = 128  # samples with which the outputs of models are compared, if they are classes
_VECTORS = 64  # otherwise, as distances vary less from sample to sample
_ROWS, _ENTRIES = 2048, 1 << 24  # of outputs, from which no more batches are compared: a text has many of them


@dataclass(frozen=True, kw_only=True)
class Compared:
    """The outputs of the dense model with which others are compared.

    Parameters
    ----------
    batches : sequence of batches
    outputs : sequence of numpy.ndarray
        By batch.
    classes : bool
        Whether they score classes.
    """

    batches: Sequence[Any]
    outputs: Sequence[np.ndarray]
    classes: bool


def compared_outputs(model: Model, sample: Iterable[Any]) -> Compared | None:
    """Compute outputs of as many batches as are compared; ``None`` if they are not one array.

    Parameters
    ----------
    model : Model
        While it is dense.
    sample : iterable of batches

    Raises
    ------
    CompressError
        If the dense model returns NaN.
    """
    batches = list(first_samples(sample, SAMPLES))
    classes = model.has_classes(batches)
    compared: list[Any] = []
    dense: list[Any] = []
    for batch in batches if classes else first_samples(batches, _VECTORS):
        outputs = model.outputs([batch])
        if outputs is None:
            return None
        if any(np.isnan(y).any() for y in outputs):
            raise CompressError(
                "Got data for which the dense model returns NaN, so that no choice can be compared with it; check "
                "that the batches and the parameters of the model are finite."
            )
        compared.append(batch)
        dense += outputs
        if sum(map(len, dense)) >= _ROWS or sum(y.size for y in dense) >= _ENTRIES:
            break
    return Compared(batches=compared, outputs=dense, classes=classes)


def comparison(
    model: Model, sample: Iterable[Any], loss: Callable[..., Any] | None, known: Compared | None = None
) -> Callable[[], float]:
    """Return a function that measures how far the outputs are from what they are now, while the model is dense.

    Parameters
    ----------
    model : Model
    sample : iterable of batches
        The data with which outputs are compared.
    loss : callable, optional
        The loss, whose increase is returned if the outputs are not one array.
    known : Compared, optional
        The outputs of the dense model, where they have been computed already.

    Raises
    ------
    CompressError
        If the dense model returns NaN.
    """
    dense = known or compared_outputs(model, sample)
    if dense is None:
        batches = list(first_samples(sample, SAMPLES))
        before = model.loss_on(batches, loss)
        return lambda: model.loss_on(batches, loss) - before

    def compare() -> float:
        outputs = model.outputs(dense.batches)
        assert outputs is not None, "the dense model returned arrays"
        return divergence(dense.outputs, outputs, classes=dense.classes)

    return compare
