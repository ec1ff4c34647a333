"""Modules without a generated form of their own: their own code runs with generated parameters."""

from __future__ import annotations

import copy
import io
from dataclasses import replace
from typing import Any

import adtn
import pytest
from adtn.compression import Config
from adtn.errors import CompressError, LayoutError

from models import batches, same, state_of

torch = pytest.importorskip("torch")
layers = pytest.importorskip("adtn_backends.torch.layers")

# models of these tests are small and random: results are bad on purpose
pytestmark = pytest.mark.filterwarnings("ignore::adtn.errors.QualityWarning")
nn = torch.nn

QUICK: dict[str, Any] = {"topology": adtn.TTN(bond=2), "steps": 2, "tune_steps": 2, "smallest": 64}


class Scaled(nn.Linear):
    def forward(self, x):
        return 3.0 * super().forward(x)


class ScaledEmbedding(nn.Embedding):
    def forward(self, ids):
        return 4.0 * super().forward(ids)


class Experts(nn.Module):
    """A mixture of experts as in transformers: one tensor for all experts, read once for each."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(3, 16, 8))
        self.down = nn.Parameter(torch.randn(3, 8, 16))
        self.offset = nn.Parameter(torch.zeros(8))

    def forward(self, x):
        return sum(torch.relu(x @ self.up[n].T) @ self.down[n].T for n in range(3)) + self.offset


# a module, the names of its generated parameters, and an input
MODULES: dict[str, tuple[Any, tuple[str, ...], tuple[int, ...]]] = {
    "transposed convolution": (lambda: nn.ConvTranspose2d(4, 8, 3, stride=2), ("weight",), (2, 4, 5, 5)),
    "recurrent": (lambda: nn.LSTM(8, 16, batch_first=True), ("weight_ih_l0", "weight_hh_l0"), (2, 5, 8)),
    "both ways": (lambda: nn.GRU(8, 8, 2, bidirectional=True), ("weight_hh_l1_reverse",), (5, 2, 8)),
    "subclass": (lambda: Scaled(8, 16), ("weight",), (2, 8)),
    "experts": (Experts, ("up", "down"), (4, 8)),
}


def result(module: Any, x: Any) -> Any:
    found = module(x)
    return found[0] if isinstance(found, tuple) else found


@pytest.fixture(params=list(MODULES))
def case(request: pytest.FixtureRequest) -> tuple[Any, Any, Any]:
    """Make a parametrized module, the dense one with the same parameters, and an input."""
    make, names, shape = MODULES[request.param]
    torch.manual_seed(0)
    dense = make()
    weights = {n: adtn.Generator(tuple(getattr(dense, n).shape), adtn.MPO(bond=2), seed=k) for k, n in enumerate(names)}
    made = layers.parametrized(dense, {n: layers.GeneratedWeight(g) for n, g in weights.items()})
    with torch.no_grad():
        for name, generator in weights.items():
            getattr(dense, name).copy_(torch.tensor(generator.weight()))
    return made, dense, torch.randn(shape)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("graph", [False, True])
def test_it_computes_what_the_dense_module_does(case: Any, training: bool, graph: bool) -> None:
    made, dense, x = case
    with torch.set_grad_enabled(graph):
        for _ in range(2):  # the second time with a cached weight
            got, want = (result(m.train(training), x) for m in (made, dense))
            torch.testing.assert_close(got, want)


def test_gradients_are_those_through_the_weight(case: Any) -> None:
    made, dense, x = case
    result(made, x).square().sum().backward()
    result(dense, x).square().sum().backward()
    for name, weight in made.generated.items():
        wanted = torch.autograd.grad(weight(), list(weight.parameters()), getattr(dense, name).grad)
        for p, want in zip(weight.parameters(), wanted, strict=True):
            torch.testing.assert_close(p.grad, want, rtol=1e-3, atol=1e-4)
    for name, p in made.named_parameters(recurse=False):
        torch.testing.assert_close(p.grad, dict(dense.named_parameters())[name].grad, rtol=1e-3, atol=1e-4)


def test_copies_pickles_and_states(case: Any) -> None:
    made, dense, x = case
    want = result(made, x).detach()
    buffer = io.BytesIO()
    torch.save(made, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(made), torch.load(buffer, weights_only=False)):
        assert type(other) is type(made)
        assert isinstance(other, type(dense))
        torch.testing.assert_close(result(other, x), want)
        with torch.no_grad():
            next(other.generated.parameters()).mul_(2.0)
        assert not torch.allclose(result(other, x), want)
        other.load_state_dict(made.state_dict())
        torch.testing.assert_close(result(other, x), want)
        torch.testing.assert_close(result(other.double(), x.double()).float(), want, rtol=1e-4, atol=1e-5)


def test_it_becomes_dense_again(case: Any) -> None:
    made, dense, x = case
    again = layers.to_dense(nn.Sequential(made))[0]
    assert type(again) is type(dense)
    assert set(again.state_dict()) == set(dense.state_dict())
    torch.testing.assert_close(result(again, x), result(dense, x))
    with torch.no_grad():
        next(again.parameters()).zero_()
    torch.testing.assert_close(result(made, x), result(dense, x))


NOT_FOLLOWED = pytest.mark.xfail(
    raises=torch._dynamo.exc.Unsupported, reason="compilers cannot trace recurrent layers of PyTorch"
)


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`:UserWarning")
@pytest.mark.parametrize(
    "case",
    [pytest.param(name, marks=[NOT_FOLLOWED] * (name in ("recurrent", "both ways"))) for name in MODULES],
    indirect=True,
)
def test_a_compiler_follows_it(case: Any) -> None:
    made, dense, x = case
    torch.testing.assert_close(torch.compile(made, fullgraph=True, backend="eager")(x), result(dense, x))


def test_weights_are_made_once_however_often_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    dense, made = Experts(), []
    monkeypatch.setattr(layers.GeneratedWeight, "weight_of", counting(layers.GeneratedWeight.weight_of, made))
    weights = {
        n: layers.GeneratedWeight(adtn.Generator(tuple(getattr(dense, n).shape), adtn.TTN(bond=2)))
        for n in ("up", "down")
    }
    layer = layers.parametrized(dense, weights)
    layer(torch.ones(2, 8)).sum().backward()
    assert len(made) == 2


def counting(method: Any, seen: list[Any]) -> Any:
    """Wrap a method, and record every weight that it generates."""

    def wrapped(self: Any, arrays: Any) -> Any:
        seen.append(self)
        return method(self, arrays)

    return wrapped


def test_other_shapes_are_refused() -> None:
    weight = layers.GeneratedWeight(adtn.Generator((8, 8), adtn.TTN(bond=2)))
    for name, what in (("weight", r"has shape \(16, 8\)"), ("other", "does not exist")):
        with pytest.raises(LayoutError, match=rf"Got a generator of shape \(8, 8\) for Scaled.{name}, which {what}"):
            layers.parametrized(Scaled(8, 16), {name: weight})


# --- in whole models ---


class Model(nn.Module):
    """A model with a tied embedding that is a subclass, and experts."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = ScaledEmbedding(32, 8)
        self.experts = Experts()
        self.head = nn.Linear(8, 32, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, input_ids):
        return self.head(self.experts(self.embed(input_ids)))


DATA = [{"input_ids": torch.arange(12).reshape(2, 6), "labels": torch.arange(12).reshape(2, 6)}]


def test_ties_hold_when_a_layer_is_a_subclass() -> None:
    model = Model()
    report = adtn.compress(model, Config(**QUICK), data=DATA)
    assert [(r.name, r.tied) for r in report.layers] == [("embed", ("head",))]
    assert model.embed.generated["weight"] is model.head.generated
    assert isinstance(model.embed, ScaledEmbedding)
    dense = layers.to_dense(model)
    assert dense.embed.weight is dense.head.weight
    torch.testing.assert_close(dense(DATA[0]["input_ids"]), model(DATA[0]["input_ids"]))
    report = adtn.compress(Model(), Config(**QUICK, targets=["head"], recipe="reconstruct"))
    assert [(r.name, r.tied) for r in report.layers] == [("head", ("embed",))]
    assert report.dense == {"experts": "not among the targets"}


def test_parameters_of_other_modules_are_generated_where_targets_name_them() -> None:
    report = adtn.compress(Model(), Config(**QUICK, recipe="reconstruct"))
    assert report.dense == {"experts": "Experts is replaced only when targets name it"}
    model = Model()
    config = Config(**QUICK, targets=["Experts"], recipe=["reconstruct", "distill-local", "finetune"])
    report = adtn.compress(model, config, data=DATA)
    assert set(report.generators) == {"experts.up", "experts.down"}
    assert [r.shapes for r in report.layers] == [((3, 16, 8), (3, 8, 16))]
    assert report.after.params == sum(p.numel() for p in model.parameters())
    assert report.dense["embed"] == "not among the targets"


def test_layers_inside_such_modules_are_replaced_too_and_all_come_back() -> None:
    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(16, 16))
            self.inner = nn.Linear(16, 16)

        def forward(self, x):
            return self.inner(x @ self.table)

    def lost(model: Any, batch: Any) -> Any:
        raise RuntimeError("lost")

    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), Mixer(), nn.Linear(16, 3))
    x = batches(1)[0][0]
    state, modules, want = state_of(model), dict(model.named_modules()), model(x)
    with pytest.raises(RuntimeError, match="lost"):
        adtn.compress(model, Config(**QUICK, targets=["*"]), data=batches(1), loss=lost)
    assert same(model, state)
    assert dict(model.named_modules()) == modules
    torch.testing.assert_close(model(x), want)
    report = adtn.compress(model, Config(**QUICK, targets=["*"], recipe="reconstruct"))
    assert set(report.generators) == {"1", "2.table", "2.inner"}
    assert isinstance(model[2].inner, layers.ADTNLinear)
    assert hasattr(model[2], "generated")
    assert "inner" in modules["2"]._modules
    assert type(modules["2"].inner) is nn.Linear


def test_a_tied_partner_may_prevent_replacement() -> None:
    config = Config(**QUICK, targets=["head", "Experts"], recipe="reconstruct")
    report = adtn.compress(Model(), replace(config, exclude=["embed"]))
    assert report.dense["head"] == "excluded"
    model = Model()
    model.embed.max_norm = 1.0
    report = adtn.compress(model, config)
    assert report.dense["head"] == "shares its weight with embed (max_norm changes its rows in place)"


def test_they_cannot_have_adapters() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), Scaled(16, 3))
    report = adtn.compress(model, Config(**QUICK | {"smallest": 8}, mode="adapter"), data=batches(1))
    assert report.dense == {"2": "no adapter for Scaled"}
    with pytest.raises(CompressError, match="no adapter for Scaled"):
        adtn.compress(nn.Sequential(Scaled(16, 3)), Config(mode="adapter", smallest=8), data=batches(1))
