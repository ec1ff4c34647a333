"""Generated layers compared with a dense one: ``apply`` in the scheduler's mode, five batch sizes, 4096x4096.

Run as ``python bench/apply.py``; writes ``bench/results/apply.json``. The dense layer has its weight in memory and is
``x @ W.T`` in NumPy, ``lax.dot_general`` in JAX, and ``nn.functional.linear`` in PyTorch. One process per device.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from adtn.backends import check_device
from adtn.bench import BATCHES, BenchCase, Work, paired_seconds
from processes import rows_per_device, write_results

RESULTS = Path(__file__).parent / "results"
DEVICES = ("numpy:cpu", "torch:cpu", "jax:cpu")
CASES = ("TTN 2", "TTN 4", "TTN 8", "aTTN 4", "MERA 4", "wall 1", "wall 2", "MPO 8", "Tucker 4")


def measure(device: str, n: int, seconds: float) -> list[dict[str, Any]]:
    """Measure all cases and batch sizes on one device."""
    backend, where = check_device(device, "float32")
    rows: list[dict[str, Any]] = []
    dense = backend.asarray(np.random.default_rng(0).standard_normal((n, n), dtype=np.float32), where, "float32")
    if device.startswith("torch"):
        import torch

        product = torch.nn.functional.linear
    elif device.startswith("jax"):
        import jax

        # one contraction, as XLA on the CPU takes far longer for a transpose and a product
        product = jax.jit(lambda x, w: jax.lax.dot_general(x, w, (((1,), (1,)), ((), ()))))
    else:

        def product(x: np.ndarray, w: np.ndarray) -> np.ndarray:
            return x @ w.T

    for name in CASES:
        generator = BenchCase(name, (n, n)).generator()
        for batch in BATCHES:
            work = Work(generator=generator, task="apply", device=device, batch=batch)
            x = backend.asarray(work.operand, where, "float32")
            times = paired_seconds(
                {"adtn": work.run, "dense": lambda x=x: backend.synchronize(where, product(x, dense))}, seconds
            )
            rows.append(
                {
                    "device": device,
                    "case": name,
                    "batch": batch,
                    "mode": work.plan.mode,
                    **times,
                    "adtn_over_dense": times["adtn"] / times["dense"],
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="")
    parser.add_argument("--devices", nargs="*", default=DEVICES)
    parser.add_argument("--n", type=int, default=4096)
    parser.add_argument("--seconds", type=float, default=0.3)
    parser.add_argument("--out", type=Path, default=RESULTS / "apply.json")
    options = parser.parse_args()
    if options.device:
        print(json.dumps(measure(options.device, options.n, options.seconds)))
        return
    write_results(options.out, apply=rows_per_device(options.devices))


if __name__ == "__main__":
    main()
