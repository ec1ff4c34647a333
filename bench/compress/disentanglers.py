"""Closed forms of trees with disentanglers: ``python bench/compress/disentanglers.py``.

A query matrix of MiniLM in the metric of its inputs, and a matrix of independent normal entries, are decomposed by an
aTTN and a MERA of a quarter of the parameters. Beside their errors stand those of the tree of equal bonds, and what
2,000 steps of L-BFGS reach from each of the forms. Writes ``bench/results/compress-disentanglers.json``.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import adtn
import numpy as np
from adtn import ATTN, MERA, TTN, Generator, Layout
from adtn.bench import machine
from adtn.compression import model_of
from adtn.optim import DataAwareReconstruction, decompose

from models import CASES

LAYER = "encoder.encoder.layer.2.attention.self.query"
RATIO = 4.0
OUT = Path(__file__).parents[1] / "results" / "compress-disentanglers.json"


def main() -> None:
    """Decompose, descend, and write the errors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    options = parser.parse_args()
    loaded = CASES["minilm"]()
    model = model_of(loaded.model, None)
    moment = model.second_moments([LAYER], loaded.calibration)[LAYER].astype(np.float64)
    matrices = {
        f"minilm {LAYER}": (model.weight(LAYER).astype(np.float64), moment),
        "independent normal entries": (np.random.default_rng(0).standard_normal(moment.shape), None),
    }
    rows: list[dict[str, Any]] = []
    for name, (weight, second) in matrices.items():
        for topology in (ATTN, MERA):
            rows.append({"matrix": name, **point(weight, second, topology, options.steps)})
            print(rows[-1], flush=True)
            content = {"command": "python bench/compress/disentanglers.py", "machine": machine()}
            OUT.write_text(json.dumps({**content, "compress_disentanglers": rows}, indent=1) + "\n")


def point(weight: np.ndarray, moment: np.ndarray | None, kind: type[TTN], steps: int) -> dict[str, Any]:
    """Return the errors of one topology."""
    layout = Layout.of(weight.shape, 8)
    most = weight.size / RATIO
    bond = max(b for b in range(1, 64) if generator(kind, b, layout).num_params <= most)
    gen, tree = generator(kind, bond, layout), generator(TTN, bond, layout)
    start = time.process_time()
    found = decompose(gen, weight, moment=moment)
    seconds = time.process_time() - start
    target = adtn.Reconstruction(weight) if moment is None else DataAwareReconstruction(weight, moment)
    further = adtn.fit(found, target, optimizer="lbfgs", steps=steps, dtype="float64", progress=False)
    own, reached = error(found, weight, moment), error(further.generator, weight, moment)
    return {
        "topology": kind.__name__,
        "bond": bond,
        "params": gen.num_params,
        "error": own,
        "cpu_seconds": round(seconds, 1),
        "error_without_disentanglers": error(decompose(tree, weight, moment=moment), weight, moment),
        "params_without_disentanglers": tree.num_params,
        "steps": steps,
        "error_after_steps": reached,
        "above_it": own / reached - 1.0,
    }


def generator(kind: type[TTN], bond: int, layout: Layout) -> Generator:
    """Return a linear network."""
    return Generator(layout.shape, kind(bond=bond, activation=None), layout=layout, dtype="float64")


def error(gen: Generator, weight: np.ndarray, moment: np.ndarray | None) -> float:
    """Return the relative error of the outputs, or of the weight."""
    away = np.asarray(gen.weight(), np.float64) - weight
    if moment is None:
        return float(np.linalg.norm(away) / np.linalg.norm(weight))
    return math.sqrt(np.vdot(away @ moment, away) / np.vdot(weight @ moment, weight))


if __name__ == "__main__":
    main()
