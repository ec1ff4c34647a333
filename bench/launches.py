"""The kernels that a training step of a layer launches on a GPU, counted without one: 4096x4096, with gradients.

Run as ``python bench/launches.py``; writes ``bench/results/launches.json``. Small networks are limited by launches, so
their number determines the time. Kernels are counted on tensors without values, with the plan for an H200.
"""

from __future__ import annotations

import argparse
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from adtn.backends import get_backend
from adtn.bench import BenchCase
from adtn.schedule import plan
from processes import write_results
from torch.utils._python_dispatch import TorchDispatchMode
from train_step import CASES, Method, dense, gradients, stored

RESULTS = Path(__file__).parent / "results"
VIEWS = ("view", "permute", "transpose", "t", "expand", "alias", "detach", "_unsafe_view", "_reshape_alias", "slice")


class Launches(TorchDispatchMode):
    """A mode that counts operations by name, except views."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.counts[name] += name not in VIEWS
        return func(*args, **(kwargs or {}))


def ours(case: BenchCase, batch: int) -> Method:
    """Make the library's layer with the plan for an H200."""
    generator = case.generator()
    best = plan(generator, "train", device="torch:cuda:0", batch=batch, profile="h200-torch")
    arrays = {k: torch.tensor(np.array(x)).requires_grad_() for k, x in generator.params.items()}
    return partial(best.function(get_backend("torch")), arrays), list(arrays.values())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--n", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--out", type=Path, default=RESULTS / "launches.json")
    options = parser.parse_args()
    torch.set_default_device("meta")
    n, batch = options.n, options.batch
    rows: list[dict[str, Any]] = []
    for name in CASES:
        case = BenchCase(name, (n, n))
        methods = {
            "dense": dense(case),
            "adtn": ours(case, batch),
            "cotengra, input": stored(case, batch, "input"),
            "cotengra, weight": stored(case, batch, "weight"),
        }
        x, cotangent = torch.zeros(batch, n, requires_grad=True), torch.zeros(batch, n)
        for method, (layer, params) in methods.items():
            with Launches() as launches:
                gradients(layer, params, x, cotangent)
            counts = {k: v for k, v in launches.counts.most_common() if v}
            rows.append(
                {"case": name, "n": n, "batch": batch, "method": method, "kernels": sum(counts.values()), **counts}
            )
    write_results(options.out, launches=rows)


if __name__ == "__main__":
    main()
