"""The stages of compressing a model."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from .._atomic import write_atomic
from ..errors import CompressError, OutputWarning
from ..generator import Generator
from ..optim import Callback, Observer, Snapshot, fingerprint, is_due
from ..precision import Precision
from ._bond_stages import BondStages
from ._comparison import SAMPLES, comparison
from ._compensate import NORMALISED, compensate, waves
from ._config import Config
from ._learning_rate import SHORTEST, largest_good_rate
from ._local import Executor, LocalResult, LocalTask, run_local, solve
from ._model import Layer, Model, Tuning
from ._progress import Progress
from ._samples import first_batches, first_samples
from ._stage import Stage
from ._storage import to_bytes

_BATCHES = 64  # batches of a list that are compared when a training continues
_NORMALISED = 3072  # samples by which running statistics are corrected


@dataclass(frozen=True)
class Outcome:
    """The outcome of all stages; the model holds its generators.

    Parameters
    ----------
    results : mapping of str to LocalResult
        Results of the local fits, by weight.
    losses : list of float
        Losses of the training of the whole model.
    sensitivities : mapping of str to float
        Sensitivities by layer, if there is a budget.
    rest : Precision or None
        The precision that was chosen for what is not generated, to whose values it is rounded.
    file_bytes : int or None
        The size of the file of the state, for a budget in bytes or another precision of what is not generated.
    """

    results: Mapping[str, LocalResult]
    losses: list[float]
    sensitivities: Mapping[str, float] = field(default_factory=dict)
    rest: Precision | None = None
    file_bytes: int | None = None


@dataclass(kw_only=True)
class CompressionRun:
    """A call of :func:`adtn.compress`, with its arguments.

    ``narrows`` says whether what is not among the layers may be stored in another precision, ``joins`` whether layers
    may share a generator without being told to, and ``beside`` has the digests of other files of the model, which its
    file lists. ``scales`` are those of rows of generators that layers came to share, and ``dense_params`` is the size
    of the dense model.
    """

    adapter: Model
    config: Config
    stages: Sequence[Stage]
    layers: Sequence[Layer]
    tasks: Mapping[str, LocalTask]
    data: Iterable[Any] | None
    test: Iterable[Any] | None
    validation: Iterable[Any] | None
    loss: Callable[..., Any] | None
    score: Callable[[Any], Any] | None
    executor: Executor | None
    folder: Path | None
    say: Progress
    narrows: bool = True
    joins: bool = True
    beside: Mapping[str, str] = field(default_factory=dict)
    checkpoints: set[Path] = field(default_factory=set)
    scales: Mapping[str, np.ndarray] = field(default_factory=dict)
    callbacks: Sequence[Callback | Observer] = ()
    dense_params: int = 0

    def remove_checkpoints(self) -> None:
        """Delete the checkpoints of a finished training."""
        for path in self.checkpoints:
            path.unlink(missing_ok=True)

    def run_stages(self, tasks: Mapping[str, LocalTask], found: Mapping[str, LocalResult] | None = None) -> Outcome:
        """Run all stages, starting with local fits unless their results are given."""
        config = self.config

        if found is None:
            self.say.stage("local fits", len(tasks))

        def done(result: LocalResult) -> None:
            self.say.advance()
            self.say(f"{result.name}: relative error {result.relative_error:.4f}")

        results = dict(found or {r.name: r for r in run_local(list(tasks.values()), self.executor, self.folder, done)})
        generators = {name: r.generator for name, r in results.items()}
        tuned = [stage for stage in self.stages if stage.name == "finetune"]
        if config.restarts > 1 and not any(task.steps for task in tasks.values()) and tuned:
            generators = self._best_seed(tasks, tuned[0])
        if any(stage.name == "compensate" for stage in self.stages):
            _ = self.compensation  # while nothing is replaced
        if any(stage.name == "truncate" for stage in self.stages):
            _ = self.bond_stages.metrics
        self.install(generators)
        losses: list[float] = []
        for n, stage in enumerate(self.stages):
            if stage.name == "normalise":
                self.normalise(stage)
            if stage.name == "compensate":
                self.compensate()
            if stage.name == "truncate":
                self.bond_stages.truncate(stage)
            if stage.name == "grow":
                self.bond_stages.grow(stage)
            if stage.name == "distill-local" and stage.trains:
                self.say.stage("distillation of layers")
                self.adapter.distill(self.data_of(stage), config.tuning(stage), self.executor, self.say)
            if stage.name == "finetune" and stage.trains:
                losses += self._tune(stage, place=n)
        return Outcome(results, losses)

    def normalise(self, stage: Stage) -> None:
        """Correct the running statistics of batch normalisation, if there are any."""
        if self.adapter.normalise(first_samples(self.data_of(stage), _NORMALISED)):
            self.say("running statistics of batch normalisation corrected")

    def compensate(self) -> None:
        """Decompose weights behind the layers before them, if the outputs become closer to those of the dense model."""
        batches, compare = self.compensation
        with self.adapter.in_turn(batches[0]) as goes_on:
            groups = waves(self.adapter, batches, single=goes_on)
            if not groups:
                return
            state = self.adapter.state()
            self.adapter.normalise(first_samples(batches, NORMALISED))  # as afterwards
            before = compare()
            self.say.stage("compensation", len(groups))
            compensate(self.adapter, batches, groups, self.say.advance, self.scales)
        after = compare()
        self.say(f"compensation of earlier errors changes what the outputs lose from {before:.4g} to {after:.4g}")
        if not after < before:
            self.adapter.set_state(state)

    @cached_property
    def bond_stages(self) -> BondStages:
        """The stages that change the bonds of generators."""
        return BondStages(
            adapter=self.adapter,
            config=self.config,
            stages=self.stages,
            layers=self.layers,
            tasks=self.tasks,
            data_of=self.data_of,
            loss=self.loss,
            say=self.say,
            dense_params=self.dense_params,
        )

    @cached_property
    def compensation(self) -> tuple[Sequence[Any], Callable[[], float]]:
        """The batches for second moments and a comparison on others if there are more; made before any is replaced."""
        stage = next(stage for stage in self.stages if stage.name == "compensate")
        batches = list(first_samples(self.data_of(stage), self.config.samples + SAMPLES))
        used = list(first_samples(batches, self.config.samples))
        others = batches[len(used) :] or used if self.validation is None else self.validation
        return used, comparison(self.adapter, others, self.loss)

    @property
    def _training_data(self) -> Iterable[Any]:
        if self.data is None:
            names = ", ".join(stage.name for stage in self.stages)
            raise CompressError(f"Got stages {names} without data; expected batches. Pass data=.")
        return self.data

    def data_of(self, stage: Stage) -> Iterable[Any]:
        """Return the batches that a stage may use."""
        return first_batches(self._training_data, stage.batches)

    def _best_seed(self, tasks: Mapping[str, LocalTask], stage: Stage) -> dict[str, Generator]:
        """Choose a seed by successive halving of seeds, with twice the steps per rung, by the model's own loss."""
        running = [
            {n: solve(replace(task, seed=task.seed + k)).generator for n, task in tasks.items()}
            for k in range(self.config.restarts)
        ]
        steps = max((stage.steps or 0) // (2 * len(running)), 1)
        while len(running) > 1:
            scored: list[tuple[float, dict[str, Generator]]] = []
            for generators in running:
                self.install(generators)
                losses = self._tune(replace(stage, steps=steps))
                scored.append((sum(losses[-max(steps // 4, 1) :]), self.adapter.generators()))
                self.adapter.restore()
            scored.sort(key=lambda one: one[0])
            running = [generators for _, generators in scored[: (len(scored) + 1) // 2]]
            self.say(f"{len(scored)} seeds trained for {steps} steps, {len(running)} go on")
            steps *= 2
        return running[0]

    def install(self, generators: Mapping[str, Generator]) -> None:
        if self.config.mode == "adapter":
            self.adapter.adapt(generators, self.config.adapter)
        else:
            self.adapter.install(generators)

    def _tune(self, stage: Stage, place: int | None = None) -> list[float]:
        """Train the model, with progress and checkpoints in a stage at some place; a rung has neither."""
        data, tuning = self.data_of(stage), self.config.tuning(stage, self._is_labelled)
        if place is None:
            return self.adapter.tune(data, self.loss, tuning, lambda step, value: None)
        if self.folder is not None:
            # other data are compared when the training continues, as they are drawn again anyway
            first = data[:_BATCHES] if isinstance(data, list | tuple) else None
            count = len(data) if isinstance(data, Sized) else None
            start = {name: to_bytes(generator) for name, generator in self.adapter.generators().items()}
            digest = self.adapter.digest()
            mark = fingerprint(repr(self.config), repr(tuning), place, start, digest, self.loss, first, count)
            path = self.folder / f"training-{mark[:16]}"
            tuning = replace(tuning, checkpoint=path)
            self.checkpoints.add(path)
        held = list(first_samples(data if self.validation is None else self.validation, SAMPLES))
        before, state = self._measured_on(held, tuning.distill), self.adapter.state()
        if stage.lr is None and tuning.steps >= SHORTEST:
            tuning = replace(tuning, lr=self._good_rate(data, tuning, held, before))
            self.stages = [replace(one, lr=tuning.lr) if n == place else one for n, one in enumerate(self.stages)]

        def report(step: int, value: float) -> bool:
            self.say.advance(step)
            if step % tuning.every == 0:
                self.say(f"step {step} of {tuning.steps}: loss {value:.4f}")
            return self._show(step, value, tuning.steps)

        self.say.stage("training", tuning.steps)
        tuning = replace(tuning, observe_every=math.gcd(*(one.every for one in self._observers), 0))
        losses = [] if self._show(0, math.nan, tuning.steps) else self.adapter.tune(data, self.loss, tuning, report)
        after = self._measured_on(held, tuning.distill)
        if not after <= before:
            self.say(f"training ended at {after:.4f}, above {before:.4f} where it began; its result is discarded")
            self.adapter.set_state(state)
        return losses

    @property
    def _observers(self) -> list[Observer]:
        return [one for one in self.callbacks if isinstance(one, Observer)]

    def _show(self, step: int, loss: float, last: int) -> bool:
        """Call the callbacks after an update, and the observers whose turn it is; return whether one asks to stop."""
        plain = [one for one in self.callbacks if step and not isinstance(one, Observer)]
        stops = [callback(step - 1, loss) for callback in plain]
        if due := [one for one in self._observers if is_due(one, step, last)]:
            with self.adapter.observing():
                own = Snapshot(step=step, loss=loss, generators=self.adapter.generators(), model=self.adapter.model)
                stops += [one.observe(own) for one in due]
        return any(stops)

    def _good_rate(self, data: Iterable[Any], tuning: Tuning, held: Sequence[Any], before: float) -> float:
        """Try learning rates for a tenth of the steps, or read what was found before the training was interrupted."""
        known = None if tuning.checkpoint is None else tuning.checkpoint.with_suffix(".rate")
        if known is not None:
            self.checkpoints.add(known)
            with suppress(OSError, ValueError):  # it was not written, or is damaged
                return float(known.read_text())
        state, few = self.adapter.state(), replace(tuning, steps=tuning.steps // 10, checkpoint=None)

        def loss_after(rate: float) -> float:
            try:
                self.adapter.tune(data, self.loss, replace(few, lr=rate), lambda step, value: None)
                found = self._measured_on(held, tuning.distill)
            except CompressError:  # the loss became infinite
                found = math.inf
            self.adapter.set_state(state)
            self.say(f"learning rate {rate:g}: loss {found:.4f} after {few.steps} steps, {before:.4f} before")
            return found

        rate = largest_good_rate(loss_after, before)
        if known is not None:
            try:
                write_atomic(known, repr(rate).encode())
            except OSError as error:
                text = f"The learning rate was not written to {known} ({error}); the training continues."
                warnings.warn(text, OutputWarning, stacklevel=2)
        return rate

    @cached_property
    def _is_labelled(self) -> bool:
        """Whether there is a loss without a teacher: the user's, the model's own, or the cross entropy."""
        try:
            self.adapter.loss_on(islice(self._training_data, 1), self.loss)
        except CompressError as error:  # there are no labels, or they are real numbers
            if self.config.budget is not None and self.config.distill is None:
                self.say(f"trained by the outputs of the dense model alone: {error}")
            return False
        return True

    def _measured_on(self, batches: Sequence[Any], distill: float) -> float:
        """Measure the loss, or without labels how far the outputs are from those of the dense model."""
        if self._is_labelled or distill < 1.0:
            return self.adapter.loss_on(batches, self.loss)
        return self.adapter.distance_from_dense(batches)
