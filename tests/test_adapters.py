"""Adapters: they start at zero, are trained alone, and can be merged and switched without a trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import adtn
import numpy as np
import pytest
from adtn.compression import Config
from adtn.errors import CompressError

from models import Language, batches, net, same, state_of

torch = pytest.importorskip("torch")
layers = pytest.importorskip("adtn_backends.torch.layers")

# models of these tests are small and random: results are bad on purpose
pytestmark = pytest.mark.filterwarnings("ignore::adtn.errors.QualityWarning")
nn = torch.nn
X = torch.randn(6, 4, 4, 4, generator=torch.Generator().manual_seed(3))


def generator(shape: tuple[int, ...], seed: int = 0) -> adtn.Generator:
    return adtn.Generator(shape, adtn.TTN(bond=2), seed=seed)


def adapted(*names: str) -> Any:
    model = net().eval()
    for n, name in enumerate(names):
        layers.add_adapter(model, {"0": generator((8, 4, 3, 3), n), "4": generator((32, 128), n)}, name)
    return model


@pytest.mark.parametrize(
    ("dense", "x"),
    [
        (nn.Linear(16, 8), torch.randn(3, 16)),
        (nn.Conv1d(4, 8, 3, 2, 1, bias=False), torch.randn(2, 4, 9)),
        (nn.Conv2d(4, 8, 3, padding=1, groups=2), torch.randn(2, 4, 6, 6)),
        (nn.Conv3d(2, 4, 2), torch.randn(2, 2, 4, 4, 4)),
        (nn.Embedding(20, 8), torch.tensor([[1, 19]])),
    ],
    ids=lambda x: type(x).__name__,
)
def test_an_adapted_layer_adds_its_weight(dense: Any, x: Any) -> None:
    own = dense.weight.detach().clone()
    layer = layers.Adapted(dense)
    layer.add("a", layers.GeneratedWeight(generator(tuple(own.shape))))
    delta = layer.adapters["a"].weight.detach()
    y = layer(x)
    layer.merge()
    assert torch.equal(layer.weight, own + delta)
    assert torch.equal(dense.weight, own)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), y, rtol=1e-4, atol=1e-5)
    layer.unmerge()
    assert torch.equal(dense.weight, own)
    layer.merge()
    plain = layers.remove_adapters(layer)
    assert plain is dense
    assert torch.equal(dense.weight, own + delta)
    torch.testing.assert_close(plain(x), y, rtol=1e-4, atol=1e-5)


def test_an_adapter_starts_at_zero_and_is_trained_alone() -> None:
    model, data = net(), batches()
    before, y = state_of(model), model.eval()(X)
    report = adtn.compress(
        model, Config(targets=["0", "4"], topology=adtn.TTN(bond=2), mode="adapter", tune_steps=0), data=data
    )
    torch.testing.assert_close(model.eval()(X), y)
    assert [row.params for row in report.layers] == [g.num_params for g in report.generators.values()]
    model = net()
    config = Config(targets=["0", "4"], topology=adtn.TTN(bond=2), mode="adapter", tune_steps=5, tune_lr=0.1)
    adtn.compress(model, config, data=data)
    assert not torch.allclose(model.eval()(X), y)
    layers.remove_adapters(model)
    frozen = {k: v for k, v in before.items() if "running" not in k and "tracked" not in k}
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in frozen.items())


def test_several_adapters_are_switched_and_added() -> None:
    model = adapted("a", "b")
    assert layers.adapter_names(model) == ["a", "b"]
    y: dict[Any, Any] = {}
    for names in [(), ("a",), ("b",), ("a", "b")]:
        layers.set_adapter(model, *names)
        y[names] = model(X)
    torch.testing.assert_close(y[()], net().eval()(X))
    assert not torch.allclose(y["a",], y["b",])
    layers.merge_adapters(model)
    torch.testing.assert_close(model(X), y["a", "b"], rtol=1e-4, atol=1e-4)
    layers.set_adapter(model, "a")  # unmerges the others first
    torch.testing.assert_close(model(X), y["a",])
    with pytest.raises(CompressError, match=r"Got adapters \['c'\]"):
        layers.set_adapter(model, "c")


def test_merged_adapters_stay_when_they_are_removed() -> None:
    model = adapted("a")
    y = model(X)
    layers.merge_adapters(model)
    dense = layers.remove_adapters(model)
    assert type(dense[0]) is nn.Conv2d
    torch.testing.assert_close(dense(X), y, rtol=1e-4, atol=1e-4)
    layers.unmerge_adapters(dense)  # nothing is left to undo
    torch.testing.assert_close(dense(X), y, rtol=1e-4, atol=1e-4)


def test_an_adapter_alone_is_saved_and_loaded(tmp_path: Path) -> None:
    model = adapted("a", "b")
    layers.set_adapter(model, "a")
    layers.save_adapter(model, tmp_path / "a", "a")
    assert sum(f.stat().st_size for f in (tmp_path / "a").iterdir()) < 10_000
    other = layers.load_adapter(net().eval(), tmp_path / "a", "mine")
    torch.testing.assert_close(other(X), model(X))
    assert layers.adapter_generators(other, "mine").keys() == {"0", "4"}
    layers.save_adapter(model, tmp_path / "int8", "a", "int8")
    small = layers.load_adapter(net().eval(), tmp_path / "int8")
    torch.testing.assert_close(small(X), model(X), rtol=0.1, atol=0.1)
    with pytest.raises(CompressError, match="contains no adapter"):
        layers.load_adapter(net(), tmp_path)
    with pytest.raises(CompressError, match="model has"):
        layers.save_adapter(model, tmp_path, "c")


def test_moving_a_merged_layer_unmerges_it() -> None:
    model = adapted("a")
    y = model(X)
    layers.merge_adapters(model)
    model.double()
    assert not model[0].merged
    np.testing.assert_allclose(model(X.double()).detach(), y.detach(), rtol=1e-4, atol=1e-4)


def test_a_failed_addition_changes_nothing() -> None:
    model = adapted("a")
    layers.merge_adapters(model)
    modules, state = dict(model.named_modules()), state_of(model)
    for generators, message in [
        ({"0": generator((8, 4, 3, 3)), "4": generator((8, 8))}, "whose weight has shape"),
        ({"4": generator((32, 128)), "9": generator((8, 8))}, "does not have"),
        ({"4": generator((32, 128)), "1": generator((8, 8))}, "no generated form"),
    ]:
        with pytest.raises(adtn.errors.ADTNError, match=message):
            layers.add_adapter(model, generators, "b")
        assert dict(model.named_modules()) == modules
        assert same(model, state)
    with pytest.raises(CompressError, match="other than"):
        layers.add_adapter(model, {"0": generator((8, 4, 3, 3))}, "a")


def test_a_model_that_is_one_layer_is_refused_and_stays() -> None:
    model = nn.Linear(32, 32)
    with pytest.raises(CompressError, match="is one layer"):
        adtn.compress(model, Config(mode="adapter"), data=[(torch.ones(2, 32), torch.tensor([0, 1]))])
    with pytest.raises(CompressError, match="model itself"):
        layers.add_adapter(model, {"": generator((32, 32))})
    assert not list(model.children())


def test_tied_layers_are_not_adapted() -> None:
    model = Language()
    with pytest.raises(CompressError, match="shares its weight with head"):
        layers.add_adapter(model, {"embed": generator((32, 16))})
    report = adtn.compress
    with pytest.raises(CompressError, match=r"shares its weight with head.*no adapter for MultiheadAttention"):
        report(model, Config(mode="adapter", smallest=10), data=[{"input_ids": 0}])


def test_a_second_adapter_is_compressed_beside_the_first() -> None:
    model, data = net(), batches()
    for name in ("a", "b"):
        config = Config(targets=["Linear"], topology=adtn.TTN(bond=2), mode="adapter", adapter=name, tune_steps=2)
        report = adtn.compress(model, config, data=data)
        assert [row.kind for row in report.layers] == ["Linear"]
    assert layers.adapter_names(model) == ["a", "b"]
    assert model[4].active == ("b",)
    with pytest.raises(CompressError, match="has adapters"):
        adtn.compress(model, Config(targets=["4"], topology=adtn.TTN(bond=2), steps=0, recipe="reconstruct"))


@pytest.mark.parametrize("merged", [False, True])
def test_a_failing_training_takes_the_adapter_out_again(merged: bool) -> None:
    model, data = adapted("a").train(), batches()
    if merged:
        layers.merge_adapters(model)
    state, modules = state_of(model), dict(model.named_modules())

    def loss(model: Any, batch: Any) -> Any:
        raise RuntimeError("lost")

    with pytest.raises(RuntimeError, match="lost"):
        adtn.compress(model, Config(targets=["4"], mode="adapter", adapter="b"), data=data, loss=loss)
    assert same(model, state)
    assert dict(model.named_modules()) == modules
    assert model[4].active == ("a",)
    assert model[4].merged == merged
    layers.unmerge_adapters(model)
    assert same(model, state_of(adapted("a").train()))


def test_an_adapted_model_is_trained_through_a_state_dict() -> None:
    model, other = adapted("a"), adapted("a")
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(X), model(X))
