"""The result of a compression: what has changed, and the report of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from ..generator import Generator, generated_rows
from ..topology import Dense
from ._baselines import Baselines
from ._choose import has_closed_form
from ._model import Layer, Model
from ._quality import faults_of
from ._report import CompressReport
from ._rest import stored_as
from ._rows import Baseline, LayerRow, ModelCost
from ._run import CompressionRun, Outcome
from ._share import members_of
from ._state import state_bytes
from ._within import compressed, makes_file

_BEST_DENSE = "best left dense within this budget"
_CORNER = 96  # rows and columns of a weight that the report shows


@dataclass(frozen=True, kw_only=True)
class Result:
    """A finished run, with what was measured before and after.

    Parameters
    ----------
    run : CompressionRun
        The run, whose model holds the generators.
    outcome : Outcome
        Its outcome.
    generators : mapping of str to Generator
        The generators by weight.
    before, after : ModelCost
        The dense model, and the compressed one.
    predicted : mapping of str to float
        Predicted seconds of a forward pass by weight; empty without data.
    compared : list of Baseline
        The baselines, if they were asked for.
    """

    run: CompressionRun
    outcome: Outcome
    generators: dict[str, Any]
    before: ModelCost
    after: ModelCost
    predicted: Mapping[str, float]
    compared: list[Baseline]

    @classmethod
    def of(cls, run: CompressionRun, before: ModelCost, *, baselines: bool) -> Result:
        """Replace the layers of the model, and measure what that changes."""
        adapter = run.adapter
        if baselines and makes_file(run.config):
            before = replace(before, file_bytes=state_bytes(adapter, {}, None, run.beside))
        outcome = compressed(run, before)
        adapter.decode_once(not run.config.allow_slower)
        after = cost_of(adapter, run.test, run.loss, run.score)
        generators = adapter.generators()
        run.say.stage("measurements")
        sample = run.test if run.test is not None else run.data
        predicted = adapter.predicted_seconds(sample) if sample is not None else {}
        if sample is not None:
            dense_pass, own_pass = adapter.forward_costs(sample)
            before, after = before.with_forward(dense_pass), after.with_forward(own_pass)
        compared: list[Baseline] = []
        if baselines:
            after = replace(after, file_bytes=outcome.file_bytes)
            replaced = frozenset(generators)
            compared = Baselines(run=run, replaced=replaced, before=before, result=after, rest=outcome.rest).measure()
        return cls(
            run=run,
            outcome=outcome,
            generators=generators,
            before=before,
            after=after,
            predicted=predicted,
            compared=compared,
        )

    @cached_property
    def rows(self) -> list[LayerRow]:
        """The layers that were replaced."""
        replaced = [layer for layer in self.run.layers if _is_replaced(layer, self.generators)]
        return [_row(layer, self.outcome, self.generators, self.predicted) for layer in replaced]

    def faults(self, *, trained: bool) -> list[str]:
        """Describe what is bad about the result."""
        # an adapter starts at zero, beside the dense weight: its local error says nothing
        says_little = trained or self.run.config.mode == "adapter"
        return faults_of(self.rows, self.before, self.after, trained=says_little)

    def report(self, dense: dict[str, str], *, title: str, seconds: float, faults: list[str]) -> CompressReport:
        """Return the report, with layers that stay dense for these reasons, or because that is best."""
        generators, layers = self.generators, self.run.layers
        best = _BEST_DENSE
        if self.outcome.file_bytes is not None:
            best += f", stored {stored_as(self.outcome.rest)}"
        corners = {
            name: (_corner(task.weight), _corner(generators[name]))
            for name, task in self.run.tasks.items()
            if name in generators
        }
        return CompressReport(
            config=self.run.config,
            layers=self.rows,
            dense=dense | {layer.name: best for layer in layers if not _is_replaced(layer, generators)},
            before=self.before,
            after=self.after,
            losses=self.outcome.losses,
            seconds=seconds,
            generators=generators,
            corners=corners,
            title=title,
            warnings=faults,
            baselines=self.compared,
            rest=self.outcome.rest,
            file_bytes=self.outcome.file_bytes,
        )


def cost_of(
    adapter: Model,
    test: Iterable[Any] | None,
    loss: Callable[..., Any] | None,
    score: Callable[[Any], Any] | None,
) -> ModelCost:
    """Measure the size and the quality of the model as it is."""
    params, size = adapter.sizes()
    accuracy, mean = (None, None) if test is None else (adapter.accuracy(test), adapter.loss_on(test, loss))
    return ModelCost(
        params=params,
        bytes=size,
        accuracy=accuracy,
        forward_seconds=None,
        forward_peak_bytes=None,
        loss=mean,
        score=adapter.score(score) if score is not None else None,
        resident_bytes=adapter.resident_bytes(),
    )


def _corner(weight: np.ndarray | Generator) -> np.ndarray:
    """Return at most 96 rows and columns in float32; a generator makes only these rows."""
    if isinstance(weight, Generator):
        arrays = weight.arrays("numpy:cpu", "float32")
        index = np.arange(min(_CORNER, weight.shape[0]))
        rows = generated_rows(weight, arrays, index, lambda digits, d: np.eye(d, dtype=np.float32)[digits])
    else:
        rows = weight[:_CORNER]
    return np.asarray(rows, np.float32).reshape(len(rows), -1)[:, :_CORNER]


def _is_replaced(layer: Layer, generators: Mapping[str, Any]) -> bool:
    return not generators.keys().isdisjoint(layer.weights)


def _row(layer: Layer, outcome: Outcome, generators: Mapping[str, Any], predicted: Mapping[str, float]) -> LayerRow:
    parts = [generators[name] for name in layer.weights]
    shapes = members_of(layer).values()
    dense = sum(map(math.prod, shapes))
    return LayerRow(
        name=layer.name,
        kind=layer.kind,
        shapes=tuple(tuple(s) for s in shapes),
        topology=_described(parts),
        dense=dense,
        params=sum(g.num_params for g in parts),
        dense_bytes=dense * layer.itemsize,
        bytes=sum(g.nbytes if g.precision is not None else g.num_params * layer.itemsize for g in parts),
        active=sum(g.num_params if has_closed_form(g.topology) else g.num_active_params for g in parts),
        local_errors=[outcome.results[name].relative_error for name in layer.weights],
        tied=layer.tied,
        sensitivity=outcome.sensitivities.get(layer.name),
        predicted_seconds=sum(predicted[n] for n in layer.weights) if predicted else None,
    )


def _described(parts: Sequence[Generator]) -> str:
    """Describe how the weights of a layer are stored, each one where they are not all alike."""
    found = [_format_of(generator) for generator in parts]
    return found[0] if len(set(found)) == 1 else " + ".join(found)


def _format_of(generator: Generator) -> str:
    """Describe how a weight is stored."""
    if generator.precision is None:
        return str(generator.topology)
    if isinstance(generator.topology, Dense):
        return str(generator.precision)
    return f"{generator.topology}, {generator.precision}"
