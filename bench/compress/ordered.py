"""Orders of columns before they share scales: ``python bench/compress/ordered.py`` writes ``compress-ordered.json``.

The 36 linear layers of MiniLM-L6 are rounded to integers in groups, with and without error feedback: columns as they
are, by descending second moments of the inputs, and in the order of ``Precision(ordered=True)``. One half of the
calibration samples chooses orders and integers, the other half accepts an order or refuses it for each layer, and
errors are those of the outputs for other samples. Then 512 other sentences are embedded.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from adtn import Precision
from adtn.bench import machine
from adtn.compression import model_of, order_gains
from adtn.precision import order_of, round_to, stored_bytes
from case import Case
from language import minilm

RESULTS = Path(__file__).parents[1] / "results"
FORMATS = ("int4/64", "int4/32", "int4/128", "int3/64", "int2/64")
ORDERS = ("as it is", "by moments", "ordered", "ordered, accepted")
Moments = Mapping[str, np.ndarray]


def rounded(
    weight: np.ndarray, halves: Sequence[np.ndarray], plain: Precision, order: str, *, feedback: bool
) -> tuple[np.ndarray, bool]:
    """Round a weight, and return it with whether its columns are ordered."""
    first, second = halves
    known = first if feedback else None
    if order == "as it is":
        return round_to(weight, plain, known).decode(), False
    ordered = Precision.named(f"{plain} ordered")
    columns = np.argsort(-np.diag(first), kind="stable") if order == "by moments" else order_of(weight, plain, known)
    found = round_to(weight, ordered, known, order=columns).decode()
    if order != "ordered, accepted":
        return found, True
    natural = round_to(weight, plain, known).decode()
    if feedback:  # as in adtn.compress, by a few rows
        accepted = plain in order_gains(weight, (first, second), [plain])
    else:
        accepted = error_in(second, found, weight) < error_in(second, natural, weight)
    return (found, True) if accepted else (natural, False)


def error_in(moment: np.ndarray, found: np.ndarray, weight: np.ndarray) -> float:
    """Return the relative error of the outputs."""
    away = found.astype(np.float64) - weight
    return math.sqrt(np.vdot(away @ moment, away) / np.vdot(weight @ moment, weight))


def rows(case: Case) -> Iterator[dict[str, Any]]:
    """Measure every format, way of rounding and order."""
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
            natural: dict[str, float] = {}
            for order in ORDERS:
                began = time.process_time()
                errors, bits, is_ordered = {}, [], []
                for name, weight in weights.items():
                    halves = first[name], second[name]
                    found, kept = rounded(weight, halves, plain, order, feedback=feedback)
                    errors[name] = error_in(held[name], found, weight)
                    own = Precision.named(f"{plain} ordered") if kept else plain
                    bits.append(8 * stored_bytes(weight.shape, own) / weight.size)
                    is_ordered.append(kept)
                    with torch.no_grad():
                        case.model.get_submodule(name).weight.copy_(torch.from_numpy(found))
                seconds = time.process_time() - began
                natural = natural or errors
                changes = [errors[name] / natural[name] - 1.0 for name in names]
                quality = case.quality(case.model)
                cosine, spread = quality["cosine"]
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
                    "cpu seconds of rounding": round(seconds, 1),
                    "errors": errors,
                }


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS / "compress-ordered.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    done: list[dict[str, Any]] = []
    for row in rows(minilm()):
        done.append(row)
        print({k: v for k, v in row.items() if k != "errors"}, file=sys.stderr, flush=True)
        content = {"command": "python bench/compress/ordered.py", "machine": machine(), "ordered": done}
        options.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
