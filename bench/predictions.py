"""The accuracy of the scheduler's predictions: predicted and measured times over the bench set, per backend.

Run as ``python bench/predictions.py`` after ``adtn calibrate``; writes ``bench/results/predictions.json``. On a shared
machine, the speed changes by a factor of two within minutes. So every measurement is paired with a plain product and an
addition: their slowdown relative to the fastest pair of the run is attributed to the machine, and the rest to the
prediction. The summary has the errors with and without this correction.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from adtn.backends import check_device
from adtn.bench import BATCHES, SHAPES, Work, bench_set, paired_seconds
from autoray import do
from processes import rows_per_device, write_results

RESULTS = Path(__file__).parent / "results"
DEVICES = ("numpy:cpu", "torch:cpu", "jax:cpu")


def plain_operations(device: str, dtype: str) -> Callable[[], Any]:
    """Make a function that computes a plain product and an addition."""
    backend, where = check_device(device, dtype)
    rng = np.random.default_rng(0)
    x, y = (backend.asarray(rng.standard_normal((512, 512), dtype=np.float32), where, dtype) for _ in range(2))
    big = backend.asarray(np.ones(1 << 20, dtype=np.float32), where, dtype)
    function = backend.compile(lambda x, y, big: (do("matmul", x, y), big + big))

    def run() -> None:
        with backend.scope(dtype):
            backend.synchronize(where, function(x, y, big))

    return run


def measure(device: str, dtype: str, largest: int, seconds: float) -> list[dict[str, Any]]:
    """Measure every case and task on one device."""
    rows: list[dict[str, Any]] = []
    plain = plain_operations(device, dtype)
    for case in bench_set([s for s in SHAPES if s[0] * s[1] <= largest]):
        generator = case.generator()
        works = [("generate", None), ("fit", None), *(("apply", b) for b in BATCHES)]
        for task, batch in works:
            row: dict[str, Any] = {"device": device, "dtype": dtype, "case": case.label, "task": task, "batch": batch}
            try:
                work = Work(generator=generator, task=task, device=device, dtype=dtype, batch=batch)
                row |= {"mode": work.plan.mode, "tiles": work.plan.tiles, "predicted": work.plan.predicted_seconds}
                times = paired_seconds({"work": work.run, "plain": plain}, seconds)
                row |= {"seconds": times["work"], "plain_seconds": times["plain"]}
            except Exception as error:  # a failed run is a result
                row["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
            rows.append(row)
    quiet = min((r["plain_seconds"] for r in rows if "plain_seconds" in r), default=1.0)
    return [r | {"slowness": r["plain_seconds"] / quiet} if "plain_seconds" in r else r for r in rows]


def summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Summarise ``|log(predicted / measured)|`` per device and task by median and 90th percentile, raw and paired."""
    out: dict[str, dict[str, float]] = {}
    for device in dict.fromkeys(r["device"] for r in rows):
        for task in ("all", "generate", "fit", "apply"):
            chosen = [r for r in rows if r["device"] == device and task in ("all", r["task"]) and "seconds" in r]
            raw = [abs(math.log(r["predicted"] / r["seconds"])) for r in chosen]
            paired = [abs(math.log(r["predicted"] * r["slowness"] / r["seconds"])) for r in chosen]
            out[f"{device} {task}"] = {
                "n": len(chosen),
                "median": float(np.median(paired)),
                "p90": float(np.quantile(paired, 0.9)),
                "median as measured": float(np.median(raw)),
                "p90 as measured": float(np.quantile(raw, 0.9)),
            }
    return out


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="")
    parser.add_argument("--devices", nargs="*", default=DEVICES)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--largest", type=int, default=11008 * 4096)
    parser.add_argument("--seconds", type=float, default=0.2)
    parser.add_argument("--out", type=Path, default=RESULTS / "predictions.json")
    options = parser.parse_args()
    if options.device:
        print(json.dumps(measure(options.device, options.dtype, options.largest, options.seconds)))
        return
    rows = rows_per_device([d for d in options.devices if options.dtype != "bfloat16" or not d.startswith("numpy")])
    errors = summary(rows)
    write_results(options.out, summary=errors, predictions=rows)
    print(json.dumps(errors, indent=1))


if __name__ == "__main__":
    main()
