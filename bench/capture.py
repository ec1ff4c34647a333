"""Training of generated layers, operation by operation and captured as a CUDA graph (``Config(capture=True)``).

Run as ``python bench/capture.py`` on a machine with a CUDA device; writes ``bench/results/capture.json``. A step
consists of forward, backward and Adam on 128 rows through generated layers of 512x4096 and 4096x4096 and a dense
output layer.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import adtn
import torch
from adtn.backends import get_backend
from adtn.compression import Tuning
from processes import write_results
from torch import nn

from adtn_backends.torch.layers import ADTNLinear

RESULTS = Path(__file__).parent / "results"
TOPOLOGIES = {
    "TTN 4": adtn.TTN(bond=4),
    "MERA 3": adtn.MERA(bond=3),
    "MPO 8": adtn.MPO(bond=8),
    "wall 1": adtn.BrickWall(layers=1),
}
_STEPS = 100


def model(topology: adtn.Topology, device: str) -> nn.Module:
    """Make a model of two generated layers and a dense one."""
    torch.manual_seed(0)
    first, second = (ADTNLinear(adtn.Generator((4096, n), topology)) for n in (512, 4096))
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Linear(4096, 10)).to(device)


def milliseconds(topology: adtn.Topology, device: str, capture: bool, rounds: int) -> tuple[float, float]:
    """Measure the median time of a step over several trainings; also return the last loss, for comparison."""
    rng = torch.Generator().manual_seed(0)
    batch = torch.randn(128, 512, generator=rng).to(device), torch.randint(0, 10, (128,), generator=rng).to(device)

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    times: list[float] = []
    last = 0.0
    for _ in range(rounds + 1):  # the first training also loads kernels
        adapter = get_backend("torch").model(model(topology, device), None)
        torch.cuda.synchronize()
        start = time.perf_counter()
        tuning = Tuning(steps=_STEPS, lr=1e-3, train="all", capture=capture)
        last = adapter.tune([batch], loss, tuning, lambda step, value: None)[-1]
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) / _STEPS * 1e3)
    return statistics.median(times[1:]), last


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "capture.json")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name, topology in TOPOLOGIES.items():
        (plain, a), (recorded, b) = (
            milliseconds(topology, options.device, capture, options.rounds) for capture in (False, True)
        )
        rows.append(
            {"topology": name, "eager_ms": plain, "recorded_ms": recorded, "ratio": plain / recorded, "loss": [a, b]}
        )
        print(rows[-1], flush=True)
    write_results(options.out, device=torch.cuda.get_device_name(options.device), capture=rows)


if __name__ == "__main__":
    main()
