"""Learning rates of cores in proportion to their entries, or equal ones: ``python bench/compress/rates.py``.

ResNet-20, LeNet-5 and stories260K at a quarter of the parameters, each from the same closed forms, are fine-tuned for a
few steps with both and with several rates. Writes ``bench/results/compress-rates.json``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import adtn
import torch
from adtn import Generator
from adtn.bench import machine
from adtn.compression import Tuning, model_of
from case import Case

from models import CASES

STEPS = {"lenet5": (100, 64), "stories260k": (60, 32), "resnet20": (40, 64)}  # steps, and samples of a batch
RATIO = 4.0
RATES = (3e-4, 1e-3, 3e-3, 1e-2)
OUT = Path(__file__).parents[1] / "results" / "compress-rates.json"


def main() -> None:
    """Train, and write the qualities."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=list(STEPS))
    parser.add_argument("--rates", type=float, nargs="*", default=list(RATES))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = json.loads(OUT.read_text())["compress_rates"] if OUT.exists() else []
    for name in options.cases:
        case = CASES[name]()
        generators = closed_forms(case)
        for lr in options.rates:
            for seed in options.seeds:
                for relative in (False, True):
                    row = {"case": name, "lr": lr, "relative": relative, "seed": seed}
                    if any(row.items() <= done.items() for done in rows):
                        continue
                    rows.append({**row, **trained(case.fresh(), generators, row)})
                    print(rows[-1], flush=True)
                    content = {"command": "python bench/compress/rates.py", "machine": machine()}
                    OUT.write_text(json.dumps({**content, "compress_rates": rows}, indent=1) + "\n")


def closed_forms(case: Case) -> dict[str, Generator]:
    """Choose forms of a quarter of the parameters."""
    params, entries = case.sizes()
    budget = adtn.Budget(params=params - entries + int(entries / RATIO))
    config = adtn.Config(targets=case.targets, exclude=case.exclude, precisions=(), recipe="closed-form")
    data = list(islice(case.train(0), 8))
    return adtn.compress(case.fresh().model, config, budget=budget, data=data, progress=False).generators


def trained(case: Case, generators: Mapping[str, Generator], row: Mapping[str, Any]) -> dict[str, Any]:
    """Train from the closed forms as ``adtn.compress`` does, and measure."""
    steps, size = STEPS[case.name]
    began = time.process_time()
    model = model_of(case.model, None)
    model.install(generators)
    model.normalise(case.calibration)
    tuning = Tuning(steps=steps, lr=row["lr"], distill=0.5, train="all", relative=row["relative"], seed=row["seed"])
    data = [(x[:size], y[:size]) for x, y in islice(case.train(row["seed"]), steps)]
    losses = model.tune(data, None, tuning, lambda step, loss: None)
    seconds = time.process_time() - began
    held = case.validation[:8]
    name, (value, error) = next(iter(case.quality(case.model).items()))
    return {
        "steps": steps,
        "first loss": losses[0],
        "held loss": model.loss_on(held, None),
        "quality": {name: value},
        "standard error": error,
        "cpu_seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    main()
