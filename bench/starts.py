"""Isometric against normal start values of trees, and trees that stay isometric, trained from scratch on MNIST.

Each is in the place of the first layer of a network. With ``init="isometric, kept"``, its cores are isometries in
every step (``isometric=True``), which is for networks without activations.

Run as ``python bench/starts.py`` with ``ADTN_DATA`` set; writes ``bench/results/starts.json``. Every pair of trainings
has the same seed: the same batches and the same other layers. ``ranks`` are the effective ranks (exponentials of
entropies of squared Schmidt values) of the weight across the legs below every bond, at the start, averaged.
A run that was interrupted goes on where it ended; delete the file to start again.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import adtn
import numpy as np
from adtn.calculus import initial_values
from adtn.demo._data import load_images
from adtn.demo._mlp import MLP
from adtn.optim import FitOptions, run_fit
from adtn.program import compile_program
from processes import write_results

SIZES, REPLACED, BATCH = (784, 1024, 1024, 10), 0, 256
SHAPE = (1024, 784)
LAYOUT = adtn.Layout.from_factors(SHAPE, [(4, 8, 4, 8), (4, 7, 4, 7)], "interleaved")
TOPOLOGIES = {
    "TTN, linear": adtn.TTN(bond=6, activation=None),
    "TTN, SiLU": adtn.TTN(bond=6),
    "aTTN, linear": adtn.ATTN(bond=4, activation=None),
    "MERA, linear": adtn.MERA(bond=4, activation=None),
    "MERA, SiLU": adtn.MERA(bond=4),
}
Init = Literal["normal", "isometric", "isometric, kept"]
_KINDS = ("root", "isometry", "leaf")


def started(topology: adtn.Topology, init: Init, seed: int) -> adtn.Generator:
    """Make a generator whose tree cores start with one rule."""
    if init == "isometric, kept":
        return adtn.Generator(SHAPE, replace(topology, isometric=True), layout=LAYOUT, seed=seed)  # type: ignore[call-arg]
    gen = adtn.Generator(SHAPE, topology, layout=LAYOUT, seed=seed)
    segments = tuple(
        replace(s, cores=tuple(replace(c, init=init) if c.kind in _KINDS else c for c in s.cores)) for s in gen.segments
    )
    values, _ = initial_values(compile_program(segments), LAYOUT, seed, {}, topology)
    return gen.with_params(values)


def effective_rank(gen: adtn.Generator) -> float:
    """Return the mean of the effective ranks across the cuts that separate two neighbouring legs from all others."""
    state = LAYOUT.to_legs(np.asarray(gen.weight(dtype="float64")))
    found: list[float] = []
    for k in range(0, state.ndim, 2):
        own = np.moveaxis(state, (k, k + 1), (0, 1)).reshape(state.shape[k] * state.shape[k + 1], -1)
        p = np.linalg.eigvalsh(own @ own.T).clip(1e-300)
        p /= p.sum()
        found.append(float(np.exp(-(p * np.log(p)).sum())))
    return float(np.mean(found))


def main() -> None:
    """Train what is not yet in the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "starts.json")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--lr", type=float, default=1e-2)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = json.loads(arguments.out.read_text())["starts"] if arguments.out.exists() else []
    data, mlp = load_images("mnist"), MLP(SIZES, REPLACED)
    for seed in range(arguments.seeds):
        for name, topology in TOPOLOGIES.items():
            kept: list[Init] = ["isometric, kept"] if topology.activation == "identity" else []
            for init in ("normal", "isometric", *kept):
                own = {"topology": name, "init": init, "seed": seed, "steps": arguments.steps, "lr": arguments.lr}
                if any(own.items() <= row.items() for row in rows):
                    continue
                gen = started(topology, init, seed)
                options = FitOptions(
                    device="torch:cpu",
                    lr=arguments.lr,
                    lr_factors={"task/": 0.1},
                    steps=arguments.steps,
                    seed=seed,
                    progress=False,
                )
                solution = run_fit(gen, mlp.task(data, seed, BATCH), options).uninterrupted()
                weight = np.asarray(solution.generator.weight())
                accuracy = mlp.accuracy(weight, solution.params, data.x_test, data.y_test)
                ranks = effective_rank(gen)
                rows.append({**own, "params": gen.num_params, "ranks": ranks, "accuracy": 100 * accuracy})
                print(rows[-1], flush=True)
                write_results(arguments.out, starts=rows)


if __name__ == "__main__":
    main()
