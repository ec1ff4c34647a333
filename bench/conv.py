"""The time of a training step of one convolution with a 3x3 window: forward, and the gradients of parameters and input.

Run as ``python bench/conv.py``; writes ``bench/results/conv.json``. The layers are compared with a dense one, with a
low-rank pair of about as many parameters (3x3 to a few channels, then 1x1), and for Tucker, CP and TT with the
factorized and the reconstructed convolution of tensorly-torch of the same format and ranks. Forward passes without
gradients are measured as well, where a weight is generated once. One process per topology and number of threads.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import adtn
import torch
from adtn.bench import paired_seconds
from processes import rows_per_device, write_results
from torch import nn

from adtn_backends.torch import ADTNConv2d

RESULTS = Path(__file__).parent / "results"
CASES = ("Tucker", "CP", "TT", "MPO 8", "TTN 4", "TTN 4 SiLU", "MERA 4 SiLU")
SHAPES = ((512, 4, 32), (256, 8, 32), (64, 32, 32), (512, 2, 64))
"""Channels, side of the images, batch."""
WINDOW = 3


def generator_of(name: str, channels: int) -> adtn.Generator:
    """Make the generator of a case; the ranks of Tucker, CP and TT grow with the channels."""
    shape = (channels, channels, WINDOW, WINDOW)
    whole, rank = adtn.Layout.whole(shape), rank_of(channels)
    if name == "TT":  # the order of legs in tensorly-torch
        whole = adtn.Layout.from_factors(shape, whole.factors, order=(1, 2, 3, 0))
    topologies: dict[str, adtn.Topology] = {
        "Tucker": adtn.Tucker(bond=(rank, rank, None, None)),
        "CP": adtn.CP(bond=2 * rank),
        "TT": adtn.TT(bond=rank),
        "MPO 8": adtn.MPO(bond=8),
        "TTN 4": adtn.TTN(bond=4, activation=None),
        "TTN 4 SiLU": adtn.TTN(bond=4),
        "MERA 4 SiLU": adtn.MERA(bond=4),
    }
    layout = whole if name in ("Tucker", "CP", "TT") else None
    return adtn.Generator(shape, topologies[name], layout=layout, seed=0)


def rank_of(channels: int) -> int:
    """Return the rank of Tucker and TT; twice as much for CP."""
    return channels // 8 if channels > 64 else channels // 4


def ours(name: str, channels: int, mode: Any = None) -> nn.Module:
    """Make the library's layer."""
    return ADTNConv2d(generator_of(name, channels), bias=False, padding=1, mode=mode)


def dense(channels: int) -> nn.Module:
    """Make an ordinary layer."""
    return nn.Conv2d(channels, channels, WINDOW, padding=1, bias=False)


def low_rank(name: str, channels: int) -> nn.Module:
    """Make two ordinary layers with as many parameters as the generator, at least of rank one."""
    params = generator_of(name, channels).num_params
    rank = max(round(params / (channels * (WINDOW * WINDOW + 1))), 1)
    return nn.Sequential(
        nn.Conv2d(channels, rank, WINDOW, padding=1, bias=False), nn.Conv2d(rank, channels, 1, bias=False)
    )


def tensorly(name: str, channels: int, implementation: str) -> nn.Module:
    """Make the layer of tensorly-torch."""
    import tltorch  # pyright: ignore[reportMissingImports]

    r = rank_of(channels)
    rank: Any = {"Tucker": (r, r, WINDOW, WINDOW), "CP": 2 * r, "TT": (1, r, min(r, WINDOW * r), r, 1)}[name]
    return tltorch.FactorizedConv(
        channels,
        channels,
        WINDOW,
        order=2,
        padding=1,
        bias=False,
        factorization=name.lower(),
        rank=rank,
        implementation=implementation,
    )


def methods(name: str, channels: int) -> dict[str, Callable[[], nn.Module]]:
    """Return all methods that are compared, by name."""
    by_name: dict[str, Callable[[], nn.Module]] = {
        "dense": partial(dense, channels),
        "low-rank pair": partial(low_rank, name, channels),
        "adtn": partial(ours, name, channels),
        "adtn, weight": partial(ours, name, channels, mode="materialise"),
    }
    if name in ("Tucker", "CP", "TT"):
        for implementation in ("factorized", "reconstructed"):
            by_name[f"tensorly-torch, {implementation}"] = partial(tensorly, name, channels, implementation)
    return by_name


def step(layer: nn.Module, x: torch.Tensor, cotangent: torch.Tensor) -> Any:
    """Run a layer forward and backward."""
    return torch.autograd.grad(layer(x), [x, *layer.parameters()], cotangent)


def infer(layer: nn.Module, x: torch.Tensor) -> Any:
    """Run a layer forward only."""
    with torch.no_grad():
        return layer(x)


def measure(name: str, threads: int, seconds: float) -> list[dict[str, Any]]:
    """Measure all methods on one topology."""
    torch.set_num_threads(threads)
    rows: list[dict[str, Any]] = []
    for task, (channels, side, batch) in product(("train", "apply"), SHAPES):
        torch.manual_seed(0)
        x = torch.randn(batch, channels, side, side, requires_grad=task == "train")
        cotangent = torch.randn(batch, channels, side, side)
        layers = {method: make() for method, make in methods(name, channels).items()}
        run = partial(step, cotangent=cotangent) if task == "train" else infer
        times = paired_seconds({method: partial(run, layer, x) for method, layer in layers.items()}, seconds)
        with torch.no_grad():
            ours, whole = layers["adtn"](x), layers["adtn, weight"](x)
            difference = float((ours - whole).norm() / whole.norm())
        for method, layer in layers.items():
            rows.append(
                {
                    "case": name,
                    "channels": channels,
                    "side": side,
                    "batch": batch,
                    "threads": threads,
                    "task": task,
                    "method": method,
                    "params": sum(p.numel() for p in layer.parameters()),
                    "seconds": times[method],
                    **({"output_difference": difference} if method == "adtn" else {}),
                }
            )
    return rows


def main() -> None:
    """Measure all topologies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="", help="the case and the threads to measure in this process")
    parser.add_argument("--cases", nargs="*", default=CASES)
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--out", type=Path, default=RESULTS / "conv.json")
    options = parser.parse_args()
    if options.device:
        case, _, threads = options.device.partition("/")
        print(json.dumps(measure(case, int(threads), options.seconds)))
        return
    runs = [f"{case}/{threads}" for threads, case in product(options.threads, options.cases)]
    write_results(options.out, conv=rows_per_device(runs))


if __name__ == "__main__":
    main()
