"""Baselines of a result: what else one could do with the same bytes, the same data and the same training."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import ADTNError, CompressError
from ..generator import Generator
from ..precision import Precision, stored_bytes
from ..topology import LowRank, ScaledIdentity, ScaledRandom, Topology
from ._budget import Budget
from ._choose import Search
from ._comparison import SAMPLES
from ._config import Config
from ._local import LocalTask, dense_generator
from ._model import Model
from ._rounding import rounded_in_metric
from ._rows import Baseline, ModelCost
from ._run import CompressionRun
from ._samples import first_samples
from ._state import state_bytes
from ._within import WithinBudget

_INTEGERS = (Precision("int8"), Precision("int4", 32))
_RATES = range(50, 1201)  # of entropy codes, in hundredths of a bit
_MORE_BYTES = 32  # of a header, for the name of a rate instead of that of an integer format


@dataclass(frozen=True, kw_only=True)
class Baselines:
    """The baselines of a finished run.

    Parameters
    ----------
    run : CompressionRun
        A run whose model holds the result; afterwards it holds it again.
    replaced : frozenset of str
        The weights that the result generates.
    before, result : ModelCost
    rest : Precision or None
        The precision of what is not generated, in the file of the result and so in those of baselines.
    """

    run: CompressionRun
    replaced: frozenset[str]
    before: ModelCost
    result: ModelCost
    rest: Precision | None

    def measure(self) -> list[Baseline]:
        """Measure all baselines; one that is not possible is left out, with a line that says why."""
        adapter = self._adapter
        generators, state = adapter.generators(), adapter.state()
        makers: dict[str, Callable[[], list[Baseline]]] = {
            "the dense model": self._dense,
            "scaled identity": lambda: self._control("scaled identity", ScaledIdentity()),
            "frozen random": lambda: self._control("frozen random", ScaledRandom(seed=self.run.config.seed)),
            "SVD": self._svd,
        }
        makers |= {str(p): lambda p=p: self._rounded(p) for p in _INTEGERS}
        found: list[Baseline] = []
        makers["entropy codes"] = lambda: self._coded(found)
        self.run.say.stage("baselines", len(makers))
        try:
            for name, make in makers.items():
                adapter.restore()
                try:
                    rows = make()
                except ADTNError as error:
                    self.run.say(f"no baseline {name}: {error}")
                    rows = []
                for row in rows:
                    quality = "" if row.quality is None else f", quality {row.quality:.4g}"
                    self.run.say(f"baseline {row.name}: {row.bytes:,} bytes{quality}")
                found += rows
                self.run.say.advance()
        finally:
            adapter.restore()
            adapter.install(generators)
            adapter.decode_once(not self.run.config.allow_slower)
            adapter.set_state(state)
        return found

    @property
    def _adapter(self) -> Model:
        return self.run.adapter

    def _dense(self) -> list[Baseline]:
        """Train the dense model as long as the result was; without training it is the model before."""
        self._adapter.install({})  # nothing is replaced, but the teacher and the original values are kept
        # a dense model has no generators: all its parameters are trained, each with the same rate
        return [self._row("dense, same training", None)] if self._train(train="all", rates={}) else []

    def _control(self, name: str, topology: Topology) -> list[Baseline]:
        """Replace the same weights by a control with its best factor."""
        own = {
            weight: scaled(topology, task.weight, task.moment)
            for weight, task in self.run.tasks.items()
            if weight in self.replaced
        }
        self._adapter.install(own)
        self._correct()
        return [self._row(name, self.rest)]

    def _svd(self) -> list[Baseline]:
        """Replace weights by low-rank pairs within the bytes of the result, and then train as long."""
        search = self._search()
        if self.result.file_bytes is not None:
            within = WithinBudget(self.run)
            search = replace(search, rests=within.rests(search, [self.rest]))
            chosen = within.chosen_for_file(search, self.result.file_bytes).results
        else:
            most = self.result.bytes - (self.before.bytes - search.entries)
            chosen = search.choose(search.ladders(most), most).results
        own = {name: result.generator for name, result in chosen.items() if result is not None}
        if not own:
            raise CompressError("Every weight stays dense within these bytes.")
        self._adapter.install(own)
        self._correct()
        name = "SVD" if all(task.moment is None for task in self.run.tasks.values()) else "whitened SVD"
        rows = [self._row(name, self.rest)]
        return [*rows, self._row(f"{name}, same training", self.rest)] if self._train() else rows

    def _search(self) -> Search:
        run = self.run
        config = replace(
            run.config,
            budget=Budget(bytes=self.result.bytes),
            candidates=(LowRank(),),
            precisions=(),
            largest_error=1.0,  # it is shown however bad it is
            layers={},
            base=None,
        )
        tasks: Mapping[str, LocalTask] = {n: replace(t, base=None, restarts=1) for n, t in run.tasks.items()}
        return Search(
            layers=run.layers,
            tasks=tasks,
            config=config,
            adapter=run.adapter,
            sample=list(first_samples(run.data, SAMPLES)) if run.data is not None else [],
            loss=run.loss,
            unit="bytes",
            executor=run.executor,
            folder=None,
            say=lambda line: None,
        )

    def _coded(self, rows: Sequence[Baseline]) -> list[Baseline]:
        """Store all layers as entropy codes of one rate, the largest within the bytes of the result."""
        integers = _INTEGERS[0]
        size = next((row.bytes for row in rows if row.name == _all_layers(integers)), None)
        if size is None:
            raise CompressError(f"Their sizes follow from that of {integers}, which was left out.")
        shapes = [weight.shape for weight in self._weights.values()]
        left = self.result.compared_bytes - size - _MORE_BYTES * len(shapes)
        left += sum(stored_bytes(shape, integers.of(shape)) for shape in shapes)

        def fits(percent: int) -> bool:
            precision = Precision("coded", rate=percent / 100)
            return sum(stored_bytes(shape, precision.of(shape)) for shape in shapes) <= left

        n = bisect_left(_RATES, True, key=lambda percent: not fits(percent))
        if n == 0:
            raise CompressError("The coarsest have more bytes than the result.")
        precision = Precision("coded", rate=_RATES[n - 1] / 100)
        return self._rounded(precision)

    def _rounded(self, precision: Precision) -> list[Baseline]:
        """Round all layers of the model, those that the result leaves dense as well."""
        own: dict[str, Generator] = {}
        for name, weight in self._weights.items():
            task = self.run.tasks.get(name)
            moment = None if task is None else task.moment
            own[name] = rounded_in_metric(dense_generator(weight), precision, weight, moment)
        self._adapter.install(own)
        self._correct()
        return [self._row(_all_layers(precision), self.rest)]

    @property
    def _weights(self) -> dict[str, np.ndarray]:
        """The weights of all layers that can be rounded."""
        layers, _ = Config(targets=("*",), smallest=self.run.config.smallest).select(self._adapter.layers())
        found = {name: self._adapter.weight(name) for layer in layers for name in layer.weights}
        return {name: weight for name, weight in found.items() if np.isfinite(weight).all() and weight.any()}

    def _correct(self) -> None:
        """Run the stages between closed forms and trainings, as for the result."""
        for stage in self.run.stages:
            if stage.name == "compensate":
                self.run.compensate()
            if stage.name == "normalise":
                self.run.normalise(stage)

    def _train(self, **options: Any) -> bool:
        """Train with the options of the result; return whether there is any such training."""
        run = self.run
        rounds = [stage for stage in run.stages if stage.name == "finetune" and stage.trains]
        if not rounds or run.data is None:
            return False
        labelled = run.loss is not None or self._adapter.has_classes(run.data)
        held = list(first_samples(run.data if run.validation is None else run.validation, SAMPLES))
        for stage in rounds:
            tuning = replace(run.config.tuning(stage, labelled), **options)
            before, state = self._distance(held, labelled), self._adapter.state()
            self._adapter.tune(run.data_of(stage), run.loss, tuning, lambda step, value: None)
            if not self._distance(held, labelled) <= before:  # as in the run itself
                self._adapter.set_state(state)
        return True

    def _distance(self, batches: Sequence[Any], labelled: bool) -> float:
        if labelled:
            return self._adapter.loss_on(batches, self.run.loss)
        return self._adapter.distance_from_dense(batches)

    def _row(self, name: str, rest: Precision | None) -> Baseline:
        """Measure the model as it is, with what is not generated in this precision."""
        if rest is None:
            return self._measured(name, None)
        state = self._adapter.state()
        self._adapter.narrow(rest)
        try:
            return self._measured(name, rest)
        finally:
            self._adapter.set_state(state)  # which may be trained

    def _measured(self, name: str, rest: Precision | None) -> Baseline:
        run, quality = self.run, None
        if run.score is not None:
            quality = self._adapter.score(run.score)
        elif run.test is not None:
            quality = self._adapter.accuracy(run.test)
        loss = None if run.test is None else self._adapter.loss_on(run.test, run.loss)
        params, _ = self._adapter.sizes()
        return Baseline(name=name, params=params, bytes=self._size(rest), quality=quality, loss=loss)

    def _size(self, rest: Precision | None) -> int:
        """Return the bytes of the model as it is: of its file, where that is what the result counts."""
        if self.result.file_bytes is None:
            return self._adapter.sizes()[1]
        return state_bytes(self._adapter, self._adapter.generators(), rest, self.run.beside)


def _all_layers(precision: Precision) -> str:
    return f"{precision}, all layers"


def scaled(topology: Topology, weight: np.ndarray, moment: np.ndarray | None) -> Generator:
    """Make a control whose one factor is the best: least squares of the outputs, or without a moment of the weight.

    Examples
    --------
    >>> float(scaled(ScaledIdentity(), np.diag([1.0, 3.0]), None).weight()[0, 0])
    2.0
    """
    generator = Generator(weight.shape, topology, scale=1.0)
    unit = generator.with_params({"factor": np.ones_like(generator.params["factor"])})
    rows, dense = (np.asarray(x, np.float64).reshape(len(weight), -1) for x in (unit.weight(), weight))
    inner = rows if moment is None else rows @ moment
    factor = float(np.vdot(inner, dense)) / max(float(np.vdot(inner, rows)), np.finfo(float).tiny)
    return generator.with_params({"factor": np.full_like(generator.params["factor"], factor)})
