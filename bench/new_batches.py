"""The first step with a new size of batch, over the step itself: ``python bench/new_batches.py``.

Fifty equal-shaped layers in PyTorch, forward and all gradients; sizes within a planned range, and sizes in new ranges.
Writes ``bench/results/new-batches.json``.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import adtn
import torch
from processes import write_results
from torch import nn

from adtn_backends.torch import ADTNLinear

OUT = Path(__file__).parent / "results" / "new-batches.json"
N, LAYERS = 256, 50
TOPOLOGIES: dict[str, adtn.Topology] = {
    "MPO 4": adtn.MPO(bond=4),
    "TTN 4": adtn.TTN(bond=4),
    "Tucker 4": adtn.Tucker(bond=4),
}
KNOWN, NEW = (18, 20, 23, 27, 31), (40, 80, 160)


def model_of(topology: adtn.Topology) -> nn.Module:
    """Make a chain of equal-shaped layers."""
    layers = [ADTNLinear(adtn.Generator((N, N), topology, seed=k)) for k in range(LAYERS)]
    return nn.Sequential(*[module for layer in layers for module in (layer, nn.ReLU())])


def seconds(model: nn.Module, batch: int) -> float:
    """Return the time of one step."""
    x = torch.randn(batch, N)
    began = time.perf_counter()
    model(x).sum().backward()
    return time.perf_counter() - began


def ratios(model: nn.Module, batches: Sequence[int]) -> list[float]:
    """Return the first step over the median of later ones, for every size."""
    found: list[float] = []
    for batch in batches:
        first = seconds(model, batch)
        found.append(round(first / statistics.median(seconds(model, batch) for _ in range(7)), 2))
    return found


def main() -> None:
    """Measure all topologies."""
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for name, topology in TOPOLOGIES.items():
        model = model_of(topology)
        for _ in range(3):
            seconds(model, 17)
        rows.append({"topology": name, "known range": ratios(model, KNOWN), "new range": ratios(model, NEW)})
        print(rows[-1], flush=True)
    write_results(OUT, new_batches=rows)


if __name__ == "__main__":
    main()
