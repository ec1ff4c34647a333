"""The time and memory in which a weight is generated, 4096x4096, over a copy of it.

Run as ``python bench/weights.py``; writes ``bench/results/weights.json``. Copies into fresh and into present memory
are made by the same framework in the same run. Memory is the growth of the process in a first call, with the array
that is returned or written into. One process per case, device and number of threads.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from adtn.backends import get_backend
from adtn.bench import BenchCase, paired_seconds
from processes import rows_per_device, write_results

RESULTS = Path(__file__).parent / "results"
CASES = ("TTN 2", "TTN 4", "aTTN 4", "MERA 4", "MPO 8", "Tucker 4", "wall 1", "wall 2")
DEVICES = ("numpy:cpu", "torch:cpu")
N = 4096


def measure(name: str, device: str, threads: int, seconds: float) -> list[dict[str, Any]]:
    """Measure one case on one device."""
    backend = get_backend(device.partition(":")[0])
    if device.startswith("torch"):
        import torch

        torch.set_num_threads(threads)
    generator = BenchCase(name, (N, N)).generator()
    source, there = (backend.asarray(np.zeros((N, N), np.float32), "cpu", None) for _ in range(2))

    def fill() -> None:
        there[...] = source

    times = paired_seconds(
        {
            "copy": lambda: source.clone() if hasattr(source, "clone") else source.copy(),
            "fill": fill,
            "weight()": lambda: generator.weight(device),
            "weight(out=)": lambda: generator.weight(device, out=there),
        },
        seconds,
    )
    row = {"case": name, "device": device, "threads": threads, "n": N}
    return [
        {
            **row,
            "method": method,
            "seconds": times[method],
            **({} if method in ("copy", "fill") else memory(row, method)),
        }
        for method in times
    ]


def memory(row: dict[str, Any], method: str) -> dict[str, float]:
    """Measure the memory of a first call in a process of its own."""
    command = [sys.executable, __file__, "--memory", json.dumps([row["case"], row["device"], method])]
    return {"weights of memory": float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)}


def grown(name: str, device: str, method: str) -> float:
    """Return the growth of this process in a first call, in weights."""
    backend = get_backend(device.partition(":")[0])
    small, large = (BenchCase(name, (n, n)).generator() for n in (256, N))
    small.weight(device)
    before = peak_bytes()
    if method == "weight()":
        large.weight(device)
    else:
        large.weight(device, out=backend.asarray(np.ones((N, N), np.float32), "cpu", None, copy=False))
    return (peak_bytes() - before) / (4 * N * N)


def peak_bytes() -> int:
    """Return the largest memory of this process so far; that of ``getrusage`` begins with the parent's."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def main() -> None:
    """Measure all cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="", help="the case, device and threads to measure in this process")
    parser.add_argument("--memory", default="", help="the case, device and method whose memory is measured")
    parser.add_argument("--cases", nargs="*", default=CASES)
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=0.6)
    parser.add_argument("--out", type=Path, default=RESULTS / "weights.json")
    options = parser.parse_args()
    if options.memory:
        print(grown(*json.loads(options.memory)))
        return
    if options.device:
        case, device, threads = options.device.split("/")
        print(json.dumps(measure(case, device, int(threads), options.seconds)))
        return
    runs = product(options.threads, options.cases, DEVICES)
    write_results(options.out, weights=rows_per_device([f"{case}/{device}/{n}" for n, case, device in runs]))


if __name__ == "__main__":
    main()
