"""Bonds: the time of all spectra of a tree, a ring whose spectrum is wrong, and the weight behind activations.

Run as ``python bench/bonds.py``; writes ``bench/results/bonds.json``. The last part, which needs ``ADTN_DATA``, is
what ``adtn inspect FOLDER --bonds`` shows of a compressed ResNet-20.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import adtn
import numpy as np
from adtn.bench import median_seconds
from adtn.bondspace import ModelBonds
from adtn.compression import read_generators, run_folder
from adtn.errors import QualityWarning
from processes import write_results

RESULTS = Path(__file__).parent / "results"


def spectra(n: int, bond: int) -> dict[str, Any]:
    """Time all spectra of a linear tree, and the weight."""
    layout = adtn.Layout.of((n, n), 8, "interleaved")
    gen = adtn.Generator((n, n), adtn.TTN(bond=bond, activation=None), layout=layout, dtype="float64")

    def of_all_bonds() -> None:
        for one in adtn.bonds(gen):
            one.spectrum()

    weight, found = median_seconds(lambda: gen.weight(), 3.0), median_seconds(of_all_bonds, 3.0)
    return {
        "shape": [n, n],
        "bond": bond,
        "bonds": len(adtn.bonds(gen)),
        "weight_seconds": weight,
        "bonds_seconds": found,
        "ratio": found / weight,
    }


def accuracy(n: int, bond: int) -> dict[str, Any]:
    """Compare all spectra of a linear tree with dense singular values, relative to the largest one."""
    layout = adtn.Layout.of((n, n), 4, "interleaved")
    gen = adtn.Generator((n, n), adtn.TTN(bond=bond, activation=None), layout=layout, dtype="float64")
    legs, names = layout.to_legs(np.asarray(gen.weight())), list(layout.leg_names)
    worst = 0.0
    for one in adtn.bonds(gen):
        side = [names.index(i) for i in one.legs]
        rest = [k for k in range(len(names)) if k not in side]
        rows = int(np.prod([layout.dims[k] for k in side]))
        dense = np.linalg.svd(np.transpose(legs, side + rest).reshape(rows, -1), compute_uv=False)
        values = one.spectrum()
        worst = max(worst, float(np.abs(values - dense[: len(values)]).max() / dense[0]))
    return {"shape": [n, n], "bond": bond, "largest_difference": worst}


def ring(damping: float) -> dict[str, Any]:
    """Measure what the cut of a bond costs in a ring in which two components nearly cancel around the loop."""
    layout = adtn.Layout.of((16, 16), 4)
    gen = adtn.Generator((16, 16), adtn.TensorRing(bond=2), layout=layout, dtype="float64", scale=1.0)
    rng = np.random.default_rng(0)
    params: dict[str, np.ndarray] = {}
    for k, (name, x) in enumerate(gen.params.items()):
        inner = np.diag([1.0, -damping if k == 0 else damping])
        params[name] = np.einsum("lr,i->lri", inner, rng.standard_normal(4)) + 0.1 * rng.standard_normal(x.shape)
    gen = gen.with_params(params)
    one, weight = adtn.bonds(gen)["b0"], np.asarray(gen.weight())
    values = one.spectrum()
    units = [np.outer(a, b) for a in np.eye(2) for b in np.eye(2)]
    parts = np.stack([np.asarray(gen.with_bond("b0", unit).weight()).ravel() for unit in units], axis=1)
    return {
        "damping": damping,
        "predicted": float(values[1] / np.linalg.norm(values)),
        "cost": float(one.ablation()[1]),
        "best": _best_of_rank_one(parts.reshape(-1, 2, 2), weight.ravel()),
        "span": one.span,
    }


def _best_of_rank_one(parts: np.ndarray, weight: np.ndarray) -> float:
    """Find the error of the best matrix of rank one on the bond, by alternating least squares."""
    errors: list[float] = []
    for seed in range(3):
        right = np.random.default_rng(seed).standard_normal(2)
        for _ in range(300):
            left = np.linalg.lstsq(parts @ right, weight, rcond=None)[0]
            right = np.linalg.lstsq(np.einsum("xkl,k->xl", parts, left), weight, rcond=None)[0]
        errors.append(float(np.linalg.norm(np.einsum("xkl,k,l->x", parts, left, right) - weight)))
    return min(errors) / float(np.linalg.norm(weight))


def behind_activations(n: int, bond: int) -> dict[str, Any]:
    """Count the singular values of the weight across the legs below a leg of the first state."""
    layout = adtn.Layout.of((n, n), 4, "axis")
    gen = adtn.Generator((n, n), adtn.TTN(bond=bond), layout=layout, dtype="float64")
    one = adtn.bonds(gen)["b1_0"]
    values = one.weight_spectrum()
    return {
        "shape": [n, n],
        "bond": one.dim,
        "values_of_the_state": len(one.state_spectrum()),
        "values_of_the_weight_above_1e-6": int((values > 1e-6 * values[0]).sum()),
        "legs": one.weight_legs,
    }


def resnet20(bond: int) -> dict[str, Any]:
    """Compress the convolutions of ResNet-20 without training, and read the bonds from the folder, as users do."""
    from safetensors.torch import load_file

    sys.path.insert(0, str(Path(__file__).parent / "networks"))  # the benchmarks are scripts, not a package
    from dense import NETWORKS

    def dense() -> Any:
        model = NETWORKS["resnet20"](10)
        model.load_state_dict(load_file(Path(os.environ["ADTN_DATA"]) / "weights/resnet20_cifar10.safetensors"))
        return model

    config = adtn.Config(
        targets=["layer*conv*"], topology=adtn.TTN(bond=bond, activation=None), recipe="closed-form", smallest=256
    )
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", QualityWarning)  # nothing is trained
        report = run_folder(dense, config, Path(folder) / "small")
        began = perf_counter()
        found = ModelBonds(read_generators(Path(folder) / "small"))
        seconds = perf_counter() - began
    rows = [
        {
            "weight": name,
            "bond": one.name,
            "dim": one.dim,
            "effective_rank": one.effective_rank,
            "entropy": one.entropy,
            "exact": one.exact,
        }
        for name, bonds in found.items()
        for one in bonds
    ]
    size = {"weights": len(found), "without": len(found.without), "params": report.after.params}
    return {"topology": repr(config.topology), **size, "read_seconds": seconds, "bonds": rows}


PARTS: dict[str, Callable[[], Any]] = {
    "spectra": lambda: [spectra(n, 16) for n in (512, 4096)],
    "accuracy": lambda: [accuracy(256, 8)],
    "rings": lambda: [ring(damping) for damping in (0.8, 0.9, 0.95)],
    "behind_activations": lambda: [behind_activations(256, 6)],
    "resnet20": lambda: resnet20(8),
}


def main() -> None:
    """Compute the parts that are asked for, and keep the others of the file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=RESULTS / "bonds.json")
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=list(PARTS))
    options = parser.parse_args()
    found = json.loads(options.out.read_text())["bonds"] if options.out.exists() else {}
    write_results(options.out, bonds={**found, **{name: PARTS[name]() for name in options.parts}})


if __name__ == "__main__":
    main()
