"""Low-rank forms that layers of one input share by themselves within a budget."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import adtn
import numpy as np
import pytest
from adtn.compression import Config, Stage, _joint, _within, model_of
from adtn.compression._joint import _scales, layers_of_one_input
from adtn.compression._local import LocalTask
from adtn.compression._model import Layer
from adtn.compression._weighted import weighted_pair
from adtn.layout import Layout

pytestmark = pytest.mark.filterwarnings("ignore::adtn.errors.QualityWarning")

FRAMEWORKS = [name for name, package in (("torch", "torch"), ("jax", "flax")) if find_spec(package)]
WIDTH, RANK = 32, 5


def weights(together: bool) -> dict[str, np.ndarray]:
    """Make four weights; with ``together``, the first three have the same row space, of a few dimensions."""
    rng = np.random.default_rng(0)
    basis = rng.standard_normal((RANK, WIDTH))
    found = {}
    for name in ("query", "key", "value"):
        own = basis if together else rng.standard_normal((RANK, WIDTH))
        found[name] = rng.standard_normal((WIDTH, RANK)) @ own + 0.02 * rng.standard_normal((WIDTH, WIDTH))
    return {**found, "out": rng.standard_normal((WIDTH, WIDTH))}


def model_with(framework: str, together: bool) -> tuple[Any, list[Any]]:
    """Return a model whose first three layers read its input, and its data."""
    made = {name: w.astype(np.float32) for name, w in weights(together).items()}
    x = np.random.default_rng(1).standard_normal((4, 32, WIDTH)).astype(np.float32)
    if framework == "torch":
        import torch
        from torch import nn

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                for name, w in made.items():
                    layer = nn.Linear(WIDTH, WIDTH)
                    layer.weight.data = torch.from_numpy(w)
                    layer.bias.data.zero_()
                    setattr(self, name, layer)

            def forward(self, x: Any) -> Any:
                return self.out(torch.tanh(self.query(x) * self.key(x)) + self.value(x))

        return Net().eval(), [(torch.from_numpy(b), torch.zeros(32, WIDTH)) for b in x]
    import jax
    from flax import nnx

    class FlaxNet(nnx.Module):
        def __init__(self) -> None:
            for name, w in made.items():
                layer = nnx.Linear(WIDTH, WIDTH, rngs=nnx.Rngs(0))
                layer.kernel[...] = jax.numpy.asarray(w.T)
                setattr(self, name, layer)

        def __call__(self, x: Any) -> Any:
            self_: Any = self
            return self_.out(jax.numpy.tanh(self_.query(x) * self_.key(x)) + self_.value(x))

    return FlaxNet(), [(b, np.zeros((32, WIDTH), np.float32)) for b in x]


def compressed(framework: str, together: bool, **options: Any) -> tuple[Any, adtn.CompressReport, list[str]]:
    model, data = model_with(framework, together)
    lines: list[str] = []
    config = Config(**{"targets": ["query", "key", "value"], "recipe": "closed-form", "precisions": (), **options})
    dense = 4 * WIDTH * (WIDTH + 1)
    budget = adtn.Budget(params=dense - 3 * WIDTH**2 + 4 * RANK * WIDTH + 40)
    return model, adtn.compress(model, config, budget=budget, data=data, progress=lines.append), lines


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_layers_of_one_row_space_share_a_generator(framework: str, tmp_path: Path) -> None:
    model, report, lines = compressed(framework, together=True)
    (row,) = report.layers
    assert row.name == "query + key + value"
    assert row.topology == f"LowRank(bond={RANK})"
    assert any("generators that are shared by query + key + value" in line for line in lines)
    _, data = model_with(framework, together=True)
    want = model_of(model_with(framework, together=True)[0], None).outputs(data)
    found = model_of(model, None).outputs(data)
    assert want is not None
    assert found is not None
    away = np.concatenate(found) - np.concatenate(want)
    assert np.linalg.norm(away) < 0.2 * np.linalg.norm(np.concatenate(want)), "separate pairs have a rank of 3"
    adtn.save_model(model, tmp_path / "small", report)
    back = adtn.load_model(model_with(framework, together=True)[0], tmp_path / "small")
    np.testing.assert_array_equal(np.concatenate(model_of(back, None).outputs(data) or []), np.concatenate(found))


def test_layers_of_other_row_spaces_stay_separate() -> None:
    _, report, _ = compressed(FRAMEWORKS[0], together=False)
    assert [row.name for row in report.layers] == ["query", "key", "value"]


@pytest.mark.parametrize(
    "options",
    [
        {"candidates": (adtn.MPO(),)},
        {"recipe": ("closed-form", Stage("distill-local", steps=1))},
        {"share": [["query", "key"]]},
    ],
    ids=["candidates", "distillation", "share"],
)
def test_nothing_is_shared_where_it_cannot_be(options: dict[str, Any]) -> None:
    _, report, _ = compressed(FRAMEWORKS[0], together=True, **options)
    assert "query + key + value" not in [row.name for row in report.layers]


def test_what_does_not_help_is_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    original = _joint.joint_forms

    def worse(search: Any, selection: Any) -> Any:
        found.extend(original(search, selection))
        zero = {name: 0.0 * x for name, x in found[0].result.generator.params.items()}
        broken = _joint.to_bytes(found[0].result.generator.with_params(zero))
        return [replace(found[0], result=replace(found[0].result, content=broken))]

    monkeypatch.setattr(_joint, "joint_forms", worse)
    monkeypatch.setattr(_within, "chosen_within", lambda search, most: None)
    _, report, lines = compressed(FRAMEWORKS[0], together=True)
    assert found
    assert any("shared by" in line for line in lines)
    assert [row.name for row in report.layers] == ["query", "key", "value"]


def test_a_joint_pair_weighs_its_members() -> None:
    members = [w for name, w in weights(together=False).items() if name != "out"]
    factors, rank = [9.0, 1.0, 0.25], 7
    stack = np.concatenate(members)
    pair = adtn.Generator(stack.shape, adtn.LowRank(bond=rank), scale=1.0, dtype="float64")
    scale = _scales(factors, members)
    np.testing.assert_allclose(scale, np.sqrt(np.repeat(factors, WIDTH) / 9.0))
    found = np.asarray(weighted_pair(pair, stack, None, scale, None).weight())
    away = np.sqrt(np.repeat(factors, WIDTH))[:, None] * (found - stack)
    scaled = np.sqrt(np.repeat(factors, WIDTH))[:, None] * stack
    want = np.linalg.svd(scaled, compute_uv=False)[rank:]
    assert np.linalg.norm(away) == pytest.approx(np.linalg.norm(want), rel=1e-4)
    for n_bits in (4, 8):
        precision = adtn.Precision(f"int{n_bits}", 32)  # type: ignore[arg-type]
        codes = weighted_pair(pair, stack, None, scale, precision)
        assert codes.precision == precision
        rest = np.linalg.norm(scale[:, None] * (np.asarray(codes.weight()) - stack))
        assert rest < (1.01 if n_bits == 8 else 1.2) * np.linalg.norm(want) / 3.0


def test_layers_of_one_input_have_the_same_moment() -> None:
    moments = {"a": np.eye(4), "b": 2.0 * np.eye(4), "c": np.eye(4), "d": None, "e": np.eye(4), "f": np.eye(4)}
    shapes = {"e": (3, 2, 2)}
    tasks, made = {}, []
    for name, moment in moments.items():
        weight = np.ones(shapes.get(name, (3, 4)))
        tasks[name] = LocalTask(
            name=name,
            weight=weight,
            moment=moment,
            topology=adtn.LowRank(),
            layout=Layout.whole(weight.shape),
            base=None,
            seed=0,
            steps=0,
            optimizer="lbfgs",
            lr=0.1,
            device="numpy:cpu",
        )
        tied = ("g",) if name == "f" else ()
        made.append(Layer(name=name, kind="Linear", weights={name: weight.shape}, tied=tied))
    assert [[layer.name for layer in group] for group in layers_of_one_input(made, tasks)] == [["a", "c"]]
