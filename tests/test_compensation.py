"""Closed forms behind compressed layers: the weights that answer to the errors of the layers before them."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import adtn
import numpy as np
import pytest
from adtn.compression import _compensate, _run, dense_generator, model_of
from adtn.compression._compensate import answering, behind, compensate, waves
from adtn.compression._share import joined

pytestmark = pytest.mark.filterwarnings("ignore::adtn.errors.QualityWarning")

FRAMEWORKS = [name for name, package in (("torch", "torch"), ("jax", "flax")) if find_spec(package)]
rng = np.random.default_rng


class Framework:
    """A chain of layers, and its data, in one framework."""

    def __init__(self, name: str) -> None:
        self.name = name
        x = rng(1).standard_normal((6, 16, 8, 8, 3)).astype(np.float32)
        if name == "torch":
            import torch
            from torch import nn

            torch.manual_seed(0)
            self.model: Any = nn.Sequential(
                nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 8, 3, stride=4),
                nn.Flatten(), nn.Linear(32, 24), nn.Tanh(), nn.Linear(24, 6),
            )  # fmt: skip
            self.layers = ("0", "3", "5", "7")
            self.data = [(torch.from_numpy(b.transpose(0, 3, 1, 2).copy()), torch.zeros(16).long()) for b in x]
        else:
            import jax
            from flax import nnx

            class Net(nnx.Module):
                def __init__(self) -> None:
                    rngs = nnx.Rngs(0)
                    self.first = nnx.Conv(3, 12, (3, 3), rngs=rngs)
                    self.norm = nnx.BatchNorm(12, rngs=rngs)
                    self.second = nnx.Conv(12, 8, (3, 3), strides=4, padding="VALID", rngs=rngs)
                    self.third = nnx.Linear(32, 24, rngs=rngs)
                    self.last = nnx.Linear(24, 6, rngs=rngs)

                def __call__(self, x: Any) -> Any:
                    x = self.second(nnx.relu(self.norm(self.first(x))))
                    return self.last(jax.numpy.tanh(self.third(x.reshape(len(x), -1))))

            self.model = Net()
            self.layers = ("first", "second", "third", "last")
            self.data = [(b, np.zeros(16, int)) for b in x]

    def outputs(self) -> np.ndarray:
        found = model_of(self.model, None).outputs(self.data)
        assert found is not None
        return np.concatenate(found)


@pytest.fixture(params=FRAMEWORKS)
def framework(request: pytest.FixtureRequest) -> Framework:
    return Framework(request.param)


def low_rank(weight: np.ndarray, bond: int) -> adtn.Generator:
    pair = adtn.Generator(weight.shape, adtn.LowRank(bond=bond), dtype="float64", scale=1.0)
    return adtn.decompose(pair, weight)


def test_the_answering_weight_is_that_of_least_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_compensate, "_RIDGE", 0.0)
    x, noise, weight = rng(0).standard_normal((50, 6)), rng(1).standard_normal((50, 6)), rng(2).standard_normal((4, 6))
    y = x @ rng(3).standard_normal((6, 6)) + 0.3 * noise
    found = answering(weight, y.T @ y, x.T @ y)
    expected = np.linalg.lstsq(y, x @ weight.T, rcond=None)[0].T
    np.testing.assert_allclose(found, expected, atol=1e-10)
    kernel = weight.reshape(4, 3, 2, 1)
    np.testing.assert_allclose(answering(kernel, y.T @ y, x.T @ y), expected.reshape(kernel.shape), atol=1e-10)


@pytest.mark.parametrize("rank", [3, 6])
def test_unchanged_inputs_and_singular_ones_change_nothing(rank: int) -> None:
    weight = rng(0).standard_normal((4, 6))
    x = rng(1).standard_normal((50, rank)) @ rng(2).standard_normal((rank, 6))
    np.testing.assert_allclose(answering(weight, x.T @ x, x.T @ x), weight, atol=1e-10)
    generator = low_rank(weight, 2)
    assert behind(generator, weight, np.zeros((6, 6)), np.zeros((6, 6))) is generator


@pytest.mark.parametrize(
    "topology",
    [adtn.LowRank(bond=2), adtn.TT(bond=3), adtn.MPO(bond=3), adtn.Tucker(bond=3), adtn.TTN(bond=3), adtn.Dense()],
    ids=repr,
)
@pytest.mark.parametrize("precision", [None, adtn.Precision("int4", 32)], ids=str)
def test_it_is_better_behind_changed_inputs(topology: Any, precision: Any) -> None:
    weight, x = rng(0).standard_normal((16, 16)), rng(1).standard_normal((400, 16))
    y = np.tanh(x) @ (np.eye(16) + 0.1 * rng(2).standard_normal((16, 16)))
    moment, cross, outputs = y.T @ y / 400, x.T @ y / 400, x @ weight.T
    if isinstance(topology, adtn.Dense):
        generator = dense_generator(weight)
    else:
        generator = adtn.decompose(adtn.Generator((16, 16), topology, scale=1.0), weight, moment=x.T @ x / 400)
    generator = generator if precision is None else generator.rounded(precision)
    changed = behind(generator, weight, moment, cross)
    assert (changed.topology, changed.layout, changed.precision) == (topology, generator.layout, precision)
    assert changed.nbytes == generator.nbytes
    before, after = (float(np.square(y @ g.weight().T - outputs).sum()) for g in (generator, changed))
    assert after < 0.9 * before


def test_moments_are_those_of_both_models(framework: Framework) -> None:
    model, dense = model_of(framework.model, None), Framework(framework.name)
    first, *_, third, _last = framework.layers
    model.install({name: low_rank(model.weight(name), 2) for name in (first, third)})
    found = model.moments_behind([third], framework.data, 1 << 20)
    inputs = []
    for net in (dense.model, framework.model):
        rows = model_of(net, None)
        inputs.append(_rows(rows, framework, third))
    x, y = inputs
    np.testing.assert_allclose(found[third][0], y.T @ y / len(y), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[third][1], x.T @ y / len(y), rtol=1e-4, atol=1e-5)
    assert not np.allclose(x, y, atol=1e-2)


def _rows(model: Any, framework: Framework, name: str) -> np.ndarray:
    """Return the inputs of a linear layer on all data, by a hook of the framework."""
    seen: list[np.ndarray] = []
    if framework.name == "torch":
        module = model.model.get_submodule(name)
        hook = module.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].detach().numpy()))
        model.outputs(framework.data)
        hook.remove()
    else:
        for _ in model._watched([name], framework.data, lambda _, inputs, *__: seen.append(np.asarray(inputs[0]))):
            pass
    return np.concatenate(seen).astype(np.float64)


def test_few_rows_are_enough_if_asked_for(framework: Framework) -> None:
    model = model_of(framework.model, None)
    last = framework.layers[-1]
    model.install({last: low_rank(model.weight(last), 2)})
    drawn: list[int] = []

    def data() -> Iterator[Any]:
        for n, batch in enumerate(framework.data):
            drawn.append(n)
            yield batch

    model.moments_behind([last], data(), 1)
    assert drawn == [0, 1], "two batches of 16 rows for 24 columns"


def test_layers_come_in_the_order_of_calls(framework: Framework) -> None:
    model = model_of(framework.model, None)
    names = framework.layers
    model.install({name: low_rank(model.weight(name), 2) for name in reversed(names)})
    assert model.in_order(framework.data) == [[name] for name in names]
    assert waves(model, framework.data) == [[name] for name in names]


def test_many_layers_are_changed_in_few_passes(framework: Framework, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_compensate, "_WAVES", 2)
    model = model_of(framework.model, None)
    first, second, third, last = framework.layers
    model.install({name: low_rank(model.weight(name), 2) for name in framework.layers})
    assert waves(model, framework.data) == [[first, second], [third, last]]


@pytest.mark.skipif("torch" not in FRAMEWORKS, reason="a model of PyTorch")
def test_layers_of_one_input_go_together_and_those_of_several_calls_are_left_out() -> None:
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.out, self.again, self.unused = (nn.Linear(8, 8) for _ in range(5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.again(self.again(self.out(input=self.query(x) * self.key(x))))

    model = model_of(Net(), None)
    names = ("out", "unused", "again", "key", "query")
    assert sorted(model.second_moments(names, [torch.randn(4, 8)])) == ["again", "key", "query"]
    model.install({name: low_rank(model.weight(name), 2) for name in names})
    assert model.in_order([torch.randn(4, 8)]) == [["query", "key"]], "inputs of out are keywords"


@pytest.mark.skipif("torch" not in FRAMEWORKS, reason="a model of PyTorch")
def test_layers_that_share_a_generator_and_their_input_are_changed_together() -> None:
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.query, self.key, self.out = (nn.Linear(8, n) for n in (8, 8, 4, 8))
            self.key.weight.data[:] = self.query.weight.data[:4]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            return self.out(torch.cat([self.query(x), self.key(x)], -1)[:, :8])

    torch.manual_seed(0)
    model, data = model_of(Net().eval(), None), [torch.randn(64, 8) for _ in range(4)]
    both = joined([model.weight(name) for name in ("query", "key")], (12, 8))
    with torch.no_grad():
        want = torch.cat([model.model.query(y := model.model.first(data[0])), model.model.key(y)], -1)
    installed = {"first": low_rank(model.weight("first"), 3), "query + key": low_rank(both, 6)}
    model.install(installed)
    assert model.in_order(data) == [["first"], ["query + key"]]
    assert waves(model, data) == [["first"], ["query + key"]]

    def away() -> float:
        net: Any = model.model
        with torch.no_grad():
            return float((torch.cat([net.query(y := net.first(data[0])), net.key(y)], -1) - want).norm())

    (moment, cross) = model.moments_behind(["query + key"], data, 1000)["query + key"]
    before, behind_first = away(), behind(installed["query + key"], both, moment, cross)
    compensate(model, data, [["query + key"]], lambda: None)
    np.testing.assert_allclose(model.generators()["query + key"].weight(), behind_first.weight(), atol=1e-4)
    assert away() < before
    model.restore()
    model.install({"query": low_rank(model.weight("query"), 2), "first + out": low_rank(np.zeros((16, 8)), 2)})
    assert model.in_order(data) == [["query"]], "inputs of first and out differ"


def test_layers_with_very_many_inputs_are_left_out(framework: Framework, monkeypatch: pytest.MonkeyPatch) -> None:
    import adtn_backends.shared._inputs as shared

    monkeypatch.setattr(shared, "LARGEST_MOMENT", 32**2)
    model = model_of(framework.model, None)
    first, _, third, last = framework.layers  # of 27, 108, 32 and 24 columns
    assert sorted(model.second_moments(framework.layers, framework.data)) == sorted([first, third, last])
    model.install({name: low_rank(model.weight(name), 2) for name in framework.layers})
    assert model.in_order(framework.data) == [[first], [third], [last]]


@pytest.mark.parametrize("precision", [None, adtn.Precision("int4")], ids=str)
def test_updated_weights_are_those_of_the_new_generators(framework: Framework, precision: Any) -> None:
    model = model_of(framework.model, None)
    name = framework.layers[-2]
    first, second = (low_rank(model.weight(name) + n, 4) for n in range(2))
    if precision is not None:
        first, second = first.rounded(precision), second.rounded(precision)
    model.install({name: first})
    model.update({name: second})
    np.testing.assert_allclose(model.generators()[name].weight(), second.weight(), rtol=1e-6, atol=1e-6)
    twin = Framework(framework.name)
    model_of(twin.model, None).install({name: second})
    np.testing.assert_array_equal(framework.outputs(), twin.outputs())


def test_statistics_corrected_twice_are_those_corrected_once(framework: Framework) -> None:
    model = model_of(framework.model, None)
    first = framework.layers[0]
    model.install({first: low_rank(model.weight(first), 1)})
    model.normalise(framework.data)
    once = framework.outputs()
    model.normalise(framework.data)
    np.testing.assert_array_equal(framework.outputs(), once)


def test_outputs_of_whole_models_become_closer(framework: Framework) -> None:
    lost: list[float] = []
    dense = framework.outputs()
    for recipe in (("closed-form", "normalise"), ("closed-form", "compensate", "normalise")):
        own = Framework(framework.name)
        adtn.compress(own.model, adtn.Config(recipe=recipe, smallest=1), budget=adtn.Budget(ratio=3), data=own.data)
        lost.append(float(np.square(own.outputs() - dense).sum()))
    assert lost[1] < lost[0]


def test_compensation_that_does_not_help_is_undone(framework: Framework, monkeypatch: pytest.MonkeyPatch) -> None:
    def worse(model: Any, data: Any, groups: Any, advance: Any, scales: Any) -> None:
        model.update(
            {name: g.with_params({k: 3 * x for k, x in g.params.items()}) for name, g in model.generators().items()}
        )

    monkeypatch.setattr(_run, "compensate", worse)
    other = Framework(framework.name)
    config = adtn.Config(smallest=1, recipe=("closed-form", "compensate", "normalise"))
    lines: list[str] = []
    adtn.compress(framework.model, config, budget=adtn.Budget(ratio=3), data=framework.data, progress=lines.append)
    config = adtn.Config(smallest=1, recipe=("closed-form", "normalise"))
    adtn.compress(other.model, config, budget=adtn.Budget(ratio=3), data=other.data)
    np.testing.assert_array_equal(framework.outputs(), other.outputs())
    assert any("compensation" in line for line in lines)
