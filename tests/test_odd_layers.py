"""Layers of unusual shapes and kinds within budgets: axes of length 1, several weights, and values that are NaN."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import adtn
import numpy as np
import pytest
from adtn import Config, Precision
from adtn.compression import dense_generator, model_of
from adtn.compression._budget import allocate
from adtn.compression._rounding import rounded_in_metric
from adtn.errors import CompressError

from table import BACKENDS

# models of these tests are small and random: results are bad on purpose
pytestmark = pytest.mark.filterwarnings("ignore::adtn.errors.QualityWarning")
torch = pytest.importorskip("torch")
nn = torch.nn
BUDGETS = ("1.5x", "4x", "90%")
SHAPES = [(32, 1, 3, 3), (32, 16, 1, 1), (1, 300), (300, 1), (1, 1, 17, 17)]


def depthwise() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 32, 1),
        nn.Conv2d(32, 32, 3, groups=32, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 1),
        nn.Flatten(),
        nn.Linear(32 * 16, 1),
    )


class Recurrent(nn.Module):
    def __init__(self, kind: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.rnn, self.out = (
            nn.Embedding(40, 24),
            kind(24, 32, batch_first=True, num_layers=2),
            nn.Linear(32, 40),
        )

    def forward(self, x: Any) -> Any:
        return self.out(self.rnn(self.embed(x))[0])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.attention, self.out = nn.Embedding(40, 32), nn.MultiheadAttention(32, 4), nn.Linear(32, 40)

    def forward(self, x: Any) -> Any:
        x = self.embed(x)
        return self.out(self.attention(x, x, x, need_weights=False)[0])


def images() -> list[Any]:
    return [(torch.randn(8, 4, 4, 4), torch.rand(8, 1)) for _ in range(2)]


def texts() -> list[Any]:
    return [(torch.randint(0, 40, (8, 6)), torch.randint(0, 40, (8, 6))) for _ in range(2)]


def squared(model: Any, batch: Any) -> Any:
    return ((model(batch[0]) - batch[1]) ** 2).mean()


def check_saved(make: Any, model: Any, report: Any, batch: Any, folder: Path) -> None:
    adtn.save_model(model, folder / "small", report)
    assert (folder / "small/state.safetensors").stat().st_size == report.file_bytes
    back = adtn.load_model(make(), folder / "small")
    (here,), (there,) = (model_of(m, None).outputs([batch]) or () for m in (model, back))
    assert np.array_equal(here, there)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dense_generators_of_axes_of_length_1(shape: tuple[int, ...]) -> None:
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    generator = dense_generator(weight)
    assert np.array_equal(generator.weight(), weight)
    rounded = generator.rounded(Precision("int8"))
    assert rounded.weight() == pytest.approx(weight, abs=0.05)


def test_convolutions_of_single_entries_are_rounded_in_the_metric_of_the_data() -> None:
    random = np.random.default_rng(0)
    weight, inputs = (
        random.standard_normal((32, 16, 1, 1)),
        random.standard_normal((64, 4)) @ random.standard_normal((4, 16)),
    )
    moment = inputs.T @ inputs / 64
    found = []
    for own in (None, moment):
        rounded = rounded_in_metric(dense_generator(weight), Precision("int3"), weight, own)
        away = (rounded.weight() - weight).reshape(32, 16)
        found.append(float(np.vdot(away @ moment, away)))
    assert found[1] < 0.5 * found[0]


@pytest.mark.parametrize("has_data", [True, False], ids=["data", "no-data"])
@pytest.mark.parametrize("budget", ["4x"])
def test_depthwise_convolutions_are_compressed(budget: str, has_data: bool, tmp_path: Path) -> None:
    model, data = depthwise(), images() if has_data else None
    report = adtn.compress(model, Config(tune_steps=3), budget=budget, data=data, loss=squared if has_data else None)
    check_saved(depthwise, model, report, images()[0], tmp_path)


@pytest.mark.parametrize("has_data", [True, False], ids=["data", "no-data"])
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("kind", ["lstm", "gru", "attention"])
def test_layers_of_several_weights_are_replaced_as_a_whole(
    kind: str, budget: str, has_data: bool, tmp_path: Path
) -> None:
    def make() -> Any:
        return Attention() if kind == "attention" else Recurrent({"lstm": nn.LSTM, "gru": nn.GRU}[kind])

    model, data = make(), texts() if has_data else None
    report = adtn.compress(model, Config(tune_steps=3), budget=budget, data=data)
    for row in report.layers:
        assert len(row.local_errors) == len(row.shapes)
    check_saved(make, model, report, texts()[0], tmp_path)


def test_a_row_says_how_each_weight_of_a_layer_is_stored() -> None:
    report = adtn.compress(Recurrent(nn.LSTM), Config(targets=["rnn"], smallest=8), budget="1.4x")
    (row,) = report.layers
    formats = {str(g.precision) if g.precision else str(g.topology) for g in report.generators.values()}
    assert len(formats) > 1
    assert all(one in row.topology for one in formats)
    assert row.topology.count(" + ") == len(row.shapes) - 1


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_model_whose_outputs_are_nan_is_refused(budget: str) -> None:
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.LayerNorm(64), nn.Linear(64, 8))
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    data = [(torch.randn(16, 32), torch.randint(0, 8, (16,))) for _ in range(2)]
    with pytest.raises(CompressError, match="dense model returns NaN.*check"):
        adtn.compress(model, budget=budget, data=data)


def test_losses_that_are_no_numbers_are_the_worst() -> None:
    nan, inf = float("nan"), float("inf")
    assert allocate({"a": [(10, nan), (50, 0.1)], "b": [(10, 5.0), (50, nan)]}, 100) == {"a": 1, "b": 0}
    assert allocate({"a": [(60, nan), (10, nan)], "b": [(60, inf), (10, inf)]}, 75) in (
        {"a": 1, "b": 1},
        {"a": 0, "b": 1},
        {"a": 1, "b": 0},
    )


@pytest.mark.skipif("jax" not in BACKENDS, reason="the table has no JAX")
@pytest.mark.parametrize("has_data", [True, False], ids=["data", "no-data"])
@pytest.mark.parametrize("budget", ["4x"])
def test_depthwise_convolutions_of_flax_are_compressed(budget: str, has_data: bool, tmp_path: Path) -> None:
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self) -> None:
            rngs = nnx.Rngs(0)
            self.wide = nnx.Conv(4, 32, (1, 1), rngs=rngs)
            self.depthwise = nnx.Conv(32, 32, (3, 3), feature_group_count=32, rngs=rngs)
            self.mixed = nnx.Conv(32, 32, (1, 1), rngs=rngs)
            self.out = nnx.Linear(32 * 16, 1, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            x = self.mixed(nnx.relu(self.depthwise(self.wide(x))))
            return self.out(x.reshape(len(x), -1))

    random = np.random.default_rng(0)
    batches = [(random.standard_normal((8, 4, 4, 4), np.float32), random.random((8, 1), np.float32)) for _ in range(2)]
    model, data = Net(), batches if has_data else None
    few = (adtn.Precision("int8"), adtn.Precision("coded", rate=3.0))  # every further one is compiled
    config = Config(tune_steps=3, precisions=few) if has_data else Config()
    report = adtn.compress(model, config, budget=budget, data=data, loss=squared if has_data else None)
    check_saved(Net, model, report, batches[0], tmp_path)


@pytest.mark.skipif("jax" not in BACKENDS, reason="the table has no JAX")
def test_layers_inside_a_scan_of_flax_are_compressed_without_their_inputs(tmp_path: Path) -> None:
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self) -> None:
            rngs = nnx.Rngs(0)
            self.embed, self.out = nnx.Embed(40, 24, rngs=rngs), nnx.Linear(32, 40, rngs=rngs)
            self.rnn = nnx.RNN(nnx.SimpleCell(24, 32, rngs=rngs))

        def __call__(self, x: Any) -> Any:
            return self.out(self.rnn(self.embed(x)))

    random = np.random.default_rng(0)
    data = [(random.integers(0, 40, (8, 6)), random.integers(0, 40, (8, 6))) for _ in range(2)]
    moments = model_of(Net(), None).second_moments(["out", "rnn.cell.dense_h"], data)
    assert list(moments) == ["out"]
    model = Net()
    report = adtn.compress(model, Config(tune_steps=2), budget="4x", data=data)
    assert any(row.name.startswith("rnn.") for row in report.layers)
    check_saved(Net, model, report, data[0], tmp_path)


@pytest.mark.skipif("jax" not in BACKENDS, reason="the table has no JAX")
def test_half_precision_of_flax_is_refused_for_adam_before_anything_is_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    import jax.numpy as jnp
    from flax import nnx

    from adtn_backends.jax._model import NnxModel

    linear = nnx.Linear(32, 64, rngs=nnx.Rngs(0), dtype=jnp.float16, param_dtype=jnp.float16)
    model = nnx.Sequential(linear, nnx.relu, nnx.Linear(64, 8, rngs=nnx.Rngs(1)))
    data = [(np.ones((16, 32), np.float16), np.arange(16) % 8)]
    monkeypatch.setattr(NnxModel, "second_moments", None)  # the first step that takes time
    with pytest.raises(CompressError, match="float16 parameters to train with Adam"):
        adtn.compress(model, budget="2x", data=data)
