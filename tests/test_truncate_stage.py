"""Bonds of a whole model that become smaller between other stages, in PyTorch and Flax."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import adtn
import numpy as np
import pytest
from adtn.bondspace import Metric, truncate_together
from adtn.errors import CompressError, QualityWarning

pytest.importorskip("torch")
pytest.importorskip("flax")

import torch
from flax import nnx

from adtn_backends.torch import ADTNLinear

N = 240
X = np.random.default_rng(0).standard_normal((N, 20)).astype(np.float32) * np.linspace(0.2, 2.0, 20, dtype=np.float32)
Y = np.argmax(X @ np.random.default_rng(1).standard_normal((20, 5)), 1)
DATA = [(X[k : k + 60], Y[k : k + 60]) for k in range(0, N, 60)]
TORCH_DATA = [(torch.tensor(x), torch.tensor(y)) for x, y in DATA]


def torch_model() -> Any:
    torch.manual_seed(0)
    layers = torch.nn.Linear(20, 32), torch.nn.ReLU(), torch.nn.Linear(32, 32), torch.nn.ReLU(), torch.nn.Linear(32, 5)
    return torch.nn.Sequential(*layers)


class FlaxModel(nnx.Module):
    """A model with the same layers."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.a, self.b, self.c = (
            nnx.Linear(20, 32, rngs=rngs),
            nnx.Linear(32, 32, rngs=rngs),
            nnx.Linear(32, 5, rngs=rngs),
        )

    def __call__(self, x: Any) -> Any:
        return self.c(nnx.relu(self.b(nnx.relu(self.a(x)))))


def config(*recipe: Any, **options: Any) -> adtn.Config:
    return adtn.Config(topology=adtn.MPO(bond=8), recipe=recipe, exclude=["4", "c"], **options)


@pytest.mark.parametrize("framework", ["torch", "flax"])
def test_models_keep_a_part_of_their_parameters(framework: str, tmp_path: Path) -> None:
    make, data = (torch_model, TORCH_DATA) if framework == "torch" else (FlaxModel, DATA)
    model, other = make(), make()
    before = adtn.compress(other, config("closed-form"), data=data)
    after = adtn.compress(model, config("closed-form", adtn.Stage("truncate", keep=0.6)), data=data)
    sizes = [sum(row.params for row in report.layers) for report in (before, after)]
    assert 0.45 * sizes[0] < sizes[1] <= np.ceil(0.6 * sizes[0])
    for name, generator in after.generators.items():
        assert generator.num_params <= before.generators[name].num_params
        assert adtn.bonds(generator)[0].dim < 8
    adtn.save_model(model, tmp_path / "small", after)
    again, x = adtn.load_model(make(), tmp_path / "small"), data[0][0]
    assert np.allclose(_numpy(again(x)), _numpy(model(x)), atol=1e-5)


def _numpy(x: Any) -> np.ndarray:
    return np.asarray(x.detach() if isinstance(x, torch.Tensor) else x)


def test_losses_of_outputs_decide_which_bonds_become_smaller() -> None:
    """Compare with truncations by Frobenius norms: the outputs of the model are nearer to those before."""
    model = torch_model()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(40):
        for x, y in TORCH_DATA:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    with torch.no_grad():
        dense = torch.cat([model(x) for x, _ in TORCH_DATA])
    whole = adtn.MPO(bond=16)  # nothing is lost before
    lost: dict[str, float] = {}
    for way in ("stage", "norms"):
        own = torch_model()
        own.load_state_dict(model.state_dict())
        recipe = ("closed-form", adtn.Stage("truncate", keep=0.35)) if way == "stage" else ("closed-form",)
        report = adtn.compress(own, adtn.Config(topology=whole, recipe=recipe, exclude=["4"]), data=TORCH_DATA)
        if way == "norms":
            goal = int(np.ceil(0.35 * sum(g.num_params for g in report.generators.values())))
            for name, found in truncate_together(report.generators, params=goal).items():
                layer = own.get_submodule(name)
                own.set_submodule(name, ADTNLinear(found.generator, layer.bias.detach().numpy()))
        with torch.no_grad():
            outputs = torch.cat([own(x) for x, _ in TORCH_DATA]).log_softmax(-1)
        lost[way] = float((dense.softmax(-1) * (dense.log_softmax(-1) - outputs)).sum(-1).mean())
    assert lost["stage"] < 0.8 * lost["norms"]


def test_trainings_go_on_behind_truncations() -> None:
    recipe = ("closed-form", adtn.Stage("truncate", keep=0.5), adtn.Stage("finetune", steps=30, lr=1e-2))
    model = torch_model()
    report = adtn.compress(model, config(*recipe), data=TORCH_DATA, test=TORCH_DATA)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", QualityWarning)  # without training
        shorter = adtn.compress(torch_model(), config(*recipe[:2]), data=TORCH_DATA, test=TORCH_DATA)
    assert report.after.params == shorter.after.params and report.after.loss < shorter.after.loss


def test_sums_of_losses_grow_least() -> None:
    """Compare with every other way to share the same number of components between two low-rank pairs."""
    gens = {
        name: adtn.Generator((12, 10), adtn.LowRank(bond=5), seed=k, scale=scale, dtype="float64")
        for k, (name, scale) in enumerate((("a", 1.0), ("b", 1.7)))
    }
    metrics = {"a": Metric(inputs=np.diag(np.arange(1.0, 11.0))), "b": None}
    found = truncate_together(gens, params=22 * 6, metrics=metrics)

    def lost(name: str, rank: int) -> float:
        (bond,) = adtn.bonds(gens[name])
        return float((bond.spectrum(metrics[name])[rank:] ** 2).sum())

    ranks = {name: own.generator.topology.bond for name, own in found.items()}
    ranks = {name: own[0] if isinstance(own, tuple) else own for name, own in ranks.items()}
    assert sum(ranks.values()) == 6
    best = min(lost("a", k) + lost("b", 6 - k) for k in range(1, 6))
    assert lost("a", ranks["a"]) + lost("b", ranks["b"]) == pytest.approx(best)


def test_wrong_parts_are_refused() -> None:
    with pytest.raises(CompressError, match="keep"):
        adtn.Stage("truncate", keep=0.0)
    with pytest.raises(CompressError, match="keep=0.5 for the stage 'finetune'"):
        adtn.Stage("finetune", keep=0.5)
    with pytest.raises(CompressError, match="'truncate' without data"):
        adtn.compress(torch_model(), config("closed-form", "truncate"))
    with pytest.raises(CompressError, match="expected at least"):
        adtn.compress(torch_model(), config("closed-form", adtn.Stage("truncate", keep=0.01)), data=TORCH_DATA)
    small = adtn.Budget(ratio=1.5)
    with pytest.raises(CompressError, match="pass a topology"):
        adtn.Config(budget=small, recipe=("closed-form", "truncate"))
    with pytest.raises(CompressError, match="budget of params or ratio"):
        config("closed-form", "truncate", budget=adtn.Budget(bytes=9))
    with pytest.raises(CompressError, match=r"keep=0\.5 .* leave one"):
        config(adtn.Stage("truncate", keep=0.5), budget=small)
    with pytest.raises(CompressError, match="which is trained only"):
        config("truncate", mode="adapter")
    with pytest.raises(CompressError, match="takes 229"):
        adtn.compress(torch_model(), config("closed-form", "truncate", budget=adtn.Budget(params=9)), data=TORCH_DATA)


@pytest.mark.parametrize("framework", ["torch", "flax"])
def test_a_topology_is_cut_to_a_budget(framework: str) -> None:
    make, data = (torch_model, TORCH_DATA) if framework == "torch" else (FlaxModel, DATA)
    budget = adtn.Budget(params=900)
    report = adtn.compress(make(), config("closed-form", "truncate", budget=budget), data=data)
    assert 0.95 * 900 < report.after.params <= 900
    assert all(isinstance(own.topology, adtn.MPO) for own in report.generators.values())
    whole = adtn.compress(make(), config("closed-form", "truncate", budget=adtn.Budget(params=10_000)), data=data)
    assert all(adtn.bonds(own)[0].dim == 8 for own in whole.generators.values())  # nothing has to be cut


@pytest.mark.parametrize("framework", ["torch", "flax"])
@pytest.mark.filterwarnings("ignore::adtn.errors.QualityWarning")  # of small ranks
def test_bonds_grow_in_the_directions_of_the_loss(framework: str) -> None:
    """Compare with the gradient of the dense weights, and see that outputs stay and trainings use what is new."""
    make, data = (torch_model, TORCH_DATA) if framework == "torch" else (FlaxModel, DATA)
    whole = adtn.Config(topology=adtn.LowRank(bond=2), exclude=["4", "c"], recipe="closed-form")
    small = adtn.compress(before := make(), whole, data=data)
    grown = adtn.compress(
        after := make(), replace(whole, recipe=("closed-form", adtn.Stage("grow", components=3))), data=data
    )
    for name, generator in grown.generators.items():
        (bond,) = adtn.bonds(generator)
        assert bond.dim == 5
        assert np.allclose(generator.weight(), small.generators[name].weight(), atol=1e-6)
    assert np.allclose(_numpy(after(data[0][0])), _numpy(before(data[0][0])), atol=1e-5)
    recipe = ("closed-form", "grow", adtn.Stage("finetune", steps=30, lr=1e-2))
    trained = adtn.compress(make(), replace(whole, recipe=recipe), data=data, test=data)
    alone = adtn.compress(make(), replace(whole, recipe=(recipe[0], recipe[2])), data=data, test=data)
    assert trained.after.loss < alone.after.loss
    if framework == "torch":
        dense = torch_model()
        with torch.no_grad():
            for name, own in small.generators.items():
                dense.get_submodule(name).weight.copy_(torch.tensor(own.weight()))
        for x, y in data:
            torch.nn.functional.cross_entropy(dense(x), y).backward()
        for name, own in grown.generators.items():
            g = dense.get_submodule(name).weight.grad.double().numpy()
            first = next(np.asarray(c) for c in own.params.values() if c.shape[0] == g.shape[0])[:, 2:]
            u = np.linalg.svd(g)[0]
            assert np.allclose(np.abs(np.linalg.qr(first)[0].T @ u[:, :3]), np.eye(3), atol=2e-2)


class WithAttention(torch.nn.Module):
    """An attention, a linear layer behind it, and one that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.MultiheadAttention(32, 4, batch_first=True)
        self.l, self.unused, self.h = torch.nn.Linear(32, 32), torch.nn.Linear(32, 32), torch.nn.Linear(32, 5)

    def forward(self, x: Any) -> Any:
        return self.h(torch.relu(self.l(self.a(x, x, x)[0])).mean(1))


@pytest.mark.filterwarnings("ignore::adtn.errors.QualityWarning")  # of small bonds
def test_parts_of_attention_are_cut_and_unused_layers_first() -> None:
    torch.manual_seed(0)
    data = [(torch.randn(30, 6, 32), torch.randint(5, (30,))) for _ in range(2)]
    whole = adtn.Config(topology=adtn.MPO(bond=16), recipe="closed-form", exclude=["h"])
    before = adtn.compress(WithAttention(), whole, data=data).generators
    recipe = ("closed-form", adtn.Stage("truncate", keep=0.35))
    after = adtn.compress(WithAttention(), replace(whole, recipe=recipe), data=data).generators
    kept = {name: after[name].num_params / before[name].num_params for name in after}
    assert kept["unused"] < 0.1 and kept["a.in_proj"] < 0.9 and kept["a.out_proj"] < 0.95, kept
