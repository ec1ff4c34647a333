"""Whole models whose layers are replaced by generated ones: all that touches no arrays of a framework."""

from __future__ import annotations

import statistics
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import numpy as np
from adtn import Generator
from adtn.compression import Layer, Tuning
from adtn.errors import CompressError
from adtn.schedule import decide

from ._adapters import Modules, add_adapter

CACHED_BYTES = 1 << 30
"""Of one layer's inputs and outputs."""
LARGEST_MOMENT = 1 << 26
"""Entries: beyond, the second moment of the inputs takes more than the weight is worth."""
NO_PARAMETERS = "Got a model without parameters; there is nothing to compress."


def full_name(layer: str, part: str) -> str:
    """The name of a weight in a model; the only one of a layer is called as the layer."""
    return f"{layer}.{part}" if part else layer


def part_of(layer: str, weight: str) -> str:
    """The name of a weight in its layer, the inverse of :func:`full_name`."""
    return "" if weight == layer else weight.removeprefix(f"{layer}.")


def rate_of(name: str, rates: Mapping[str, float]) -> float:
    """The factor of the learning rate of a parameter: that of the first pattern that its name matches."""
    return next((rate for pattern, rate in rates.items() if fnmatchcase(name, pattern)), 1.0)


def refuse_nothing(trained: Any) -> None:
    """Refuse rates that freeze all parameters.

    Raises
    ------
    CompressError
        If there is nothing to train.
    """
    if not trained:
        raise CompressError("Got rates that leave nothing to train; give some parameters a rate above 0.")


class Moments:
    """Means of ``x xᵀ`` over rows that come batch by batch."""

    def __init__(self) -> None:
        self._sums: dict[str, np.ndarray] = {}
        self._counts: dict[str, int] = {}

    def add(self, name: str, products: np.ndarray, rows: int) -> None:
        """Add the sum over some rows."""
        self._sums[name] = self._sums[name] + products if name in self._sums else products
        self._counts[name] = self._counts.get(name, 0) + rows

    def means(self) -> dict[str, np.ndarray]:
        """All of them, by name."""
        return {name: total / self._counts[name] for name, total in self._sums.items()}


class ReplacedModel(ABC):
    """A model with generated layers; see :class:`adtn.compression.Model`, which the frameworks complete.

    Parameters
    ----------
    model : object
        Of the framework; changed in place.
    """

    modules: ClassVar[Modules]
    """How this framework finds and replaces modules."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._dense: Any = None
        self._originals: dict[str, Any] = {}
        self._weights: dict[str, Any] = {}
        self._active: list[tuple[Any, tuple[str, ...], bool]] = []

    # what a framework adds

    @abstractmethod
    def layers(self) -> list[Layer]:
        """List all layers with parameters of their own."""

    @abstractmethod
    def _copied(self) -> Any:
        """A copy of the model: the teacher, and what :meth:`restore` puts back."""

    @abstractmethod
    def _take_values(self, dense: Any) -> None:
        """Give all parameters the values that they have in a copy."""

    @abstractmethod
    def _replacements(self, layer: Layer, weights: Mapping[str, Any], places: Mapping[str, Any]) -> dict[str, Any]:
        """Make the generated layers in place of one, by all places where they belong."""

    @abstractmethod
    def _evaluating(self) -> AbstractContextManager[Any]:
        """Set the model to inference, inside of this block."""

    @abstractmethod
    def _losses(self, data: Iterable[Any], loss: Callable[..., Any] | None) -> list[float]:
        """Losses of all batches."""

    @abstractmethod
    def _counted(self, data: Iterable[Any]) -> Iterator[tuple[int, int] | None]:
        """Right answers and labels that count, by batch; nothing where labels number no classes."""

    @abstractmethod
    def _rows(self, data: Iterable[Any]) -> dict[str, int]:
        """Rows that installed weights are applied to in the first batch; others make their weight."""

    @abstractmethod
    def _planned_on(self, weight: Any) -> tuple[str, str | None]:
        """Device and dtype for plans of a weight; no dtype for that of the generator."""

    @abstractmethod
    def _job(self, name: str, data: Iterable[Any], tuning: Tuning) -> tuple[Any, ...]:
        """A function and its arguments, which can go to another process, that distils one layer."""

    @abstractmethod
    def _take_layer(self, name: str, made: Any) -> None:
        """Give one layer the values that came back."""

    def _distilled(self) -> list[str]:
        """Names of the layers that are distilled."""
        return list(self._originals)

    def _own_random(self, seed: int) -> AbstractContextManager[Any]:
        """Draw random numbers from a seed inside of this block, where the framework has a global state of them."""
        return nullcontext()

    def _changed(self, generators: Mapping[str, Generator]) -> None:
        """Note that these weights are generated now, where the framework writes it down."""
        return

    # what all have in common

    def install(self, generators: Mapping[str, Generator]) -> None:
        """Make all generated layers; then modules change places."""
        layers = [layer for layer in self.layers() if not generators.keys().isdisjoint(layer.weights)]
        self._check(generators, layers)
        owners = {name: layer for layer in layers for name in layer.weights}
        places = self.modules.places(self.model)
        weights = {
            name: self.modules.generated(generator, places[owners[name].name]) for name, generator in generators.items()
        }
        made: dict[str, Any] = {}
        for layer in layers:
            made |= self._replacements(layer, weights, places)
        self._dense = self._copied()
        self._originals = {place: places[place] for place in made}
        self._weights = weights
        for place, module in made.items():
            self.modules.put(self.model, place, module)
        self._changed(generators)

    def _check(self, generators: Mapping[str, Generator], layers: Sequence[Layer]) -> None:
        shapes = {name: shape for layer in layers for name, shape in layer.weights.items()}
        for name, generator in generators.items():
            if shapes.get(name) != generator.shape:
                raise CompressError(
                    f"Got a generator of {generator.shape} for {name!r}, whose weight is {shapes.get(name)}; "
                    "pass the model that was compressed."
                )
        adapted = {name for name, _ in self.modules.layers(self.model)}
        for layer in layers:
            if layer.name in adapted:
                raise CompressError(f"Layer {layer.name!r} has adapters; merge and remove them first.")

    def adapt(self, generators: Mapping[str, Generator], name: str) -> None:
        """Add an adapter; layers that have others are changed back by :meth:`restore`."""
        before = [layer for _, layer in self.modules.layers(self.model)]
        self._active = [(layer, layer.active, layer.merged) for layer in before]
        for layer in before:
            layer.unmerge()
        self._dense = self._copied()
        originals = self.modules.places(self.model)
        add_adapter(self.model, generators, name)
        self._originals = {where: originals[where] for where in generators}
        places = self.modules.places(self.model)
        self._weights = {where: places[where].adapters[name].generated for where in generators}

    def restore(self) -> None:
        """Put the very modules back, with the values they had: training may have changed others, too."""
        for name, module in self._originals.items():
            self.modules.put(self.model, name, module)
        if self._dense is not None:
            self._take_values(self._dense)
        for layer, active, merged in self._active:
            layer.active = active
            if merged:
                layer.merge()
        self._active = []
        self._originals, self._weights, self._dense = {}, {}, None
        self._changed({})

    def generators(self) -> dict[str, Generator]:
        """Generators of all installed weights."""
        return {name: weight.generator() for name, weight in self._weights.items()}

    def distill(self, data: Iterable[Any], tuning: Tuning, executor: Any, say: Callable[[str], None]) -> None:
        """Train by the mean squared error of the outputs, in units of their spread."""
        jobs: dict[str, Any] = {}
        with self._own_random(tuning.seed):
            for name in self._distilled():
                work, *arguments = self._job(name, data, tuning)
                jobs[name] = work(*arguments) if executor is None else executor.submit(work, *arguments)
        for name, job in jobs.items():
            made, first, last = job if executor is None else job.result()
            self._take_layer(name, made)
            say(f"{name}: outputs' error {first:.4f} -> {last:.4f}")

    def loss_on(self, data: Iterable[Any], loss: Callable[..., Any] | None) -> float:
        """Mean loss in evaluation mode."""
        losses = self._losses(data, loss)
        if not losses:
            raise CompressError("Got data without a batch; pass a list or a DataLoader.")
        return statistics.fmean(losses)

    def accuracy(self, data: Iterable[Any]) -> float | None:
        """Percentage of labels that have the largest output."""
        right = total = 0
        for counts in list(self._counted(data)):
            if counts is None:
                return None
            right, total = right + counts[0], total + counts[1]
        if not total:
            raise CompressError("Got test data without a batch; pass some, or leave test out.")
        return 100.0 * right / total

    def score(self, score: Callable[[Any], Any]) -> float:
        """Score in evaluation mode."""
        with self._evaluating():
            return float(score(self.model))

    def predicted_seconds(self, data: Iterable[Any]) -> dict[str, float]:
        """Seconds by the plans for the first batch; convolutions and embeddings are priced by their weights."""
        rows = self._rows(data)
        seconds: dict[str, float] = {}
        for name, weight in self._weights.items():
            task, batch = ("apply", rows[name]) if rows.get(name) else ("generate", None)
            device, dtype = self._planned_on(weight)
            plan = decide(weight.generator(), task, device=device, dtype=dtype, batch=batch)
            seconds[name] = plan.predicted_seconds
        return seconds

    def _original(self, name: str) -> Any:
        """The dense layer that is or was at a place."""
        module = self._originals[name] if name in self._originals else self.modules.at(self.model, name)
        return self.modules.dense(module)


def seen_by(layer: str, batches: Iterator[int]) -> None:
    """Draw batches until what a layer saw of them takes the memory for it.

    Parameters
    ----------
    layer : str
        Its name.
    batches : iterator of int
        Runs the model on a batch, and tells the bytes of all that was seen.

    Raises
    ------
    CompressError
        If the layer saw nothing.
    """
    held = 0
    for held in batches:
        if held > CACHED_BYTES:
            break
    if not held:
        raise CompressError(f"No batch reached layer {layer!r}; pass data that use it.")
