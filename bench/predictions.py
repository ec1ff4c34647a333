"""How well the scheduler predicts: measured time over the bench set beside the plan's prediction, per backend.

Run as ``python bench/predictions.py`` after ``adtn calibrate``; writes ``bench/results/predictions.json``. One process
per device, because threads of one framework slow another down.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from adtn.bench import BATCHES, SHAPES, Work, bench_set, machine, median_seconds

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
    parser.add_argument("--largest", type=int, default=4096 * 4096)
    parser.add_argument("--seconds", type=float, default=0.2)
    parser.add_argument("--out", type=Path, default=RESULTS / "predictions.json")
    options = parser.parse_args()
    if options.device:
        print(json.dumps(measure(options.device, options.dtype, options.largest, options.seconds)))
        return
    rows: list[dict[str, Any]] = []
    for device in DEVICES:
        command = [sys.executable, *sys.argv, "--device", device]
        rows += json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    content = {
        "command": "python " + " ".join(["bench/predictions.py", *sys.argv[1:]]),
        "machine": machine(),
        "summary": summary(rows),
        "predictions": rows,
    }
    options.out.write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps(content["summary"], indent=1))


if __name__ == "__main__":
    main()
