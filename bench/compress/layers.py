"""A comparison of the ways to store single layers of trained models: errors of their outputs against bytes.

Nothing is trained. Run as ``python bench/compress/layers.py``; writes ``bench/results/compress-layers.json``.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from adtn import MPO, TT, Config, Generator, Layout, LowRank, Precision, Tucker
from adtn.bench import machine
from adtn.compression._choice import Choice, Family
from adtn.compression._choose import Search
from adtn.compression._local import LocalTask
from adtn.compression._model import Layer
from adtn.compression._rounding import rounded_in_metric
from adtn.optim import best_within, decompose
from adtn.precision import round_to, stored_bytes
from adtn.topology import Topology

from adtn_backends.torch._model import TorchModel
from models import CASES

LAYERS = {
    "minilm": [
        *(f"encoder.encoder.layer.{k}.attention.self.query" for k in range(6)),
        "encoder.encoder.layer.2.intermediate.dense",
        "encoder.encoder.layer.2.output.dense",
    ],
    "resnet20": ["layer3.1.conv1", "layer2.1.conv1", "layer1.1.conv1", "layer3.2.conv1"],
}
RATIOS = (1.5, 2, 4, 6.4, 9.6, 12.8, 18, 26, 32)
FEW_RATIOS = (9.6, 12.8, 26)
FULL = ("layer.0.attention", "layer3.1")  # layers with all sizes, and with the slow methods
FORMATS = (None, Precision("int8"), Precision("int4", 128), Precision("int3", 128), Precision("int2", 128))
PARTS = ("dense", "coded", "generated", "corrected", "automatic")
SWEEPS = 6
_HEADER = 16  # bytes beside the bits of the entries
CORRECTIONS = 3


@dataclass(frozen=True, kw_only=True)
class Task:
    """One weight with the second moment of its inputs.

    Parameters
    ----------
    name : str
    weight, moment : numpy.ndarray
    """

    name: str
    weight: np.ndarray
    moment: np.ndarray

    @property
    def is_full(self) -> bool:
        """Whether all sizes are measured."""
        return any(name in self.name for name in FULL)

    @property
    def nbytes(self) -> int:
        """The bytes of the dense weight in float32."""
        return 4 * self.weight.size

    def error(self, weight: np.ndarray) -> float:
        """Compute the relative error of the outputs."""
        rows = self.weight.reshape(len(self.weight), -1).astype(np.float64)
        away = weight.reshape(rows.shape) - rows
        return float(np.sqrt(np.vdot(away @ self.moment, away) / np.vdot(rows @ self.moment, rows)))


def dense_points(task: Task) -> Iterator[dict[str, Any]]:
    """Round the dense weight, to the nearest integers and with error feedback."""
    for format in ("int8", "int4", "int3", "int2"):
        for group in (32, 64, 128, None):
            precision = Precision(format, group)
            for method, moment in (("dense, nearest", None), ("dense, feedback", task.moment)):
                start = time.perf_counter()
                codes = round_to(task.weight, precision, moment)
                seconds = time.perf_counter() - start
                yield _point(task, method, str(precision), codes.nbytes, codes.decode(), seconds)


def coded_points(task: Task, ratios: tuple[float, ...]) -> Iterator[dict[str, Any]]:
    """Store the dense weight as entropy codes of the rates of these sizes."""
    for ratio in ratios:
        rate = math.floor(100 * (32 / ratio - 8 * _HEADER / task.weight.size)) / 100
        if rate <= 12.0:
            precision = Precision("coded", rate=rate)
            start = time.perf_counter()
            codes = round_to(task.weight, precision, task.moment)
            seconds = time.perf_counter() - start
            yield _point(task, "dense, entropy codes", str(precision), codes.nbytes, codes.decode(), seconds, ratio)


def generated_points(task: Task, ratios: tuple[float, ...]) -> Iterator[dict[str, Any]]:
    """Compute every closed form in every precision at every size."""
    whole, conv = Layout.whole(task.weight.shape), task.weight.ndim > 2
    forms: dict[str, tuple[Topology, Layout]] = {
        "SVD": (LowRank(bond=1), whole),
        "whitened SVD": (LowRank(bond=1), whole),
    }
    if conv:
        forms |= {
            "spatial": (LowRank(bond=1, split="spatial"), whole),
            "Tucker-2": (Tucker(bond=(*task.weight.shape[:2], None, None)), whole),
            "TT": (TT(bond=1), whole),
        }
    if task.is_full:
        forms["MPO"] = (MPO(bond=1), MPO().default_layout(task.weight.shape))
    for method, (topology, layout) in forms.items():
        formats = {"SVD": FORMATS[:1], "MPO": FORMATS[:3]}.get(method, FORMATS)
        for precision in formats if task.is_full else formats[2:]:
            family = Family(topology=topology, layout=layout, precision=precision, itemsize=4)
            before = None
            for ratio in ratios:
                choice = _largest(task, family, task.nbytes / ratio)
                if choice is None or choice == before:  # the largest member is within larger sizes as well
                    continue
                before, start = choice, time.perf_counter()
                gen = _decomposed(task, choice, with_moment=method != "SVD")
                options: list[tuple[str, Callable[[], Generator]]] = [(method, lambda gen=gen: gen)]
                if precision is not None:
                    options = [(method, partial(rounded_in_metric, gen, precision, task.weight, task.moment))]
                    if method == "whitened SVD" and precision.bits < 8:
                        options.append((f"{method}, nearest", partial(gen.rounded, precision)))
                solved = time.perf_counter() - start
                for name, make in options:
                    start = time.perf_counter()
                    found = make()
                    seconds = solved + time.perf_counter() - start
                    weight = np.asarray(found.weight())
                    label = "float32" if precision is None else str(precision)
                    yield _point(task, name, label, found.nbytes, weight, seconds, ratio)


def _largest(task: Task, family: Family, most: float) -> Choice | None:
    fitting = [choice for choice in family.members(task.weight.size) if choice.bytes <= most]
    return fitting[-1] if fitting else None


def _decomposed(task: Task, choice: Choice, *, with_moment: bool) -> Generator:
    """Decompose the weight, with unequal ranks where these are better; it is not rounded yet."""
    family, topology, moment = choice.family, choice.topology, task.moment if with_moment else None
    assert family is not None and topology is not None
    if isinstance(topology, TT | Tucker):
        for part in (1.0, 0.98, 0.96, 0.93, 0.9):  # as many parameters may have more scales
            best = best_within(topology, family.layout, task.weight, moment, int(part * choice.params))
            if best is not None and family.member(best, choice.params).bytes <= choice.bytes:
                topology = best
                break
    gen = Generator(task.weight.shape, topology, layout=family.layout, scale=1.0)
    return decompose(gen, task.weight, moment=moment, sweeps=SWEEPS)


def corrected_points(task: Task, ratios: tuple[float, ...]) -> Iterator[dict[str, Any]]:
    """Round the dense weight to few bits and correct it by a rounded pair, alternately; adtn has no such format."""
    rows, shape = task.weight.reshape(len(task.weight), -1).astype(np.float64), task.weight.shape
    own = Precision("int4", 128)
    family = Family(topology=LowRank(bond=1), layout=Layout.whole(shape), precision=own, itemsize=4)
    for base in (Precision("int3"), Precision("int2")):
        for ratio in ratios:
            choice = _largest(task, family, task.nbytes / ratio - stored_bytes(shape, base))
            if choice is None:
                continue
            start = time.perf_counter()
            pair = _decomposed(task, choice, with_moment=True)
            best: tuple[float, np.ndarray] = math.inf, rows
            for _ in range(CORRECTIONS):
                rest = rows - np.asarray(pair.weight(), np.float64).reshape(rows.shape)
                rounded = round_to(rest, base, task.moment).decode().astype(np.float64)
                missing = replace(task, weight=(rows - rounded).reshape(shape))
                pair = rounded_in_metric(
                    _decomposed(missing, choice, with_moment=True), own, missing.weight, task.moment, 4
                )
                whole = rounded + np.asarray(pair.weight(), np.float64).reshape(rows.shape)
                best = min(best, (task.error(whole), whole), key=lambda one: one[0])
            seconds = time.perf_counter() - start
            nbytes = stored_bytes(shape, base) + choice.bytes
            yield _point(task, "dense + pair int4/128", str(base), nbytes, best[1], seconds, ratio)


def automatic_points(task: Task, ratios: tuple[float, ...]) -> Iterator[dict[str, Any]]:
    """Let the search of ``adtn.compress`` choose for this layer alone."""
    layer = Layer(name=task.name, kind="linear", weights={task.name: task.weight.shape}, itemsize=4)
    local = LocalTask(
        name=task.name,
        weight=task.weight,
        moment=task.moment,
        topology=LowRank(),
        layout=Layout.whole(task.weight.shape),
        base=None,
        seed=0,
        steps=0,
        optimizer="lbfgs",
        lr=0.1,
        device="numpy:cpu",
    )
    for ratio in ratios:
        search = Search(
            layers=[layer],
            tasks={task.name: local},
            config=Config(largest_error=1.0),
            adapter=None,  # type: ignore[arg-type]
            sample=(),
            loss=None,
            unit="bytes",
            executor=None,
            folder=None,
            say=lambda text: None,
        )
        most = int(task.nbytes / ratio)
        start = time.perf_counter()
        result = search.choose(search.ladders(most), most).results[task.name]
        seconds = time.perf_counter() - start
        if result is None:
            continue
        gen = result.generator
        chosen = f"{type(gen.topology).__name__} {gen.precision or 'float32'}"
        yield _point(task, "automatic", chosen, gen.nbytes, np.asarray(gen.weight()), seconds, ratio)


def _point(
    task: Task, method: str, format: str, nbytes: int, weight: np.ndarray, seconds: float, wanted: float | None = None
) -> dict[str, Any]:
    return {
        "layer": task.name,
        "method": method,
        "format": format,
        "wanted": wanted,
        "bytes": nbytes,
        "ratio": task.nbytes / nbytes,
        "error": task.error(weight),
        "seconds": seconds,
    }


def tasks_of(case: str) -> list[Task]:
    """Load the layers of a model with the second moments of its calibration data."""
    loaded = CASES[case]()
    model, names = TorchModel(loaded.model, None), LAYERS[case]
    moments = model.second_moments(names, loaded.calibration)
    return [
        Task(name=f"{case} {name}", weight=model.weight(name), moment=moments[name].astype(np.float64))
        for name in names
    ]


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--only", nargs="*", default=[""], help="layers whose name contains one of these; the file keeps others"
    )
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=PARTS, help="groups of methods")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results" / "compress-layers.json")
    options = parser.parse_args()
    content: dict[str, Any] = {"compress_layers": []}
    if (options.only != [""] or options.parts != list(PARTS)) and options.out.exists():
        content = json.loads(options.out.read_text())
    for case, names in LAYERS.items():
        if not any(part in f"{case} {name}" for name in names for part in options.only):
            continue
        for task in tasks_of(case):
            if not any(part in task.name for part in options.only):
                continue
            ratios = RATIOS if task.is_full else FEW_RATIOS
            makers = {
                "dense": lambda task=task: dense_points(task),
                "coded": lambda task=task, ratios=ratios: coded_points(task, ratios),
                "generated": lambda task=task, ratios=ratios: generated_points(task, ratios),
                "corrected": lambda task=task, ratios=ratios: corrected_points(task, ratios) if task.is_full else (),
                "automatic": lambda task=task, ratios=ratios: automatic_points(task, ratios),
            }
            points = [point for part in options.parts for point in makers[part]()]
            measured = {(point["layer"], point["method"]) for point in points}
            kept = [point for point in content["compress_layers"] if (point["layer"], point["method"]) not in measured]
            content = {
                "command": "python bench/compress/layers.py",
                "machine": machine(),
                "compress_layers": [*kept, *points],
            }
            options.out.write_text(json.dumps(content, indent=1) + "\n")
            print(task.name, f"{sum(point['seconds'] for point in points):.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
