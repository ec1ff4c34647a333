"""Recipes of training, with equal numbers of updates: ``python bench/compress/recipes.py resnet20 resnet56``.

The convolutions of a ResNet become Tucker or MPO networks with a half or a quarter of their parameters, from
decompositions or from random cores. Layers are trained one after the other to reproduce their dense outputs (local),
the whole model by its labels and the dense outputs (global), or first the one and then the other, with half of the
updates each; arXiv 2605.19842 compares these. Rates are chosen for every format and start on a part of the training
data. Writes ``bench/results/compress-recipes.json`` row by row; rows that are there are not computed again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import islice, product
from pathlib import Path
from typing import Any

import adtn
import torch
from adtn import Generator
from adtn.bench import machine
from adtn.compression import Tuning, model_of
from case import Case
from pareto import quality_of
from single import Factorised

from models import CASES

FORMATS = {
    "Tucker": Factorised(convolutions=adtn.Tucker()),
    "MPO": Factorised(convolutions=adtn.MPO()),
}
RATIOS, STARTS, RECIPES = (2.0, 4.0), ("decomposition", "random"), ("none", "global", "local", "local, global")
BATCH, SEEN = 32, 16  # samples of a batch, and batches that layers are trained with
RATES = (1e-3, 3e-3, 1e-2)
RATES_OF, RATES_AT = "resnet20", 4.0
OUT = Path(__file__).parents[1] / "results" / "compress-recipes.json"


def main() -> None:
    """Train with all recipes, and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=["resnet20", "resnet56"])
    parser.add_argument("--steps", type=int, default=150, help="updates of every parameter")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = json.loads(options.out.read_text())["compress_recipes"] if options.out.exists() else []

    @cache
    def start_of(case: str, form: str, ratio: float) -> tuple[Case, Mapping[str, Generator]]:
        dense = loaded(case)
        return dense, FORMATS[form].generators(dense, ratio)

    loaded = cache(lambda case: CASES[case]())

    def add(row: Mapping[str, Any], recipe: Mapping[str, float]) -> None:
        if any(row.items() <= done.items() for done in rows):
            return
        case, generators = start_of(row["case"], row["format"], row["ratio"])
        rows.append({**row, **trained(case.fresh(), generators, row, recipe)})
        print(rows[-1], flush=True)
        content = {"command": "python bench/compress/recipes.py", "machine": machine()}
        options.out.write_text(json.dumps({**content, "compress_recipes": rows}, indent=1) + "\n")

    for form, start, recipe, lr in product(FORMATS, STARTS, ("global", "local"), RATES):
        row = {"case": RATES_OF, "format": form, "ratio": RATES_AT, "start": start, "recipe": f"{recipe} alone"}
        add({**row, "steps": options.steps // 2, "lr": lr, "seed": -1}, {recipe: lr})
    for case, seed, ratio, form, start, recipe in product(
        options.cases, options.seeds, RATIOS, FORMATS, STARTS, RECIPES
    ):
        if recipe == "none" and start == "random":
            continue
        rates = {part: best_rate(rows, form, start, part) for part in recipe.split(", ") if part != "none"}
        row = {"case": case, "format": form, "ratio": ratio, "start": start, "recipe": recipe}
        add({**row, "steps": options.steps, "seed": 0 if recipe == "none" else seed}, rates)


def best_rate(rows: Sequence[Mapping[str, Any]], form: str, start: str, recipe: str) -> float:
    """Return the rate after which most held images were right."""
    wanted = {"format": form, "start": start, "recipe": f"{recipe} alone"}
    tried = [row for row in rows if wanted.items() <= row.items()]
    return max(tried, key=lambda row: row["held accuracy"])["lr"]


def trained(
    case: Case, generators: Mapping[str, Generator], row: Mapping[str, Any], rates: Mapping[str, float]
) -> dict[str, Any]:
    """Train with one recipe, whose parts have rates of their own, and measure."""
    seed, steps = max(row["seed"], 0), row["steps"]
    model = model_of(case.model, None)
    began = time.process_time()
    dense = {name: model.weight(name) for name in generators}
    if row["start"] == "random":
        generators = {
            name: Generator(g.shape, g.topology, layout=g.layout, scale=dense[name], seed=seed + 1)
            for name, g in generators.items()
        }
    model.install(generators)
    if row["start"] == "decomposition":
        model.normalise(case.calibration)
    for recipe, lr in rates.items():
        tuning = Tuning(steps=steps // len(rates), lr=lr, distill=0.9 * (recipe == "global"), seed=seed)
        data = [(x[:BATCH], y[:BATCH]) for x, y in islice(case.train(row["seed"]), steps)]
        if recipe == "local":
            model.distill(data[:SEEN], tuning, None, lambda text: None)
            model.normalise(case.calibration)
        else:
            model.tune(data, None, tuning, lambda step, loss: None)
    return {
        "params": sum(g.num_params for g in generators.values()),
        "dense params": sum(w.size for w in dense.values()),
        "rates": dict(rates),
        "held loss": model.loss_on(case.validation, None),
        "held accuracy": model.accuracy(case.validation),
        **(quality_of(case) if row["seed"] >= 0 else {}),
        "cpu_seconds": round(time.process_time() - began, 1),
    }


if __name__ == "__main__":
    main()
