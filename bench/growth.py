"""Growth of the cost of a streamed fit step with the weight, from 2^16 to 2^28 entries, one process per size.

Run as ``python bench/growth.py``; writes ``bench/results/growth.json`` and ``growth.png``.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import adtn
import numpy as np
from adtn.bench import Work, median_seconds, peak_bytes
from processes import write_results

RESULTS = Path(__file__).parent / "results"
BITS = tuple(range(16, 29, 2))


def measure(bits: int, device: str) -> dict[str, Any]:
    """Measure one size."""
    n = 1 << bits // 2
    layout = adtn.Layout.of((n, n), 8, "interleaved")
    generator = adtn.Generator((n, n), adtn.TTN(bond=4), layout=layout, scale=1.0)
    small = adtn.Generator((64, 64), adtn.TTN(bond=2), scale=1.0)
    Work(generator=small, task="fit", device=device).run()  # loads the framework and starts its threads
    work = Work(generator=generator, task="fit", device=device, mode="stream")
    run = work.run
    peak = peak_bytes(run)
    return {
        "bits": bits,
        "device": device,
        "params": generator.num_params,
        "tiles": work.plan.tiles,
        "seconds": median_seconds(run, 2.0),
        "predicted": work.plan.predicted_seconds,
        "peak_bytes": peak,
        "predicted_peak_bytes": work.plan.peak_bytes,
    }


def exponent(rows: list[dict[str, Any]], key: str, least: int) -> float:
    """Fit the slope of log(key) over log(entries), from ``2**least`` entries on."""
    chosen = [r for r in rows if r["bits"] >= least and r[key]]
    return float(np.polyfit([r["bits"] for r in chosen], [math.log2(r[key]) for r in chosen], 1)[0])


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for device in dict.fromkeys(r["device"] for r in rows):
        on_device = [r for r in rows if r["device"] == device]
        bits = [2.0 ** r["bits"] for r in on_device]
        left.loglog(bits, [r["seconds"] for r in on_device], "o-", label=device)
        right.loglog(bits, [max(r["peak_bytes"] or 0, 1e4) / 2**20 for r in on_device], "o-", label=device)
    entries = [2.0**b for b in BITS]
    right.loglog(entries, [4 * e / 2**20 for e in entries], "k:", label="the weight itself, float32")
    left.set(xlabel="entries of the weight", ylabel="seconds per fit step")
    right.set(xlabel="entries of the weight", ylabel="peak of additional MiB")
    left.legend(fontsize=8)
    right.legend(fontsize=8)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bits", type=int, default=0)
    parser.add_argument("--device", nargs="*", default=["numpy:cpu", "torch:cpu"])
    parser.add_argument("--out", type=Path, default=RESULTS / "growth.json")
    options = parser.parse_args()
    if options.bits:
        print(json.dumps(measure(options.bits, options.device[0])))
        return
    rows: list[dict[str, Any]] = []
    for device in options.device:
        for bits in BITS:
            command = [sys.executable, __file__, "--bits", str(bits), "--device", device]
            rows.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    exponents = {
        f"{device} {key}": exponent([r for r in rows if r["device"] == device], key, 20)
        for device in options.device
        for key in ("seconds", "peak_bytes")
    }
    write_results(options.out, **{"exponents_from_2^20": exponents, "growth": rows})
    draw(rows, options.out.with_suffix(".png"))
    print(json.dumps(exponents, indent=1))


if __name__ == "__main__":
    main()
