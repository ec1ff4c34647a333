"""Plans on the null backend and shipped profiles: no hardware, no clock."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import adtn
import cotengra as ctg
import numpy as np
import pytest
from adtn._atomic import write_atomic
from adtn.backends import Op, get_backend
from adtn.calculus import forward_tape, frontier, project, pullback
from adtn.device import _calibrate, parse_bytes, shipped_profiles
from adtn.device._profile import FORMAT
from adtn.device._profile_store import find_profile, nearest_shipped, profile_path
from adtn.errors import ScheduleError, TopologyError
from adtn.program import compile_program, contraction_nodes, cut_legs, tile_program
from adtn.schedule import Sketch, _planner, _validate
from adtn.schedule._path_cache import PathCache, path_key
from adtn.schedule._recombine import Estimate
from adtn.schedule._search import (
    adjoint_ops,
    best_path,
    candidates,
    path_seconds,
    projection_ops,
    step_ops,
    trained_slots,
)
from adtn.schedule._tree_cost import DeviceTime
from adtn.topology import Core, Segment, sizes_of
from autoray import do

from table import TOPOLOGIES

CPU = adtn.DeviceProfile.shipped("generic-cpu")


def sketch(topology: adtn.Topology, n: int = 1024, leg: int | None = 8) -> Sketch:
    layout = adtn.Layout.of((n, n), leg, topology.order) if leg else topology.default_layout((n, n))
    return Sketch((n, n), topology, layout)


@pytest.mark.parametrize("name", shipped_profiles())
def test_every_shipped_profile_plans(name: str) -> None:
    for task in ("generate", "apply", "train", "fit"):
        found = adtn.plan(sketch(adtn.TTN(bond=4)), task, batch=16, profile=name)
        assert found.predicted_seconds > 0
        assert found.peak_bytes > 0
        assert found.profile.source == ("measured" if name.endswith("-torch") else "datasheet")
        assert sum(not a.lost for a in found.alternatives) == 1
    assert adtn.DeviceProfile.shipped(name).fits


@pytest.mark.parametrize(
    ("card", "dtype", "name"),
    [
        ("NVIDIA H200", "float32", "h200-torch"),
        ("NVIDIA H200", "bfloat16", "h200"),
        ("NVIDIA H100 PCIe", "float32", "h100"),
        ("another card", "float32", "t4"),
    ],
)
def test_a_gpu_has_the_profile_measured_on_its_kind_or_a_datasheet(card: str, dtype: str, name: str) -> None:
    device = SimpleNamespace(name="torch:cuda:0", description=card)
    backend: Any = SimpleNamespace(name="torch", devices=lambda: [device])
    assert nearest_shipped(backend, "cuda:0", dtype).name == name


def test_a_measured_profile_is_of_one_dtype() -> None:
    with pytest.raises(ScheduleError, match="expected float32, in which it was measured"):
        adtn.DeviceProfile.shipped("h200-torch", "bfloat16")


def test_a_plan_reads_like_a_table_and_survives_json() -> None:
    found = adtn.plan(sketch(adtn.TTN(bond=4), 4096), "fit", profile=CPU)
    text = repr(found)
    for piece in ("product b x m x n x k", "predicted", "why not", "peak", "the time"):
        assert piece in text
    content = json.loads(found.to_json())
    assert content["mode"] == found.mode
    assert len(content["alternatives"]) == len(found.alternatives)
    flops = sum(c["times"] * c["flops"] for c in content["contractions"])
    assert flops == sum(c.times * c.flops for c in found.contractions)


def test_flops_of_a_plan_are_those_of_its_contractions() -> None:
    # one segment of two cores: a product (64 x 8) @ (8 x 64)
    found = adtn.plan(sketch(adtn.MPO(bond=8), 64, leg=8), "generate", profile=CPU)
    assert sum(c.flops for c in found.contractions) == 2 * 64 * 8 * 64


SCRATCH = get_backend("numpy").scratch_bytes  # in addition to the counted bytes


@pytest.mark.parametrize("topology", [adtn.TTN(bond=4), adtn.MPO(bond=8)], ids=str)
@pytest.mark.parametrize(
    ("task", "mode"),
    [("generate", "materialise"), *itertools.product(("apply", "train", "fit"), ("materialise", "stream", "factored"))],
)
def test_the_peak_is_that_of_what_is_run(topology: adtn.Topology, task: Any, mode: Any) -> None:
    """Compare the planner's trace with the step that it returns, byte by byte."""
    layout = adtn.Layout.of((1024, 1024), 8, topology.order)
    gen = adtn.Generator((1024, 1024), topology, layout=layout)
    found = adtn.plan(gen, task, batch=16, mode=mode, profile=CPU)
    null: Any = get_backend("null")
    arrays, counter = null.arrays_like({**gen.params, **gen.constants()})
    shape = (16, 1024) if task in ("apply", "train") else gen.shape
    given = null.asarray(np.broadcast_to(np.float32(0), shape), "cpu", "float32")
    held = counter.live_bytes
    operand = given  # which its owner keeps alive
    if task == "fit":
        operand = found.fit.arrange(given)
    found.step(null)(arrays, operand)
    assert found.peak_bytes == counter.peak_bytes - held + SCRATCH


def test_the_peak_of_one_product_is_its_result() -> None:
    # two cores: the product, and the copy in the order of rows and columns
    one = 4 * 64 * 64
    found = adtn.plan(sketch(adtn.MPO(bond=8), 64), "generate", profile=CPU)
    assert found.peak_bytes == 2 * one + SCRATCH


def test_what_is_as_large_as_the_weight_is_as_large_as_a_tile_in_a_stream() -> None:
    s = sketch(adtn.TTN(bond=4), 2048)
    whole, tiles = (adtn.plan(s, "fit", profile=CPU, mode=mode) for mode in ("materialise", "stream"))
    assert tiles.tiles > 1
    assert whole.peak_bytes - SCRATCH > 2 * 4 * 2048 * 2048, "the weight and its residual"
    state = 4 * math.prod(
        sizes_of(s.segments)[i] for i in s.segments[-2].outputs
    )  # stored as a whole, with its adjoint
    assert tiles.peak_bytes - SCRATCH <= (whole.peak_bytes - SCRATCH) / tiles.tiles + 2 * state


def test_a_copy_of_the_target_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    s = sketch(adtn.TTN(bond=4), 512)
    shared = adtn.plan(s, "fit", profile=CPU, mode="materialise")
    monkeypatch.setattr(type(get_backend("numpy")), "shares_memory", lambda self, where: False)
    copied = adtn.plan(s, "fit", profile=CPU, mode="materialise", memory="1TiB")  # no limit, but another cache key
    assert copied.peak_bytes == shared.peak_bytes + 4 * 512 * 512


def test_the_memory_limit_is_met_or_the_smallest_is_named() -> None:
    s = sketch(adtn.TTN(bond=4), 2048)
    limit = 6 << 20
    found = adtn.plan(s, "fit", profile=CPU, memory=limit)
    assert found.peak_bytes <= limit
    assert any(a.lost == "does not fit the memory limit" for a in found.alternatives)
    with pytest.raises(ScheduleError, match=r"smallest that works for this fit is (\d+) bytes") as error:
        adtn.plan(s, "fit", profile=CPU, memory="1KiB")
    smallest = int(str(error.value).split("fit is ")[1].split()[0])
    assert adtn.plan(s, "fit", profile=CPU, memory=smallest).peak_bytes == smallest


@pytest.mark.parametrize(
    ("text", "want"), [("512MiB", 512 << 20), ("2GB", 2 * 10**9), ("1.5 KiB", 1536), ("77", 77), (None, None), (5, 5)]
)
def test_bytes_as_text(text: str | int | None, want: int | None) -> None:
    assert parse_bytes(text) == want


def test_an_activation_at_the_end_forbids_factored() -> None:
    s = sketch(adtn.TTN(bond=2, where="all"), 256)
    assert "factored" not in {a.mode for a in adtn.plan(s, "apply", profile=CPU).alternatives}
    with pytest.raises(ScheduleError, match="activation after the last segment"):
        adtn.plan(s, "apply", profile=CPU, mode="factored")


def test_a_brick_wall_says_that_it_cannot_stream() -> None:
    found = adtn.plan(sketch(adtn.BrickWall(layers=2), 256, leg=None), "fit", profile=CPU)
    assert any("streaming is not possible" in note for note in found.notes)
    assert not adtn.plan(sketch(adtn.TTN(bond=2), 1024), "fit", profile=CPU).notes


def test_gates_are_fused_where_a_pass_over_the_state_is_expensive(tmp_path: Path) -> None:
    s = sketch(adtn.BrickWall(layers=2), 1024, leg=None)
    last, sizes = s.segments[-1], sizes_of(s.segments)
    path = best_path(last, sizes, CPU, cache=PathCache(tmp_path))
    nodes = contraction_nodes(last.terms, last.outputs, path)
    large = [n for n in nodes if math.prod(sizes[i] for i in n.inds) >= 1024 * 1024]
    assert len(large) <= 0.6 * len(last.cores), "fewer passes over the state than gates"


def test_unknown_things_are_refused() -> None:
    s = sketch(adtn.TTN(bond=2), 64)
    for options, message in (
        ({"task": "guess"}, "expected 'generate', 'apply', 'train' or 'fit'"),
        ({"mode": "magic"}, "expected 'materialise'"),
        ({"profile": "z80"}, "one of generic-cpu"),
        ({"memory": "much"}, "expected a number of bytes"),
        ({"batch": 0}, "whole number of at least 1"),
        ({"task": "generate", "mode": "stream"}, "whose result is the whole weight"),
        ({"task": "generate", "mode": "factored"}, "needs the weight"),
        ({"task": "fit", "mode": "factored", "dtype": "bfloat16"}, "loses the difference"),
    ):
        with pytest.raises(ScheduleError, match=message):
            adtn.plan(s, **{"profile": CPU, **options})
    for topology, layout, message in (
        (adtn.TTN(bond=2, where="all"), None, "activation after the last segment"),
        (adtn.TTN(bond=2), adtn.Layout.from_factors((60, 64), ((8, 8), (8, 8))), "layout has padding"),
        (adtn.BrickWall(layers=2), None, "state as large as the weight"),
        (adtn.Dense(), None, "single tensor"),
    ):
        shape = (60, 64) if layout is not None else (64, 64)
        gen = adtn.Generator(shape, topology, layout=layout)
        with pytest.raises(ScheduleError, match=message):
            adtn.plan(gen, "fit", mode="factored", profile=CPU)
    with pytest.raises(ScheduleError, match="n_out, n_in"):
        adtn.plan(adtn.Generator((4, 4, 4), adtn.TTN(bond=2)), "apply", profile=CPU)


# --- profiles and costs ---


def test_a_profile_survives_a_file(tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    write_atomic(file, CPU.to_json().encode())
    assert adtn.DeviceProfile.load(file) == CPU
    assert adtn.plan(sketch(adtn.TTN(bond=2), 64), profile=str(file)).profile == CPU
    file.write_text(CPU.to_json().replace(f'"format": {FORMAT}', '"format": 99'))
    with pytest.raises(ScheduleError, match="unsupported format"):
        adtn.DeviceProfile.load(file)


def test_a_profile_says_when_it_does_not_fit() -> None:
    bad = replace(CPU, fit_error={"product": 0.9})
    assert not bad.fits
    assert "does not match its own measurements" in repr(bad)
    assert "does not fit" not in repr(CPU)


def test_a_product_costs_what_its_table_says_and_grows_in_proportion_beyond() -> None:
    size = CPU.gemm_sizes[-1]
    assert CPU.gemm_s(size, size, size) == pytest.approx(CPU.gemm_seconds[-1])
    assert CPU.gemm_s(4 * size, size, size) == pytest.approx(4 * CPU.gemm_seconds[-1])
    assert CPU.gemm_s(64, 64, 64) < CPU.gemm_s(65, 64, 64) < CPU.gemm_s(128, 64, 64)


def test_permutes_of_short_runs_and_long_strides_cost_more() -> None:
    def seconds(inner: int, stride: int) -> float:
        return CPU.seconds(
            Op(
                kind="permute",
                dtype="float32",
                shape=(1 << 20, inner, stride, 2, 3),
                read_bytes=1 << 22,
                written_bytes=1 << 22,
            )
        )

    assert seconds(2, 8) > seconds(64, 8) > seconds(64, 1)


def test_many_axes_cost_per_run_and_per_entry() -> None:
    """Price a copy of many axes per run and per entry, in addition to the price in the table."""
    profile = replace(CPU, permute_many=(1e-3, 1e-6))
    entries, inner, stride, before = 1 << 12, 8, 16, 4
    few = CPU.permute_s(entries, inner, stride, before, 3)
    assert (
        profile.permute_s(entries, inner, stride, before, 3) == profile.permute_s(entries, inner, stride, 2, 2) == few
    )
    for axes in (4, 6):
        runs, more = entries // (inner * before), axes - 3
        want = few + 1e-3 * runs + 1e-6 * entries * more
        assert profile.permute_s(entries, inner, stride, before, axes) == pytest.approx(want)


def test_a_calibrated_profile_is_found_and_a_new_one_replaces_it() -> None:
    backend = get_backend("numpy")
    path = profile_path(backend, "cpu", "float16")
    assert find_profile(backend, "cpu", "float16").source == "datasheet"
    path.parent.mkdir(parents=True, exist_ok=True)
    own = replace(adtn.DeviceProfile.shipped("generic-cpu", "float16"), name="mine", source="measured")
    write_atomic(path, own.to_json().encode())
    try:
        assert find_profile(backend, "cpu", "float16").name == "mine"
    finally:
        path.unlink()


def test_a_profile_of_an_older_format_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = get_backend("numpy")
    path = profile_path(backend, "cpu", "float16")
    path.parent.mkdir(parents=True, exist_ok=True)
    text = adtn.DeviceProfile.shipped("generic-cpu", "float16").to_json()
    write_atomic(path, text.replace(f'"format": {FORMAT}', f'"format": {FORMAT - 1}').encode())
    try:
        monkeypatch.setattr("adtn.device._profile_store.FORMAT", FORMAT + 1)
        assert find_profile(backend, "cpu", "float16").source == "datasheet"
    finally:
        path.unlink()


@pytest.mark.parametrize("device", ["numpy:cpu", "torch:cpu", "jax:cpu"])
def test_calibration_recovers_a_known_machine_and_is_found(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(device.partition(":")[0])
    backend = get_backend(device.partition(":")[0])

    def clock(self, fn, *args) -> float:
        """A machine on which every operation takes a microsecond, and a nanosecond per entry that it reads."""
        fn(*args)
        return 1e-6 + 1e-9 * sum(math.prod(x.shape) for a in args for x in (a.values() if isinstance(a, dict) else [a]))

    monkeypatch.setattr(_calibrate.Calibration, "measure", clock)
    small = ((1 << 8, 1 << 10, 1 << 12, 1 << 14), (2, 64), (1, 256))
    for name, value in {
        "GEMM_SIZES": (1, 4, 16, 64),
        "COARSE_SIZES": (1, 4, 16, 64),
        "PERMUTE_SIZES": small,
        "COARSE_PERMUTES": small,
        "_PERMUTE_BITS": (10, 12, 14),
    }.items():
        monkeypatch.setattr(_calibrate, name, value)
    monkeypatch.setattr(_validate, "_PROGRAM_SIZES", (64,))
    monkeypatch.setattr(_calibrate, "_LARGEST_PRODUCT", 1 << 12)
    monkeypatch.setattr(_calibrate, "_ENTRIES", (1 << 8, 1 << 14, 1 << 20))
    profile = adtn.calibrate(device)
    try:
        assert find_profile(backend, "cpu", "float32") == profile
        assert profile.source == "measured"
        assert profile.gemm_s(16, 16, 4) == pytest.approx(1e-6 + 1e-9 * 128, rel=0.2)
        assert profile.curve_s("tanh", 1 << 16) == pytest.approx(1e-6 + 2e-9 * (1 << 16), rel=0.3)
        # of the largest array: two are read and one is written
        assert profile.bandwidth_bytes_per_s == pytest.approx(3 * 4 / 2e-9, rel=0.01)
        assert set(profile.fit_error) == {"product", "elementwise", "permute", "program"}
        assert profile.fit_error["permute"] < 0.1, "between the points of the table"
        assert adtn.plan(sketch(adtn.TTN(bond=2), 64), "fit", device=device).profile == profile
    finally:
        profile_path(backend, "cpu", "float32").unlink()
    assert find_profile(backend, "cpu", "float32").source == "datasheet"


def test_device_time_is_a_cotengra_objective() -> None:
    s = sketch(adtn.ATTN(bond=4), 256, leg=4)
    segment, sizes = s.segments[-1], sizes_of(s.segments)
    names = dict.fromkeys(i for inds in (*segment.terms, segment.outputs) for i in inds)
    symbol = {i: ctg.get_symbol(n) for n, i in enumerate(names)}
    inputs = [tuple(symbol[i] for i in inds) for inds in segment.terms]
    output = tuple(symbol[i] for i in segment.outputs)
    dims = {symbol[i]: d for i, d in sizes.items() if i in symbol}
    objective = DeviceTime(CPU)
    optimizer = ctg.HyperOptimizer(
        methods=("greedy",),
        minimize=objective,
        max_repeats=4,
        parallel=False,
        on_trial_error="raise",
        seed=0,
        reconf_opts={},
        slicing_reconf_opts={"target_size": 2**12},
        optlib="random",
    )
    tree = optimizer.search(inputs, output, dims)
    assert objective({"tree": tree}) == pytest.approx(
        math.log2(sum(objective.cost_local_tree_node(tree, node) for node, _, _ in tree.traverse()))
    )
    assert objective.get_dynamic_programming_minimize().startswith("limit-")
    assert objective == DeviceTime(CPU)
    assert objective != DeviceTime(adtn.DeviceProfile.shipped("a100"))


def test_a_tree_pays_for_operands_that_are_no_matrices_as_they_are() -> None:
    sizes = {"a": 32, "b": 48, "c": 4, "k": 64, "l": 2}
    objective = DeviceTime(CPU)
    product = CPU.launch_s + CPU.gemm_s(32 * 4, 48, 64 * 2)
    for left in ("ackl", "klac"):
        assert objective.seconds(sizes, left, "klb", "acb") == pytest.approx(product)
    copy = CPU.permute_s(32 * 4 * 64 * 2, 2, 2, 2, 3)
    assert objective.seconds(sizes, "akcl", "klb", "acb") == pytest.approx(product + copy)
    copy = CPU.permute_s(64 * 2 * 48, 2, 2, 2, 3)
    assert objective.seconds(sizes, "ackl", "kbl", "acb") == pytest.approx(product + copy)


def test_a_layer_without_a_batch_is_planned_for_one_row() -> None:
    for task in ("apply", "train"):
        found, one, two = (
            adtn.plan(sketch(adtn.TTN(bond=4)), task, profile=CPU, **o) for o in ({}, {"batch": 1}, {"batch": 2})
        )
        assert found.alternatives == one.alternatives != two.alternatives


# --- search and cache ---


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_candidates_are_paths_and_the_best_is_not_worse_than_any(name: str, tmp_path: Path) -> None:
    gen = TOPOLOGIES[name].generator()
    sizes = sizes_of(gen.segments)
    for segment in gen.segments:
        if len(segment.terms) < 3:
            continue
        found = candidates(segment, sizes, CPU)
        for path in found:
            assert len(path) == len(segment.terms) - 1
            contraction_nodes(segment.terms, segment.outputs, path)
        best = best_path(segment, sizes, CPU, cache=PathCache(tmp_path))
        least = min(path_seconds(segment, sizes, CPU, path) for path in found)
        assert path_seconds(segment, sizes, CPU, best) == pytest.approx(least)


def every_tree(slots: tuple[int, ...]) -> list[tuple[tuple[int, int], ...]]:
    """List all pairwise orders of some sets of operands, as :meth:`Estimate.pairs` returns them."""
    if len(slots) == 1:
        return [()]
    found = []
    for left, right in itertools.combinations(slots, 2):
        rest = tuple(s for s in slots if s not in (left, right))
        pair = (min(left, right), max(left, right))
        found += [(pair, *tree) for tree in every_tree((*rest, left | right))]
    return found


@pytest.mark.parametrize("cost", ["forward", "adjoint", "projected"])
@pytest.mark.parametrize("name", ["ttn", "attn", "mera", "brickwall-odd", "mpo"])
def test_the_estimate_is_the_price_where_nothing_is_permuted(name: str, cost: str) -> None:
    gen = TOPOLOGIES[name].generator()
    sizes = sizes_of(gen.segments)
    free = replace(CPU, permute_seconds=(1e-30,) * len(CPU.permute_seconds), launch_s=0.0)
    for segment in gen.segments:
        if len(segment.terms) < 3:
            continue
        trained = trained_slots(segment) if cost != "forward" else ()
        projected = cost == "projected"
        estimate = Estimate(segment.terms, segment.outputs, sizes, free, trained, projected=projected)
        for path in candidates(segment, sizes, free, cost):
            full = path_seconds(segment, sizes, free, path, cost)
            assert estimate.seconds(estimate.pairs(path)) == pytest.approx(full)


@pytest.mark.parametrize("cost", ["forward", "adjoint", "projected"])
@pytest.mark.parametrize("name", ["ttn", "attn", "mera", "brickwall-odd", "mpo", "cp"])
def test_recombined_subtrees_are_not_worse_than_any_tree_and_the_best_of_all(name: str, cost: str) -> None:
    gen = TOPOLOGIES[name].generator()
    sizes = sizes_of(gen.segments)
    for segment in gen.segments:
        terms = segment.terms
        if len(terms) < 3:
            continue
        trained = trained_slots(segment) if cost != "forward" else ()
        estimate = Estimate(terms, segment.outputs, sizes, CPU, trained, projected=cost == "projected")
        trees = [estimate.pairs(path) for path in candidates(segment, sizes, CPU, cost)]
        if len(terms) <= 5:
            trees = every_tree(tuple(1 << slot for slot in range(len(terms))))
        least = min(map(estimate.seconds, trees))
        first, *_ = (estimate.seconds(estimate.pairs(path)) for path in estimate.best(trees, 3))
        assert first == pytest.approx(least) if len(terms) <= 5 else first <= least * (1 + 1e-12)


@pytest.mark.parametrize(
    ("topology", "n", "most"),
    [
        (adtn.ATTN(bond=4), 8192, 0.5),
        (adtn.Tucker(bond=4), 4096, 0.5),
        (adtn.TTN(bond=4), 2048, 1.0),
        (adtn.MPO(bond=8), 2048, 1.0),
    ],
)
def test_trees_of_streams_are_ranked_in_tiles(
    topology: adtn.Topology, n: int, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check that trees are ranked in tiles, as the best tree for the whole weight may be four times slower in tiles."""
    thing = sketch(topology, n)
    found = adtn.plan(thing, "fit", mode="stream", profile=CPU)
    monkeypatch.setattr("adtn.schedule._candidates.best_tiled_path", lambda *a: best_path(*a[:4]))
    monkeypatch.setattr(_planner, "_decided", _planner._decided.__wrapped__)
    whole = adtn.plan(thing, "fit", mode="stream", profile=CPU)
    assert found.predicted_seconds <= 1.02 * most * whole.predicted_seconds


def test_legs_are_cut_from_the_first_on() -> None:
    sizes = {"a": 4, "b": 8, "c": 2}
    assert cut_legs(("a", "b", "c"), sizes, 1) == {}
    assert cut_legs(("a", "b", "c"), sizes, 2) == {"a": 2}
    assert cut_legs(("a", "b", "c"), sizes, 8) == {"a": 1, "b": 4}
    assert cut_legs(("a", "b", "c"), sizes, 64) == {"a": 1, "b": 1, "c": 1}
    with pytest.raises(TopologyError, match="can be split into"):
        cut_legs(("a", "b", "c"), sizes, 3)


# except CP, where a permuted result remains a view, which the search counts as a copy
@pytest.mark.parametrize("name", ["ttn", "attn", "mera", "brickwall-odd", "mpo"])
def test_the_search_prices_the_products_that_are_done(name: str) -> None:
    gen = TOPOLOGIES[name].generator()
    program = compile_program(gen.segments)
    want = Counter()
    for stage in program.stages:
        for step in stage.steps:
            for op in (*step_ops(step, "float32"), *adjoint_ops(step, "float32")):
                if op.kind == "matmul":
                    want[op.shape, op.transposed] += 1
    null = get_backend("null")
    arrays, counter = null.arrays_like(
        {k: np.broadcast_to(np.float32(0), x.shape) for k, x in gen.arrays("numpy:cpu", "float32").items()}
    )
    state, tape = forward_tape(program, arrays)
    pullback(program, tape, state)
    done = Counter()
    for op, times in counter.ops.items():
        if op.kind == "matmul":
            done[op.shape, op.transposed] += times
    assert done == want


# where no permuted result stays a view
@pytest.mark.parametrize("name", ["ttn", "attn-pairs", "mera-periodic", "mera-odd", "tt", "ring", "dense"])
def test_a_plan_lists_the_contractions_that_are_computed(name: str) -> None:
    gen = TOPOLOGIES[name].generator(dtype="float32")
    found = adtn.plan(gen, "generate", mode="materialise", profile=CPU)
    null = get_backend("null")
    arrays, counter = null.arrays_like(gen.arrays("numpy:cpu", "float32"))
    found.executable.on(null).weight(arrays)
    done = Counter(op.kind for op in counter.ops.elements())
    products = [op for op in counter.ops.elements() if op.kind == "matmul"]
    assert sum(c.times * c.permutes for c in found.contractions) == done["permute"]
    assert sum(c.times for c in found.contractions) == done["matmul"]
    assert sum(c.times * c.flops for c in found.contractions) == sum(op.flops for op in products)
    assert sum(c.times * c.nbytes for c in found.contractions) == sum(op.moved_bytes for op in products)


@pytest.mark.parametrize("name", ["ttn", "mera", "mpo", "dense"])
def test_contractions_know_their_segment_and_how_often_they_are_done(name: str) -> None:
    gen = TOPOLOGIES[name].generator()
    found = adtn.plan(gen, "fit", mode="stream", profile=CPU)
    places = [c.segment for c in found.contractions]
    assert places == sorted(places) and set(places) <= set(range(len(gen.segments)))
    assert {(c.segment, c.times) for c in found.contractions if c.times > 1} <= {(len(gen.segments) - 1, found.tiles)}
    assert found.tiles > 1 and (name == "dense" or found.contractions[-1].times == found.tiles)


@pytest.mark.parametrize(("left", "right"), [("akb", "kc"), ("ka", "bkc"), ("akb", "ckd"), ("xakb", "xkc")])
def test_the_search_prices_the_copies_of_projections(left: str, right: str) -> None:
    """Use a core with legs on both sides of the contracted index: it is copied, and so is its adjoint."""
    sizes = {"a": 2, "b": 3, "c": 5, "d": 4, "k": 7, "x": 6}
    cores = [Core(name=n, inds=tuple(n), shape=tuple(sizes[i] for i in n), param=n, kind="core") for n in (left, right)]
    legs = tuple(i for i in "xabcd" if i in left + right)
    tiled = tile_program((Segment((), tuple(cores), legs),), (((0, 1),),), legs, keep_last=True)
    (root,) = tiled.steps
    want = Counter(replace(op, fresh_bytes=0) for op in projection_ops(root, "float32") if op.kind == "permute")
    null = get_backend("null")
    shapes = {core.param: core.shape for core in cores} | {"target": (1, *(sizes[i] for i in legs))}
    arrays, counter = null.arrays_like({n: np.broadcast_to(np.float32(0), shape) for n, shape in shapes.items()})
    blocks = frontier(tiled, arrays, null.workspace()).blocks
    project(tiled, blocks, null, null.workspace(), arrays["target"], 1.0)
    done = Counter(replace(op, fresh_bytes=0) for op in counter.ops.elements() if op.kind == "permute")
    assert want and want <= done, "what is priced is done"


def test_a_transposed_operand_is_noted_and_priced() -> None:
    null = get_backend("null")
    arrays, counter = null.arrays_like({"x": np.ones((64, 1024)), "y": np.ones((64, 1024)), "v": np.ones((1024, 1))})
    x, y = (do("transpose", arrays[k], (1, 0)) for k in ("x", "y"))
    for left, right in ((arrays["x"], y), (x, arrays["y"])):
        do("matmul", left, right)
    do("matmul", arrays["x"], arrays["v"])
    assert [op.transposed for op in counter.ops if op.kind == "matmul"] == [2, 1, 0]
    factors = (2.0,) * 8 + (3.0,) * 8 + (4.0,) * 8
    profile = replace(CPU, transposed_sizes=(1, 4096), transposed_factors=factors)
    plain = profile.gemm_s(64, 64, 1024)
    assert [profile.gemm_s(64, 64, 1024, transposed) / plain for transposed in (1, 2, 3)] == pytest.approx(
        [2.0, 3.0, 4.0]
    )
    assert CPU.gemm_s(64, 64, 1024, 3) == CPU.gemm_s(64, 64, 1024)
    assert adtn.DeviceProfile.from_json(profile.to_json()) == profile


def test_paths_are_cached_by_structure_and_objective(tmp_path: Path) -> None:
    calls: list[int] = []

    def search():
        calls.append(1)
        return ((0, 1), (0, 1))

    terms, sizes = (("a", "b"), ("b", "c"), ("c", "d")), dict.fromkeys("abcd", 4)
    key = path_key(terms, ("a", "d"), sizes, 1, "cpu")
    assert PathCache(tmp_path).find(key, 3, search) == ((0, 1), (0, 1))
    assert PathCache(tmp_path).find(key, 3, search) == ((0, 1), (0, 1))
    assert len(calls) == 1, "the second cache reads the file"
    renamed = path_key((("x", "y"), ("y", "z"), ("z", "w")), ("x", "w"), dict.fromkeys("xyzw", 4), 1, "cpu")
    assert renamed == key
    others = {
        path_key(terms, ("d", "a"), sizes, 1, "cpu"),
        path_key(terms, ("a", "d"), {**sizes, "a": 5}, 1, "cpu"),
        path_key(terms, ("a", "d"), sizes, 2, "cpu"),
        path_key(terms, ("a", "d"), sizes, 1, "gpu"),
    }
    assert key not in others
    assert len(others) == 4


@pytest.mark.parametrize("content", ["", "[[0, 1]", "[[0, 9], [0, 1]]", "[[0, 1]]", '{"a": 1}', "[[1, 0], [0, 1]]"])
def test_a_broken_cache_file_counts_as_absent(tmp_path: Path, content: str) -> None:
    cache = PathCache(tmp_path)
    key = "ab" * 32
    file = tmp_path / "ab" / f"{key}.json"
    file.parent.mkdir()
    file.write_text(content)
    assert cache.find(key, 3, lambda: ((0, 1), (0, 1))) == ((0, 1), (0, 1))
    assert json.loads(file.read_text())["path"] == [[0, 1], [0, 1]]


def test_concurrent_processes_share_the_cache(tmp_path: Path) -> None:
    import subprocess
    import sys

    program = """
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from adtn.schedule._path_cache import PathCache
cache = PathCache(Path(sys.argv[1]))
for i in range(300):
    fresh = PathCache(Path(sys.argv[1]))
    assert fresh.find(f"{i % 7:064d}", 3, lambda: ((0, 1), (0, 1))) == ((0, 1), (0, 1))
"""
    workers = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path)]) for _ in range(3)]
    assert [w.wait(120) for w in workers] == [0, 0, 0]
    assert len(list(tmp_path.rglob("*.json"))) == 7
    assert len([p for p in tmp_path.rglob("*") if p.is_file()]) == 7, "no temporary files are left"


def test_a_cache_that_cannot_be_written_is_not_an_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert PathCache(blocked).find("k" * 64, 2, lambda: ((0, 1),)) == ((0, 1),)


# --- measurements of the null backend ---


def test_copies_are_counted_only_where_no_view_exists() -> None:
    from autoray import do

    null = get_backend("null")
    arrays, counter = null.arrays_like({"x": np.ones((4, 6, 8))})
    do("reshape", do("transpose", arrays["x"], (1, 0, 2)), (6, 32))
    assert [op.kind for op in counter.ops] == ["permute"]
    (op,) = counter.ops
    assert op.shape == (192, 8, 1, 4, 3)
    counter.ops.clear()
    do("reshape", do("reshape", arrays["x"], (24, 8)), (4, 48))
    do("transpose", arrays["x"], (2, 1, 0))
    do("reshape", do("transpose", arrays["x"], (0, 1, 2)), (24, 8))
    assert not counter.ops


def test_peak_memory_follows_what_is_alive() -> None:
    null = get_backend("null")
    arrays, counter = null.arrays_like({"x": np.ones((10, 10))}, "float64")
    x = arrays["x"]
    assert counter.live_bytes == 800
    y = x + x
    z = y + y
    assert counter.peak_bytes == 2400
    del y
    assert counter.live_bytes == 1600
    view = z[2:]
    del z
    assert counter.live_bytes == 1600, "a view keeps its memory alive"
    del view
    assert counter.live_bytes == 800


def test_loops_count_every_pass() -> None:
    from autoray import do

    null = get_backend("null")
    arrays, counter = null.arrays_like({"x": np.ones((5, 3, 4)), "y": np.ones((4, 2))})
    null.loop(5, lambda i, c: (do("matmul", null.take(arrays["x"], i), arrays["y"]), c)[1], None)
    assert counter.flops == 5 * 2 * 3 * 4 * 2
