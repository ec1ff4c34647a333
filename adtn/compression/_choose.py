"""The choice of one topology, bond and layout per weight: quick local fits, sensitivities, allocation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CompressError
from ._budget import Choice, allocate, candidates, rungs_of, smallest
from ._config import Config
from ._local import Executor, LocalResult, LocalTask, run_local
from ._model import Layer, Model

_SCREEN_STEPS = 15  # steps of the fits that select two topologies and layouts per weight
_LADDER_STEPS = 40  # steps of the fits of these two in every size
_SAMPLE = 16  # batches with which sensitivities are measured


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """The candidates of one layer with all its weights, from large to small.

    Parameters
    ----------
    layer : Layer
    choices : list of mapping
        The choice for every weight, per candidate.
    errors : list of float
        The relative errors of the outputs, root mean square over the weights.
    middle : mapping of str to LocalResult
        The generators of the candidate of medium size.
    sensitivity : float
        The growth of the model's loss per squared error.
    """

    layer: Layer
    choices: list[Mapping[str, Choice]]
    errors: list[float]
    middle: Mapping[str, LocalResult]
    sensitivity: float = 1.0

    def options(self, bytes_each: int) -> list[tuple[int, float]]:
        """Return the cost and the expected loss of every candidate."""
        return [
            (bytes_each * sum(c.params for c in own.values()), self.sensitivity * error**2)
            for own, error in zip(self.choices, self.errors, strict=True)
        ]


def build_ladders(
    layers: Sequence[Layer],
    tasks: Mapping[str, LocalTask],
    config: Config,
    executor: Executor | None,
    folder: Path | None,
) -> list[Ladder]:
    """Make the candidates of every layer with their errors.

    All topologies and layouts are fitted briefly in a medium size, and the best two of each weight in all sizes.
    """
    options = {layer.name: config.options_of(layer) for layer in layers}
    sizes: dict[str, list[int]] = {}
    screened: dict[str, list[Choice]] = {}
    for layer in layers:
        own = options[layer.name]
        for name, shape in layer.weights.items():
            sizes[name] = rungs_of(math.prod(shape), smallest(shape, own.candidates))
            screened[name] = candidates(shape, own.candidates, sizes[name][len(sizes[name]) // 2])
    first = _fits([(tasks[n], c) for n, own in screened.items() for c in own], _SCREEN_STEPS, executor, folder)
    ladders: list[Ladder] = []
    second: list[tuple[LocalTask, Choice]] = []
    rungs: dict[str, list[list[Choice]]] = {}
    for layer in layers:
        for name, shape in layer.weights.items():
            ranked = sorted(screened[name], key=lambda c, name=name: first[name, c].relative_error)[:2]
            rungs[name] = []
            for size in sizes[name]:
                grown = [k for c in ranked for k in candidates(shape, [c.topology], size) if k.layout == c.layout]
                grown = grown or candidates(shape, options[layer.name].candidates, size)[:2]
                rungs[name].append(grown)
                second += [(tasks[name], c) for c in grown]
    fitted = _fits(second, _LADDER_STEPS, executor, folder)
    for layer in layers:
        depth = max(len(rungs[name]) for name in layer.weights)
        choices: list[Mapping[str, Choice]] = []
        results: list[dict[str, LocalResult]] = []
        for at in range(depth):
            rung = {n: [(c, fitted[n, c]) for c in rungs[n][min(at, len(rungs[n]) - 1)]] for n in layer.weights}
            best = {n: min(own, key=lambda one: one[1].relative_error) for n, own in rung.items()}
            choices.append({n: c for n, (c, _) in best.items()})
            results.append({n: r for n, (_, r) in best.items()})
        errors = [math.sqrt(float(np.mean([r.relative_error**2 for r in own.values()]))) for own in results]
        ladders.append(Ladder(layer=layer, choices=choices, errors=errors, middle=results[depth // 2]))
    return ladders


def _fits(
    wanted: Sequence[tuple[LocalTask, Choice]], steps: int, executor: Executor | None, folder: Path | None
) -> dict[tuple[str, Choice], LocalResult]:
    """Fit candidates briefly; a candidate that is the largest one for several sizes is fitted once."""
    unique = {(task.name, c): task for task, c in wanted}
    tasks = [
        replace(task, topology=c.topology, layout=c.layout, steps=steps, label=f"{name}-try{n}")
        for n, ((name, c), task) in enumerate(unique.items())
    ]
    return dict(zip(unique, run_local(tasks, executor, folder, lambda result: None), strict=True))


def measure_sensitivities(
    ladders: Sequence[Ladder],
    adapter: Model,
    data: Iterable[Any],
    loss: Callable[..., Any] | None,
    say: Callable[[str], None],
) -> list[Ladder]:
    """Measure sensitivities by replacing one layer after the other by its candidate of medium size."""
    sample = list(islice(data, _SAMPLE))  # the same batches for every layer
    before = adapter.loss_on(sample, loss)
    growth: list[float] = []
    for ladder in ladders:
        error = ladder.errors[len(ladder.errors) // 2]
        adapter.install({name: r.generator for name, r in ladder.middle.items()})
        try:
            growth.append(max(adapter.loss_on(sample, loss) - before, 0.0) / max(error, 1e-6) ** 2)
        finally:
            adapter.restore()
        say(f"{ladder.layer.name}: sensitivity {growth[-1]:.4g}")
    floor = 1e-3 * max(growth) or 1.0  # even if the loss does not grow, a smaller error is better
    return [replace(ladder, sensitivity=max(g, floor)) for ladder, g in zip(ladders, growth, strict=True)]


def choose(ladders: Sequence[Ladder], most: int, bytes_each: int, unit: str) -> dict[str, Choice]:
    """Choose a candidate for every weight within ``most``.

    Raises
    ------
    CompressError
        If even the smallest candidates are larger in total.
    """
    picked = allocate(
        {ladder.layer.name: ladder.options(bytes_each) for ladder in ladders}, most, lambda n: f"{n:,} {unit}"
    )
    return {name: c for ladder in ladders for name, c in ladder.choices[picked[ladder.layer.name]].items()}


def least_and_most(ladders: Sequence[Ladder]) -> tuple[int, int]:
    """Return the total parameters of the smallest, and of the largest candidates."""
    sizes = [[cost for cost, _ in ladder.options(1)] for ladder in ladders]
    if not sizes:
        raise CompressError("Got no layer to choose candidates for.")
    return sum(map(min, sizes)), sum(map(max, sizes))
