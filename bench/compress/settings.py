"""Settings of the training of a whole model by hand, and the default ones: ``python bench/compress/settings.py``.

ResNet-20, LeNet-5 and stories260K at a quarter of the parameters, each from the same closed forms, are trained with
every setting of a grid. Writes ``bench/results/compress-settings.json``, whose table says which part of the gain of the
best setting the default ones have.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from itertools import islice, product
from pathlib import Path
from typing import Any

import torch
from adtn import Generator
from adtn.bench import machine
from adtn.compression import Tuning, model_of
from case import Case
from pareto import quality_of
from rates import closed_forms

from models import CASES

SIZES = {"lenet5": 64, "stories260k": 32, "resnet20": 64}  # samples of a batch
OUT = Path(__file__).parents[1] / "results" / "compress-settings.json"


def main() -> None:
    """Train with all settings, and write the qualities."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=list(SIZES))
    parser.add_argument("--lr", type=float, nargs="*", default=[1e-3, 3e-3, 1e-2])
    parser.add_argument("--distill", type=float, nargs="*", default=[0.0, 0.5, 0.9])
    parser.add_argument("--train", nargs="*", default=["all", "generated"])
    parser.add_argument("--optimizer", nargs="*", default=["adam"])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = json.loads(OUT.read_text())["compress_settings"] if OUT.exists() else []
    names = ("lr", "distill", "train", "optimizer", "seed")
    grid = product(options.lr, options.distill, options.train, options.optimizer, options.seeds)
    settings = [dict(zip(names, values, strict=True)) for values in grid]
    for name in options.cases:
        case = CASES[name]()
        generators = closed_forms(case)
        wanted = [{"case": name, "steps": 0}, *({"case": name, "steps": options.steps, **own} for own in settings)]
        for row in wanted:
            if any(row.items() <= done.items() for done in rows):
                continue
            rows.append({**row, **trained(case.fresh(), generators, row)})
            print(rows[-1], flush=True)
            content = {"command": "python bench/compress/settings.py", "machine": machine()}
            OUT.write_text(json.dumps({**content, "compress_settings": rows}, indent=1) + "\n")


def trained(case: Case, generators: Mapping[str, Generator], row: Mapping[str, Any]) -> dict[str, Any]:
    """Train from the closed forms as ``adtn.compress`` does, and measure."""
    began = time.process_time()
    model = model_of(case.model, None)
    model.install(generators)
    model.normalise(case.calibration)
    if row["steps"]:
        own = {name: row[name] for name in ("steps", "lr", "distill", "train", "optimizer", "seed")}
        size = SIZES[case.name]
        data = [(x[:size], y[:size]) for x, y in islice(case.train(row["seed"]), row["steps"])]
        model.tune(data, None, Tuning(**own), lambda step, loss: None)
    seconds = time.process_time() - began
    held = case.validation[:8]
    return {"held loss": model.loss_on(held, None), **quality_of(case), "cpu_seconds": round(seconds, 1)}


if __name__ == "__main__":
    main()
