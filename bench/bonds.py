"""Bonds: the time of all spectra of a tree, a ring whose spectrum is wrong, and the weight behind activations.

Run as ``python bench/bonds.py``; writes ``bench/results/bonds.json``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import adtn
import numpy as np
from adtn.bench import median_seconds
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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=RESULTS / "bonds.json")
    options = parser.parse_args()
    write_results(
        options.out,
        bonds={
            "spectra": [spectra(n, 16) for n in (512, 4096)],
            "accuracy": [accuracy(256, 8)],
            "rings": [ring(damping) for damping in (0.8, 0.9, 0.95)],
            "behind_activations": [behind_activations(256, 6)],
        },
    )


if __name__ == "__main__":
    main()
