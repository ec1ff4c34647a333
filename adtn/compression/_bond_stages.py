"""Stages of a compression that make the bonds of generators smaller or larger."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..bondspace import Metric, grow, truncate_together
from ..errors import CompressError, TopologyError
from ..generator import Generator
from ._config import Config
from ._local import LocalTask
from ._model import Layer, Model
from ._samples import first_samples
from ._stage import Stage

_KEPT = 0.5  # of the parameters
_GROWN = 1  # components
_UNUSED = 1e-9  # mean square of gradients, relative to the usual one, of layers without any


@dataclass(frozen=True, kw_only=True)
class BondStages:
    """The stages of one call of :func:`adtn.compress` that change bonds, with what they read of it.

    Parameters
    ----------
    adapter : Model
        The model, which is changed.
    config, stages, layers, tasks, loss, say, dense_params
        See :class:`CompressionRun`.
    data_of : callable
        A function that returns the batches of a stage.
    """

    adapter: Model
    config: Config
    stages: Sequence[Stage]
    layers: Sequence[Layer]
    tasks: Mapping[str, LocalTask]
    data_of: Callable[[Stage], Iterable[Any]]
    loss: Callable[..., Any] | None
    say: Callable[[str], None]
    dense_params: int

    def truncate(self, stage: Stage) -> None:
        """Make bonds smaller where the outputs are expected to lose least: to a part, or to what a budget leaves."""
        generators = {name: own for name, own in self._own().items() if name in self.metrics}
        before = sum(generator.num_params for generator in generators.values())
        if not generators:
            return
        params = self._goal(stage, before)
        if params >= before:
            self.say(f"bonds stay as they are: {before:,} parameters of {params:,}")
            return
        try:
            found = truncate_together(generators, params=params, metrics=self.metrics)
        except TopologyError as error:
            raise CompressError(f"{stage.name!r} cannot make bonds so small: {error}") from error
        self.adapter.exchange({name: own.generator for name, own in found.items() if own.cuts})
        after = sum(own.params[1] for own in found.values())
        self.say(f"bonds truncated from {before:,} to {after:,} parameters")

    def _goal(self, stage: Stage, before: int) -> int:
        budget = self.config.budget
        if budget is None:
            return math.ceil(before * (_KEPT if stage.keep is None else stage.keep))
        most, (total, _) = budget.most(self.dense_params), self.adapter.sizes()
        rest = total - before
        if most <= rest:
            raise CompressError(
                f"Got a budget of {most:,} parameters, of which everything but the generators takes {rest:,}. Allow "
                "more, or choose more layers (targets, smallest)."
            )
        return most - rest

    def grow(self, stage: Stage) -> None:
        """Give every bond more components, in the directions in which the loss of the model changes most."""
        generators = self._own()
        batches = list(first_samples(self.data_of(stage), self.config.samples))
        gradients = self.adapter.weight_gradients(list(generators), batches, self.loss)
        grown: dict[str, Generator] = {}
        for name, gradient in gradients.items():
            try:
                grown[name] = grow(generators[name], None, stage.components or _GROWN, gradient)
            except TopologyError as error:  # it has no bond that can grow, or the layer is not used
                self.say(f"{name}: no bond grows ({error})")
        before, after = (sum(own[name].num_params for name in grown) for own in (generators, grown))
        self.adapter.exchange(grown)
        self.say(f"bonds grown from {before:,} to {after:,} parameters")

    def _own(self) -> dict[str, Generator]:
        """Return the generators of single weights whose cores are not rounded."""
        grouped = {name for layer in self.layers if layer.group for name in layer.weights}
        found = {name: own for name, own in self.adapter.generators().items() if name not in grouped}
        rounded = [name for name, generator in found.items() if generator.precision is not None]
        if rounded:
            self.say(f"the bonds of {', '.join(rounded)} stay as they are, as their cores are rounded")
        return {name: generator for name, generator in found.items() if generator.precision is None}

    @cached_property
    def metrics(self) -> dict[str, Metric]:
        """The second moments of weights with generators of their own in the dense model."""
        stage = next(stage for stage in self.stages if stage.name == "truncate")
        batches = list(first_samples(self.data_of(stage), self.config.samples))
        names = [name for layer in self.layers if not layer.group for name in layer.weights]
        inputs = {name: self.tasks[name].moment for name in names}
        if missing := [name for name, moment in inputs.items() if moment is None]:
            inputs |= self.adapter.second_moments(missing, batches, self.config.samples)
        watched = [name for name in names if inputs.get(name) is not None]
        if wrong := [name for name in watched if not np.isfinite(np.sum(np.asarray(inputs[name])))]:
            raise CompressError(
                f"Got inputs of {wrong[0]} that are NaN or infinite; expected finite numbers. Check the data, the "
                "weights before this layer, and the dtype of the model."
            )
        classes = bool(watched) and self.adapter.has_classes(batches)
        outputs = self.adapter.output_moments(watched, batches, classes=classes) if watched else {}
        sizes = {name: len(self.tasks[name].weight) for name in names}
        reached = set(self.adapter.called([layer.name for layer in self.layers], batches))
        unused = {name for layer in self.layers if layer.name not in reached for name in layer.weights}
        fitting = {name: g for name, g in outputs.items() if g.shape == (sizes[name],) * 2}
        means = {name: float(np.trace(g)) / len(g) for name, g in fitting.items()}
        usual = float(np.median([mean for mean in means.values() if mean > 0.0] or [1.0]))
        found: dict[str, Metric] = {}
        for name in names:
            mean = 0.0 if name in unused else means.get(name, usual)
            mean, eye = max(mean, _UNUSED * usual), np.eye(sizes[name])
            # damped by their mean, as moments of few samples do not see most directions; where gradients cannot be
            # watched, they are taken as those of other layers
            g = fitting[name] + mean * eye if name in fitting else mean * eye
            found[name] = Metric(inputs=inputs.get(name), outputs=g)
        return found
