"""Adapters of Flax models: they start at zero, are trained alone, merged and switched; files are those of PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import adtn
import numpy as np
import pytest
from adtn.compression import Config
from adtn.errors import CompressError

from flax_models import Language, Net, batches, numbers, same

nnx = pytest.importorskip("flax.nnx")
layers = pytest.importorskip("adtn_backends.jax.layers")
jnp = pytest.importorskip("jax.numpy")

# models of these tests are small and random: results are bad on purpose
pytestmark = pytest.mark.filterwarnings("ignore::adtn.errors.QualityWarning")
X = np.random.default_rng(3).standard_normal((6, 4, 4, 4)).astype(np.float32)


def generator(shape: tuple[int, ...], seed: int = 0) -> adtn.Generator:
    return adtn.Generator(shape, adtn.TTN(bond=2), seed=seed)


def dense() -> Any:
    model = Net()
    model.eval()
    return model


def adapted(*names: str) -> Any:
    model = dense()
    for n, name in enumerate(names):
        own = {"conv": generator((8, 4, 3, 3), n), "linears.0": generator((32, 32), n)}
        layers.add_adapter(model, own, name)
    return model


def close(a: Any, b: Any) -> None:
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_an_adapted_layer_adds_its_weight() -> None:
    rngs = nnx.Rngs(0)
    x = jnp.asarray(X)
    cases = [
        (nnx.Linear(4, 8, rngs=rngs), (8, 4), x),
        (nnx.LinearGeneral((4, 4), (2, 4), axis=(-2, -1), rngs=rngs), (8, 16), x),
        (nnx.Conv(4, 8, (3, 2), feature_group_count=2, use_bias=False, rngs=rngs), (8, 2, 3, 2), x),
        (nnx.Embed(16, 8, rngs=rngs), (16, 8), jnp.array([1, 15])),
    ]
    for base, shape, x in cases:
        before, plain = numbers(base), base(x)
        layer = layers.Adapted(base)
        layer.add("a", layers.GeneratedWeight(generator(shape)))
        y = layer(x)
        assert not np.allclose(y, plain)
        layer.merge()
        close(layer(x), y)
        assert same(base, before)
        layer.unmerge()
        assert same(base, before)
        assert layer.kernel is base.kernel if hasattr(base, "kernel") else layer.embedding is base.embedding
    close(layer.attend(jnp.ones((1, 8))), base.attend(jnp.ones((1, 8))) + layer.generated("a")().sum(1))


def test_an_adapter_starts_at_zero_and_is_trained_alone() -> None:
    model, data = dense(), batches()
    before, y = numbers(model), model(X)
    config = Config(targets=["conv", "linears.0"], topology=adtn.TTN(bond=2), mode="adapter", adapter="a")
    report = adtn.compress(model, Config(**(vars(config) | {"tune_steps": 0})), data=data)
    close(model(X), y)
    assert {row.name: row.kind for row in report.layers} == {"conv": "Conv", "linears.0": "Linear"}
    assert [row.params for row in report.layers] == [g.num_params for g in report.generators.values()]
    report = adtn.compress(
        model, Config(**(vars(config) | {"adapter": "b", "tune_steps": 5, "tune_lr": 0.1})), data=data
    )
    assert layers.adapter_names(model) == ["a", "b"]
    assert model.conv.active == ("b",)
    assert not np.allclose(model(X), y)
    with pytest.raises(CompressError, match="has adapters"):
        adtn.compress(model, Config(targets=["conv"], topology=adtn.TTN(bond=2), steps=0, recipe="reconstruct"))
    layers.remove_adapters(model)
    statistics = ("norm.mean", "norm.var")
    now = numbers(model)
    assert now.keys() == before.keys()
    assert all(np.array_equal(now[k], x) for k, x in before.items() if k not in statistics)


def test_several_adapters_are_switched_added_and_merged() -> None:
    model = adapted("a", "b")
    layers.add_adapter(model, {"conv": generator((8, 4, 3, 3))}, "partial")
    assert model.linears[0].active == ()  # layers without the new adapter are dense
    y: dict[Any, Any] = {}
    for names in [(), ("a",), ("b",), ("a", "b")]:
        layers.set_adapter(model, *names)
        y[names] = model(X)
    close(y[()], dense()(X))
    assert not np.allclose(y["a",], y["b",])
    layers.merge_adapters(model)
    close(model(X), y["a", "b"])
    close(nnx.jit(lambda model, x: model(x))(model, X), y["a", "b"])
    graph, state = nnx.split(model)
    assert nnx.merge(graph, state).conv.merged
    layers.set_adapter(model, "a")  # unmerges the others first
    close(model(X), y["a",])
    with pytest.raises(CompressError, match=r"Got adapters \['c'\]"):
        layers.set_adapter(model, "c")
    layers.merge_adapters(model)
    plain = layers.remove_adapters(model)
    assert type(plain.conv) is nnx.Conv
    close(plain(X), y["a",])


def test_an_adapter_alone_is_saved_and_loaded_by_every_framework(tmp_path: Path) -> None:
    model = adapted("a")
    layers.save_adapter(model, tmp_path, "a")
    assert sum(f.stat().st_size for f in tmp_path.iterdir()) < 10_000
    close(layers.load_adapter(dense(), tmp_path, "mine")(X), model(X))
    with pytest.raises(CompressError, match="contains no adapter"):
        layers.load_adapter(dense(), tmp_path / "nothing")
    with pytest.raises(CompressError, match="model has"):
        layers.save_adapter(model, tmp_path, "c")
    torch = pytest.importorskip("torch")
    from adtn_backends.torch import layers as torch_layers

    class Twin(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(4, 8, 3, 2)
            self.linears = torch.nn.ModuleList([torch.nn.Linear(32, 32)])

    twin = torch_layers.load_adapter(Twin(), tmp_path, "a")
    for where, own in torch_layers.adapter_generators(twin, "a").items():
        np.testing.assert_array_equal(own.weight(), layers.adapter_generators(model, "a")[where].weight())


def test_a_failed_addition_changes_nothing() -> None:
    model = adapted("a")
    layers.merge_adapters(model)
    state, modules = numbers(model), [id(m) for _, m in nnx.iter_modules(model)]
    first = {"conv": generator((8, 4, 3, 3))}
    for generators, name, message in [
        (first | {"linears.0": generator((8, 8))}, "b", "whose weight has shape"),
        (first | {"other": generator((8, 8))}, "b", "does not have"),
        (first | {"norm": generator((8, 8))}, "b", "no generated form of BatchNorm"),
        (first, "a", "other than"),
        (first, "items", "identifier"),
    ]:
        with pytest.raises(adtn.errors.ADTNError, match=message):
            layers.add_adapter(model, generators, name)
        assert same(model, state)
        assert [id(m) for _, m in nnx.iter_modules(model)] == modules
        assert model.conv.active == ("a",)

    def lost(model: Any, batch: Any) -> Any:
        raise RuntimeError("lost")

    with pytest.raises(RuntimeError, match="lost"):
        adtn.compress(model, Config(targets=["conv"], mode="adapter", adapter="b"), data=batches(), loss=lost)
    assert same(model, state)
    assert [id(m) for _, m in nnx.iter_modules(model)] == modules
    assert model.conv.active == ("a",)
    assert model.conv.merged
    layers.unmerge_adapters(model)
    assert same(model, numbers(adapted("a")))
    tied = Language()
    tied.attention.query.kernel = tied.attention.key.kernel
    with pytest.raises(CompressError, match=r"shares its weight with attention\.key"):
        layers.add_adapter(tied, {"attention.query": generator((16, 16))})


def test_a_model_that_is_one_layer_is_refused_and_stays() -> None:
    model = nnx.Linear(32, 32, rngs=nnx.Rngs(0))
    parts = set(vars(model))
    for mode in ("adapter", "replace"):
        with pytest.raises(CompressError, match="is one layer"):
            adtn.compress(model, Config(mode=mode), data=[(np.ones((2, 32)), np.array([0, 1]))])
    with pytest.raises(CompressError, match="model itself"):
        layers.add_adapter(model, {"": generator((32, 32))})
    assert set(vars(model)) == parts
