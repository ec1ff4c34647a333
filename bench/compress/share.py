"""Layers that share a generator against separate ones at equal bytes: ``python bench/compress/share.py``.

Groups of layers of trained models become closed forms in the metric of their inputs, either each on its own or all of
a group from one generator, with at most as many parameters. Nothing is trained. Separate layers have the same
ratio, up to what is left of the budget, which goes to the cheapest next rank; or ranks such that the sum of their
squared errors is smallest, which is what a shared pair minimises. Writes ``bench/results/compress-share.json``.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import adtn
import numpy as np
from adtn import MPO, TT, TTN, LowRank, Topology, Tucker
from adtn.bench import machine
from adtn.compression import Config, largest_within, model_of, stored_params
from adtn.compression._share import shared_layout
from adtn.errors import QualityWarning
from adtn.optim import low_rank_errors
from case import Case

from models import CASES

WHOLE = 1 << 16  # legs are whole axes
BY_ERROR = "low rank, ranks by error"
METHODS: dict[str, dict[str, Any]] = {
    "low rank": {"topology": LowRank(bond=1)},
    BY_ERROR: {"topology": LowRank(bond=1)},
    "TT, whole axes": {"topology": TT(bond=1), "leg": WHOLE},
    "Tucker, whole axes": {"topology": Tucker(bond=1), "leg": WHOLE},
    "MPO": {"topology": MPO(bond=1)},
    "TTN": {"topology": TTN(bond=1, activation="identity")},
}
RATIOS = (2, 4, 10)
LAYERS = range(5)  # of stories260K
PROJECTIONS = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj"}
PARTS = PROJECTIONS | {"gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}


def _stories(layer: int, part: str) -> str:
    return f"decoder.model.layers.{layer}.{PARTS[part]}"


GROUPS: dict[str, dict[str, list[list[str]]]] = {
    "lenet5": {
        "fc1 + fc2": [["fc1", "fc2"]],
        "convolutions; fc1 + fc2": [["conv1", "conv2"], ["fc1", "fc2"]],
    },
    "stories260k": {
        "queries of all layers": [[_stories(n, "q") for n in LAYERS]],
        "each kind over all layers": [[_stories(n, part) for n in LAYERS] for part in PARTS],
        "q, k, v and gate, up in each layer": [
            [_stories(n, part) for part in parts] for n in LAYERS for parts in (("q", "k", "v"), ("gate", "up"))
        ],
    },
}
OUT = Path(__file__).parents[1] / "results" / "compress-share.json"


def main() -> None:
    """Compress, and write errors and qualities."""
    warnings.simplefilter("ignore", QualityWarning)  # nothing is trained
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=list(GROUPS))
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    options = parser.parse_args()
    rows = json.loads(OUT.read_text())["compress_share"] if OUT.exists() else []
    for name in options.cases:
        case = CASES[name]()
        rows = [row for row in rows if row["case"] != name or row["method"] not in ("dense", *options.methods)]
        quality = {key: value[0] for key, value in case.quality(case.model).items()}
        for what, groups in GROUPS[name].items():
            rows.append({"case": name, "groups": what, "method": "dense", "params": _entries(case, groups), **quality})
            for ratio in RATIOS:
                for method in options.methods:
                    rows += points(case, what, groups, ratio, method)
        content = {"command": "python bench/compress/share.py", "machine": machine(), "compress_share": rows}
        OUT.write_text(json.dumps(content, indent=1) + "\n")


def points(case: Case, what: str, groups: Sequence[Sequence[str]], ratio: float, method: str) -> list[dict[str, Any]]:
    """Return the errors of a method at one size, of separate layers and of groups."""
    shapes, rows = case_shapes(case), []
    moments = model_of(case.model, None).second_moments([n for group in groups for n in group], case.calibration)
    own = METHODS[method]
    for share in (False, True):
        topologies = {}
        for group in groups:
            members = [shapes[name] for name in group]
            most = int(sum(map(math.prod, members)) / ratio)
            if share:
                found = shared_within(own, members, most)
            elif method == BY_ERROR:
                found = by_error_within(case, group, moments, most)
            else:
                found = separate_within(own, members, most)
            topologies |= dict(zip(group, found, strict=True))
        if None in topologies.values():
            continue
        fresh, began = case.fresh(), time.process_time()
        config = Config(
            targets=list(topologies),
            topology=own["topology"],
            leg=own.get("leg"),
            layers={name: {"topology": top} for name, top in topologies.items()},
            share=groups if share else (),
            recipe="closed-form",
            smallest=1,
        )
        report = adtn.compress(fresh.model, config, data=case.calibration)
        errors = [error(case, fresh, name, moments.get(name)) for name in topologies]
        rows.append(
            {
                "case": case.name,
                "groups": what,
                "ratio": ratio,
                "method": method,
                "shared": share,
                "params": sum(row.params for row in report.layers),
                "error": float(np.mean(errors)),
                "errors": {name: round(e, 4) for name, e in zip(topologies, errors, strict=True)},
                "bonds": {
                    row.name: getattr(report.generators[row.name].topology, "bond", None) for row in report.layers
                },
                "cpu_seconds": round(time.process_time() - began, 1),
                **{key: value[0] for key, value in case.quality(fresh.model).items()},
            }
        )
        print({k: v for k, v in rows[-1].items() if k not in ("errors", "bonds")}, flush=True)
    return rows


def shared_within(own: Mapping[str, Any], members: Sequence[tuple[int, ...]], most: int) -> list[Topology | None]:
    """Return the largest topology of a group, for every member."""
    layout = shared_layout(Config(**own), members)
    return [largest_within(own["topology"], layout, most)] * len(members)


def separate_within(own: Mapping[str, Any], members: Sequence[tuple[int, ...]], most: int) -> list[Topology | None]:
    """Return the largest topologies of separate layers, first with the same ratio for all."""
    config, entries = Config(**own), sum(map(math.prod, members))
    layouts = [config.layout(shape) for shape in members]
    found = [
        largest_within(own["topology"], layout, int(most * math.prod(shape) / entries))
        for layout, shape in zip(layouts, members, strict=True)
    ]
    if any(top is None for top in found):
        return [None] * len(members)
    grown: list[Any] = list(found)
    while True:
        sizes = [stored_params(top, layout) for top, layout in zip(grown, layouts, strict=True)]
        next_sizes = [
            stored_params(top.grown(top.bond + 1), layout) for top, layout in zip(grown, layouts, strict=True)
        ]
        steps = [(b - a, n) for n, (a, b) in enumerate(zip(sizes, next_sizes, strict=True)) if b > a]
        if not steps or sum(sizes) + min(steps)[0] > most:
            return grown
        n = min(steps)[1]
        grown[n] = grown[n].grown(grown[n].bond + 1)


def by_error_within(
    case: Case, group: Sequence[str], moments: Mapping[str, np.ndarray], most: int
) -> list[Topology | None]:
    """Return low-rank pairs with ranks that minimise the sum of squared errors, where each has a rank of 1 or more."""
    model, gains = model_of(case.model, None), list[tuple[float, int, int]]()
    sizes = dict[int, int]()
    for n, name in enumerate(group):
        rows = model.weight(name)
        rows = rows.reshape(len(rows), -1)
        moment = moments.get(name)
        power = float(np.vdot(rows if moment is None else rows @ moment, rows))
        sizes[n] = sum(rows.shape)
        errors = low_rank_errors(rows, moment) * power
        gains += [(float(errors[r - 1] - errors[r]) / sizes[n], n, r) for r in range(1, len(errors))]
    left, ranks = most - sum(sizes.values()), dict.fromkeys(sizes, 1)
    for _, n, r in sorted(gains, reverse=True):  # those of a layer fall with its rank
        if r > 1 and sizes[n] <= left:
            left, ranks[n] = left - sizes[n], max(ranks[n], r)
    return [LowRank(bond=ranks[n]) if most >= sum(sizes.values()) else None for n in sizes]


def case_shapes(case: Case) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all weights."""
    return {name: shape for layer in model_of(case.model, None).layers() for name, shape in layer.weights.items()}


def error(case: Case, fresh: Case, name: str, moment: np.ndarray | None) -> float:
    """Return the relative error of a layer's outputs."""
    dense: Any = case.model.get_submodule(name)
    now: Any = fresh.model.get_submodule(name)
    rows, found = (x.weight.detach().numpy().astype(np.float64).reshape(x.weight.shape[0], -1) for x in (dense, now))
    metric = np.eye(rows.shape[1]) if moment is None else moment
    return float(np.sqrt(np.vdot((found - rows) @ metric, found - rows) / np.vdot(rows @ metric, rows)))


def _entries(case: Case, groups: Sequence[Sequence[str]]) -> int:
    shapes = case_shapes(case)
    return sum(math.prod(shapes[name]) for group in groups for name in group)


if __name__ == "__main__":
    main()
