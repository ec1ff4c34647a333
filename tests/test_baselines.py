"""The baselines beside a result: what they are, what they cost, and that the result survives them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import adtn
import numpy as np
import pytest
from adtn.compression import Baseline, ModelCost
from adtn.compression._baselines import scaled
from adtn.errors import CompressError
from adtn.topology import ScaledIdentity, ScaledRandom

from models import batches, net, same, state_of

torch = pytest.importorskip("torch")
# models of these tests are small and random: results are bad on purpose
pytestmark = pytest.mark.filterwarnings("ignore::adtn.errors.QualityWarning")

QUICK: dict[str, Any] = {"targets": ["0", "4"], "topology": adtn.TTN(bond=6), "steps": 5, "tune_steps": 4}
COST = ModelCost(params=10, bytes=40, accuracy=90.0, forward_seconds=None, forward_peak_bytes=None, loss=0.5)


def compressed(config: adtn.Config, **options: Any) -> tuple[Any, adtn.CompressReport]:
    model, data = net(), batches()
    return model, adtn.compress(model, config, data=data, test=data, **options)


@pytest.mark.parametrize(
    "budget", [None, adtn.Budget(ratio=3), adtn.Budget(bytes=3000)], ids=["none", "ratio", "bytes"]
)
def test_a_result_survives_its_baselines(budget: adtn.Budget | None) -> None:
    config = adtn.Config(**QUICK, budget=budget)
    model, alone = compressed(config)
    again, report = compressed(config, baselines=True)
    assert alone.baselines == []
    assert same(again, state_of(model)), "weights, codes and statistics"
    assert report.after.loss == alone.after.loss
    assert {name: type(m) for name, m in again.named_modules()} == {n: type(m) for n, m in model.named_modules()}
    assert all(p.requires_grad for p in again.parameters()) and again.training
    found = {x.name: x for x in report.baselines}
    (coded,) = (name for name in found if name.startswith("coded"))
    assert set(found) - {coded} == {
        "dense, same training",
        "scaled identity",
        "frozen random",
        "whitened SVD",
        "whitened SVD, same training",
        "int8, all layers",
        "int4/32, all layers",
    }
    assert found["dense, same training"].params == report.before.params
    assert found["dense, same training"].loss != report.before.loss, "it was trained"
    assert found["whitened SVD"].bytes <= report.after.compared_bytes
    left = report.before.params - sum(row.dense for row in report.layers)
    rate = float(coded.removeprefix("coded/").removesuffix(", all layers"))
    unused = report.after.compared_bytes - found[coded].bytes
    assert 0 <= unused < 0.01 * report.before.params / 8 + 200 or rate == 12.0
    for control in ("scaled identity", "frozen random"):
        assert found[control].params == left + len(report.generators)
    assert found["int4/32, all layers"].bytes < found["int8, all layers"].bytes < report.before.compared_bytes / 3
    assert found["int8, all layers"].loss == pytest.approx(report.before.loss, abs=0.05)


def test_the_dense_model_is_trained_as_the_result_is() -> None:
    rates = {"*.generated.*": 1.0, "*": 0.0}  # they would freeze all of a dense model
    _, report = compressed(adtn.Config(**QUICK, rates=rates), baselines=True)
    assert "dense, same training" in {x.name for x in report.baselines}
    _, report = compressed(adtn.Config(**(QUICK | {"tune_steps": 0})), baselines=True)
    assert not {x.name for x in report.baselines if "training" in x.name}


def test_what_is_not_possible_is_left_out_and_said() -> None:
    lines: list[str] = []
    config = adtn.Config(targets=["4"], topology=ScaledIdentity(), steps=2, tune_steps=0)
    _, report = compressed(config, baselines=True, progress=lines.append)
    assert not any("SVD" in x.name for x in report.baselines), "one number is less than rank 1"
    assert any(line.startswith("no baseline SVD: The smallest candidates together have more than") for line in lines)


def test_an_interrupted_baseline_leaves_the_dense_model(monkeypatch: pytest.MonkeyPatch) -> None:
    from adtn.compression import _baselines

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(_baselines, "rounded_in_metric", interrupted)
    model, data = net(), batches()
    state = state_of(model)
    with pytest.raises(KeyboardInterrupt):
        adtn.compress(model, adtn.Config(**QUICK), data=data, test=data, baselines=True)
    assert same(model, state)


@pytest.mark.parametrize(
    ("row", "better"),
    [
        ({"bytes": 40, "quality": 90.1}, True),
        ({"bytes": 40, "quality": 90.0}, False),
        ({"bytes": 39, "quality": 90.0}, True),
        ({"bytes": 39, "quality": 90.0, "loss": 0.6}, False),
        ({"bytes": 39, "quality": 90.0, "loss": 0.5}, True),
        ({"bytes": 40, "quality": 90.0, "loss": 0.4}, True),
        ({"bytes": 41, "quality": 99.0}, False),
        ({"bytes": 40, "quality": None, "loss": 0.4}, True),
        ({"bytes": 40, "quality": None, "loss": 0.6}, False),
        ({"bytes": 40, "quality": None, "loss": None}, False),
    ],
)
def test_a_better_baseline_is_no_larger(row: dict[str, Any], better: bool) -> None:
    assert Baseline(**({"name": "a", "params": 10, "loss": None} | row)).beats(COST) == better


def test_the_report_says_first_that_a_baseline_is_better() -> None:
    _, report = compressed(adtn.Config(**QUICK))
    quality = report.after.accuracy or 0.0
    size = report.after.bytes
    rows = [
        Baseline(name="good <1>", params=9, bytes=size, quality=quality + 1.0, loss=0.1),
        Baseline(name="large", params=9, bytes=size + 1, quality=100.0, loss=0.1),
    ]
    report = replace(report, warnings=[], baselines=rows)
    first = report.summary()[0]
    assert first == (
        f"better than this result ({quality:.2f} %, {size:,} bytes) with no more bytes: "
        f"good <1> ({quality + 1:.2f} %, {size:,} bytes)"
    )
    assert "large" in str(report) and "the dense model" in str(report)
    page = report.to_html()
    assert f"<p class='alarm'>{first.replace('<', '&lt;').replace('>', '&gt;')}</p>" in page
    assert page.count("<tr class='alarm'>") == 1 and "<tr class='alarm'><td>good &lt;1&gt;</td>" in page
    beats = {x["name"]: x["beats"] for x in json.loads(report.to_json())["baselines"]}
    assert beats == {"good <1>": True, "large": False}


def test_a_slower_result_is_said_first_where_the_times_are_apart() -> None:
    _, report = compressed(adtn.Config(**QUICK))

    def summary(first: float, third: float) -> str:
        before = replace(report.before, forward_seconds=1e-3, forward_quartiles=(0.9e-3, 1.1e-3))
        after = replace(report.after, forward_seconds=(first + third) / 2, forward_quartiles=(first, third))
        return "\n".join(replace(report, warnings=[], before=before, after=after).summary())

    assert summary(1.2e-3, 1.4e-3).startswith("slower than the dense model on this device: 1.30 ms against 1.00 ms")
    assert "slower" not in summary(1.0e-3, 1.4e-3)
    assert "forward pass 1.00 ms [0.90, 1.10] -> 1.20 ms [1.00, 1.40]" in summary(1.0e-3, 1.4e-3)


@pytest.mark.parametrize("topology", [ScaledIdentity(), ScaledRandom(seed=2)], ids=repr)
@pytest.mark.parametrize("shape", [(12, 9), (8, 4, 3, 3)])
def test_the_factor_of_a_control_is_the_best(topology: adtn.Topology, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal(shape)
    rows = weight.reshape(shape[0], -1)
    inputs = rng.standard_normal((50, rows.shape[1])) * np.linspace(0.1, 3, rows.shape[1])
    for moment in (None, inputs.T @ inputs):
        generator = scaled(topology, weight, moment)
        made = generator.weight()
        metric = np.eye(rows.shape[1]) if moment is None else moment

        def error(factor: float, made: np.ndarray = made, metric: np.ndarray = metric) -> float:
            away = factor * made.reshape(rows.shape) - rows
            return float(np.vdot(away @ metric, away))

        assert error(1.0) < min(error(0.99), error(1.01))


def test_baselines_need_something_to_compare() -> None:
    with pytest.raises(CompressError, match="without test="):
        adtn.compress(net(), adtn.Config(**QUICK), data=batches(), baselines=True)
    with pytest.raises(CompressError, match="baselines replace weights"):
        compressed(adtn.Config(**QUICK, mode="adapter"), baselines=True)


def test_baselines_of_a_flax_model() -> None:
    nnx = pytest.importorskip("flax.nnx")

    class Net(nnx.Module):
        def __init__(self) -> None:
            rngs = nnx.Rngs(0)
            self.hidden, self.out = nnx.Linear(32, 32, rngs=rngs), nnx.Linear(32, 3, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.out(nnx.relu(self.hidden(x)))

    rng = np.random.default_rng(0)
    data = [(rng.standard_normal((16, 32), dtype=np.float32), np.arange(16) % 3) for _ in range(2)]
    config = adtn.Config(targets=["hidden"], topology=adtn.MPO(bond=6), steps=3, tune_steps=3)
    reports = [adtn.compress(Net(), config, data=data, test=data, baselines=flag) for flag in (False, True)]
    assert reports[1].after.loss == reports[0].after.loss
    assert len(reports[1].baselines) == 8
    assert reports[1].before.resident_bytes == 4 * reports[1].before.params
