"""The search for a result within a budget of parameters, of bytes of a file, or of lost accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from ..errors import CompressError
from ..generator import Generator
from ..precision import Precision, stored_bytes
from ._budget import Budget
from ._choose import Search, Selection, least_and_most
from ._comparison import SAMPLES, compared_outputs
from ._config import Config
from ._expected import expected_losses
from ._joint import best_joint, chosen_within
from ._ladder import Ladder
from ._orders import orders_for
from ._rest import RESTS, Rest
from ._rows import ModelCost
from ._run import CompressionRun, Outcome
from ._samples import first_samples
from ._state import HEADER_BYTES, state_bytes

_TRIALS = 6  # number of sizes that are tried for a largest loss of accuracy
_FITS = 5  # choices until the file has the right size
_USED = 0.98  # of a budget, where no larger choice is tried


def compressed(run: CompressionRun, before: ModelCost) -> Outcome:
    """Replace the layers of a run, within its budget if it has one; ``before`` is the dense model."""
    config, adapter = run.config, run.adapter
    within = WithinBudget(run)
    outcome = (
        run.run_stages(run.tasks)
        if config.budget is None or config.is_cut_to_budget
        else within.outcome(config.budget, before)
    )
    if outcome.rest is None and config.rest not in ("choose", "same"):
        outcome = replace(outcome, rest=Precision(config.rest))
    if outcome.rest is not None:
        adapter.narrow(outcome.rest)
        if outcome.file_bytes is None:
            size = state_bytes(adapter, adapter.generators(), outcome.rest, run.beside)
            outcome = replace(outcome, file_bytes=size)
    return outcome


def makes_file(config: Config) -> bool:
    """Return whether what counts is the size of the file: for a budget in bytes, or another precision of the rest."""
    return (config.budget is not None and config.budget.unit == "bytes") or config.rest not in ("choose", "same")


@dataclass(frozen=True)
class WithinBudget:
    """The search for formats and sizes with which a run stays within a budget.

    Parameters
    ----------
    run : CompressionRun
        Its model is changed; its layers and tasks are replaced where layers come to share a generator.
    """

    run: CompressionRun

    def outcome(self, budget: Budget, before: ModelCost) -> Outcome:
        """Run all stages with the topology, layout and size of every weight chosen for a budget."""
        self.run.say.stage("choice of formats")
        sample = list(first_samples(self.run.data, SAMPLES)) if self.run.data is not None else []
        dense = compared_outputs(self.run.adapter, sample) if sample else None
        search = Search(
            layers=self.run.layers,
            tasks=self.run.tasks,
            config=self.run.config,
            adapter=self.run.adapter,
            sample=sample,
            dense=dense,
            expected=expected_losses(self.run.adapter, self.run.layers, self.run.tasks, dense),
            orders=orders_for(self.run.adapter, self.run.layers, self.run.tasks, self.run.config, self.run.data),
            loss=self.run.loss,
            unit=budget.unit,
            executor=self.run.executor,
            folder=self.run.folder,
            say=self.run.say,
        )
        if budget.accuracy_loss is not None:
            return self._smallest(search, budget.accuracy_loss, before)
        if budget.unit == "bytes":
            most = budget.most(state_bytes(self.run.adapter, {}, None))
            return self._within_file(replace(search, rests=self.rests(search, self._precisions_of_rest)), most)
        most = budget.most(before.params)
        rest = before.params - search.entries
        selection = search.find(search.ladders(most - rest), most - rest) or search.smallest()
        if rest + selection.cost > most:
            raise self._too_small(selection, most, rest + selection.cost, rest)
        outcome = self._run_chosen(self.or_joint(search, selection, most - rest, chosen_within))
        params, _ = self.run.adapter.sizes()
        if params > most:
            raise CompressError(f"Got {params:,} parameters for a budget of {most:,}; this is a bug of adtn.")
        return outcome

    @property
    def _precisions_of_rest(self) -> Sequence[Precision | None]:
        """The precisions to choose from for what is not among the layers."""
        if self.run.config.rest == "choose" and self.run.narrows:
            return RESTS
        return (None if self.run.config.rest in ("choose", "same") else Precision(self.run.config.rest),)

    def rests(self, search: Search, precisions: Sequence[Precision | None]) -> list[Rest]:
        """Return ways to store what is not among the layers, with their sizes and losses."""
        shapes = [shape for layer in self.run.layers for shape in layer.weights.values()]
        itemsize = max(layer.itemsize for layer in self.run.layers)
        found: list[Rest] = []
        for rest in precisions:
            stored = sum(math.prod(s) * itemsize if rest is None else stored_bytes(s, rest) for s in shapes)
            loss = 0.0
            if rest is not None and self.run.data is not None:
                loss = search.loss_after(lambda rest=rest: self.run.adapter.narrow(rest))
            elif rest is not None:  # then losses are squared relative errors
                loss = 4.0 ** (1 - rest.bits) if rest.is_integer else 1e-7
            size = max(state_bytes(self.run.adapter, {}, rest, self.run.beside) - stored, 0)
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
        size = state_bytes(self.run.adapter, self.run.adapter.generators(), rest, self.run.beside)
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
        self.run.say(f"what was chosen costs {own:.4g}, the same integers for all weights {same:.4g}")
        return other if same < own else selection

    def or_joint(
        self, search: Search, selection: Selection, most: int, choose: Callable[[Search, int], Selection | None]
    ) -> Selection:
        """Return the selection, or one in which layers of one input share low-rank forms, if that is better.

        This is for budgets in parameters: as files of so many bytes, integers of separate weights were always better.
        """
        local = any(stage.name == "distill-local" for stage in self.run.stages)  # trains one layer at a time
        measured = search.sample and not search.is_expected
        if not self.run.joins or local or self.run.config.share or self.run.config.mode == "adapter" or not measured:
            return selection
        loss = partial(self._final_loss, search)
        found = best_joint(search, selection, loss=loss, choose=choose, most=most)
        self.run.layers, self.run.tasks, self.run.scales = found.search.layers, found.search.tasks, found.scales
        return found.selection

    def _final_loss(self, search: Search, selection: Selection, scales: Mapping[str, np.ndarray]) -> float:
        """Measure what the outputs lose with a selection, after compensation if that is a stage."""
        if not any(stage.name == "compensate" for stage in self.run.stages):
            return search.loss_of(selection)
        _, compare = self.run.compensation
        self.run.install({name: r.generator for name, r in selection.results.items() if r is not None})
        try:
            self.run.scales = scales
            self.run.compensate()
            return compare()
        finally:
            self.run.adapter.restore()

    def _stored_bytes(self, selection: Selection) -> int:
        """Return the size of the file of a model with what was chosen."""
        generators = {name: r.generator for name, r in selection.results.items() if r is not None}
        self.run.install(generators)
        try:
            return state_bytes(self.run.adapter, generators, _precision_of(selection.rest), self.run.beside)
        finally:
            self.run.adapter.restore()

    def _smallest_file(self, search: Search, ladders: Sequence[Ladder], most: int) -> Selection:
        """Return what has the smallest file, with the losses that ladders know."""
        selection = search.smallest()
        size = self._stored_bytes(selection)
        if size > most:
            raise self._too_small(selection, most, size, selection.rest.bytes if selection.rest is not None else 0)
        return replace(selection, ladders=ladders)

    def _too_small(self, smallest: Selection, most: int, least: int, rest: int) -> CompressError:
        """Return the error for a budget below the least cost of the whole model, ``rest`` of it of everything else."""
        is_file = self.run.config.budget is not None and self.run.config.budget.unit == "bytes"
        unit, written = ("bytes", f"budget='{least}B'") if is_file else ("parameters", f"adtn.Budget(params={least})")
        got = f"Got {'a' if self.run.narrows else 'no budget, which means a'} budget of {most:,} {unit}"
        hint = ""
        if self.run.data is None:
            got += f" and no data, so that relative errors of layers are at most {self.run.config.largest_error}"
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
        local = any(stage.is_local and stage.steps for stage in self.run.stages)
        tasks = {
            name: replace(self.run.tasks[name], topology=g.topology, layout=g.layout, precision=g.precision)
            for name, g in ((name, r.generator) for name, r in results.items())
        }
        outcome = self.run.run_stages(tasks, None if local else results)
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
            if self.run.config.rest not in ("choose", "same"):
                self.run.adapter.narrow(Precision(self.run.config.rest))  # which loses accuracy as well
            now = self._quality()
            lost = quality - now
            told = f"{lost:.2f} points" if math.isfinite(now) else f"everything, with a score of {now}"
            self.run.say(f"{size:,} parameters in the chosen layers lose {told}")
            if math.isfinite(now) and lost <= loss:
                best = (outcome, self.run.adapter.generators(), self.run.adapter.state())
                high = size
            else:
                low = size
            self.run.adapter.restore()
            if high <= 1.1 * low:
                break
        if best is None:
            raise CompressError(
                f"No size that was tried loses at most {loss:g} points; the last one, {low:,} parameters in the chosen "
                f"layers, loses {told}. Train longer (tune_steps), choose fewer layers, or allow more."
            )
        outcome, generators, state = best
        self.run.install(generators)
        self.run.adapter.set_state(state)
        return outcome

    def _quality(self) -> float:
        """Return the score, or the accuracy if there is no score."""
        if self.run.score is not None:
            return self.run.adapter.score(self.run.score)
        return _measured(self.run.adapter.accuracy(self.run.test or ()))


def _precision_of(rest: Rest | None) -> Precision | None:
    return None if rest is None else rest.precision


def _measured(quality: float | None) -> float:
    """Return the quality of a model, which a budget of accuracy requires."""
    if quality is None:
        raise CompressError("Got labels that are not indices of classes, so that there is no accuracy; pass score=.")
    return quality
