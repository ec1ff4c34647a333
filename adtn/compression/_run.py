"""The stages of compressing a model, and the search for a size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CompressError
from ..generator import Generator
from ..optim import fingerprint
from ..precision import Precision, stored_bytes
from ._budget import Budget
from ._choose import Search, Selection, least_and_most
from ._comparison import SAMPLES, compared_outputs, comparison
from ._compensate import NORMALISED, compensate, waves
from ._config import Config
from ._expected import expected_losses
from ._joint import best_joint, chosen_within
from ._ladder import Ladder
from ._local import Executor, LocalResult, LocalTask, run_local, solve
from ._model import Layer, Model
from ._orders import orders_for
from ._progress import Progress
from ._rest import RESTS, Rest
from ._rows import ModelCost
from ._samples import first_batches, first_samples
from ._stage import Stage
from ._state import HEADER_BYTES, state_bytes
from ._storage import to_bytes

_BATCHES = 64  # batches of a list that are compared when a training continues
_TRIALS = 6  # number of sizes that are tried for a largest loss of accuracy
_FITS = 5  # choices until the file has the right size
_USED = 0.98  # of a budget, where no larger choice is tried
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
    file lists. ``scales`` are those of rows of generators that layers came to share.
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

    def compress(self, before: ModelCost) -> Outcome:
        """Replace the layers, within the budget if there is one."""
        budget = self.config.budget
        outcome = self.run_stages(self.tasks) if budget is None else self.run_within(budget, before)
        if outcome.rest is None and self.config.rest not in ("choose", "same"):
            outcome = replace(outcome, rest=Precision(self.config.rest))
        if outcome.rest is not None:
            self.adapter.narrow(outcome.rest)
            if outcome.file_bytes is None:
                size = state_bytes(self.adapter, self.adapter.generators(), outcome.rest, self.beside)
                outcome = replace(outcome, file_bytes=size)
        return outcome

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
            _ = self._compensation  # while nothing is replaced
        self._install(generators)
        losses: list[float] = []
        for n, stage in enumerate(self.stages):
            if stage.name == "normalise":
                self.normalise(stage)
            if stage.name == "compensate":
                self.compensate()
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
        batches, compare = self._compensation
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
    def _compensation(self) -> tuple[Sequence[Any], Callable[[], float]]:
        """Batches for second moments and a comparison on others if there are more; made before any is replaced."""
        stage = next(stage for stage in self.stages if stage.name == "compensate")
        batches = list(first_samples(self.data_of(stage), self.config.samples + SAMPLES))
        used = list(first_samples(batches, self.config.samples))
        others = batches[len(used) :] or used if self.validation is None else self.validation
        return used, comparison(self.adapter, others, self.loss)

    def run_within(self, budget: Budget, before: ModelCost) -> Outcome:
        """Run all stages with the topology, layout and size of every weight chosen for a budget."""
        self.say.stage("choice of formats")
        sample = list(first_samples(self.data, SAMPLES)) if self.data is not None else []
        dense = compared_outputs(self.adapter, sample) if sample else None
        search = Search(
            layers=self.layers,
            tasks=self.tasks,
            config=self.config,
            adapter=self.adapter,
            sample=sample,
            dense=dense,
            expected=expected_losses(self.adapter, self.layers, self.tasks, dense),
            orders=orders_for(self.adapter, self.layers, self.tasks, self.config, self.data),
            loss=self.loss,
            unit=budget.unit,
            executor=self.executor,
            folder=self.folder,
            say=self.say,
        )
        if budget.accuracy_loss is not None:
            return self._smallest(search, budget.accuracy_loss, before)
        if budget.unit == "bytes":
            most = budget.most(state_bytes(self.adapter, {}, None))
            return self._within_file(replace(search, rests=self.rests(search, self._precisions_of_rest)), most)
        most = budget.most(before.params)
        rest = before.params - search.entries
        selection = search.find(search.ladders(most - rest), most - rest) or search.smallest()
        if rest + selection.cost > most:
            raise self._too_small(selection, most, rest + selection.cost, rest)
        outcome = self._run_chosen(self.or_joint(search, selection, most - rest, chosen_within))
        params, _ = self.adapter.sizes()
        if params > most:
            raise CompressError(f"Got {params:,} parameters for a budget of {most:,}; this is a bug of adtn.")
        return outcome

    @property
    def makes_file(self) -> bool:
        """Whether what counts is the size of the file: for a budget in bytes, or another precision of the rest."""
        budget = self.config.budget
        return (budget is not None and budget.unit == "bytes") or self.config.rest not in ("choose", "same")

    @property
    def _precisions_of_rest(self) -> Sequence[Precision | None]:
        """The precisions to choose from for what is not among the layers."""
        if self.config.rest == "choose" and self.narrows:
            return RESTS
        return (None if self.config.rest in ("choose", "same") else Precision(self.config.rest),)

    def rests(self, search: Search, precisions: Sequence[Precision | None]) -> list[Rest]:
        """Return ways to store what is not among the layers, with their sizes and losses."""
        shapes = [shape for layer in self.layers for shape in layer.weights.values()]
        itemsize = max(layer.itemsize for layer in self.layers)
        found: list[Rest] = []
        for rest in precisions:
            stored = sum(math.prod(s) * itemsize if rest is None else stored_bytes(s, rest) for s in shapes)
            loss = 0.0
            if rest is not None and self.data is not None:
                loss = search.loss_after(lambda rest=rest: self.adapter.narrow(rest))
            elif rest is not None:  # then losses are squared relative errors
                loss = 4.0 ** (1 - rest.bits) if rest.is_integer else 1e-7
            size = max(state_bytes(self.adapter, {}, rest, self.beside) - stored, 0)
            if not found or size < found[-1].bytes:
                found.append(Rest(precision=rest, bytes=size, loss=loss))
        return found

    def chosen_for_file(self, search: Search, most: int) -> Selection:
        """Choose such that the file of the state, headers included, has at most that many bytes."""
        own = HEADER_BYTES * (1 + len(search.tasks))
        ladders: Sequence[Ladder] = search.ladders(most - own - search.rests[-1].bytes)
        best: tuple[int, Selection] | None = None
        for _ in range(_FITS):
            selection = search.find(ladders, most - own)
            if selection is None and best is not None:
                break
            if selection is None:  # the headers may be smaller than it was estimated
                selection = self._smallest_file(search, ladders, most)
            ladders, size = selection.ladders, self._stored_bytes(selection)
            if size <= most and (best is None or size > best[0]):
                best = size, selection
            headers = size - selection.cost
            if _USED * most <= size <= most or own == headers:
                break
            own = max(headers, own + size - most) if size > most else headers
        if best is None:
            selection = self._smallest_file(search, ladders, most)
            best = self._stored_bytes(selection), selection
        return self._or_uniform(search, best[1], most, own)

    def _within_file(self, search: Search, most: int) -> Outcome:
        """Run all stages with a choice whose file has at most that many bytes."""
        selection = self.chosen_for_file(search, most)
        outcome, rest = self._run_chosen(selection), _precision_of(selection.rest)
        # after the training, as entries that half precision does not hold are stored as they are
        size = state_bytes(self.adapter, self.adapter.generators(), rest, self.beside)
        if size > most:
            raise CompressError(
                f"Got a file of {size:,} bytes for a budget of {most:,}, as values that are too large for {rest} were "
                "trained; allow more, or pass rest='bfloat16'."
            )
        return replace(outcome, rest=rest, file_bytes=size)

    def _or_uniform(self, search: Search, selection: Selection, most: int, headers: int) -> Selection:
        """Return the selection, or the same integers for all weights if these change the model's outputs less."""
        other = search.uniform(selection, most - headers) if search.sample else None
        if other is None or self._stored_bytes(other) > most:
            return selection
        own, same = search.loss_of(selection), search.loss_of(other)
        self.say(f"what was chosen costs {own:.4g}, the same integers for all weights {same:.4g}")
        return other if same < own else selection

    def or_joint(
        self, search: Search, selection: Selection, most: int, choose: Callable[[Search, int], Selection | None]
    ) -> Selection:
        """Return the selection, or one in which layers of one input share low-rank forms, if that is better.

        This is for budgets in parameters: as files of so many bytes, integers of separate weights were always better.
        """
        local = any(stage.name == "distill-local" for stage in self.stages)  # trains one layer at a time
        measured = search.sample and not search.is_expected
        if not self.joins or local or self.config.share or self.config.mode == "adapter" or not measured:
            return selection
        loss = partial(self._final_loss, search)
        found = best_joint(search, selection, loss=loss, choose=choose, most=most)
        self.layers, self.tasks, self.scales = found.search.layers, found.search.tasks, found.scales
        return found.selection

    def _final_loss(self, search: Search, selection: Selection, scales: Mapping[str, np.ndarray]) -> float:
        """Measure what the outputs lose with a selection, after compensation if that is a stage."""
        if not any(stage.name == "compensate" for stage in self.stages):
            return search.loss_of(selection)
        _, compare = self._compensation
        self._install({name: r.generator for name, r in selection.results.items() if r is not None})
        try:
            self.scales = scales
            self.compensate()
            return compare()
        finally:
            self.adapter.restore()

    def _stored_bytes(self, selection: Selection) -> int:
        """Return the size of the file of a model with what was chosen."""
        generators = {name: r.generator for name, r in selection.results.items() if r is not None}
        self._install(generators)
        try:
            return state_bytes(self.adapter, generators, _precision_of(selection.rest), self.beside)
        finally:
            self.adapter.restore()

    def _smallest_file(self, search: Search, ladders: Sequence[Ladder], most: int) -> Selection:
        """Return what has the smallest file, with the losses that ladders know."""
        selection = search.smallest()
        size = self._stored_bytes(selection)
        if size > most:
            raise self._too_small(selection, most, size, selection.rest.bytes if selection.rest is not None else 0)
        return replace(selection, ladders=ladders)

    def _too_small(self, smallest: Selection, most: int, least: int, rest: int) -> CompressError:
        """Return the error for a budget below the least cost of the whole model, ``rest`` of it of everything else."""
        is_file = self.config.budget is not None and self.config.budget.unit == "bytes"
        unit, written = ("bytes", f"budget='{least}B'") if is_file else ("parameters", f"adtn.Budget(params={least})")
        got = f"Got {'a' if self.narrows else 'no budget, which means a'} budget of {most:,} {unit}"
        hint = ""
        if self.data is None:
            got += f" and no data, so that relative errors of layers are at most {self.config.largest_error}"
            hint = " Pass data=, by which what the model loses is measured, or a larger largest_error."
        if not any(smallest.results.values()) and _precision_of(smallest.rest) is None:
            return CompressError(f"{got}; no layer becomes smaller then. Choose other candidates or precisions.{hint}")
        what = "file found, with its headers," if is_file else "model found"
        return CompressError(
            f"{got}; the smallest {what} has {least:,}, of which everything but the chosen layers takes {rest:,}. "
            f"Allow at least {least:,} {unit} ({written}), or choose more layers (targets, smallest).{hint}"
        )

    def _run_chosen(self, selection: Selection) -> Outcome:
        """Run all stages with what was chosen."""
        results = {name: result for name, result in selection.results.items() if result is not None}
        if not results and _precision_of(selection.rest) is None:
            raise CompressError(
                "Every weight stays dense within this budget; allow less, so that something is replaced."
            )
        local = any(stage.is_local and stage.steps for stage in self.stages)
        tasks = {
            name: replace(self.tasks[name], topology=g.topology, layout=g.layout, precision=g.precision)
            for name, g in ((name, r.generator) for name, r in results.items())
        }
        outcome = self.run_stages(tasks, None if local else results)
        return replace(outcome, sensitivities={ladder.layer: ladder.sensitivity for ladder in selection.ladders})

    def _smallest(self, search: Search, loss: float, before: ModelCost) -> Outcome:
        """Find the smallest size by bisection on a logarithmic scale, with all stages for every size."""
        quality = _measured(before.quality)
        ladders = search.ladders(search.entries // 4)
        low, high = least_and_most(ladders, search.unit)
        best: tuple[Outcome, dict[str, Generator], Any] | None = None
        told = "everything"
        for _ in range(_TRIALS):
            size = round(math.sqrt(low * high))
            outcome = self._run_chosen(search.choose(ladders, max(size, low)))
            if self.config.rest not in ("choose", "same"):
                self.adapter.narrow(Precision(self.config.rest))  # which loses accuracy as well
            now = self._quality()
            lost = quality - now
            told = f"{lost:.2f} points" if math.isfinite(now) else f"everything, with a score of {now}"
            self.say(f"{size:,} parameters in the chosen layers lose {told}")
            if math.isfinite(now) and lost <= loss:
                best = (outcome, self.adapter.generators(), self.adapter.state())
                high = size
            else:
                low = size
            self.adapter.restore()
            if high <= 1.1 * low:
                break
        if best is None:
            raise CompressError(
                f"No size that was tried loses at most {loss:g} points; the last one, {low:,} parameters in the chosen "
                f"layers, loses {told}. Train longer (tune_steps), choose fewer layers, or allow more."
            )
        outcome, generators, state = best
        self._install(generators)
        self.adapter.set_state(state)
        return outcome

    def _quality(self) -> float:
        """Return the score, or the accuracy if there is no score."""
        if self.score is not None:
            return self.adapter.score(self.score)
        return _measured(self.adapter.accuracy(self.test or ()))

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
                self._install(generators)
                losses = self._tune(replace(stage, steps=steps))
                scored.append((sum(losses[-max(steps // 4, 1) :]), self.adapter.generators()))
                self.adapter.restore()
            scored.sort(key=lambda one: one[0])
            running = [generators for _, generators in scored[: (len(scored) + 1) // 2]]
            self.say(f"{len(scored)} seeds trained for {steps} steps, {len(running)} go on")
            steps *= 2
        return running[0]

    def _install(self, generators: Mapping[str, Generator]) -> None:
        if self.config.mode == "adapter":
            self.adapter.adapt(generators, self.config.adapter)
        else:
            self.adapter.install(generators)

    def _tune(self, stage: Stage, place: int | None = None) -> list[float]:
        """Train the model, with progress and checkpoints in a stage at some place; a rung has neither."""
        data, tuning = self.data_of(stage), self.config.tuning(stage, self._is_labelled)
        if place is not None and self.folder is not None:
            # other data are compared when the training continues, as they are drawn again anyway
            first = data[:_BATCHES] if isinstance(data, list | tuple) else None
            count = len(data) if isinstance(data, Sized) else None
            start = {name: to_bytes(generator) for name, generator in self.adapter.generators().items()}
            digest = self.adapter.digest()
            mark = fingerprint(repr(self.config), repr(tuning), place, start, digest, self.loss, first, count)
            path = self.folder / f"training-{mark[:16]}"
            tuning = replace(tuning, checkpoint=path)
            self.checkpoints.add(path)

        def report(step: int, value: float) -> None:
            if place is not None:
                self.say.advance(step)
            if step % tuning.every == 0 and place is not None:
                self.say(f"step {step} of {tuning.steps}: loss {value:.4f}")

        if place is None:
            return self.adapter.tune(data, self.loss, tuning, report)
        held = list(first_samples(data if self.validation is None else self.validation, SAMPLES))
        before, state = self._measured_on(held, tuning.distill), self.adapter.state()
        self.say.stage("training", tuning.steps)
        losses = self.adapter.tune(data, self.loss, tuning, report)
        after = self._measured_on(held, tuning.distill)
        if not after <= before:
            self.say(f"training ended at {after:.4f}, above {before:.4f} where it began; its result is discarded")
            self.adapter.set_state(state)
        return losses

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


def _precision_of(rest: Rest | None) -> Precision | None:
    return None if rest is None else rest.precision


def _measured(quality: float | None) -> float:
    """Return the quality of a model, which a budget of accuracy requires."""
    if quality is None:
        raise CompressError("Got labels that are not indices of classes, so that there is no accuracy; pass score=.")
    return quality
