"""The choice of a topology, a layout and a size for every weight within a budget.

With the relative error e of the outputs of a weight, the outputs of the model change by about ``Σ s e²``. Errors are
those of closed forms; the sensitivity s of a layer is measured by replacing that layer alone. One choice per weight is
allocated such that the sum is smallest and the costs are within the budget. Then the chosen closed forms are computed,
which corrects the expected errors, and the allocation is repeated until it chooses what was computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from .._typing import Shape
from ..errors import CompressError
from ..optim import best_within
from ..precision import Precision
from ..topology import TT, Dense, LowRank, Topology, Tucker
from ._budget import allocate
from ._choice import Choice, Family, Unit, dense_choice, families
from ._comparison import Compared, comparison
from ._config import Config
from ._errors import rounding_errors
from ._expected import ExpectedLosses
from ._finer import with_finer_codes
from ._ladder import Curve, Ladder, low_rank_errors, with_exact, with_points
from ._local import Executor, LocalResult, LocalTask, dense_generator, run_local
from ._model import Layer, Model
from ._orders import Orders, with_orders
from ._rest import Rest
from ._screening import compared, reference, screened
from ._storage import to_bytes

_PROBES = (1.2, 0.4)  # sizes at which errors are computed, over those that the budget implies
_ROUNDED_PROBES = (0.7,)  # of families that are rounded
_LEAST = 1 / 16  # of the dense weights: about where errors are computed to find the smallest choices
_FIT_STEPS = 40  # steps for topologies without a closed form
_SWEEPS = 1  # of alternating least squares, for errors
_PARTS = (1.0, 0.98, 0.95, 0.9)  # of the parameters of equal ranks: unequal ones may have more scales
_ALL_SWEEPS = 12  # of those that are chosen
_MEASURES = 2  # times that losses are measured for what was chosen
_NEAR = 0.5  # difference of logarithms of squared errors within which losses are not measured again
_ROUNDS = 4  # allocations, each with the errors of what the previous one chose
_WORSE = 1.5  # times the expected loss of a selection, from which the same integers for all weights are not measured
_REST = ""  # no weight has this name


@dataclass(frozen=True, kw_only=True)
class Selection:
    """A choice for every weight and for everything else.

    Parameters
    ----------
    results : mapping of str to LocalResult or None
        ``None`` for weights that stay dense.
    rest : Rest or None
        The way to store everything else, if there was a choice.
    ladders : sequence of Ladder
        With what was measured.
    cost : int
    loss : float
        The expected loss.
    """

    results: Mapping[str, LocalResult | None]
    rest: Rest | None
    ladders: Sequence[Ladder]
    cost: int
    loss: float = math.inf


@dataclass(frozen=True, kw_only=True)
class Search:
    """The search for a choice per weight.

    Parameters
    ----------
    layers : sequence of Layer
    tasks : mapping of str to LocalTask
        Of every weight, with any topology.
    config : Config
    adapter : Model
        The dense model; it is the same afterwards.
    sample : sequence
        Batches with which outputs are compared; empty without data.
    loss : callable, optional
        The loss, for models whose outputs are not one array.
    unit : {"parameters", "bytes"}
    executor, folder, say
        See :func:`adtn.compress`.
    rests : sequence of Rest
        The ways to store what is not among the layers, one of which is chosen as well; none if its cost is fixed.
    dense : Compared, optional
        The outputs of the dense model for the sample, where they are known.
    expected : ExpectedLosses, optional
        Losses that need no measuring.
    orders : Orders, optional
        The comparison of integers with and without an order of the columns; without it, there are no orders.
    """

    layers: Sequence[Layer]
    tasks: Mapping[str, LocalTask]
    config: Config
    adapter: Model
    sample: Sequence[Any]
    loss: Callable[..., Any] | None
    unit: Unit
    executor: Executor | None
    folder: Path | None
    say: Callable[[str], None]
    rests: Sequence[Rest] = ()
    dense: Compared | None = None
    expected: ExpectedLosses | None = None
    orders: Orders | None = None
    solved: dict[tuple[str, Choice, int], LocalResult] = field(default_factory=dict)

    @property
    def entries(self) -> int:
        """The cost of the dense weights."""
        return sum(dense_choice(s, y.itemsize).cost(self.unit) for y in self.layers for s in y.weights.values())

    def ladders(self, most: int) -> list[Ladder]:
        """Build the ladders of all weights for a budget, with the sensitivities of their layers."""
        fraction = min(max(most, 1) / self.entries, 1.0)
        built = self._built(fraction)
        return self._with_sensitivities(built, fraction) if self.sample else built

    def _built(self, fraction: float) -> list[Ladder]:
        """Build the ladders, with errors near the sizes that a fraction of the dense weights implies."""
        kinds = {name: (shape, layer.itemsize) for layer in self.layers for name, shape in layer.weights.items()}
        others = screened(kinds) if len(self.config.layers) == 0 else {}
        wanted: list[tuple[str, Choice]] = []
        ladders: dict[str, Ladder] = {}
        for layer in self.layers:
            for name, shape in layer.weights.items():
                curves, probes = self._curves(name, shape, layer, fraction) if name not in others else ([], [])
                fixed = {dense_choice(shape, layer.itemsize): 0.0}
                entries = math.prod(shape)
                ladders[name] = Ladder(name=name, layer=layer.name, entries=entries, fixed=fixed, curves=curves)
                wanted += [(name, probe) for probe in probes]
        for (name, choice), result in self.solve(wanted).items():
            ladders[name] = ladders[name].corrected(choice, result.relative_error**2)
        ladders = {
            name: ladder if name in others else with_orders(with_exact(ladder), self.tasks[name], self._orders)
            for name, ladder in ladders.items()
        }
        return [
            self._compared(ladder, [ladders[other] for other in others[name]]) if name in others else ladder
            for name, ladder in ladders.items()
        ]

    def _compared(self, ladder: Ladder, others: Sequence[Ladder]) -> Ladder:
        """Return the ladder of a weight that is like others which were probed."""
        task, precision, own = self.tasks[ladder.name], reference(others), None
        if precision is not None:
            (own,) = rounding_errors(task.weight, task.moment, [precision])
        pairs = [c.family for c in others[0].curves if c.family.topology == LowRank(bond=1) and not c.family.precision]
        curves = [self._low_rank(ladder.name, family) for family in pairs]
        return with_orders(compared(replace(ladder, curves=curves), others, own), task, self._orders, others)

    def _curves(self, name: str, shape: Shape, layer: Layer, fraction: float) -> tuple[list[Curve], list[Choice]]:
        """Return the curves of a weight, and the choices whose errors they need."""
        entries, own, task = math.prod(shape), self.config.options_of(layer), self.tasks[name]
        found = families(shape, own.candidates, self._precisions, layer.itemsize)
        rounded = [f for f in found if isinstance(f.topology, Dense) and f.precision is not None]
        errors = rounding_errors(task.weight, task.moment, [f.precision for f in rounded if f.precision is not None])
        curves = [Curve(family=f, errors={entries: e}) for f, e in zip(rounded, errors, strict=True)]
        probes: list[Choice] = []
        for family in found:
            if family in rounded:
                continue
            if family.topology == LowRank(bond=1) and family.precision is None:
                curves.append(self._low_rank(name, family))  # one decomposition has the errors of all ranks
                continue
            curves.append(Curve(family=family, errors={}))
            if family.precision is not None and family.precision != _probed(found):
                continue  # the errors follow from those of another precision
            if not family.topology.grows:
                probes += [choice for choice in (family.within(entries),) if choice is not None]
                continue
            stored = 8 * family.itemsize if family.precision is None else family.precision.bits
            implied = fraction * (8 * layer.itemsize / stored if self.unit == "bytes" else 1.0)
            sizes = _PROBES if family.precision is None else _ROUNDED_PROBES
            # without an error a family is left out, also where the budget implies less than its smallest member
            smallest = next(iter(family.members(entries)), None)
            members = {family.within(int(entries * min(implied * p, 0.9))) or smallest for p in sizes}
            probes += [choice for choice in members if choice is not None]
        return curves, probes

    @property
    def _precisions(self) -> Sequence[Precision]:
        if self.unit != "bytes":
            return ()
        # entropy codes are decoded when a layer is made, but only codes should stay in memory where calls may decode
        return [p for p in self.config.precisions if not (p.is_coded and self.config.allow_slower)]

    @property
    def _orders(self) -> Orders | None:
        return self.orders if self.unit == "bytes" else None

    def _low_rank(self, name: str, family: Any) -> Curve:
        task = self.tasks[name]
        errors = low_rank_errors(task.weight.reshape(task.weight.shape[0], -1), task.moment)
        sizes = [family.sized(bond).params for bond in range(1, len(errors))]
        return Curve(family=family, errors=dict(zip(sizes, errors[1:].tolist(), strict=True)))

    def _with_sensitivities(self, ladders: Sequence[Ladder], fraction: float) -> list[Ladder]:
        """Measure the sensitivity of every layer by replacing it by choices of about the size that is implied."""
        tried = {ladder.name: self._near(ladder, fraction) for ladder in ladders}
        return self.measured(ladders, {name: choice for name, choice in tried.items() if choice is not None})

    def _near(self, ladder: Ladder, fraction: float) -> Choice | None:
        options = [option for option in ladder.options(self.unit) if option[0].topology is not None]
        dense = max(choice.cost(self.unit) for choice in ladder.fixed)
        affordable = [choice for choice, _ in options if choice.cost(self.unit) <= fraction * dense]
        return affordable[-1] if affordable else (options[0][0] if options else None)

    def measured(self, ladders: Sequence[Ladder], choices: Mapping[str, Choice]) -> list[Ladder]:
        """Return the ladders with sensitivities measured at these choices; layers without one have a typical value."""
        results = self.solve([(name, choice) for name, choice in choices.items() if choice.topology is not None])
        solved = {name: result for (name, _), result in results.items()}
        found: dict[str, tuple[float, float]] = {}
        for layer in self.layers:
            own = {name: solved[name] for name in layer.weights if name in solved}
            error2 = sum(result.relative_error**2 for result in own.values())
            known = next(ladder.measured for ladder in ladders if ladder.layer == layer.name)
            if error2 < 1e-10 or any(abs(math.log(error2 / at)) < _NEAR for at in known):
                continue
            found[layer.name] = error2, self._loss_with(own)
            costs = "is expected to cost" if self.is_expected else "costs"
            self.say(f"{layer.name}: error {math.sqrt(error2):.3f} {costs} {found[layer.name][1]:.4g}")
        return with_points(ladders, found)

    def _loss_with(self, results: Mapping[str, LocalResult]) -> float:
        """Return what the outputs lose with one layer replaced: what is expected, or else measured."""
        weights = {name: result.generator.weight() for name, result in results.items()}
        loss = self.expected.of(weights) if self.expected is not None else None
        if loss is not None:
            return loss
        compare = self._compare
        self.adapter.install({n: r.generator for n, r in self._completed(results).items() if r is not None})
        try:
            return compare()
        finally:
            self.adapter.restore()

    @cached_property
    def _compare(self) -> Callable[[], float]:
        """The comparison with the dense model, made while nothing is replaced."""
        return comparison(self.adapter, self.sample, self.loss, self.dense)

    def choose(self, ladders: Sequence[Ladder], most: int) -> Selection:
        """Choose within ``most``.

        Raises
        ------
        CompressError
            If even the smallest choices cost more in total.
        """
        selection = self.find(ladders, most)
        if selection is None:
            raise CompressError(
                f"The smallest candidates together have more than the {max(most, 0):,} {self.unit} that are left for "
                "them. Allow more, choose more layers, or give smaller candidates."
            )
        return selection

    def smallest(self) -> Selection:
        """Choose what costs the least, which is the same for every budget."""
        ladders = {ladder.name: ladder for ladder in self._built(_LEAST)}
        results: dict[tuple[str, Choice], LocalResult] = {}
        while True:
            choices = {n: ladder.options(self.unit, self._largest_error)[0][0] for n, ladder in ladders.items()}
            wanted = [(n, c) for n, c in choices.items() if c.topology is not None and (n, c) not in results]
            if not wanted:
                break
            solved = self.solve(wanted, _ALL_SWEEPS)
            results |= solved
            for (name, choice), result in solved.items():
                ladders[name] = ladders[name].corrected(choice, result.relative_error**2)
        rest = min(self.rests, key=lambda rest: rest.bytes, default=None)
        return Selection(
            results=self._completed({name: results.get((name, choice)) for name, choice in choices.items()}),
            rest=rest,
            ladders=list(ladders.values()),
            cost=sum(choice.cost(self.unit) for choice in choices.values()) + (0 if rest is None else rest.bytes),
        )

    def find(self, ladders: Sequence[Ladder], most: int) -> Selection | None:
        """Choose within ``most``; ``None`` if even the smallest choices cost more in total."""
        results: dict[tuple[str, Choice], LocalResult] = {}
        choices: dict[str, Choice] = {}
        rest: Rest | None = None
        for measures in range(_MEASURES + 1):
            settled = self._settled(ladders, most, results)
            if settled is None:
                return None
            ladders, choices, rest = settled
            if measures < _MEASURES and self.sample:
                ladders = self.measured(ladders, choices)
        loss = sum(ladder.loss(ladder.expected(choices[ladder.name])) for ladder in ladders)
        if self.unit == "bytes":
            choices = with_finer_codes(choices, most - (0 if rest is None else rest.bytes))
        last = self.solve([one for one in choices.items() if one[1].topology is not None], _ALL_SWEEPS)
        for one in choices.items():
            error = f", error {last[one].relative_error:.3f}" if one in last else ""
            self.say(f"{one[0]}: {one[1]}{error}")
        if rest is not None:
            self.say(f"everything else: {rest.precision or 'as it is'}, {rest.bytes:,} bytes")
        return Selection(
            results=self._completed({name: last.get((name, choice)) for name, choice in choices.items()}),
            rest=rest,
            ladders=ladders,
            cost=sum(choice.cost(self.unit) for choice in choices.values()) + (0 if rest is None else rest.bytes),
            loss=loss,
        )

    @property
    def is_expected(self) -> bool:
        """Whether losses are expected from gradients, as measuring would take long."""
        return self.expected is not None and bool(self.expected.curvatures)

    def uniform(self, selection: Selection, most: int) -> Selection | None:
        """Choose the same integers for all dense weights within ``most``, the best ones by the expected losses.

        The allocation adds up the losses of single layers, which is not exact: where all layers have about the same
        sensitivity, it may lose to integers of one format. ``None`` if there are none of that size, or if measuring
        would take long and these are expected to lose much more than the selection.
        """
        ladders, least = selection.ladders, selection.loss
        best: tuple[float, dict[str, Choice], Rest | None] | None = None
        for precision in self._precisions if self.unit == "bytes" else ():
            if not precision.is_coarse:
                continue
            choices, loss = {}, 0.0
            for ladder in ladders:
                own = [c.family.members(ladder.entries)[-1] for c in ladder.curves if _is_of(c, precision)]
                choice = min(own, key=ladder.expected, default=next(iter(ladder.fixed)))
                choices[ladder.name] = choice
                loss += ladder.loss(ladder.expected(choice))
            cost = sum(choice.bytes for choice in choices.values())
            rests = [rest for rest in self.rests if cost + rest.bytes <= most]
            rest = min(rests, key=lambda rest: rest.loss, default=None)
            fits = rest is not None if self.rests else cost <= most
            if fits and (best is None or loss < best[0]):
                best = loss, choices, rest
        if best is None or (self.is_expected and best[0] > _WORSE * least):
            return None
        _, choices, rest = best
        solved = self.solve([one for one in choices.items() if one[1].topology is not None], _ALL_SWEEPS)
        return Selection(
            results=self._completed({name: solved.get((name, choice)) for name, choice in choices.items()}),
            rest=rest,
            ladders=ladders,
            cost=sum(choice.bytes for choice in choices.values()) + (0 if rest is None else rest.bytes),
        )

    def loss_of(self, selection: Selection) -> float:
        """Measure how far the model's outputs are from those of the dense one with all that was chosen."""
        compare = self._compare
        self.adapter.install({name: r.generator for name, r in selection.results.items() if r is not None})
        try:
            return compare()
        finally:
            self.adapter.restore()

    def _settled(
        self, ladders: Sequence[Ladder], most: int, results: dict[tuple[str, Choice], LocalResult]
    ) -> tuple[list[Ladder], dict[str, Choice], Rest | None] | None:
        """Allocate and compute what is chosen until the errors of all choices are known."""
        by_name = {ladder.name: ladder for ladder in ladders}
        choices: dict[str, Choice] = {}
        rest: Rest | None = None
        for _ in range(_ROUNDS):
            allocated = self._allocated(list(by_name.values()), most)
            if allocated is None:
                return None
            choices, rest = allocated
            wanted = [(n, c) for n, c in choices.items() if c.topology is not None and (n, c) not in results]
            if not wanted:
                break
            solved = self.solve(wanted)
            results |= solved
            for (name, choice), result in solved.items():
                by_name[name] = by_name[name].corrected(choice, result.relative_error**2)
        return list(by_name.values()), choices, rest

    def _allocated(self, ladders: Sequence[Ladder], most: int) -> tuple[dict[str, Choice], Rest | None] | None:
        largest = self._largest_error
        options = {ladder.name: ladder.options(self.unit, largest) for ladder in ladders}
        rest_least = min((rest.bytes for rest in self.rests), default=0)
        least = sum(own[0][0].cost(self.unit) for own in options.values())
        if least + rest_least > most:
            return None
        items = {
            ladder.name: [(c.cost(self.unit), ladder.loss(e)) for c, e in options[ladder.name]] for ladder in ladders
        }
        if self.rests:
            items[_REST] = [(rest.bytes, rest.loss) for rest in self.rests]
        picked = allocate(items, most)
        rest = self.rests[picked.pop(_REST)] if self.rests else None
        return {name: options[name][k][0] for name, k in picked.items()}, rest

    def _completed(self, results: Mapping[str, LocalResult | None]) -> dict[str, LocalResult | None]:
        """Add dense generators to layers of which only some weights have others, as a layer is replaced as a whole."""
        added: dict[str, LocalResult] = {}
        for layer in self.layers:
            missing = [name for name in layer.weights if results.get(name) is None]
            if len(missing) < len(layer.weights):
                for name in missing:
                    added[name] = LocalResult(name, to_bytes(dense_generator(self.tasks[name].weight)), 0.0)
        return {**results, **added}

    @property
    def _largest_error(self) -> float:
        """The largest relative error of a weight; infinite where it is measured what the model loses."""
        budget = self.config.budget
        is_measured = self.sample or (budget is not None and budget.accuracy_loss is not None)
        return math.inf if is_measured else self.config.largest_error

    def loss_after(self, change: Callable[[], None]) -> float:
        """Measure what the outputs of the dense model lose by a change of its parameters, which is undone."""
        compare, state = self._compare, self.adapter.state()
        try:
            change()
            return compare()
        finally:
            self.adapter.set_state(state)

    def solve(
        self, wanted: Iterable[tuple[str, Choice]], sweeps: int = _SWEEPS
    ) -> dict[tuple[str, Choice], LocalResult]:
        """Compute closed forms; a choice that occurs several times is computed once."""
        asked = list(dict.fromkeys(wanted))
        swept = {one: 0 if isinstance(one[1].topology, Dense) else sweeps for one in asked}  # those of rounding are all
        unique = [one for one in asked if (*one, swept[one]) not in self.solved]
        tasks = [
            replace(
                self.tasks[name],
                topology=self._with_best_ranks(name, choice) if sweeps == _ALL_SWEEPS else choice.topology,
                sweeps=sweeps,
                layout=choice.layout,
                start="closed-form",
                precision=None if choice.family is None else choice.family.precision,
                steps=0 if has_closed_form(choice.topology) else _FIT_STEPS,
                label=f"{name}-try{n}",
            )
            for n, (name, choice) in enumerate(unique, len(self.solved))
        ]
        new = run_local(tasks, self.executor, self.folder, lambda result: None)
        self.solved.update({(*one, swept[one]): result for one, result in zip(unique, new, strict=True)})
        return {one: self.solved[*one, swept[one]] for one in asked}

    def _with_best_ranks(self, name: str, choice: Choice) -> Topology | None:
        """Return the topology of a choice, with unequal ranks of the same size where these are better."""
        task = self.tasks[name]
        if choice.family is None or choice.layout is None or not isinstance(choice.topology, TT | Tucker):
            return choice.topology
        for part in _PARTS:
            most = int(part * choice.params)
            best = best_within(choice.topology, choice.layout, task.weight, task.moment, most)
            if best is not None and choice.family.member(best, most).bytes <= choice.bytes:
                return best
        return choice.topology


def _probed(found: Sequence[Family]) -> Precision | None:
    """Return the precision of cores with which rounded families are probed: the one in the middle."""
    own = {f.precision for f in found if f.precision is not None and not isinstance(f.topology, Dense)}
    ordered = sorted({p for p in own if p.is_integer} or own, key=lambda p: p.bits)
    return ordered[(len(ordered) - 1) // 2] if ordered else None


def _is_of(curve: Curve, precision: Precision) -> bool:
    """Return whether a curve is that of the dense weight in this precision, with or without an order."""
    own = curve.family.precision
    return isinstance(curve.family.topology, Dense) and own in (precision, _ordered(precision))


def _ordered(precision: Precision) -> Precision:
    return replace(precision, ordered=True) if precision.group is not None else precision


def has_closed_form(topology: Topology | None) -> bool:
    """Return whether parameters for a given weight are computed without a fit."""
    return topology is not None and (topology.has_decomposition or isinstance(topology, Dense))


def least_and_most(ladders: Sequence[Ladder], unit: Unit) -> tuple[int, int]:
    """Return the total cost of the smallest, and of the largest choices."""
    costs = [[choice.cost(unit) for choice, _ in ladder.options(unit)] for ladder in ladders]
    if not costs:
        raise CompressError("Got no layer to choose a size for.")
    return sum(map(min, costs)), sum(map(max, costs))
