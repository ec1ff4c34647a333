"""How well the scheduler predicts: measured time over the bench set beside the plan's prediction, per backend.

Run as ``python bench/predictions.py`` after ``adtn calibrate``; writes ``bench/results/predictions.json``.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from adtn.bench import BATCHES, SHAPES, Work, bench_set, median_seconds
from processes import rows_per_device, write_results

RESULTS = Path(__file__).parent / "results"
DEVICES = ("numpy:cpu", "torch:cpu", "jax:cpu")


def measure(device: str, dtype: str, largest: int, seconds: float) -> list[dict[str, Any]]:
    """Every case and task on one device."""
    rows: list[dict[str, Any]] = []
    for case in bench_set([s for s in SHAPES if s[0] * s[1] <= largest]):
        generator = case.generator()
        works = [("generate", None), ("fit", None), *(("apply", b) for b in BATCHES)]
        for task, batch in works:
            row: dict[str, Any] = {"device": device, "dtype": dtype, "case": case.label, "task": task, "batch": batch}
            try:
                work = Work(generator, task, device, dtype, batch)
                row |= {"mode": work.plan.mode, "tiles": work.plan.tiles, "predicted": work.plan.predicted_seconds}
                row["seconds"] = median_seconds(work.run, seconds)
            except Exception as error:  # a failed run is a result
                row["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
            rows.append(row)
    return rows


def summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Median and 90th percentile of ``|log(predicted / measured)|`` per device and task."""
    out: dict[str, dict[str, float]] = {}
    for device in dict.fromkeys(r["device"] for r in rows):
        for task in ("all", "generate", "fit", "apply"):
            logs = [
                abs(math.log(r["predicted"] / r["seconds"]))
                for r in rows
                if r["device"] == device and task in ("all", r["task"]) and "seconds" in r
            ]
            out[f"{device} {task}"] = {
                "n": len(logs), "median": float(np.median(logs)), "p90": float(np.quantile(logs, 0.9)),
            }  # fmt: skip
    return out


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--largest", type=int, default=11008 * 4096)
    parser.add_argument("--seconds", type=float, default=0.2)
    parser.add_argument("--out", type=Path, default=RESULTS / "predictions.json")
    options = parser.parse_args()
    if options.device:
        print(json.dumps(measure(options.device, options.dtype, options.largest, options.seconds)))
        return
    rows = rows_per_device([d for d in DEVICES if options.dtype != "bfloat16" or not d.startswith("numpy")])
    found = summary(rows)
    write_results(options.out, summary=found, predictions=rows)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
