"""Budgets are met, and distributed as well as possible."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import adtn
import numpy as np
import pytest
from adtn.compression import Budget, Config, largest_within, stored_params
from adtn.compression._budget import allocate
from adtn.compression._choice import dense_choice, families
from adtn.compression._choose import Search
from adtn.compression._ladder import Curve, Ladder, low_rank_errors
from adtn.compression._local import LocalTask
from adtn.errors import CompressError, TopologyError
from adtn.optim import best_within, svd_error
from hypothesis import given
from hypothesis import strategies as st

from models import batches, net, same, state_of

# models of these tests are small and random: results are bad on purpose
pytestmark = pytest.mark.filterwarnings("ignore::adtn.errors.QualityWarning")

TOPOLOGIES = (adtn.TTN(), adtn.MERA(), adtn.MPO(), adtn.TensorRing(), adtn.Tucker(), adtn.CP(), adtn.BrickWall())
QUICK: dict[str, Any] = {"targets": ["0", "4"], "steps": 5, "tune_steps": 3}


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=repr)
def test_sizes_are_those_of_generators(topology: adtn.Topology) -> None:
    layout = topology.default_layout((32, 24))
    assert stored_params(topology, layout) == adtn.Generator((32, 24), topology, layout=layout).num_params


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=repr)
@pytest.mark.parametrize("most", [0, 50, 300, 2000])
def test_the_largest_bond_within_a_size(topology: adtn.Topology, most: int) -> None:
    layout = topology.default_layout((64, 64))
    found = largest_within(topology, layout, most)
    field = "layers" if isinstance(topology, adtn.BrickWall) else "bond"
    sizes = []
    for bond in range(1, 200):
        sizes.append(stored_params(topology.grown(bond), layout))
    fitting = [size for size in sizes if size <= most]
    if found is None:
        assert not fitting
    else:
        assert stored_params(found, layout) == max(fitting)
        assert getattr(found, field) == sizes.index(max(fitting)) + 1


def test_topologies_without_a_bond_are_refused() -> None:
    with pytest.raises(TopologyError, match="no bond dimension to choose"):
        largest_within(adtn.Dense(), adtn.Dense().default_layout((8, 8)), 10)


@given(
    st.lists(
        st.lists(st.tuples(st.integers(1, 60), st.floats(0.0, 10.0)), min_size=1, max_size=4), min_size=1, max_size=4
    ),
    st.integers(1, 200),
)
def test_allocation_is_the_best_of_all(own: list[list[tuple[int, float]]], most: int) -> None:
    options = {str(n): one for n, one in enumerate(own)}
    combinations = [c for c in itertools.product(*own) if sum(cost for cost, _ in c) <= most]
    if not combinations:
        with pytest.raises(CompressError, match="smallest candidates"):
            allocate(options, most)
        return
    picked = allocate(options, most)
    chosen = [own[int(n)][k] for n, k in picked.items()]
    assert sum(cost for cost, _ in chosen) <= most
    assert sum(loss for _, loss in chosen) == pytest.approx(min(sum(x for _, x in c) for c in combinations))


def test_allocation_of_large_costs_never_exceeds_the_budget() -> None:
    options = {str(n): [(10**6 + 37 * k * 10**4 + n, 1.0 / (k + 1 + n)) for k in range(20)] for n in range(7)}
    picked = allocate(options, 12_345_678)
    total = sum(options[n][k][0] for n, k in picked.items())
    assert 0.98 * 12_345_678 < total <= 12_345_678


@pytest.mark.parametrize("shape", [(64, 36, 3, 3), (96, 50), (10, 64)])
@pytest.mark.parametrize("precision", [None, adtn.Precision("int8"), adtn.Precision("int4", 32)], ids=str)
def test_members_of_families_cost_what_their_generators_do(
    shape: tuple[int, ...], precision: adtn.Precision | None
) -> None:
    found = families(shape, (*TOPOLOGIES, adtn.LowRank(), adtn.KroneckerSum()), [], 4)
    kinds = {type(t) for t in TOPOLOGIES} | {adtn.LowRank, adtn.KroneckerSum}
    assert {type(f.topology) for f in found} == kinds
    for family in found:
        choice = replace(family, precision=precision).within(1500)
        if choice is None:
            continue
        generator = adtn.Generator(shape, choice.topology, layout=choice.layout)
        assert choice.params == generator.num_params <= 1500
        if precision is None:
            assert choice.bytes == 4 * choice.params
        else:
            assert choice.bytes == generator.rounded(precision).nbytes


def test_cores_have_the_largest_groups_of_each_number_of_bits() -> None:
    given = [adtn.Precision(f, g) for f, g in (("int4", 32), ("int4", 128), ("int3", None), ("int3", 64))]  # type: ignore[arg-type]
    found = families((64, 64), (adtn.LowRank(),), [adtn.Precision("float16"), *given], 4)
    of_cores = [f.precision for f in found if isinstance(f.topology, adtn.LowRank)]
    assert of_cores == [None, adtn.Precision("int4", 128), adtn.Precision("int3")]
    assert len(found) == len(of_cores) + 5


def test_unequal_ranks_need_no_more_bytes() -> None:
    rng = np.random.default_rng(3)
    shape = (16, 12, 3, 3)
    weight = rng.standard_normal(shape) * np.exp(-0.3 * np.arange(12)).reshape(-1, 1, 1)
    topology = adtn.Tucker()
    task = LocalTask(
        name="w",
        weight=weight,
        moment=None,
        topology=topology,
        layout=adtn.Layout.whole(shape),
        base=None,
        seed=0,
        steps=0,
        optimizer="lbfgs",
        lr=0.1,
        device="numpy:cpu",
    )
    search = Search(
        layers=[],
        tasks={"w": task},
        config=Config(),
        adapter=None,  # type: ignore[arg-type]
        sample=(),
        loss=None,
        unit="bytes",
        executor=None,
        folder=None,
        say=print,
    )
    family = next(f for f in families(shape, (topology,), [adtn.Precision("int4", 32)], 4) if f.precision is not None)
    choice = family.members(weight.size)[8]
    best = best_within(choice.topology, family.layout, weight, None, choice.params)  # type: ignore[arg-type]
    assert best is not None and family.member(best, choice.params).bytes > choice.bytes
    for choice in family.members(weight.size)[4:10]:
        found = search.solve([("w", choice)], 12)["w", choice]  # as many sweeps as in the end
        assert found.generator.nbytes <= choice.bytes


def test_convolutions_have_the_tucker_2_form_and_rounded_dense_weights() -> None:
    found = families((8, 6, 3, 3), (adtn.Tucker(),), [adtn.Precision("int3", 32)], 4)
    assert [(f.topology, f.precision) for f in found] == [
        (adtn.Tucker(bond=(8, 6, None, None)), None),
        (adtn.Tucker(bond=(8, 6, None, None)), adtn.Precision("int3", 32)),
        (adtn.Dense(), adtn.Precision("int3", 32)),
    ]


def test_errors_of_all_ranks_are_those_of_truncated_decompositions() -> None:
    rng = np.random.default_rng(0)
    weight, inputs = rng.standard_normal((12, 9)), rng.standard_normal((50, 9)) * np.arange(1, 10)
    moment = inputs.T @ inputs / 50
    errors = low_rank_errors(weight, moment)
    for rank in (1, 4, 8):
        generator = adtn.Generator((12, 9), adtn.LowRank(bond=rank), dtype="float64")
        away = adtn.decompose(generator, weight, moment=moment).weight() - weight
        want = np.trace(away @ moment @ away.T) / np.trace(weight @ moment @ weight.T)
        assert errors[rank] == pytest.approx(want, rel=1e-6)
    assert errors[0] == pytest.approx(1.0)


@pytest.mark.parametrize("shape", [(12, 9), (8, 3, 2, 2)])
def test_the_error_of_an_svd_is_that_of_the_largest_rank_within_a_size(shape: tuple[int, ...]) -> None:
    weight = np.random.default_rng(1).standard_normal(shape)
    matrix = weight.reshape(shape[0], -1)
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    total = sum(matrix.shape)
    for params, rank in ((total - 1, 0), (total, 1), (3 * total + 1, 3)):
        away = (left[:, :rank] * values[:rank]) @ right[:rank] - matrix
        want = np.linalg.norm(away) / np.linalg.norm(matrix)
        assert svd_error(weight, params) == pytest.approx(want)
    assert svd_error(weight, matrix.size) == 0.0, "the weight itself fits"
    assert svd_error(weight, total, np.zeros((matrix.shape[1],) * 2)) == 0.0, "no input, no error"


def test_curves_interpolate_between_what_is_known() -> None:
    (family,) = families((64, 64), (adtn.LowRank(),), [], 4)
    curve = Curve(family=family, errors={1000: 0.1, 100: 0.5})
    assert (curve.at(100), curve.at(1000)) == (0.5, 0.1)
    assert 0.1 < curve.at(300) < 0.5
    assert curve.at(4000) < 0.1
    assert curve.at(1) == 1.0
    assert curve.corrected(300, 0.05).at(300) == 0.05


def test_a_ladder_has_no_choice_that_is_dearer_and_worse() -> None:
    dense = dense_choice((64, 64), 4)
    own = families((64, 64), (adtn.LowRank(), adtn.MPO()), [], 4)
    curves = [Curve(family=f, errors={200: 0.9 - 0.1 * k, 2000: 0.01}) for k, f in enumerate(own)]
    options = Ladder(name="a", layer="a", entries=4096, fixed={dense: 0.0}, curves=curves).options("parameters")
    costs, errors = zip(*((c.cost("parameters"), e) for c, e in options), strict=True)
    assert list(costs) == sorted(costs)
    assert list(errors) == sorted(errors, reverse=True)
    assert options[-1] == (dense, 0.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "expected one of params"),
        ({"params": 10, "ratio": 2.0}, "expected one of params"),
        ({"ratio": 0.5}, "at least 1"),
        ({"accuracy_loss": float("nan")}, "at least 0"),
    ],
)
def test_invalid_budgets_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(CompressError, match=message):
        Budget(**values)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("4x", Budget(bytes_ratio=4.0)),
        ("2.5 X", Budget(bytes_ratio=2.5)),
        ("25%", Budget(bytes_ratio=4.0)),
        ("2MB", Budget(bytes=2_000_000)),
        ("1.5KiB", Budget(bytes=1536)),
        ("900B", Budget(bytes=900)),
    ],
)
def test_budgets_are_read_as_one_writes_them(text: str, want: Budget) -> None:
    assert Budget.parse(text) == want


@pytest.mark.parametrize("text", ["", "4", "x", "4y", "-1x", "0.5x", "0%", "120%", "4x 2MB", "1e3x"])
def test_budgets_that_mean_nothing_are_refused(text: str) -> None:
    with pytest.raises(CompressError, match="expected a"):
        Budget.parse(text)


@pytest.mark.parametrize("budget", [{"params": 700}, {"bytes": 3600}, {"ratio": 6.0}])
def test_a_model_stays_within_its_budget(budget: dict[str, Any], tmp_path: Path) -> None:
    model = net()
    dense = sum(p.numel() for p in model.parameters())
    report = adtn.compress(model, Config(**QUICK, budget=Budget(**budget)), data=batches(), test=batches(1))
    codes = [b for name, b in model.named_buffers() if ".codes_" in name]
    size = 4 * sum(p.numel() for p in model.parameters()) + sum(b.numel() for b in codes)
    assert report.after.bytes == size
    most = min(budget.get("bytes", math.inf), 4 * budget.get("params", math.inf), 4 * dense / budget.get("ratio", 1.0))
    assert 0.85 * most < (report.file_bytes or size) <= most
    assert bool(codes) == ("bytes" in budget)
    assert all(row.sensitivity is not None and row.sensitivity > 0 for row in report.layers)


def test_a_budget_that_cannot_be_met_leaves_the_model_unchanged() -> None:
    model = net()
    state = state_of(model)
    with pytest.raises(CompressError, match="Got a budget of 200 parameters; the smallest model"):
        adtn.compress(model, Config(**QUICK, budget=Budget(params=200)), data=batches())
    assert same(model, state)


class Endless:
    """A data set that never ends."""

    def __init__(self) -> None:
        self.taken = 0

    def __iter__(self):
        for batch in itertools.cycle(batches()):
            self.taken += 1
            yield batch


def test_sensitivities_need_a_sample_of_the_data() -> None:
    data = Endless()
    config = Config(targets=["0", "4"], steps=2, recipe="reconstruct", budget=Budget(ratio=5.0))
    report = adtn.compress(net(), config, data=data)
    assert all(row.sensitivity is not None for row in report.layers)
    assert data.taken < 40


def test_a_budget_works_without_data() -> None:
    model = net()
    config = Config(targets=["0", "4"], budget=Budget(ratio=5.0), largest_error=1.0)
    report = adtn.compress(model, config)
    assert report.ratio >= 5.0
    state = state_of(net())
    with pytest.raises(CompressError, match=r"and no data, so that relative errors of layers are at most 0.3;"):
        adtn.compress(model := net(), replace(config, largest_error=0.3))  # weights are random
    assert same(model, state)


def test_a_largest_loss_of_accuracy() -> None:
    model, data = net(), batches()
    lines: list[str] = []
    generous = Config(**QUICK, budget=Budget(accuracy_loss=100.0))
    report = adtn.compress(model, generous, data=data, test=data, progress=lines.append)
    sizes = [int(line.split()[0].replace(",", "")) for line in lines if "parameters in the chosen layers lose" in line]
    assert sizes == sorted(sizes, reverse=True)  # every size is good enough, so smaller ones are tried
    assert sum(row.params for row in report.layers) <= sizes[-1]
    assert report.after.accuracy is not None
    with pytest.raises(CompressError, match="without test"):
        adtn.compress(net(), generous, data=data)


def test_a_loss_that_cannot_be_reached_leaves_the_model_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    from adtn_backends.torch._model import TorchModel

    scores = iter([100.0] + [0.0] * 20)
    monkeypatch.setattr(TorchModel, "accuracy", lambda self, data: next(scores))
    model = net()
    state = state_of(model)
    with pytest.raises(CompressError, match="No size that was tried loses at most 1"):
        adtn.compress(model, Config(**QUICK, budget=Budget(accuracy_loss=1.0)), data=batches(), test=batches())
    assert same(model, state)


def test_configs_hold_budgets_as_plain_values() -> None:
    config = Config.from_dict({"budget": {"ratio": 20}, "candidates": ["mpo", {"name": "ttn", "activation": "tanh"}]})
    assert config.budget == Budget(ratio=20)
    assert config.candidates == (adtn.MPO(), adtn.TTN(activation="tanh"))


def test_a_budget_is_passed_beside_the_config_or_in_it() -> None:
    config = Config(**QUICK)
    found = [
        adtn.compress(net(), config, budget="2x", data=batches()),
        adtn.compress(net(), replace(config, budget=Budget(bytes_ratio=2.0)), data=batches()),
    ]
    assert found[0].file_bytes == found[1].file_bytes
    with pytest.raises(CompressError, match="pass one of them"):
        adtn.compress(net(), replace(config, budget=Budget(bytes_ratio=2.0)), budget="2x", data=batches())


def test_weights_that_matter_little_are_not_compressed_beyond_what_was_measured() -> None:
    ladder = Ladder(name="a", layer="a", entries=100, measured={0.01: 1e-4, 0.81: 1.0})
    assert ladder.loss(0.0) == 0.0
    assert ladder.loss(0.001) == pytest.approx(1e-5)
    assert ladder.loss(0.01) == pytest.approx(1e-4)
    assert 1e-4 < ladder.loss(0.09) < 1.0
    assert ladder.loss(0.9) > 1.0


@pytest.mark.parametrize("is_better", [True, False])
def test_the_same_integers_for_all_weights_are_tried_as_well(monkeypatch: pytest.MonkeyPatch, is_better: bool) -> None:
    seen: list[set[Any]] = []

    def loss_of(search: Any, selection: Any) -> float:
        formats = {None if r is None else r.generator.precision for r in selection.results.values()}
        seen.append(formats)
        return float((len(seen) == 1) == is_better)

    monkeypatch.setattr(Search, "loss_of", loss_of)
    config = Config(smallest=8, recipe="closed-form")
    report = adtn.compress(net(), config, budget=Budget(bytes=4000), data=batches())
    assert len(seen) == 2 and len(seen[1]) == 1, "what was chosen, and one format"
    formats = {generator.precision for generator in report.generators.values()}
    assert formats == (seen[1] if is_better else seen[0] - {None})
    assert report.file_bytes <= 4000
