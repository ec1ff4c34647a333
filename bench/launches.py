"""Kernels that a training step of a layer launches on a GPU, counted without one: 4096x4096, forward and gradients.

Run as ``python bench/launches.py``; writes ``bench/results/launches.json``. Small networks wait for launches there,
so this is what their time is made of. Tensors of shapes alone are counted, with the plan for an H200.
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
from train_step import CASES, Method, dense, slopes, stored

RESULTS = Path(__file__).parent / "results"
VIEWS = ("view", "permute", "transpose", "t", "expand", "alias", "detach", "_unsafe_view", "_reshape_alias", "slice")


class Launches(TorchDispatchMode):
    """Counts operations by name, but for views."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.found[name] += name not in VIEWS
        return func(*args, **(kwargs or {}))


def ours(case: BenchCase, batch: int) -> Method:
    """The library's layer, as it is planned for an H200."""
    generator = case.generator()
    chosen = plan(generator, "train", device="torch:cuda:0", batch=batch, profile="h200-torch")
    arrays = {k: torch.tensor(np.array(x)).requires_grad_() for k, x in generator.params.items()}
    return partial(chosen.function(get_backend("torch")), arrays), list(arrays.values())


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
        for method, (layer, numbers) in methods.items():
            with Launches() as counted:
                slopes(layer, numbers, x, cotangent)
            found = {k: v for k, v in counted.found.most_common() if v}
            rows.append(
                {"case": name, "n": n, "batch": batch, "method": method, "kernels": sum(found.values()), **found}
            )
    write_results(options.out, launches=rows)


if __name__ == "__main__":
    main()
