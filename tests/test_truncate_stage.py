"""Bonds of a whole model that become smaller between other stages, in PyTorch and Flax."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import adtn
import numpy as np
import pytest
from adtn.bondspace import Metric, truncate_together
from adtn.errors import CompressError, TopologyError

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
    return adtn.Config(topology=adtn.MPO(bond=16), recipe=recipe, exclude=["4", "c"], **options)


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
        assert adtn.bonds(generator)[0].dim < 16
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
    with pytest.raises(TopologyError, match="expected at least"):
        adtn.compress(torch_model(), config("closed-form", adtn.Stage("truncate", keep=0.01)), data=TORCH_DATA)


class WithAttention(torch.nn.Module):
    """An attention, a linear layer behind it, and one that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.MultiheadAttention(32, 4, batch_first=True)
        self.l, self.unused, self.h = torch.nn.Linear(32, 32), torch.nn.Linear(32, 32), torch.nn.Linear(32, 5)

    def forward(self, x: Any) -> Any:
        return self.h(torch.relu(self.l(self.a(x, x, x)[0])).mean(1))


def test_parts_of_attention_are_cut_and_unused_layers_first() -> None:
    torch.manual_seed(0)
    data = [(torch.randn(30, 6, 32), torch.randint(5, (30,))) for _ in range(2)]
    whole = adtn.Config(topology=adtn.MPO(bond=40), recipe="closed-form", exclude=["h"])
    before = adtn.compress(WithAttention(), whole, data=data).generators
    recipe = ("closed-form", adtn.Stage("truncate", keep=0.5))
    after = adtn.compress(WithAttention(), replace(whole, recipe=recipe), data=data).generators
    kept = {name: after[name].num_params / before[name].num_params for name in after}
    assert kept["unused"] < 0.1 and kept["a.in_proj"] < 0.9 and kept["a.out_proj"] < 0.95, kept
