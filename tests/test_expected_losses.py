"""Losses that are expected from gradients, and the passes that begin where nothing changes any more."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import adtn
import numpy as np
import pytest
import torch
from adtn.compression import dense_generator, divergence
from adtn.compression._compensate import compensate, waves
from adtn.compression._expected import expected_losses
from adtn.errors import CompressError
from torch import nn

from adtn_backends.torch._chain import chain_of
from adtn_backends.torch._model import TorchModel


class Tokens(nn.Module):
    """A residual network that is applied to every position."""

    def __init__(self, width: int = 12, blocks: int = 5) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(blocks))
        self.head = nn.Linear(width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


@pytest.mark.parametrize("classes", [True, False])
@pytest.mark.parametrize("name", ["blocks.0.0", "blocks.4.0", "head"])
def test_a_small_change_costs_what_gradients_expect(name: str, classes: bool) -> None:
    """The second moments have the loss to second order, up to random labels and what depends on both factors."""
    torch.manual_seed(0)
    model = Tokens()
    x = torch.randn(4000, 12)
    batches = [(part, torch.zeros(len(part), dtype=torch.long)) for part in x.split(1000)]
    adapter = TorchModel(model, None)
    moments = adapter.second_moments([name], batches, samples=4000)
    curvature = adapter.output_moments([name], batches, classes=classes)[name]
    change = 1e-2 * np.random.default_rng(1).standard_normal(adapter.weight(name).shape)
    expected = float(np.vdot(curvature @ change, change @ moments[name]))
    dense: Any = adapter.outputs(batches)
    with torch.no_grad():
        model.get_parameter(f"{name}.weight").add_(torch.as_tensor(change, dtype=torch.float32))
    found = divergence(dense, adapter.outputs(batches) or [], classes=classes)
    assert expected == pytest.approx(found, rel=0.3)


class Failing(nn.Module):
    """A model whose gradients, or outputs, are not what is needed."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.first, self.second, self.fault = nn.Linear(12, 16), nn.Linear(16, 5), fault

    def forward(self, x: torch.Tensor) -> Any:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.fault != "no_grad"):
            x = self.first(x).tanh()
        y = self.second(x)
        faulty = {"tuple": (y, y), "detached": y.detach(), "infinite": y / 0.0, "number": y.sum()}
        return faulty.get(self.fault, y)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("no_grad", "runs first under torch.no_grad"),
        ("tuple", "Got a tuple from the model; expected one tensor"),
        ("number", "Got a number from the model"),
        ("detached", "without gradients"),
        ("infinite", "outputs of the model that are NaN or infinite for batch 0"),
    ],
)
def test_models_without_gradients_of_outputs_are_refused(fault: str, message: str) -> None:
    torch.manual_seed(0)
    model, x = Failing(fault), torch.randn(40, 12)
    config = adtn.Config(topology=adtn.LowRank(bond=4), smallest=10, recipe=["closed-form", adtn.Stage("truncate")])
    with pytest.raises(CompressError, match=message):
        adtn.compress(model, config, data=[x])
    assert type(model.first) is nn.Linear and model.first.weight.requires_grad
    with pytest.raises(CompressError, match="Got inputs of first that are NaN or infinite"):
        adtn.compress(Failing(""), config, data=[x * torch.tensor(float("nan"))])


def test_losses_are_measured_where_gradients_do_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adtn.compression._expected._DEAR", 0.0)
    for fault, expected in (("", ["first", "second"]), ("no_grad", [])):
        adapter: Any = TorchModel(Failing(fault), None)
        batches = [torch.randn(40, 12)]
        moments = adapter.second_moments(["first", "second"], batches)
        tasks: Any = {n: SimpleNamespace(moment=m, weight=adapter.weight(n)) for n, m in moments.items()}
        dense: Any = SimpleNamespace(outputs=adapter.outputs(batches), batches=batches, classes=False)
        found = expected_losses(adapter, adapter.layers(), tasks, dense)
        assert sorted(found.curvatures) == expected


class Chained(nn.Module):
    """A model of blocks with the residuals inside, so that nothing else passes from one to the next."""

    def __init__(self, width: int = 12, blocks: int = 5, skip: int | None = None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.head = nn.Linear(width, 5)
        self.skip = skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = []
        for n, block in enumerate(self.blocks):
            x = block(x if self.skip is None or n <= self.skip else x + seen[n - 1 - self.skip].tanh())
            seen.append(x)
        return self.head(x)


class Block(nn.Module):
    """A residual block of two layers, which counts its calls."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x + self.down(torch.tanh(self.up(x)))


def _compensated(model: nn.Module, batches: Any, *, chained: bool) -> tuple[dict[str, Any], int]:
    """Round all layers and compensate; return the parameters and the calls of blocks."""
    adapter = TorchModel(model, None)
    names = [name for layer in adapter.layers() for name in layer.weights]
    adapter.install({name: dense_generator(adapter.weight(name)).rounded(adtn.Precision("int3", 4)) for name in names})
    before = sum(block.calls for block in _blocks(adapter))
    with adapter.in_turn(batches[0]) if chained else nullcontext(True) as goes_on:
        assert goes_on, "all layers but the head are in blocks"
        compensate(adapter, batches, waves(adapter, batches, single=True), lambda: None)
    calls = sum(block.calls for block in _blocks(adapter)) - before
    return {name: g.weight() for name, g in adapter.generators().items()}, calls


def _blocks(adapter: TorchModel) -> list[Block]:
    dense: Any = vars(adapter)["_dense"]
    return [m for model in (adapter.model, dense) for m in model.modules() if isinstance(m, Block)]


def test_passes_that_go_on_compute_the_same() -> None:
    """Skips calls of blocks, and the result is the same bit by bit."""
    torch.manual_seed(0)
    model, batches = Chained(), [(torch.randn(32, 12), torch.zeros(32, dtype=torch.long)) for _ in range(3)]
    whole, many = _compensated(copy.deepcopy(model), batches, chained=False)
    found, few = _compensated(copy.deepcopy(model), batches, chained=True)
    assert few < 0.7 * many
    for name, weight in whole.items():
        np.testing.assert_array_equal(found[name], weight)


@pytest.mark.parametrize("model", [Tokens(), Chained(skip=1), Chained(skip=3), Chained(blocks=3)])
def test_other_models_are_no_chains(model: nn.Module) -> None:
    """Refuses residuals around blocks, connections over blocks, and too few of them."""
    for p in model.parameters():
        p.requires_grad_(False)
    assert chain_of(model, lambda: model(torch.randn(4, 12))) is None


def test_a_chain_is_found_in_any_container() -> None:
    """Finds blocks in a list of a model, and in the model itself."""
    model = Chained()
    flat = nn.Sequential(*(nn.Linear(12, 12) for _ in range(4)))
    for m in (model, flat):
        for p in m.parameters():
            p.requires_grad_(False)
    found = [chain_of(m, lambda m=m: m(torch.randn(4, 12))) for m in (model, flat)]
    assert [chain.blocks if chain else None for chain in found] == [
        [f"blocks.{n}" for n in range(5)],
        ["0", "1", "2", "3"],
    ]
