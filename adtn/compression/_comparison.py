"""The comparison of a model's outputs with those of the dense one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ._divergence import divergence
from ._model import Model
from ._samples import first_samples

SAMPLES = 128  # samples with which the outputs of models are compared, if they are classes
_VECTORS = 64  # otherwise, as distances vary less from sample to sample
_ROWS, _ENTRIES = 2048, 1 << 24  # of outputs, from which no more batches are compared: a text has many of them


def comparison(model: Model, sample: Iterable[Any], loss: Callable[..., Any] | None) -> Callable[[], float]:
    """Return a function that measures how far the outputs are from what they are now, while the model is dense.

    Parameters
    ----------
    model : Model
    sample : iterable of batches
        The data with which outputs are compared.
    loss : callable, optional
        The loss, whose increase is returned if the outputs are not one array.
    """
    batches = list(first_samples(sample, SAMPLES))
    classes = model.has_classes(batches)
    compared: list[Any] = []
    dense: list[Any] = []
    for batch in batches if classes else first_samples(batches, _VECTORS):
        outputs = model.outputs([batch])
        if outputs is None:
            before = model.loss_on(batches, loss)
            return lambda: model.loss_on(batches, loss) - before
        compared.append(batch)
        dense += outputs
        if sum(map(len, dense)) >= _ROWS or sum(y.size for y in dense) >= _ENTRIES:
            break

    def compare() -> float:
        outputs = model.outputs(compared)
        assert outputs is not None, "the dense model returned arrays"
        return divergence(dense, outputs, classes=classes)

    return compare
