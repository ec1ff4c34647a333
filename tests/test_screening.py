"""Weights of one shape and role of which only some are examined, and the rows of second moments."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import adtn
import numpy as np
import pytest
import torch
from adtn.compression import _expected, divergence
from adtn.compression._choose import Search
from adtn.compression._config import Config
from adtn.compression._local import LocalTask
from adtn.compression._model import Layer
from adtn.compression._rows import ForwardCost
from adtn.layout import Layout
from torch import nn

from adtn_backends.shared import _moments
from adtn_backends.torch._model import TorchModel

NAMES = [f"block{n}.fc" for n in range(26)]


@pytest.fixture(scope="module")
def search() -> Search:
    """Make a search over weights with spectra that differ."""
    random = np.random.default_rng(0)
    tasks: dict[str, LocalTask] = {}
    for n, name in enumerate(NAMES):
        x = random.standard_normal((200, 24)) * np.linspace(0.2, 1.0 + 0.1 * n, 24)
        weight = random.standard_normal((16, 24)) @ np.diag(np.linspace(1.0, 0.1, 24))
        layout = Layout.whole((16, 24))
        like: dict[str, Any] = {"base": None, "seed": 0, "steps": 0, "optimizer": "lbfgs", "lr": 0.1}
        tasks[name] = LocalTask(
            name=name,
            weight=weight,
            moment=x.T @ x / 200,
            topology=adtn.LowRank(),
            layout=layout,
            device="numpy:cpu",
            **like,
        )
    return Search(
        layers=[Layer(name=name, kind="Linear", weights={name: (16, 24)}) for name in NAMES],
        tasks=tasks,
        config=Config(largest_error=1.0),
        adapter=None,  # type: ignore[arg-type]
        sample=(),
        loss=None,
        unit="bytes",
        executor=None,
        folder=None,
        say=lambda text: None,
    )


def test_errors_of_other_weights_are_about_what_they_would_be(search: Search) -> None:
    """Compares every expected error of a weight that was not examined with that of the closed form."""
    ladder = {ladder.name: ladder for ladder in search.ladders(26 * 16 * 24 // 2)}[NAMES[1]]
    assert {curve.family for curve in ladder.curves} >= {curve.family for curve in search.ladders(5000)[0].curves}
    for curve in ladder.curves:
        choice = [c for c in curve.family.members(ladder.entries) if c.params in curve.errors][-1]
        ((_, result),) = search.solve([(ladder.name, choice)]).items()
        assert curve.at(choice.params) ** 0.5 == pytest.approx(result.relative_error, rel=0.35, abs=1e-3), choice


def test_few_weights_are_all_examined(search: Search) -> None:
    """Solves more for each weight if there are few of them."""
    few = replace(search, layers=search.layers[:5], solved={})
    few.ladders(5 * 16 * 24 // 2)
    assert {name for name, *_ in few.solved} == set(NAMES[:5])


def test_texts_end_when_there_are_enough_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stops at 64 rows per column, of which a batch has 16, and layers with one input have one product."""
    monkeypatch.setattr("adtn_backends.shared._inputs.LEAST_ROWS", 0)
    drawn: list[int] = []

    def batches() -> Any:
        for n in range(100):
            drawn.append(n)
            yield torch.randn(8, 16, 4, generator=torch.Generator().manual_seed(n))

    model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    model.forward = lambda x: model["a"](x) + model["b"](x)  # type: ignore[method-assign]
    products = 0
    real = _moments.backend_of

    def counted(x: Any) -> Any:
        nonlocal products
        products += 1
        return real(x)

    monkeypatch.setattr(_moments, "backend_of", counted)
    found = TorchModel(model, None).second_moments(["a", "b"], batches(), samples=10_000)
    assert len(drawn) == products == 4
    np.testing.assert_array_equal(found["a"], found["b"])


def test_inputs_that_change_in_place_are_read_again() -> None:
    """Computes two products for one tensor with other values."""
    rows = _moments.SpacedRows()
    x = torch.ones(3, 2)
    first = rows.of(x, x.reshape(-1, 2).clone())
    x += 1.0
    assert rows.of(x, x.reshape(-1, 2).clone()) is not first
    assert rows.of(x, x.reshape(-1, 2)) is rows.of(x, x.reshape(-1, 2))


def test_a_model_with_many_layers_needs_no_pass_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chooses by gradients as well as by measuring, with far fewer passes."""
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(32, 32), nn.Tanh()) for _ in range(6)]
    model = nn.Sequential(*blocks, nn.Linear(32, 4))
    with torch.no_grad():
        next(blocks[2].parameters()).mul_(3.0)
    data = [(torch.randn(64, 32), torch.randint(0, 4, (64,))) for _ in range(4)]
    dense: Any = TorchModel(model, None).outputs(data)
    state = {name: x.clone() for name, x in model.state_dict().items()}
    cost = ForwardCost(seconds=(1.0,), peak_bytes=0)
    monkeypatch.setattr(TorchModel, "forward_costs", lambda self, data: (cost, cost))  # as often as time allows
    passes: dict[bool, int] = {}
    lost: dict[bool, float] = {}
    for expected in (False, True):
        monkeypatch.setattr(_expected, "_DEAR", 0.0 if expected else 1e30)
        copied = nn.Sequential(*(nn.Sequential(nn.Linear(32, 32), nn.Tanh()) for _ in range(6)), nn.Linear(32, 4))
        copied.load_state_dict(state)
        calls = [0]
        copied.register_forward_pre_hook(lambda *_, calls=calls: calls.__setitem__(0, calls[0] + 1))
        config = adtn.Config(recipe="closed-form", smallest=200)
        adtn.compress(copied, config, budget=adtn.Budget(bytes=14000), data=data, progress=False)
        passes[expected] = calls[0]
        lost[expected] = divergence(dense, TorchModel(copied, None).outputs(data) or [], classes=True)
    assert passes[True] < passes[False]
    assert lost[True] < 1.5 * lost[False]
