"""Nonlinear against linear trees at equal parameters: ``python bench/compress/nonlinear.py``.

One layer of each of several trained models is approximated in the metric of its inputs, by a linear tree and by the
same tree with an activation between its levels. Both start from the hierarchical decomposition, and from random values
with three seeds, and are then fitted by L-BFGS with as many steps. Beside them stands a whitened SVD of as many
parameters. Writes ``bench/results/compress-nonlinear.json``.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import adtn
import numpy as np
from adtn import TTN, Generator, Layout
from adtn.bench import machine
from adtn.compression import model_of
from adtn.optim import DataAwareReconstruction, decompose, low_rank_errors

from models import CASES

LAYERS = {
    "minilm": "encoder.encoder.layer.2.attention.self.query",
    "resnet20": "layer3.1.conv1",
    "stories260k": "decoder.model.layers.2.mlp.up_proj",
    "lenet5": "fc1",
}
RATIOS = (4, 10)
ACTIVATIONS = ("identity", "tanh", "silu")
SEEDS = (0, 1, 2)
OUT = Path(__file__).parents[1] / "results" / "compress-nonlinear.json"


def main() -> None:
    """Fit, and write the errors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=list(LAYERS))
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()
    rows = json.loads(OUT.read_text())["compress_nonlinear"] if OUT.exists() else []
    for case in options.cases:
        loaded = CASES[case]()
        model, name = model_of(loaded.model, None), LAYERS[case]
        moment = model.second_moments([name], loaded.calibration)[name]
        weight = model.weight(name)
        for ratio in RATIOS:
            rows = [row for row in rows if (row["case"], row["ratio"]) != (case, ratio)]
            rows += points(case, weight, moment, ratio, options.steps)
            content = {
                "command": "python bench/compress/nonlinear.py",
                "machine": machine(),
                "compress_nonlinear": rows,
            }
            OUT.write_text(json.dumps(content, indent=1) + "\n")


def points(case: str, weight: np.ndarray, moment: np.ndarray, ratio: float, steps: int) -> list[dict[str, Any]]:
    """Return the errors at one size."""
    most = int(weight.size / ratio)
    layout = layout_of(weight.shape)
    bond = max(b for b in range(1, 400) if size(weight.shape, layout, b) <= most)
    params = size(weight.shape, layout, bond)
    target = DataAwareReconstruction(weight, moment)
    rank = max(params // (len(weight) + weight.size // len(weight)), 1)
    svd = low_rank_errors(weight.reshape(len(weight), -1), moment)[rank] ** 0.5
    rows = [
        {"method": "whitened SVD", "params": rank * (len(weight) + weight.size // len(weight)), "error": float(svd)}
    ]
    for activation in ACTIVATIONS:
        top = TTN(bond=bond, activation=activation)
        starts = [("decomposition", 0), *(("random", seed) for seed in SEEDS)]
        for start, seed in starts:
            gen = Generator(weight.shape, top, layout=layout, scale=weight, seed=seed)
            began = time.process_time()
            first = decompose(gen, weight, moment=moment) if start == "decomposition" else gen
            found = adtn.fit(first, target, optimizer="lbfgs", steps=steps, progress=False).generator
            rows.append(
                {
                    "method": f"TTN, {activation}",
                    "start": start,
                    "seed": seed,
                    "params": found.num_params,
                    "before": error(first, weight, moment),
                    "error": error(found, weight, moment),
                    "cpu_seconds": round(time.process_time() - began, 1),
                }
            )
            print(case, ratio, rows[-1], flush=True)
    return [{"case": case, "layer": LAYERS[case], "ratio": ratio, "steps": steps, "bond": bond, **row} for row in rows]


def layout_of(shape: tuple[int, ...]) -> Layout:
    """Return legs of about 8 in the order of the axes."""
    return Layout.of(shape, 8, "axis")


def size(shape: tuple[int, ...], layout: Layout, bond: int) -> int:
    """Return the number of parameters of a tree."""
    return Generator(shape, TTN(bond=bond), layout=layout).num_params


def error(generator: Generator, weight: np.ndarray, moment: np.ndarray) -> float:
    """Return the relative error of the outputs."""
    rows = weight.reshape(len(weight), -1).astype(np.float64)
    away = np.asarray(generator.weight(), np.float64).reshape(rows.shape) - rows
    return float(np.sqrt(np.vdot(away @ moment, away) / np.vdot(rows @ moment, rows)))


if __name__ == "__main__":
    main()
