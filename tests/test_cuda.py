"""Tests that need a CUDA device: layers, whole models and captured training agree with the CPU."""

from __future__ import annotations

import copy
from typing import Any

import adtn
import numpy as np
import pytest
from adtn.backends import get_backend
from adtn.compression import Config, Tuning
from adtn.errors import CompressError

from models import Language, batches, net, texts
from table import relative_error, usable

torch = pytest.importorskip("torch")
layers = pytest.importorskip("adtn_backends.torch.layers")

# models of these tests are small and random: results are bad on purpose
pytestmark = pytest.mark.filterwarnings("ignore::adtn.errors.QualityWarning")
nn = torch.nn

QUICK: dict[str, Any] = {"topology": adtn.TTN(bond=2), "steps": 5, "smallest": 64}


@pytest.fixture
def cuda() -> str:
    return usable("cuda").removeprefix("torch:")


def moved(data: Any, where: str) -> Any:
    if isinstance(data, dict):
        return {k: moved(v, where) for k, v in data.items()}
    return type(data)(moved(v, where) for v in data) if isinstance(data, list | tuple) else data.to(where)


def cross_entropy(model: Any, batch: Any) -> Any:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


@pytest.mark.filterwarnings("ignore:RNN module weights are not part of single contiguous chunk")
@pytest.mark.parametrize("make", [net, Language])
def test_a_compressed_model_computes_the_same_there(make: Any, cuda: str) -> None:
    model = make()
    adtn.compress(model, Config(**QUICK, recipe="reconstruct"))
    x = texts()[0]["input_ids"] if make is Language else batches(1)[0][0]
    there = copy.deepcopy(model).to(cuda)
    for training in (False, True):
        want, got = model.train(training)(x), there.train(training)(x.to(cuda))
        assert relative_error(got.detach().cpu(), want.detach().numpy()) < 2e-3  # convolutions in TF32
    grads = [torch.autograd.grad(y.square().mean(), list(m.parameters())) for y, m in ((want, model), (got, there))]
    for a, b in zip(*grads, strict=True):
        assert relative_error(b.cpu(), a.numpy()) < 2e-2 or float(a.abs().max()) < 1e-5


@pytest.mark.parametrize("mode", ["materialise", "stream", "factored", None])
def test_layers_in_every_mode(mode: Any, cuda: str) -> None:
    gen = adtn.Generator((96, 128), adtn.MPO(bond=3), seed=1)
    layer = layers.ADTNLinear(gen, mode=mode).to(cuda)
    x = torch.randn(37, 128, device=cuda, requires_grad=True)
    y = layer(x)
    weight = torch.tensor(gen.weight(), device=cuda)
    torch.testing.assert_close(y, x @ weight.T, rtol=1e-4, atol=1e-4)
    (xbar,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(xbar, torch.ones_like(y) @ weight, rtol=1e-4, atol=1e-4)
    with torch.inference_mode():
        torch.testing.assert_close(layer.eval()(x), y.detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings(
    "ignore:TensorFloat32",
    "ignore:Dynamo detected a call to a `functools.lru_cache`",
    "ignore:`torch.jit.script_method`",
)
def test_layers_compile_and_run_in_half_precision(cuda: str) -> None:
    gen = adtn.Generator((64, 64), adtn.TTN(bond=2), seed=1)
    layer = layers.ADTNLinear(gen).to(cuda)
    x = torch.randn(8, 64, device=cuda)
    want = layer(x).detach()
    torch.testing.assert_close(torch.compile(layer, fullgraph=True)(x).detach(), want, rtol=1e-3, atol=1e-3)
    with torch.autocast("cuda", torch.bfloat16):
        assert relative_error(layer(x).detach().float().cpu(), want.cpu().numpy()) < 0.03
    half = copy.deepcopy(layer).to(torch.bfloat16)
    assert relative_error(half(x.bfloat16()).detach().float().cpu(), want.cpu().numpy()) < 0.05


@pytest.mark.parametrize("mode", ["materialise", "factored"])
def test_layers_can_be_captured_by_pytorch(mode: Any, cuda: str) -> None:
    layer = layers.ADTNLinear(adtn.Generator((64, 96), adtn.TTN(bond=2), seed=1), mode=mode).to(cuda)
    x = torch.randn(8, 96, device=cuda, requires_grad=True)
    want = torch.autograd.grad(layer(x).square().sum(), [x, *layer.parameters()])
    graphed = torch.cuda.make_graphed_callables(layer, (torch.zeros_like(x, requires_grad=True),))
    found = torch.autograd.grad(graphed(x).square().sum(), [x, *layer.parameters()])
    for a, b in zip(want, found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("train", ["generated", "all"])
def test_captured_training_equals_eager_training(optimizer: str, train: str, cuda: str) -> None:
    data = batches(4)
    data[2] = (data[2][0][:5], data[2][1][:5])  # another shape is not replayed
    data = moved(data, cuda)
    losses: list[list[float]] = []
    numbers: list[dict[str, np.ndarray]] = []
    for capture in (False, True):
        options = {"recipe": ["reconstruct", "finetune"], "tune_steps": 14, "tune_lr": 0.01, "distill": 0.3}
        config = Config(**QUICK, **options, tune_optimizer=optimizer, train=train, capture=capture)
        report = adtn.compress(net().to(cuda), config, data=data, test=data)
        losses.append(report.losses)
        numbers.append({f"{name}/{k}": x for name, g in report.generators.items() for k, x in g.params.items()})
    np.testing.assert_allclose(losses[1], losses[0], rtol=2e-2)
    for name, want in numbers[0].items():
        assert relative_error(numbers[1][name], want) < 0.05, name


def test_dropout_draws_again_in_captured_training(cuda: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Dropout(0.5), nn.Linear(64, 4)).to(cuda)
    x = torch.randn(32, 64, device=cuda)
    data = [(x, torch.zeros(32, dtype=torch.long, device=cuda))]
    config = Config(**QUICK, targets=["0"], recipe="finetune", tune_steps=12, tune_lr=1e-12, capture=True)
    assert len(set(adtn.compress(model, config, data=data).losses)) > 6


def test_a_failed_capture_raises_and_leaves_the_model_unchanged(cuda: str) -> None:
    model = net().to(cuda)
    before = copy.deepcopy(model.state_dict())

    def waits(model: Any, batch: Any) -> Any:
        loss = cross_entropy(model, batch)
        return loss * (1.0 if float(loss.detach()) > 0 else 0.5)

    config = Config(**QUICK, tune_steps=8, capture=True)
    with pytest.raises(CompressError, match="Cannot capture the training"):
        adtn.compress(model, config, data=moved(batches(), cuda), loss=waits)
    for name, x in model.state_dict().items():
        assert torch.equal(x, before[name]), name


def test_capture_is_refused_without_cuda() -> None:
    with pytest.raises(CompressError, match="only CUDA can capture"):
        adtn.compress(net(), Config(**QUICK, capture=True), data=batches())


def test_batches_are_copied_into_a_captured_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Test without the hardware: a stand-in for the graph repeats the captured step."""
    step = pytest.importorskip("adtn_backends.torch._step")

    class Graph:
        def __init__(self, recorded: Any) -> None:
            self.recorded = recorded

        def replay(self) -> None:
            self.recorded._loss = self.recorded._update(self.recorded._batch)
            replayed.append(self.recorded._batch[0].shape[0])

    def record(self: Any, batch: Any) -> Graph:
        self._batch = copy.deepcopy(batch)
        return Graph(self)

    replayed: list[int] = []
    for name in ("_optimizer", "_set_rates"):
        monkeypatch.setattr(step.RecordedStep, name, getattr(step.Step, name))
    monkeypatch.setattr(step.RecordedStep, "_on_side_stream", step.Step._update)
    monkeypatch.setattr(step.RecordedStep, "_recorded", record)
    data = [(*batch, "not a tensor") for batch in batches(4)]
    data[2] = (data[2][0][:5], *[x[:5] for x in data[2][1:2]], data[2][2])
    losses: list[list[float]] = []
    for capture in (False, True):
        adapter = get_backend("torch").model(net(), None)
        tuning = Tuning(steps=11, lr=0.01, train="all", capture=capture)
        adapter._to_device, adapter.check = (lambda batch: batch), (lambda tuning: None)
        losses.append(adapter.tune(data, cross_entropy, tuning, lambda step, value: None))
    assert losses[0] == losses[1]
    assert replayed == [8] * 6  # eleven, except three before the capture and two of another shape


@pytest.mark.parametrize("precision", [adtn.Precision("int4", 16), adtn.Precision("int3"), adtn.Precision("bfloat16")])
def test_codes_decode_to_the_same_bits_there(precision: adtn.Precision, cuda: str) -> None:
    gen = adtn.Generator((96, 128), adtn.MPO(bond=4), seed=1).rounded(precision)
    layer = layers.ADTNLinear(gen)
    there = copy.deepcopy(layer).to(cuda)
    for name, x in there.generated.arrays().items():
        assert x.device.type == "cuda" and np.array_equal(x.cpu().numpy(), gen.params[name])
    x = torch.randn(37, 128)
    assert relative_error(there(x.to(cuda)).detach().cpu(), layer(x).detach().numpy()) < 1e-4
    assert there.half().generated.generator().codes.keys() == gen.codes.keys()
