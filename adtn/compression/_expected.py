r"""Losses that are expected from gradients, where there are too many layers to measure each of them.

With the second moment C of the inputs of a layer and G of the gradients with respect to its outputs, a change D of its
weight is expected to cost :math:`\mathrm{tr}(G D C D^\top)` to second order, if tokens or positions of a sample are
independent of each other (the factors of Martens and Grosse 2015, arXiv:1503.05671). A backward pass over a few batches
has the losses of all layers, where measuring them takes a forward pass for each layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np

from .._typing import Float
from ..errors import CompressError
from ._comparison import Compared
from ._local import LocalTask
from ._model import Layer, Model

_DEAR = 2e13  # multiply-adds of measuring all layers once, about ten minutes of one core
_ROWS = 128  # of outputs, from which no more batches are differentiated


@dataclass(frozen=True, kw_only=True)
class ExpectedLosses:
    """The losses of the outputs of a model that are expected from changes of single weights.

    Parameters
    ----------
    tasks : mapping of str to LocalTask
        With the dense weights and second moments of their inputs.
    curvatures : mapping of str to numpy.ndarray
        G by weight, for all whose losses are expected rather than measured.
    """

    tasks: Mapping[str, LocalTask]
    curvatures: Mapping[str, Float[np.ndarray, "n_out n_out"]] = field(default_factory=dict)

    def of(self, weights: Mapping[str, np.ndarray]) -> float | None:
        """Return the expected loss of a layer with these weights, ``None`` if it has to be measured."""
        if not weights or any(name not in self.curvatures for name in weights):
            return None
        return sum(self._of(name, weight) for name, weight in weights.items())

    def _of(self, name: str, weight: np.ndarray) -> float:
        task, curvature = self.tasks[name], self.curvatures[name]
        change = (np.asarray(weight, np.float64) - task.weight).reshape(len(weight), -1).astype(np.float32)
        moment = np.asarray(task.moment, np.float32)
        return max(float(np.vdot(curvature @ change, change @ moment)), 0.0)


def expected_losses(
    model: Model, layers: Sequence[Layer], tasks: Mapping[str, LocalTask], dense: Compared | None
) -> ExpectedLosses:
    """Compute the curvatures of all layers, if measuring their losses would take long; or else none.

    Parameters
    ----------
    model : Model
        While it is dense.
    layers, tasks
        The layers, and their weights with second moments.
    dense : Compared or None
        Its outputs with which others are compared, if they are one array.
    """
    names = [name for layer in layers if not layer.group for name in layer.weights if tasks[name].moment is not None]
    if not names or dense is None or _products(model, layers, tasks, dense) < _DEAR:
        return ExpectedLosses(tasks=tasks)
    rows = accumulate(map(len, dense.outputs))
    batches = [batch for batch, seen in zip(dense.batches, (0, *rows), strict=False) if seen < _ROWS]
    try:
        found = model.output_moments(names, batches, classes=dense.classes)
    except CompressError:  # gradients do not pass the model
        return ExpectedLosses(tasks=tasks)
    fitting = {name: g for name, g in found.items() if g.shape == (len(tasks[name].weight),) * 2}
    return ExpectedLosses(tasks=tasks, curvatures=fitting)


def _products(model: Model, layers: Sequence[Layer], tasks: Mapping[str, LocalTask], dense: Compared) -> float:
    """Count the multiply-adds with which these layers are measured once, each by a pass through all of them."""
    names = [name for layer in layers if not layer.group for name in layer.weights]
    rows = model.input_rows(names, dense.batches[0])
    return len(layers) * len(dense.batches) * sum(math.prod(tasks[n].weight.shape) * float(k) for n, k in rows.items())
