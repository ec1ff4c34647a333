"""Loss against wall time for Levenberg-Marquardt, L-BFGS, both in turn, and Adam, on the same reconstructions.

Run as ``python bench/optimizers.py``; writes ``bench/results/optimizers.json`` and ``optimizers.png``. Each optimizer
has the same wall time. Targets are weights of a generator with the same structure and other parameters (which can be
reached exactly), a smooth function and, if ``ADTN_DATA`` is set, a trained convolution of a ResNet.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from pathlib import Path
from typing import Any

import adtn
import numpy as np
from adtn.compression import read_weights
from processes import write_results

RESULTS = Path(__file__).parent / "results"
OPTIMIZERS = ("lm", "lbfgs", "lbfgs, then lm", "adam")
ADAM_LR = 2e-2
TOPOLOGIES = {
    "ttn": adtn.TTN(bond=4),
    "linear ttn": adtn.TTN(bond=4, activation="identity"),
    "mera": adtn.MERA(bond=3),
    "brickwall": adtn.BrickWall(layers=2),
    "mpo": adtn.MPO(bond=4),
}


def targets(side: int) -> dict[str, Any]:
    """Return the targets by name; a callable makes the target for a topology."""
    n = np.arange(side)
    by_name: dict[str, Any] = {
        "of the same structure": lambda topology, layout: adtn.Generator(
            (side, side), topology, layout=layout, seed=99, scale=1.0
        ).weight(),
        "smooth": (np.add.outer(np.sin(n / 9), np.cos(n / 7)) * np.cos(np.outer(n, n) / side / 20)).astype(np.float32),
    }
    weights = Path(os.environ.get("ADTN_DATA", "")) / "weights" / "resnet56_cifar10.safetensors"
    if weights.exists():
        by_name["layer3.4.conv1 of ResNet-56"] = read_weights(weights)["layer3.4.conv1.weight"]
    return by_name


def curve(generator: adtn.Generator, target: np.ndarray, optimizer: str, seconds: float, device: str) -> dict[str, Any]:
    """Record losses and times of one fit; Adam's schedule ends with its time."""
    times: list[float] = []
    losses: list[float] = []

    def note(step: int, loss: float) -> None:
        times.append(time.perf_counter() - began)
        losses.append(loss)

    def run(start: adtn.Generator, name: str, steps: int, limit: float | None) -> Any:
        return adtn.fit(
            start,
            target,
            optimizer=name,
            steps=steps,
            lr=ADAM_LR,
            device=device,
            callbacks=[note],
            progress=False,
            time_limit=limit,
        )

    parts = optimizer.split(", then ")
    began = time.perf_counter()
    for name in parts:
        run(generator, name, 5, None)  # plans and compiles
    steps = 10**6
    if optimizer == "adam":
        per_step = (times[-1] - times[0]) / max(len(times) - 1, 1)
        steps = max(50, int(seconds / max(per_step, 1e-5)))
    times.clear()
    losses.clear()
    began = time.perf_counter()
    solution = run(generator, parts[0], steps, seconds / len(parts))
    for name in parts[1:]:  # the second optimizer has the time that the first one left
        solution = run(solution.generator, name, steps, seconds - (time.perf_counter() - began))
    return {"times": times, "losses": losses, "relative_error": solution.relative_error, "status": solution.status.name}


def measure(side: int, seconds: float, device: str, seeds: int) -> list[dict[str, Any]]:
    """Measure all topologies, targets and optimizers."""
    rows: list[dict[str, Any]] = []
    for what, target in targets(side).items():
        for name, topology in TOPOLOGIES.items():
            shape = (side, side) if callable(target) else target.shape
            layout = topology.default_layout(shape)
            weight = target(topology, layout) if callable(target) else target
            for seed in range(seeds):
                generator = adtn.Generator(shape, topology, layout=layout, seed=seed, scale=weight)
                for optimizer in OPTIMIZERS:
                    if "lm" in optimizer and generator.num_params > 2048:
                        continue
                    result = curve(generator, weight, optimizer, seconds, device)
                    rows.append(
                        {
                            "target": what,
                            "topology": name,
                            "shape": list(shape),
                            "seed": seed,
                            "device": device,
                            "params": generator.num_params,
                            "optimizer": optimizer,
                            **thinned(result),
                        }
                    )
                    print(
                        what, name, seed, optimizer, f"{result['relative_error']:.4f}", len(result["times"]), flush=True
                    )
    return rows


def thinned(result: dict[str, Any], most: int = 60) -> dict[str, Any]:
    """Reduce a curve to at most ``most`` points, with the lowest loss so far at each."""
    best = np.minimum.accumulate(result["losses"]) if result["losses"] else np.zeros(0)
    at = sorted({round(k) for k in np.geomspace(1, max(len(best), 1), most)})
    times, losses = ([float(values[k - 1]) for k in at if k <= len(best)] for values in (result["times"], best))
    return {**result, "times": times, "losses": losses, "steps": len(best)}


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw one panel per target and topology."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    whats, names = (list(dict.fromkeys(r[k] for r in rows)) for k in ("target", "topology"))
    size = (2.6 * len(names), 2.3 * len(whats))
    figure, axes = plt.subplots(len(whats), len(names), figsize=size, layout="constrained", squeeze=False)
    colors = dict(zip(OPTIMIZERS, ("C3", "C0", "C1", "C2"), strict=True))
    for row, what in zip(axes, whats, strict=True):
        for axis, name in zip(row, names, strict=True):
            for r in rows:
                if (r["target"], r["topology"]) == (what, name):
                    label = r["optimizer"] if r["seed"] == 0 else None
                    errors = [math.sqrt(max(x, 1e-14)) for x in r["losses"]]
                    axis.loglog(r["times"], errors, color=colors[r["optimizer"]], label=label, lw=1)
            axis.set_title(f"{name}, {what}" if name == names[0] else name, fontsize=7)
            axis.tick_params(labelsize=6)
    axes[0, 0].legend(fontsize=7)
    axes[-1, 0].set_xlabel("seconds", fontsize=7)
    axes[-1, 0].set_ylabel("relative error", fontsize=7)
    figure.savefig(path, dpi=150)


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Compute the median final error per optimizer, for every target and topology."""
    keys = dict.fromkeys((r["target"], r["topology"]) for r in rows)
    return [
        {"target": what, "topology": name}
        | {
            o: float(np.median(errors)) if errors else None
            for o in OPTIMIZERS
            for errors in [
                [r["relative_error"] for r in rows if (r["target"], r["topology"], r["optimizer"]) == (what, name, o)]
            ]
        }
        for what, name in keys
    ]


def main() -> None:
    """Measure and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=16.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="numpy:cpu")
    parser.add_argument("--out", type=Path, default=RESULTS / "optimizers.json")
    options = parser.parse_args()
    rows = measure(options.side, options.seconds, options.device, options.seeds)
    write_results(options.out, summary=summary(rows), curves=rows)
    draw(rows, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
