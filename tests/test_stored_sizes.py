"""Sizes of files in the report: in which precision dense layers are in them, and those of baselines."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import adtn
import numpy as np
import pytest
from adtn import Budget, Config, Precision
from adtn.compression import model_of
from adtn.compression._local import dense_generator
from adtn.compression._state import state_bytes

from table import BACKENDS

# models of these tests are small and random: results are bad on purpose
pytestmark = pytest.mark.filterwarnings("ignore::adtn.errors.QualityWarning")
FRAMEWORKS = [name for name in ("torch", "jax") if name in BACKENDS]
SIZES = (48, 64, 48)


@pytest.fixture(params=FRAMEWORKS)
def framework(request: pytest.FixtureRequest) -> str:
    return request.param


def net(framework: str, sizes: tuple[int, ...] = SIZES) -> Any:
    """Make a perceptron after an embedding, which is most of it."""
    if framework == "torch":
        import torch
        from torch import nn

        torch.manual_seed(0)
        linears: list[Any] = [nn.Linear(n, m) for n, m in pairwise(sizes)]
        return nn.Sequential(nn.Embedding(200, sizes[0]), linears[0], nn.ReLU(), *linears[1:])
    from flax import nnx

    rngs = nnx.Rngs(0)
    linears = [nnx.Linear(n, m, rngs=rngs) for n, m in pairwise(sizes)]
    return nnx.Sequential(nnx.Embed(200, sizes[0], rngs=rngs), linears[0], nnx.relu, *linears[1:])


def words() -> list[Any]:
    random = np.random.default_rng(0)
    return [(random.integers(0, 200, 32), random.integers(0, 16, 32)) for _ in range(3)]


def first(framework: str) -> str:
    return "1" if framework == "torch" else "layers.1"


@pytest.mark.parametrize(
    ("rest", "told"),
    [
        ("same", "stored as it is"),
        ("float16", "stored as float16"),
        ("int8", "stored as int8, what is small as float16"),
    ],
)
def test_dense_layers_are_listed_with_their_precision(framework: str, rest: Any, told: str) -> None:
    # no other candidate: a small weight stays dense beside a large one with a small budget
    config = Config(targets=["Linear"], candidates=(adtn.LowRank(),), precisions=(), rest=rest, recipe="closed-form")
    dense = state_bytes(model_of(net(framework, (64, 512, 4)), None), {}, None if rest == "same" else Precision(rest))
    saved = {"same": 1, "float16": 2, "int8": 4}[rest]
    report = adtn.compress(net(framework, (64, 512, 4)), config, budget=f"{dense - 16_000 // saved}B", data=words())
    kept = {name: why for name, why in report.dense.items() if why.startswith("best left dense")}
    assert len(kept) == 1
    ((name, why),) = kept.items()
    assert why == f"best left dense within this budget, {told}"
    assert f"dense, {why}: {name}" in str(report)
    page = report.to_html()
    assert f"<tr><td>{name}</td><td>{why}</td></tr>" in page
    assert f"what is not listed {told.removeprefix('stored ')}" in str(report)
    assert json.loads(report.to_json())["dense"][name] == why


def test_without_a_file_dense_layers_have_no_precision(framework: str) -> None:
    config = Config(targets=["Linear"], candidates=(adtn.LowRank(),), recipe="closed-form")
    report = adtn.compress(net(framework, (64, 512, 4)), config, budget=Budget(ratio=1.3), data=words())
    assert "best left dense within this budget" in report.dense.values()


@pytest.mark.parametrize(("framework", "rest"), [("torch", "choose"), ("torch", "same"), ("jax", "choose")])
def test_baselines_of_a_file_are_files(framework: str, rest: Any) -> None:
    model, data = net(framework), words()
    dense = state_bytes(model_of(net(framework), None), {}, None)
    config = Config(targets=["Linear"], tune_steps=3, rest=rest)
    report = adtn.compress(
        model, config, budget="1.3x" if rest == "same" else "3x", data=data, test=data, baselines=True
    )
    assert (report.before.file_bytes, report.after.file_bytes) == (dense, report.file_bytes)
    found = {x.name: x for x in report.baselines}
    assert found["dense, same training"].bytes == dense
    for name in ("whitened SVD", "whitened SVD, same training"):
        assert 0.7 * report.file_bytes < found[name].bytes <= report.file_bytes
    again = model_of(net(framework), None)
    names = [name for layer in again.layers() for name in layer.weights]
    for precision in (Precision("int8"), Precision("int4", 32)):
        rounded = {name: dense_generator(again.weight(name)).rounded(precision) for name in names}
        again.install(rounded)
        size = state_bytes(again, again.generators(), report.rest)
        again.restore()
        assert found[f"{precision}, all layers"].bytes == pytest.approx(size, rel=0.02)
    text, page = str(report), report.to_html()
    assert "bytes in a file" in text and "<th>bytes in a file</th>" in page
    row = f"<tr><td>the dense model</td><td>{report.before.params:,}</td><td>{dense:,}</td>"
    assert row in page
    assert f"<td>this result</td><td>{report.after.params:,}</td><td>{report.file_bytes:,}</td>" in page
    for x in report.baselines:
        assert x.beats(report.after) <= (x.bytes <= report.file_bytes)


def test_baselines_of_other_results_are_parameters_in_memory(framework: str) -> None:
    data = words()
    config = Config(targets=[first(framework)], topology=adtn.LowRank(bond=8), tune_steps=2)
    report = adtn.compress(net(framework), config, data=data, test=data, baselines=True)
    assert report.before.file_bytes is None and report.after.file_bytes is None
    assert "bytes of parameters" in str(report) and "<th>bytes of parameters</th>" in report.to_html()
    assert {x.name: x for x in report.baselines}["dense, same training"].bytes == report.before.bytes


def test_the_alarm_of_a_better_baseline_names_its_bytes() -> None:
    cost = {"params": 10, "bytes": 40, "accuracy": 90.0, "forward_seconds": None, "forward_peak_bytes": None}
    row = adtn.compression.Baseline(name="other", params=10, bytes=55, quality=95.0, loss=None)
    assert not row.beats(adtn.compression.ModelCost(**cost))
    assert row.beats(adtn.compression.ModelCost(**cost, file_bytes=60))
