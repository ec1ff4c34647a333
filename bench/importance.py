"""Scores that predict which components of bonds a network needs: ``python bench/importance.py`` with ``ADTN_DATA``.

The first layer of a network 784-1024-1024-10 on MNIST is trained as an MPO, a linear and a nonlinear TTN. Every
component of every bond is removed on its own: Schmidt components of linear bonds, entries of legs of states. Four
scores are compared with the true change of the loss on 4,096 training images by Spearman's correlation: the norms of
the changes of the weight, of the outputs of the layer, and in the damped metric of inputs and gradients, and the
first-order change (Taylor). Writes ``bench/results/importance.json``; a run that was interrupted goes on where it
ended.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import adtn
import numpy as np
from adtn.demo._data import load_images
from processes import write_results
from scipy.stats import spearmanr
from truncation import LAYOUT, SAMPLES, SHAPE, STEPS, Network, Problem

TOPOLOGIES = {
    "MPO": (adtn.MPO(bond=8), LAYOUT),
    "TTN, linear": (adtn.TTN(bond=6, activation=None), None),
    "TTN, SiLU": (adtn.TTN(bond=6), None),
}
INTERLEAVED = adtn.Layout.from_factors(SHAPE, [(4, 8, 4, 8), (4, 7, 4, 7)], "interleaved")


def scores(problem: Problem, network: Network) -> dict[str, list[float]]:
    """Remove every component on its own, and return its scores and what the loss grows by."""
    x, y = problem.data.x_train[:SAMPLES], np.eye(10, dtype=np.float32)[problem.data.y_train[:SAMPLES]]
    params = {k: np.asarray(v, np.float32) for k, v in network.params.items()}

    def loss_and_gradient(weight: np.ndarray) -> tuple[float, np.ndarray]:
        loss, (gradient, _) = problem.mlp.loss(weight.astype(np.float32), params, x, y)
        return float(loss), np.asarray(gradient, np.float64)

    weight = np.asarray(network.generator.weight(dtype="float64"))
    whole, gradient = loss_and_gradient(weight)
    metric = problem.moments(network)
    c, g = metric.inputs, metric.outputs
    g = g + np.trace(g) / len(g) * np.eye(len(g))
    found: dict[str, list[float]] = {name: [] for name in ("truth", "weight", "outputs", "metric", "Taylor", "bond")}
    for k, bond in enumerate(adtn.bonds(network.generator)):
        for component in range(bond.dim):
            changed = network.generator.with_bond(bond.index, bond.without(component), unshare=True)
            away = np.asarray(changed.weight(dtype="float64")) - weight
            found["truth"].append(loss_and_gradient(weight + away)[0] - whole)
            found["weight"].append(float(np.linalg.norm(away)))
            found["outputs"].append(float(np.vdot(away @ c, away)))
            found["metric"].append(float(np.vdot(g @ away @ c, away)))
            found["Taylor"].append(abs(float(np.vdot(gradient, away))))
            found["bond"].append(k)
    return found


def correlations(found: Mapping[str, list[float]]) -> dict[str, Any]:
    """Return Spearman's correlations with the truth, over all components and within bonds on average."""
    bonds, truth = np.array(found["bond"]), np.array(found["truth"])
    rows: dict[str, Any] = {"components": len(truth)}
    for name in ("weight", "outputs", "metric", "Taylor"):
        own = np.array(found[name])
        within = [spearmanr(own[bonds == k], truth[bonds == k])[0] for k in np.unique(bonds)]
        rows[name] = {"all": float(spearmanr(own, truth)[0]), "within bonds": float(np.mean(within))}
    return rows


def main() -> None:
    """Train and score what is not yet in the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "importance.json")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = json.loads(arguments.out.read_text())["importance"] if arguments.out.exists() else []
    data = load_images("mnist")
    for seed in range(arguments.seeds):
        for name, (topology, layout) in TOPOLOGIES.items():
            own = {"topology": name, "seed": seed}
            if any(own.items() <= row.items() for row in rows):
                continue
            problem = Problem(data=data, seed=seed)
            start = adtn.Generator(SHAPE, topology, layout=layout or INTERLEAVED, seed=seed)
            network = problem.trained(start, STEPS)
            rows.append({**own, "accuracy": problem.accuracy(network), **correlations(scores(problem, network))})
            print(rows[-1], flush=True)
            write_results(arguments.out, importance=rows)


if __name__ == "__main__":
    main()
