"""Bytes against quality of whole models: ``python bench/compress/pareto.py resnet20 --bytes 4 8 12``.

Compresses a model at several ratios of the layers that are compressed, by the automatic choice, by single methods and
by other libraries, without training (``--steps 0``) or with a short one. Every row is written to
``bench/results/compress-CASE.json`` as soon as it is done, and rows that are there are not computed again.
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
from adtn import Generator
from adtn.bench import machine
from adtn.compression import dense_generator, model_of
from case import Case
from libraries import TENSORLY, TORCHAO, Weights
from single import FACTORISED, INTEGERS

from models import CASES

RESULTS = Path(__file__).parents[1] / "results"
_FIXED = tuple(p for p in adtn.Config().precisions if not p.is_coded)
SEARCHED: Mapping[str, Mapping[str, Any]] = {  # by options of a config
    "automatic": {},
    "fixed length": {"precisions": _FIXED, "orders": False},
    "fixed length ordered": {"precisions": _FIXED, "orders": True},
    "float32": {"precisions": ()},
}
OF_ONE_SIZE = ("dense", *INTEGERS, *TORCHAO)
SINGLE = ("dense", *INTEGERS, *FACTORISED)
GROUPS = {"single": SINGLE, "libraries": (*TORCHAO, *TENSORLY)}


def main() -> None:
    """Compress and measure."""
    names = (*SEARCHED, *SINGLE, *GROUPS["libraries"])
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--bytes", type=float, nargs="*", default=[], help="ratios of bytes")
    parser.add_argument("--params", type=float, nargs="*", default=[], help="ratios of parameters")
    parser.add_argument("--methods", nargs="*", default=["automatic"], choices=[*names, *GROUPS], metavar="METHOD")
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    options = parser.parse_args()
    torch.set_num_threads(1)
    out = RESULTS / f"compress-{options.case}.json"
    rows = json.loads(out.read_text())["compress_models"] if out.exists() else []
    wanted: list[dict[str, Any]] = [
        {"case": options.case, "method": method, "unit": unit, "ratio": ratio, "steps": options.steps, "seed": seed}
        for given in options.methods
        for method in GROUPS.get(given, (given,))
        for unit, ratios in (("bytes", options.bytes), ("parameters", options.params))
        for ratio in ([None] * (unit == "bytes") if method in OF_ONE_SIZE else ratios)
        for seed in options.seeds
        if unit == "bytes" or method in SEARCHED
    ]
    wanted = [row for row in wanted if not any(row.items() <= done.items() for done in rows)]
    case = CASES[options.case]() if wanted else None
    for row in wanted:
        assert case is not None, "it is loaded if there are rows"
        sized = FACTORISED.get(row["method"]) or TENSORLY.get(row["method"])
        if sized is not None and not sized.fits(case, row["ratio"]):
            continue
        began = time.process_time()
        try:
            result = measured(case.fresh(), row)
        except adtn.errors.CompressError as error:  # no form is as small
            result = {"failed": str(error)}
        rows.append({**row, **result, "cpu_seconds": round(time.process_time() - began, 1)})
        print({k: v for k, v in rows[-1].items() if k != "layers"}, flush=True)
        content = {
            "command": f"python bench/compress/pareto.py {options.case} --bytes ... --methods ... --steps ...",
            "machine": machine(),
            "compress_models": rows,
        }
        out.write_text(json.dumps(content, indent=1) + "\n")


def measured(case: Case, row: Mapping[str, Any]) -> dict[str, Any]:
    """Compress the model of a case by a method, and measure it."""
    method, ratio = row["method"], row["ratio"]
    if method in SEARCHED:
        return searched(case, row)
    if method in TORCHAO or method in TENSORLY:
        weights = (TORCHAO.get(method) or TENSORLY[method]).weights(case, ratio)
        return installed(case, {name: dense_generator(w) for name, (w, _) in weights.items()}, weights)
    if method == "dense":
        return installed(case, {})
    return installed(case, (INTEGERS.get(method) or FACTORISED[method]).generators(case, ratio))


def searched(case: Case, row: Mapping[str, Any]) -> dict[str, Any]:
    """Compress a model within a budget of its compressed layers by the automatic choice, and measure it."""
    params, entries = case.sizes()
    most = params - entries + int(entries / row["ratio"])
    budget = adtn.Budget(params=most)
    if row["unit"] == "bytes":  # the headers of the dense file are free, those of codes are not
        budget = adtn.Budget(bytes=case.file_bytes() - 4 * (params - most))
    config = adtn.Config(
        targets=case.targets,
        exclude=case.exclude,
        tune_steps=row["steps"],
        seed=row["seed"],
        rest="same",
        **SEARCHED[row["method"]],
    )
    data = list(islice(case.train(row["seed"]), max(row["steps"], case.batches)))
    held = case.validation[: case.held]
    report = adtn.compress(case.model, config, budget=budget, data=data, validation=held, progress=False)
    rest = 4 * (params - entries)
    return {
        "bytes": report.after.bytes - rest,
        "ratio of bytes": 4 * entries / (report.after.bytes - rest),
        "ratio of parameters": entries / (report.after.params - (params - entries)),
        **quality_of(case),
        "seconds": report.seconds,
        "layers": {r.name: [r.topology, r.params, [round(e, 4) for e in r.local_errors]] for r in report.layers},
    }


def installed(case: Case, generators: Mapping[str, Generator], weights: Weights | None = None) -> dict[str, Any]:
    """Replace the weights of a model, correct its statistics, and measure it; weights have sizes of their own."""
    model = model_of(case.model, None)
    _, entries = case.sizes()
    if generators:
        model.install(generators)
        model.normalise(case.calibration)
    replaced = sum(math.prod(g.shape) for g in generators.values())
    stored = {name: weights[name][1] if weights else g.nbytes for name, g in generators.items()}
    size = sum(stored.values()) + 4 * (entries - replaced)
    params = sum(g.num_params for g in generators.values())
    layers = {name: [str(g.topology), stored[name]] for name, g in generators.items()}
    return {
        "bytes": size,
        "ratio of bytes": 4 * entries / size,
        **quality_of(case),
        **({} if weights else {"ratio of parameters": entries / (entries - replaced + params), "layers": layers}),
    }


def quality_of(case: Case) -> dict[str, dict[str, float]]:
    """Return the measures of quality and their standard errors."""
    quality = case.quality(case.model)
    return {
        "quality": {name: value for name, (value, _) in quality.items()},
        "standard errors": {name: error for name, (_, error) in quality.items()},
    }


if __name__ == "__main__":
    main()
