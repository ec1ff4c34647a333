"""Orders of columns before they share scales: ``python bench/compress/ordered.py`` writes ``compress-ordered.json``.

The 36 linear layers of MiniLM-L6 are rounded to integers in groups, with and without error feedback: columns as they
are, by descending second moments of the inputs, and in the order of ``Precision(ordered=True)``. One half of the
calibration samples chooses orders and integers, the other half accepts an order or refuses it for each layer, and
errors are those of the outputs for other samples. Then 512 other sentences are embedded. The second part compresses
whole models within budgets of bytes, with and without orders.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from adtn import Precision
from adtn.bench import machine
from adtn.compression import model_of, order_gains
from adtn.precision import order_of, round_to, stored_bytes
from language import minilm
from pareto import searched

from models import CASES

RESULTS = Path(__file__).parents[1] / "results"
FORMATS = ("int4/64", "int4/128")
ORDERS = ("as it is", "by moments", "ordered", "ordered, accepted")
MODELS = {"stories260k": (4.0, 6.0, 8.0), "lenet5": (24.0, 32.0)}
Moments = Mapping[str, np.ndarray]
_LEAST = 0.995  # ratio of errors, above which a gain could be one by chance


@dataclass
class Layers:
    """The layers of a model, rounded in one format.

    Parameters
    ----------
    weights : mapping of str to array
    halves : tuple of mapping
        The second moments that choose, and those that judge.
    plain : Precision
    feedback : bool
        Whether errors are fed back in the metric of the first half.
    """

    weights: Moments
    halves: tuple[Moments, Moments]
    plain: Precision
    feedback: bool
    done: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)

    def rounded(self, name: str, order: str) -> tuple[np.ndarray, bool]:
        """Return a rounded weight, and whether its columns are ordered."""
        if order == "ordered, accepted":
            kept = self.accepts(name)
            return self.rounded(name, "ordered" if kept else "as it is")[0], kept
        if (name, order) not in self.done:
            weight, first = self.weights[name], self.halves[0][name]
            known = first if self.feedback else None
            if order == "as it is":
                found = round_to(weight, self.plain, known)
            else:
                moments = np.argsort(-np.diag(first), kind="stable")
                columns = moments if order == "by moments" else order_of(weight, self.plain, known)
                found = round_to(weight, Precision.named(f"{self.plain} ordered"), known, order=columns)
            self.done[name, order] = found.decode()
        return self.done[name, order], order != "as it is"

    def accepts(self, name: str) -> bool:
        """Return whether an order is kept: with feedback by a few rows, as in ``adtn.compress``."""
        weight, (first, second) = self.weights[name], (half[name] for half in self.halves)
        if self.feedback:
            return self.plain in order_gains(weight, (first, second), [self.plain])
        ordered, natural = (self.rounded(name, order)[0] for order in ("ordered", "as it is"))
        return error_in(second, ordered, weight) < _LEAST * error_in(second, natural, weight)


def error_in(moment: np.ndarray, found: np.ndarray, weight: np.ndarray) -> float:
    """Return the relative error of the outputs."""
    away = found.astype(np.float64) - weight
    return math.sqrt(np.vdot(away @ moment, away) / np.vdot(weight @ moment, weight))


def layers_part() -> Iterator[dict[str, Any]]:
    """Measure every format, way of rounding and order of the layers of MiniLM."""
    case = minilm()
    model, names = model_of(case.model, None), list(case.weights())
    weights = {name: model.weight(name).astype(np.float64) for name in names}
    batches = list(case.calibration)
    first, second, held = (
        {name: np.asarray(x, np.float64) for name, x in model.second_moments(names, part).items()}
        for part in (batches[0::2], batches[1::2], case.validation)
    )
    for format in FORMATS:
        plain = Precision.named(format)
        for feedback in (True, False):
            layers = Layers(weights, (first, second), plain, feedback)
            natural: dict[str, float] = {}
            for order in ORDERS:
                errors, bits, is_ordered = {}, [], []
                for name, weight in weights.items():
                    found, kept = layers.rounded(name, order)
                    errors[name] = error_in(held[name], found, weight)
                    own = Precision.named(f"{plain} ordered") if kept else plain
                    bits.append(8 * stored_bytes(weight.shape, own) / weight.size)
                    is_ordered.append(kept)
                    with torch.no_grad():
                        case.model.get_submodule(name).weight.copy_(torch.from_numpy(found))
                natural = natural or errors
                changes = [errors[name] / natural[name] - 1.0 for name in names]
                cosine, spread = case.quality(case.model)["cosine"]
                yield {
                    "format": format,
                    "feedback": feedback,
                    "order": order,
                    "bits per entry": float(np.mean(bits)),
                    "mean error": float(np.mean(list(errors.values()))),
                    "paired mean change": float(np.mean(changes)),
                    "worst change": max(changes),
                    "smaller in": sum(change < 0 for change in changes),
                    "ordered layers": sum(is_ordered),
                    "1 - cosine": 1.0 - cosine,
                    "standard error": spread,
                    "sentences": 512,
                    "errors": errors,
                }


def models_part() -> Iterator[dict[str, Any]]:
    """Compress whole models to integers with orders, without training; those without orders are in ``pareto.py``."""
    for name, ratios in MODELS.items():
        case = CASES[name]()
        rows = json.loads((RESULTS / f"compress-{name}.json").read_text())["compress_models"]
        for ratio in ratios:
            row = {"case": name, "unit": "bytes", "ratio": ratio, "steps": 0, "seed": 0}
            plain = next(r for r in rows if (row | {"method": "fixed length"}).items() <= r.items())
            plain = {k: plain[k] for k in ("ratio of bytes", "quality", "standard errors", "cpu_seconds")}
            row["method"], began = "fixed length ordered", time.process_time()
            found = searched(case.fresh(), row)
            formats = [layer[0] for layer in found["layers"].values()]
            yield {
                **row,
                **found,
                "ordered layers": sum("ordered" in one for one in formats),
                "cpu_seconds": round(time.process_time() - began, 1),
                "without orders": plain,
            }


PARTS: Mapping[str, Callable[[], Iterator[dict[str, Any]]]] = {"layers": layers_part, "models": models_part}


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=list(PARTS), choices=list(PARTS), help="the file keeps the others")
    parser.add_argument("--out", type=Path, default=RESULTS / "compress-ordered.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    content: dict[str, Any] = {"ordered": {}}
    if options.out.exists():
        content = json.loads(options.out.read_text())
    for part in options.only:
        done: list[dict[str, Any]] = []
        for row in PARTS[part]():
            done.append(row)
            print({k: v for k, v in row.items() if k not in ("errors", "layers")}, file=sys.stderr, flush=True)
            parts = content["ordered"] | {part: done}
            content = {"command": "python bench/compress/ordered.py", "machine": machine(), "ordered": parts}
            options.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
