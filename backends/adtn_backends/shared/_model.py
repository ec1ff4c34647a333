"""Whole models whose layers are replaced by generated ones: the part that does not depend on a framework."""

from __future__ import annotations

import math
import statistics
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Generator as Generated
from contextlib import AbstractContextManager, contextmanager, nullcontext
from fnmatch import fnmatchcase
from itertools import islice
from typing import Any, ClassVar

import numpy as np
from adtn import Generator
from adtn._checks import shown
from adtn.backends import backend_of
from adtn.compression import Layer, Tuning, dense_generator, divergence, first_rows, sharing
from adtn.errors import CompressError
from adtn.schedule import decide

from ._adapters import Modules, add_adapter
from ._inputs import WatchedInputs

CACHED_BYTES = 1 << 30
"""The memory for the cached inputs and outputs of one layer."""
LARGEST_OUTPUT = 1 << 23
"""Entries of the outputs of one batch that are compared."""
NO_PARAMETERS = "Got a model without parameters; there is nothing to compress."


def full_name(layer: str, part: str) -> str:
    """Return the name of a weight in a model: that of the layer where it is the layer's only one."""
    return f"{layer}.{part}" if part else layer


def part_of(layer: str, weight: str) -> str:
    """Return the name of a weight in its layer, the inverse of :func:`full_name`."""
    return "" if weight == layer else weight.removeprefix(f"{layer}.")


def rate_of(name: str, rates: Mapping[str, float]) -> float:
    """Return the factor of a parameter's learning rate: that of the first pattern that its name matches."""
    return next((rate for pattern, rate in rates.items() if fnmatchcase(name, pattern)), 1.0)


def refuse_nothing(trained: Any) -> None:
    """Refuse rates that freeze all parameters.

    Raises
    ------
    CompressError
        If no parameter is trained.
    """
    if not trained:
        raise CompressError("Got rates that freeze all parameters; give some of them a rate above 0.")


class ReplacedModel(WatchedInputs):
    """A model with generated layers; an :class:`adtn.compression.Model` that each framework completes.

    Parameters
    ----------
    model : object
        The model of the framework, which is changed in place.
    """

    modules: ClassVar[Modules]
    """The functions with which this framework finds and replaces modules."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._dense: Any = None
        self._originals: dict[str, Any] = {}
        self._shared: set[str] = set()  # the generators of several layers
        self._weights: dict[str, Any] = {}  # by generator, of which several layers may have slices
        self._active: list[tuple[Any, tuple[str, ...], bool]] = []

    # each framework implements these

    @abstractmethod
    def layers(self) -> list[Layer]:
        """List all layers with parameters of their own."""

    @abstractmethod
    def _copied(self) -> Any:
        """Copy the model: the copy is the teacher, and :meth:`restore` puts its values back."""

    @abstractmethod
    def _take_values(self, dense: Any) -> None:
        """Set all parameters to the values that they have in a copy."""

    @abstractmethod
    def _replacements(self, layer: Layer, weights: Mapping[str, Any], places: Mapping[str, Any]) -> dict[str, Any]:
        """Make the generated layers that replace one layer, by the places where they go."""

    @abstractmethod
    def _evaluating(self) -> AbstractContextManager[Any]:
        """Switch the model to evaluation mode inside this block."""

    @abstractmethod
    def _losses(self, data: Iterable[Any], loss: Callable[..., Any] | None) -> list[float]:
        """Return the loss of every batch."""

    @abstractmethod
    def _outputs_on(self, data: Iterable[Any]) -> Iterator[Any]:
        """Yield the outputs of every batch in evaluation mode."""

    @abstractmethod
    def _counted(self, data: Iterable[Any]) -> Iterator[tuple[int, int] | None]:
        """Yield the correct answers and the labels that count of every batch; ``None`` if labels are not classes."""

    @abstractmethod
    def _rows(self, data: Iterable[Any]) -> dict[str, int]:
        """Return the rows of the first batch by installed weight, where it is applied without being generated."""

    @abstractmethod
    def _planned_on(self, weight: Any) -> tuple[str, str | None]:
        """Return the device and the dtype for plans of a weight; ``None`` for the dtype of the generator."""

    @abstractmethod
    def _job(self, name: str, data: Iterable[Any], tuning: Tuning, *, chained: bool) -> tuple[Any, ...]:
        """Return a function that distils one layer, and its arguments; both can be sent to another process.

        The inputs are those in the model as it is now if ``chained``, or else in the dense one; the outputs are always
        those of the dense layer in the dense model.
        """

    @abstractmethod
    def called(self, names: Sequence[str], data: Iterable[Any]) -> list[str]:
        """Return the layers that the first batch reaches, in the order in which they are first called."""

    @abstractmethod
    def _take_generator(self, weight: Any, other: Any) -> None:
        """Set the parameters of a generated weight to those of another one of the same structure."""

    @abstractmethod
    def _take_layer(self, name: str, values: Any) -> None:
        """Set one layer to the values that its distillation returned."""

    def _distilled(self) -> list[str]:
        """Return the names of the layers that are distilled."""
        return list(self._originals)

    def _own_random(self, seed: int) -> AbstractContextManager[Any]:
        """Seed the framework's global random numbers inside this block, where it has such a state."""
        return nullcontext()

    def _changed(self, generators: Mapping[str, Generator]) -> None:
        """Record that these weights are now generated, where the framework stores that."""
        return

    @abstractmethod
    def check(self, tuning: Tuning) -> None:
        """Refuse options of a training that this framework, device or dtype does not have."""

    @abstractmethod
    def _tune(
        self,
        data: Iterable[Any],
        loss: Callable[..., Any] | None,
        tuning: Tuning,
        report: Callable[[int, float], bool | None],
    ) -> list[float]:
        """Train in training mode."""

    # common to all frameworks

    def tune(
        self,
        data: Iterable[Any],
        loss: Callable[..., Any] | None,
        tuning: Tuning,
        report: Callable[[int, float], bool | None],
    ) -> list[float]:
        """Train in training mode, with a cosine schedule of the learning rate, cycling through the batches.

        Cores that are stored as codes are trained with the values that are stored.
        """
        self.check(tuning)
        with self._codes_opened():
            return self._tune(data, loss, tuning, report)

    @contextmanager
    def observing(self) -> Generated[None, None, None]:
        """Switch to evaluation mode inside this block, whose random numbers are not those of a training."""
        with self._own_random(0), self._evaluating():
            yield

    def decode_once(self, once: bool) -> None:
        """Decode codes once, or in every call, which takes less memory."""
        for weight in self._unique_weights():
            weight.decode_once(once)

    @property
    def _alone(self) -> list[str]:
        """The installed weights that have a generator of their own."""
        return [name for name in self._weights if name not in self._shared]

    def _unique_weights(self) -> list[Any]:
        return list({id(weight): weight for weight in self._weights.values()}.values())

    @contextmanager
    def _codes_opened(self) -> Generated[None, None, None]:
        """Train what is stored as codes inside this block; after an error, the codes are what they were."""
        weights = self._unique_weights()
        for weight in weights:
            weight.open_codes()
        trained = False
        try:
            yield
            trained = True
        finally:
            for weight in weights:
                weight.close_codes(store=trained)

    def install(self, generators: Mapping[str, Generator]) -> None:
        """Make all generated layers, and only then replace modules, so that an error changes nothing."""
        owners = {name: layer for layer in self.layers() for name in layer.weights}
        members = {name: (name,) if name in owners else sharing(name) for name in generators}
        wanted = {member for names in members.values() for member in names}
        layers = list({owners[name].name: owners[name] for name in owners if name in wanted}.values())
        self._check(generators, members, owners, layers)
        places = self.modules.places(self.model)
        made: dict[str, Any] = {}
        weights: dict[str, Any] = {}
        for name, generator in generators.items():
            first, *others = members[name]
            made[name] = weights[name] = self.modules.generated(generator, places[owners[first].name])
            if others:
                del weights[name]
                shapes = [owners[member].weights[member] for member in members[name]]
                for member, start, shape in zip(
                    members[name], first_rows(generator.shape, shapes), shapes, strict=True
                ):
                    weights[member] = self.modules.sliced(made[name], start, tuple(shape))
        replacements: dict[str, Any] = {}
        for layer in layers:
            replacements |= self._replacements(layer, weights, places)
        self._dense = self._copied()
        self._originals = {place: places[place] for place in replacements}
        self._weights, self._shared = made, {name for name in made if name not in owners}
        self.decode_once(True)
        for place, module in replacements.items():
            self.modules.put(self.model, place, module)
        self._changed(generators)

    def _check(
        self,
        generators: Mapping[str, Generator],
        members: Mapping[str, Sequence[str]],
        owners: Mapping[str, Layer],
        layers: Sequence[Layer],
    ) -> None:
        for name, generator in generators.items():
            if len(members[name]) > 1 and all(member in owners for member in members[name]):
                self._check_group(name, [owners[member] for member in members[name]])
                continue
            shape = owners[name].weights[name] if name in owners else None
            if shape != generator.shape:
                what = "which is not a weight that can be generated" if shape is None else f"whose shape is {shape}"
                raise CompressError(
                    f"Got a generator of shape {generator.shape} for {name!r}, {what}; pass the model that was "
                    "compressed."
                )
        adapted = {name for name, _ in self.modules.layers(self.model)}
        for layer in layers:
            if layer.name in adapted:
                raise CompressError(f"Layer {layer.name!r} has adapters; merge and remove them first.")

    def _check_group(self, name: str, layers: Sequence[Layer]) -> None:
        if any(layer.tied for layer in layers) or len({layer.place for layer in layers}) > 1:
            raise CompressError(
                f"Got one generator for {name!r}, whose layers have tied weights, or several dtypes or devices "
                f"({', '.join(layer.place for layer in layers)}); pass the model that was compressed."
            )

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
        """Put back the original modules, and the original values of all parameters, which training may have changed."""
        for name, module in self._originals.items():
            self.modules.put(self.model, name, module)
        if self._dense is not None:
            self._take_values(self._dense)
        for layer, active, merged in self._active:
            layer.active = active
            if merged:
                layer.merge()
        self._active = []
        self._originals, self._weights, self._dense, self._shared = {}, {}, None, set()
        self._changed({})

    def generators(self) -> dict[str, Generator]:
        """Return the generators of all installed weights."""
        return {name: weight.generator() for name, weight in self._weights.items()}

    def distill(self, data: Iterable[Any], tuning: Tuning, executor: Any, say: Callable[[str], None]) -> None:
        """Train each layer to reproduce the outputs of the dense one: their mean squared error over their variance.

        Layers are trained one after the other, in the order in which they are called, with the inputs that they have
        behind the layers that are trained already. With an executor, they are trained at the same time, so that all
        inputs are those in the dense model.
        """
        if self._shared:
            raise CompressError(f"Got layers that share a generator, {', '.join(self._shared)}; none is trained alone.")
        names = self._distilled()
        jobs: dict[str, Any] = {}

        def take(name: str, values: Any, first: float, last: float) -> None:
            self._take_layer(name, values)
            say(f"{name}: error of the outputs {first:.4f} -> {last:.4f}")

        with self._codes_opened():
            with self._own_random(tuning.seed):
                if executor is None:
                    for name in dict.fromkeys([*self.called(names, data), *names]):
                        work, *arguments = self._job(name, data, tuning, chained=True)
                        take(name, *work(*arguments))
                    return
                for name in names:
                    jobs[name] = executor.submit(*self._job(name, data, tuning, chained=False))
            for name, job in jobs.items():
                take(name, *job.result())

    def update(self, generators: Mapping[str, Generator]) -> None:
        """Give installed weights other parameters; their structures and precisions are the same."""
        for name, generator in generators.items():
            place = self._originals[sharing(name)[0] if name in self._shared else name]
            self._take_generator(self._weights[name], self.modules.generated(generator, place))

    def exchange(self, generators: Mapping[str, Generator]) -> None:
        """Put other generators of any structure in the places of installed weights."""
        places = self.modules.places(self.model)
        for name, generator in generators.items():
            old = self._weights[name]
            place = name if name in self._originals else name.rpartition(".")[0]  # a part of a layer
            new = self.modules.generated(generator, self._originals[place])
            new.decode_once(True)
            for path, module in places.items():
                if module is old:
                    self.modules.put(self.model, path, new)
            self._weights[name] = new
        self._changed(self.generators())

    def weight_gradients(
        self, names: Sequence[str], data: Iterable[Any], loss: Callable[..., Any] | None
    ) -> dict[str, np.ndarray]:
        """Compute the gradients of the mean loss with respect to installed weights, in evaluation mode."""
        installed = {name: self._weights[name].generator() for name in names}
        self.exchange({name: dense_generator(generator.weight()) for name, generator in installed.items()})
        try:
            return self._gradients(names, data, loss)
        finally:
            self.exchange(installed)

    @abstractmethod
    def _gradients(
        self, names: Sequence[str], data: Iterable[Any], loss: Callable[..., Any] | None
    ) -> dict[str, np.ndarray]:
        """Compute the gradients of the mean loss with respect to the cores of weights that have only one."""

    def loss_on(self, data: Iterable[Any], loss: Callable[..., Any] | None) -> float:
        """Compute the mean loss in evaluation mode."""
        losses = self._losses(data, loss)
        if not losses:
            raise CompressError("Got data without a batch; pass a list or a DataLoader.")
        return statistics.fmean(losses)

    def distance_from_dense(self, data: Iterable[Any]) -> float:
        """Compute the squared distance of the outputs from those of the dense model, over their variance."""
        batches = list(data)
        now, dense = self.outputs(batches), self._outputs_of_dense(batches)
        if now is None or dense is None:
            raise CompressError("Got data without labels for a model that does not return one array; pass loss=.")
        return divergence(dense, now, classes=False)

    def _outputs_of_dense(self, data: Iterable[Any]) -> list[np.ndarray] | None:
        """Compute the outputs of the dense model."""
        model, self.model = self.model, self._dense
        try:
            return self.outputs(data)
        finally:
            self.model = model

    def outputs(self, data: Iterable[Any]) -> list[np.ndarray] | None:
        """Compute the outputs of every batch in evaluation mode; ``None`` if the model does not return one array.

        They are ``(rows, columns)``; of a batch with very many entries, evenly spaced rows.
        """
        outputs: list[np.ndarray] = []
        for y in self._outputs_on(data):
            if not hasattr(y, "shape") or not len(y.shape):
                return None
            rows = spaced_outputs(y)
            outputs.append(backend_of(rows).to_numpy(rows).astype(np.float32))
        return outputs

    def has_classes(self, data: Iterable[Any]) -> bool:
        """Return whether labels are indices of classes that the outputs score."""
        try:
            return next(self._counted(islice(data, 1)), None) is not None
        except CompressError:  # there are no labels
            return False

    def accuracy(self, data: Iterable[Any]) -> float | None:
        """Compute the percentage of labels that have the largest output."""
        correct = total = 0
        for counts in list(self._counted(data)):
            if counts is None:
                return None
            correct, total = correct + counts[0], total + counts[1]
        if not total:
            raise CompressError("Got test data without a batch; pass some, or leave out test=.")
        return 100.0 * correct / total

    def score(self, score: Callable[[Any], Any]) -> float:
        """Compute a user's score of the model in evaluation mode."""
        with self._evaluating():
            value = score(self.model)
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise CompressError(
                f"The function score= returned {shown(value)} for the model; expected a number. Correct the function."
            ) from error

    def predicted_seconds(self, data: Iterable[Any]) -> dict[str, float]:
        """Predict the seconds of each weight for the first batch; for convolutions and embeddings, of generating it."""
        rows = self._rows(data)
        seconds: dict[str, float] = {}
        for name, weight in self._weights.items():
            task, batch = ("apply", rows[name]) if rows.get(name) else ("generate", None)
            device, dtype = self._planned_on(weight)
            plan = decide(weight.generator(), task, device=device, dtype=dtype, batch=batch)
            seconds[name] = plan.predicted_seconds
        return seconds

    def _original(self, name: str) -> Any:
        """Return the dense layer that is or was at a place."""
        module = self._originals[name] if name in self._originals else self.modules.at(self.model, name)
        return self.modules.dense(module)


def spaced_outputs(y: Any) -> Any:
    """Return ``(rows, columns)`` of the outputs of one batch; evenly spaced rows where there are very many entries."""
    rows = y.reshape(-1, y.shape[-1])
    return rows[:: max(math.prod(rows.shape) // LARGEST_OUTPUT, 1)]


def with_inputs(dense: Sequence[Any], now: Sequence[Any]) -> list[Any]:
    """Return calls of a layer with the inputs that it has now and the outputs of the dense one.

    Where the calls do not correspond to each other, as of an expert to which other tokens are routed now, they are
    those of the dense model.

    Parameters
    ----------
    dense, now : sequence of (inputs, options, output)
        The calls for one batch.
    """
    if [y.shape for *_, y in dense] != [y.shape for *_, y in now]:
        return list(dense)
    return [(inputs, options, y) for (*_, y), (inputs, options, _) in zip(dense, now, strict=True)]


def seen_by(layer: str, batches: Iterator[int]) -> None:
    """Draw batches until the cached inputs and outputs of a layer fill :data:`CACHED_BYTES`.

    Parameters
    ----------
    layer : str
        The name of the layer.
    batches : iterator of int
        An iterator that runs the model on one batch after the other, and yields the bytes cached so far.

    Raises
    ------
    CompressError
        If no batch reached the layer.
    """
    cached_bytes = 0
    for cached_bytes in batches:
        if cached_bytes > CACHED_BYTES:
            break
    if not cached_bytes:
        raise CompressError(f"No batch reached layer {layer!r}; pass data that use it.")
