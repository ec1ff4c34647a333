"""The regret of choosing a contraction order by a cost: time of the chosen order over that of the fastest one sampled.

Run as ``python bench/regret.py``; writes ``bench/results/regret.json``. Linear networks of the bench set are generated,
and applied to a batch; for each, about thirty orders are measured.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import adtn
import cotengra as ctg
import numpy as np
import opt_einsum
from adtn.backends import check_device
from adtn.bench import median_seconds, paired_seconds
from adtn.calculus import forward
from adtn.device._profile_store import find_profile
from adtn.program import Path as Order
from adtn.program import compile_program, row_order
from adtn.schedule._search import best_path, candidates, path_seconds
from adtn.topology import Segment, sizes_of
from adtn.weight._factored import INPUT, with_input
from processes import rows_per_device, write_results

RESULTS = Path(__file__).parent / "results"
DEVICES = ("numpy:cpu", "torch:cpu")
NETWORKS: dict[str, tuple[adtn.Topology, int, int | None]] = {
    "TTN 8": (adtn.TTN(bond=8, activation="identity"), 1024, 8),
    "aTTN 4": (adtn.ATTN(bond=4, activation="identity"), 1024, 8),
    "MERA 2": (adtn.MERA(bond=2, activation="identity"), 1024, 4),
    "wall 1": (adtn.BrickWall(layers=1, activation="identity"), 1024, None),
    "wall 3": (adtn.BrickWall(layers=3, activation="identity"), 256, None),
    "MPO 16": (adtn.MPO(bond=16, activation="identity"), 1024, 8),
    "Tucker 4": (adtn.Tucker(bond=4, activation="identity"), 1024, 8),
}
BATCHES = (None, 1, 64, 512)
_FINALISTS = 5
_WORST = 30.0  # orders with more than that many times the least number of operations are not run


def problem(name: str, batch: int | None) -> tuple[adtn.Generator, tuple[Segment, ...]]:
    """Make a generator, and the segments that generate its weight or apply it to a batch."""
    topology, n, leg = NETWORKS[name]
    layout = adtn.Layout.of((n, n), leg, topology.order) if leg else None
    generator = adtn.Generator((n, n), topology, layout=layout, scale=1.0)
    if batch is not None:
        return generator, with_input(generator.segments, generator.layout, batch)
    order = row_order(generator.segments, generator.layout)
    return generator, (*generator.segments[:-1], replace(generator.segments[-1], outputs=order))


def symbols(segment: Segment, sizes: dict[str, int]) -> tuple[list[str], str, dict[str, int]]:
    """Write a segment as an einsum equation: inputs, output, and sizes by symbol."""
    names = dict.fromkeys(i for inds in (*segment.terms, segment.outputs) for i in inds)
    symbol = {i: ctg.get_symbol(n) for n, i in enumerate(names)}
    inputs = ["".join(symbol[i] for i in inds) for inds in segment.terms]
    return inputs, "".join(symbol[i] for i in segment.outputs), {symbol[i]: sizes[i] for i in symbol}


def sampled(inputs: list[str], output: str, dims: dict[str, int], n: int) -> list[Order]:
    """Sample randomised greedy orders, from nearly greedy to nearly random."""
    orders: list[Order] = []
    for seed in range(n):
        optimizer = ctg.RandomGreedyOptimizer(
            max_repeats=1, seed=seed, parallel=False, temperature=(0.01, 3.0), costmod=(0.1, 4.0)
        )
        orders.append(tuple((min(p), max(p)) for p in optimizer(inputs, output, dims)))
    return orders


def compare(device: str, name: str, batch: int | None, seconds: float) -> dict[str, Any]:
    """Measure all orders of one network, and the regret of the order that each cost chooses."""
    backend, where = check_device(device, "float32")
    profile = find_profile(backend, where, "float32")
    generator, segments = problem(name, batch)
    segment, sizes = segments[-1], sizes_of(segments)
    inputs, output, dims = symbols(segment, sizes)
    shapes = [tuple(dims[i] for i in t) for t in inputs]
    equation = ",".join(inputs) + "->" + output
    defaults: dict[str, Order] = {
        "cotengra auto": _pairs(ctg.AutoOptimizer(parallel=False)(inputs, output, dims)),
        "opt_einsum auto": _pairs(opt_einsum.contract_path(equation, *shapes, shapes=True)[0]),
    }
    searched = best_path(segment, sizes, profile)
    pool = dict.fromkeys([*sampled(inputs, output, dims, 24), *candidates(segment, sizes, profile), searched])
    pool |= dict.fromkeys(p for p in defaults.values() if len(p) == len(inputs) - 1)
    trees = {p: ctg.ContractionTree.from_path(inputs, output, dims, path=p) for p in pool}
    least = min(t.total_flops() for t in trees.values())
    trees = {p: t for p, t in trees.items() if t.total_flops() <= _WORST * least}
    arrays = generator.arrays(device, "float32")
    if batch is not None:
        x = np.random.default_rng(0).standard_normal((batch, generator.shape[1]), dtype=np.float32)
        arrays[INPUT] = backend.asarray(x, where, "float32")
    runs = {path: _runner(backend, segments, path, arrays) for path in trees}
    costs: dict[str, Callable[[Order], float]] = {
        "adtn": lambda p: path_seconds(segment, sizes, profile, p),
        "flops": lambda p: trees[p].total_flops(),
        "write": lambda p: trees[p].total_write(),
        "combo-64": lambda p: trees[p].combo_cost(64),
        "limit-64": lambda p: trees[p].combo_cost(64, combine=max),
    }
    chosen = {cost: min(trees, key=fn) for cost, fn in costs.items()}
    chosen |= {who: path for who, path in {"adtn's own search": searched, **defaults}.items() if path in trees}
    # the least of many noisy times is biased, so the fastest orders of a first round are measured again, in turns
    first = {path: median_seconds(run, seconds / 4) for path, run in runs.items()}
    finalists = dict.fromkeys([*sorted(first, key=first.__getitem__)[:_FINALISTS], *chosen.values()])
    times = paired_seconds({path: runs[path] for path in finalists}, seconds, turns=8)
    best = min(times.values())
    regret = {who: times[path] / best for who, path in chosen.items()}
    return {"device": device, "network": name, "batch": batch, "orders": len(trees), "regret": regret}


def _runner(backend: Any, segments: tuple[Segment, ...], path: Order, arrays: dict[str, Any]) -> Callable[[], Any]:
    program, space = compile_program(segments, (*((None,) * (len(segments) - 1)), path)), backend.workspace()
    return backend.compile(lambda: forward(program, arrays, space))


def _pairs(path: Any) -> Order:
    return tuple((min(p), max(p)) for p in path if len(p) == 2)


def measure(device: str, seconds: float) -> list[dict[str, Any]]:
    """Measure all networks on one device."""
    return [compare(device, name, batch, seconds) for name in NETWORKS for batch in BATCHES]


def summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Summarise the regret per device and cost."""
    out: dict[str, dict[str, Any]] = {}
    for device in dict.fromkeys(r["device"] for r in rows):
        for cost in dict.fromkeys(cost for r in rows for cost in r["regret"]):
            regrets = [r["regret"][cost] for r in rows if r["device"] == device and cost in r["regret"]]
            out[f"{device} {cost}"] = {"n": len(regrets), "mean": float(np.mean(regrets)), "worst": float(max(regrets))}
    return out


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="")
    parser.add_argument("--seconds", type=float, default=0.2)
    parser.add_argument("--out", type=Path, default=RESULTS / "regret.json")
    options = parser.parse_args()
    if options.device:
        print(json.dumps(measure(options.device, options.seconds)))
        return
    rows = rows_per_device(DEVICES)
    regrets = summary(rows)
    write_results(options.out, summary=regrets, regret=rows)
    print(json.dumps(regrets, indent=1))


if __name__ == "__main__":
    main()
