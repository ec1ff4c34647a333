"""Bytes against quality of whole models: ``python bench/compress/pareto.py resnet20 --bytes 4 8 12 --steps 150``.

Compresses a model at several ratios of the layers that are compressed, by the automatic choice and by single methods,
without training (``--steps 0``) or with a short one. Every row is written to ``bench/results/compress-models.json`` as
soon as it is done, and rows that are there are not computed again.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import adtn
import torch
from adtn.bench import machine
from adtn.compression import dense_generator, model_of, rounded_in_metric

from models import CASES, Case

OUT = Path(__file__).parents[1] / "results" / "compress-models.json"
INTEGERS = {
    "int8": adtn.Precision("int8", 128),
    "int4/32": adtn.Precision("int4", 32),
    "int4/128": adtn.Precision("int4", 128),
    "int3/32": adtn.Precision("int3", 32),
    "int2/32": adtn.Precision("int2", 32),
}
METHODS: Mapping[str, Mapping[str, Any]] = {  # options of a config
    "automatic": {},
    "low rank": {"candidates": (adtn.LowRank(),), "precisions": ()},
    "float32": {"precisions": ()},
}


def main() -> None:
    """Compress and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--bytes", type=float, nargs="*", default=[], help="ratios of bytes")
    parser.add_argument("--params", type=float, nargs="*", default=[], help="ratios of parameters")
    parser.add_argument("--methods", nargs="*", default=["automatic"], choices=[*METHODS, *INTEGERS])
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = json.loads(OUT.read_text())["compress_models"] if OUT.exists() else []
    wanted = [
        {"case": options.case, "method": method, "unit": unit, "ratio": ratio, "steps": options.steps, "seed": seed}
        for method in options.methods
        for unit, ratios in (("bytes", options.bytes), ("parameters", options.params))
        for ratio in ([None] * (unit == "bytes") if method in INTEGERS else ratios)
        for seed in options.seeds
    ]
    for row in wanted:
        if any(row.items() <= done.items() for done in rows):
            continue
        began = time.process_time()
        result = integers(row) if row["method"] in INTEGERS else compressed(row)
        rows.append({**row, **result, "cpu_seconds": round(time.process_time() - began, 1)})
        print(rows[-1], flush=True)
        text = {
            "command": "python bench/compress/pareto.py CASE --bytes ... --params ... --methods ... --steps ...",
            "machine": machine(),
            "compress_models": rows,
        }
        OUT.write_text(json.dumps(text, indent=1) + "\n")


def compressed(row: Mapping[str, Any]) -> dict[str, Any]:
    """Compress a model within a budget of its compressed layers, and measure it."""
    case = CASES[row["case"]]()
    params, entries = sizes(case)
    most = params - entries + int(entries / row["ratio"])
    budget = adtn.Budget(params=most) if row["unit"] == "parameters" else adtn.Budget(bytes=4 * most)
    config = adtn.Config(
        targets=case.targets, exclude=case.exclude, tune_steps=row["steps"], seed=row["seed"], **METHODS[row["method"]]
    )
    data = list(islice(case.train(row["seed"]), max(row["steps"], 24)))
    report = adtn.compress(case.model, config, budget=budget, data=data, validation=case.validation[:8], progress=False)
    rest = 4 * (params - entries)
    return {
        "bytes": report.after.bytes - rest,
        "ratio of bytes": 4 * entries / (report.after.bytes - rest),
        "ratio of parameters": entries / (report.after.params - (params - entries)),
        "quality": dict(case.quality(case.model)),
        "seconds": report.seconds,
        "layers": {r.name: [r.topology, r.params, [round(e, 4) for e in r.local_errors]] for r in report.layers},
    }


def integers(row: Mapping[str, Any]) -> dict[str, Any]:
    """Round all compressed layers with error feedback, and measure the model."""
    case = CASES[row["case"]]()
    model = model_of(case.model, None)
    _, entries = sizes(case)
    chosen, _ = adtn.Config(targets=case.targets, exclude=case.exclude).select(model.layers())
    names = [name for layer in chosen for name in layer.weights]
    moments = model.second_moments(names, case.calibration)
    generators = {}
    for name in names:
        weight = model.weight(name)
        generator = dense_generator(weight)
        generators[name] = rounded_in_metric(generator, INTEGERS[row["method"]], weight, moments.get(name))
    model.install(generators)
    model.normalise(case.calibration)
    size = sum(g.nbytes for g in generators.values()) + 4 * (
        entries - sum(math.prod(g.shape) for g in generators.values())
    )
    return {"bytes": size, "ratio of bytes": 4 * entries / size, "quality": dict(case.quality(case.model))}


def sizes(case: Case) -> tuple[int, int]:
    """Return the parameters of the model, and those of the layers that may be compressed."""
    layers, _ = adtn.Config(targets=case.targets, exclude=case.exclude, smallest=0).select(
        model_of(case.model, None).layers()
    )
    entries = sum(math.prod(shape) for layer in layers for shape in layer.weights.values())
    return sum(p.numel() for p in case.model.parameters()), entries


if __name__ == "__main__":
    main()
