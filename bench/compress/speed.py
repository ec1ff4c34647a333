"""The time of compressing a perceptron, over that of training it densely: ``python bench/compress/speed.py``.

The layers of a 784-1024-1024-10 network on MNIST become generators; the local fits and the training of the whole model
take 200 steps each, and the dense network 200 steps on the same batches. Pairs alternate in one process. Needs
``ADTN_DATA``; writes ``bench/results/compress-speed.json``.
"""

from __future__ import annotations

import argparse
import copy
import cProfile
import json
import pstats
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import adtn
import torch
from adtn.bench import machine
from adtn.demo._data import load_images
from torch import nn

OUT = Path(__file__).parents[1] / "results" / "compress-speed.json"
TOPOLOGIES: dict[str, adtn.Topology] = {
    "low rank": adtn.LowRank(bond=16),
    "MPO(8)": adtn.MPO(bond=8),
    "TTN(8)": adtn.TTN(bond=8, activation=None),
    "TTN(8), SiLU": adtn.TTN(bond=8),
    "MERA(4)": adtn.MERA(bond=4, activation=None),
}
STEPS, BATCH = 200, 128
Batches = list[tuple[torch.Tensor, torch.Tensor]]


def network() -> nn.Module:
    """Make the network that is compressed."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10))


def batches(steps: int) -> Batches:
    """Return batches of training images with labels."""
    data = load_images("mnist")
    x, y = torch.tensor(data.x_train), torch.tensor(data.y_train, dtype=torch.long)
    random = torch.Generator().manual_seed(0)
    at = [torch.randint(len(x), (BATCH,), generator=random) for _ in range(steps)]
    return [(x[i], y[i]) for i in at]


def train(model: nn.Module, data: Batches) -> None:
    """Train all parameters with Adam."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for x, y in data:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def compressed(model: nn.Module, data: Batches, topology: adtn.Topology, **options: Any) -> Any:
    """Compress a copy of the network."""
    config = adtn.Config(topology=topology, steps=STEPS, tune_steps=STEPS, smallest=20_000, **options)
    return adtn.compress(copy.deepcopy(model), config, data=data, progress=False)


def seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    """Return the wall time and the result of a call."""
    began = time.perf_counter()
    found = run()
    return time.perf_counter() - began, found


def main() -> None:
    """Measure all topologies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--profile", choices=TOPOLOGIES, help="print where the time of one compression goes")
    options = parser.parse_args()
    data, rows = batches(STEPS), []
    torch.set_num_threads(options.threads[0])
    model = network()
    train(model, data * 3)
    if options.profile:
        with cProfile.Profile() as profile:
            compressed(model, data, TOPOLOGIES[options.profile])
        pstats.Stats(profile).sort_stats("cumulative").print_stats("adtn", 60)
        return
    for threads in options.threads:
        torch.set_num_threads(threads)
        for name, topology in TOPOLOGIES.items():
            pairs: list[tuple[float, float]] = []
            report: Any = None
            for n in range(options.pairs + 1):
                dense, _ = seconds(lambda: train(network(), data))
                own, report = seconds(lambda topology=topology: compressed(model, data, topology))
                pairs += [(own, dense)] if n else []  # the first one plans
            rows.append(
                {
                    "topology": name,
                    "threads": threads,
                    "ratio": round(statistics.median(own / dense for own, dense in pairs), 3),
                    "errors": {row.name: round(max(row.local_errors), 4) for row in report.layers if row.local_errors},
                }
            )
            print(rows[-1], flush=True)
    command = " ".join(["python", "bench/compress/speed.py", *sys.argv[1:]])
    content = {"command": command, "machine": machine(), "compress_speed": rows}
    OUT.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
