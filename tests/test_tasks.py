"""Models that are not classifiers: custom losses and scores, other labels, other outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import adtn
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from adtn import Config
from adtn.backends import get_backend
from adtn.compression import Tuning
from adtn.errors import CompressError
from flax import nnx
from torch import nn

# models of these tests are small and random: results are bad on purpose
pytestmark = pytest.mark.filterwarnings("ignore::adtn.errors.QualityWarning")

QUICK: dict[str, Any] = {"topology": adtn.TTN(bond=2), "steps": 5, "tune_steps": 3}
FRAMEWORKS = ("torch", "flax")


class Net(nnx.Module):
    def __init__(self, n_out: int) -> None:
        rngs = nnx.Rngs(0)
        self.a, self.b = nnx.Linear(32, 32, rngs=rngs), nnx.Linear(32, n_out, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.b(nnx.relu(self.a(x)))


def net(framework: str, n_out: int = 1) -> Any:
    torch.manual_seed(0)
    if framework == "flax":
        return Net(n_out)
    return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, n_out))


def numbers(framework: str) -> list[Any]:
    """Make a quantity to be predicted."""
    rng = np.random.default_rng(0)
    found = [(x := rng.normal(size=(16, 32)).astype(np.float32), x[:, :1] - 2.0 * x[:, 1:2]) for _ in range(2)]
    return found if framework == "flax" else [tuple(map(torch.from_numpy, batch)) for batch in found]


def squared(model: Any, batch: Any) -> Any:
    return ((model(batch[0]) - batch[1]) ** 2).mean()


def score_of(framework: str) -> Any:
    return lambda model: -sum(squared(model, batch).item() for batch in numbers(framework)) / 2


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_regression_has_a_loss_and_a_score_and_no_accuracy(framework: str) -> None:
    model, data = net(framework), numbers(framework)
    report = adtn.compress(model, Config(**QUICK), data=data, test=data, loss=squared, score=score_of(framework))
    for cost in (report.before, report.after):
        assert cost.accuracy is None
        assert cost.score is not None and cost.loss == pytest.approx(-cost.score, rel=1e-5)
    assert report.after.score == pytest.approx(score_of(framework)(model), rel=1e-5)
    assert "accuracy" not in str(report)
    assert f"score {report.before.score:.4g} -> {report.after.score:.4g}" in str(report)
    assert "score, was" in report.to_html()


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_budget_of_lost_points_counts_the_score(framework: str) -> None:
    data = numbers(framework)
    config = Config(**{**QUICK, "tune_steps": 60}, budget=adtn.Budget(accuracy_loss=0.5), train="all")
    report = adtn.compress(net(framework), config, data=data, loss=squared, score=score_of(framework))
    assert report.before.score is not None and report.after.score is not None
    assert report.after.score >= report.before.score - 0.5
    with pytest.raises(CompressError, match="score="):
        adtn.compress(net(framework), config, data=data, test=data, loss=squared)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_labels_that_number_no_classes_need_a_loss(framework: str) -> None:
    for n_out in (1, 4):
        with pytest.raises(CompressError, match=r"labels of shape \(16, 1\).*Pass loss="):
            adtn.compress(net(framework, n_out), Config(**QUICK), data=numbers(framework))


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_teacher_with_real_outputs_is_followed_by_squared_errors(framework: str) -> None:
    model, data = net(framework), numbers(framework)
    adapter = get_backend("torch" if framework == "torch" else "jax").model(model, None)
    adapter.install({"0" if framework == "torch" else "a": adtn.Generator((32, 32), adtn.MPO(bond=2))})
    dense, (x, y) = net(framework), data[0]
    want = (0.25 * ((model(x) - y) ** 2).mean() + 0.75 * ((model(x) - dense(x)) ** 2).mean()).item()
    losses = adapter.tune(data[:1], squared, Tuning(steps=1, distill=0.75), lambda step, value: None)
    assert losses[0] == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_learning_rate_falls_along_half_a_cosine(framework: str) -> None:
    """Use a loss that is linear in a parameter, with a slope of one: only rates and the momentum of 0.9 remain."""
    model, moved = net(framework), 0.0
    values: list[float] = []
    adapter = get_backend("torch" if framework == "torch" else "jax").model(model, None)
    tuning = Tuning(steps=5, lr=0.1, train="all", optimizer="sgd", clip=None)
    losses = adapter.tune(
        numbers(framework),
        lambda model, batch: (model[2] if framework == "torch" else model.b).bias.sum(),
        tuning,
        lambda step, value: None,
    )
    value = losses[0]
    for n in range(5):
        values.append(value)
        moved = 0.9 * moved + 1.0
        value -= 0.1 * 0.5 * (1.0 + np.cos(np.pi * n / 5)) * moved
    assert losses == pytest.approx(values, abs=1e-5)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_errors_of_a_distilled_layer_are_means_over_a_round(framework: str) -> None:
    """Distil with one batch, whose first error precedes any update, and with two batches at a learning rate of zero."""
    layer: Any = net(framework)
    layer = layer[0] if framework == "torch" else layer.a
    inputs = [batch[0] for batch in numbers(framework)]
    seen = [((x,), {}, layer(x) * (2.0 + n) - 1.0) for n, x in enumerate(inputs)]
    if framework == "torch":
        from adtn_backends.torch._distill import distill_layer

        seen = [(x, options, y.detach()) for x, options, y in seen]
        given: Any = layer
    else:
        from adtn_backends.jax._distill import distill_layer, packed

        given = packed(layer)
    squares = [((layer(*x) - y) ** 2).mean().item() for x, _, y in seen]
    spreads = [float(np.var(np.asarray(y))) for _, _, y in seen]
    _, first, last = distill_layer(given, seen[:1], Tuning(steps=3, lr=0.01))
    assert first == pytest.approx((squares[0] / spreads[0]) ** 0.5, rel=1e-5) and last < first
    _, first, last = distill_layer(given, seen, Tuning(steps=4, lr=0.0))
    want = (np.mean(squares) / np.mean(spreads)) ** 0.5
    assert [first, last] == pytest.approx([want, want], rel=1e-5)
    _, *adam = distill_layer(given, seen, Tuning(steps=6, lr=0.01))
    _, *other = distill_layer(given, seen, Tuning(steps=6, lr=0.01, optimizer="sgd", clip=1e-6))
    assert other == adam, "options of the training of the whole model"


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int64])
def test_images_have_a_class_at_every_place(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 5, 1))
    x, y = torch.randn(4, 3, 8, 6), torch.randint(0, 5, (4, 8, 6)).to(dtype)
    report = adtn.compress(model, Config(**QUICK), data=[(x, y)], test=[(x, y)])
    guess = model(x).detach()
    assert report.after.accuracy == pytest.approx(100 * float((guess.argmax(1) == y).float().mean()))
    assert report.after.loss == pytest.approx(float(nn.functional.cross_entropy(guess, y.long())), rel=1e-5)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_teacher_of_classes_needs_to_know_their_axis(framework: str) -> None:
    x, _ = numbers(framework)[0]
    labels = np.zeros((16, 3), np.int64)
    data = [(x, labels if framework == "flax" else torch.from_numpy(labels))]
    loss = lambda model, batch: (model(batch[0]) ** 2).mean()
    adtn.compress(net(framework, 4), Config(**QUICK), data=data, loss=loss)
    with pytest.raises(CompressError, match=r"\(16, 4\) and labels of shape \(16, 3\).*Needed for distill"):
        adtn.compress(net(framework, 4), Config(**QUICK, distill=0.5), data=data, loss=loss)


class Named(nn.Module):
    def __init__(self, what: str) -> None:
        super().__init__()
        self.inside, self.what = net("torch", 4), what

    def forward(self, x: torch.Tensor) -> Any:
        y = self.inside(x)
        return (y, x) if self.what == "tuple" else {self.what: y}


def test_outputs_may_be_named_logits() -> None:
    torch.manual_seed(0)
    data = [(torch.randn(8, 32), torch.arange(8) % 4)]
    report = adtn.compress(Named("logits"), Config(**QUICK, distill=0.5), data=data, test=data)
    assert report.after.accuracy is not None
    for what in ("tuple", "scores"):
        with pytest.raises(CompressError, match=r"Got a (tuple|dict) from the model"):
            adtn.compress(Named(what), Config(**QUICK), data=data)
    mine = lambda model, batch: nn.functional.cross_entropy(model(batch[0])[0], batch[1])
    report = adtn.compress(Named("tuple"), Config(**QUICK), data=data, test=data, loss=mine)
    assert report.after.accuracy is None and report.after.loss is not None
    with pytest.raises(CompressError, match="distill for a model that returns a tuple"):
        adtn.compress(Named("tuple"), Config(**QUICK, distill=0.5), data=data, loss=mine)


def test_flax_names_of_classes_are_of_any_width() -> None:
    x = np.random.default_rng(0).normal(size=(8, 32)).astype(np.float32)
    for dtype in (jnp.int32, jnp.uint8):
        data = [(x, jnp.arange(8, dtype=dtype) % 4)]
        report = adtn.compress(net("flax", 4), Config(**QUICK), data=data, test=data)
        assert report.after.accuracy is not None


MODULE = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 1))

def data():
    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    return [(x, x[:, :1])]

def loss(model, batch):
    return ((model(batch[0]) - batch[1]) ** 2).mean()

def score(model):
    return 3.5
"""


def test_the_command_line_takes_a_loss_and_a_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from adtn.cli import app
    from typer.testing import CliRunner

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    tmp_path.joinpath("regression.py").write_text(MODULE)
    tmp_path.joinpath("c.toml").write_text('topology = {name = "ttn", bond = 2}\nsteps = 5\ntune_steps = 3\n')
    done = CliRunner().invoke(
        app,
        [
            "compress",
            "regression:build",
            "--config",
            "c.toml",
            "--data",
            "regression:data",
            "--loss",
            "regression:loss",
            "--score",
            "regression:score",
        ],
    )
    assert done.exit_code == 0, done.output
    assert "score 3.5 -> 3.5" in done.output
