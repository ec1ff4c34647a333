"""Flax NNX modules: gradients, jit, vmap, ties."""

from __future__ import annotations

import adtn
import numpy as np
import pytest
from adtn.errors import LayoutError

from table import TOPOLOGIES

jax = pytest.importorskip("jax")
nnx = pytest.importorskip("flax.nnx")
jnp = jax.numpy
layers = pytest.importorskip("adtn_backends.jax.layers")

TTN = adtn.TTN(bond=2)
GENERATORS = {
    "ttn": lambda: TOPOLOGIES["ttn"].generator(dtype="float32"),
    "nonlinear end": lambda: TOPOLOGIES["ttn-all"].generator(dtype="float32"),
    "frozen cores": lambda: TOPOLOGIES["brickwall"].generator(dtype="float32"),
    "seeded base": lambda: TOPOLOGIES["mpo"].generator(dtype="float32", base=adtn.SeededBase(1)),
}


@pytest.mark.parametrize(
    ("name", "mode"),
    [*((name, None) for name in GENERATORS), ("nonlinear end", "materialise"), ("seeded base", "stream")],
)
def test_gradients_under_jit_are_those_of_the_dense_layer(name: str, mode: str | None) -> None:
    gen = GENERATORS[name]()
    layer = layers.ADTNLinear(gen, bias=np.arange(gen.shape[0]), mode=mode)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, gen.shape[1])), jnp.float32)

    @nnx.jit
    def grads(layer, x):
        return nnx.grad(lambda layer, x: (layer(x) ** 2).sum(), argnums=(0, 1))(layer, x)

    got, got_x = grads(layer, x)
    keys = layer.generated.names
    frozen = {k: v for k, v in layer.generated.arrays().items() if k not in keys}

    def dense(numbers, bias, x):  # JAX differentiates this
        return ((x @ gen.function({**frozen, **numbers}).T + bias) ** 2).sum()

    numbers = {k: layer.generated.arrays()[k] for k in keys}
    want, want_bias, want_x = jax.grad(dense, argnums=(0, 1, 2))(numbers, layer.bias[...], x)
    for key, grad in want.items():
        found = getattr(got.generated, keys[key])[...]
        np.testing.assert_allclose(found, grad, rtol=2e-3, atol=2e-3 * float(jnp.abs(grad).max()))
    np.testing.assert_allclose(got.bias[...], want_bias, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(got_x, want_x, rtol=1e-3, atol=1e-3 * float(jnp.abs(want_x).max()))
    np.testing.assert_allclose(layer.weight, gen.weight(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_a_bias_is_taken_over_where_there_is_one(kind: str, bias: bool) -> None:
    if kind == "linear":
        dense = nnx.Linear(6, 8, use_bias=bias, rngs=nnx.Rngs(0))
        make = layers.ADTNLinear.from_linear
    else:
        dense = nnx.Conv(6, 8, (3, 3), use_bias=bias, rngs=nnx.Rngs(0))
        make = layers.ADTNConv2d.from_conv
    if bias:
        dense.bias[...] = jnp.arange(8.0)
    layer = make(dense, TTN)
    for found in (layer, layer.to_dense()):
        assert (found.bias is None) == (not bias)
        assert not bias or np.array_equal(found.bias[...], np.arange(8.0))


def test_layers_are_made_of_plain_layers_of_their_class() -> None:
    class Mine(nnx.Linear):
        pass

    rngs = nnx.Rngs(0)
    linear, table = nnx.Linear(6, 8, rngs=rngs), nnx.Embed(30, 8, rngs=rngs)
    assert layers.ADTNLinear.from_linear(linear, TTN).weight.shape == (8, 6)
    assert layers.ADTNEmbedding.from_embedding(table, TTN).weight.shape == (30, 8)
    for make, dense in (
        (layers.ADTNLinear.from_linear, table),
        (layers.ADTNLinear.from_linear, Mine(6, 8, rngs=rngs)),
        (layers.ADTNEmbedding.from_embedding, linear),
    ):
        with pytest.raises(LayoutError, match=f"Got {type(dense).__name__}; expected a plain"):
            make(dense, TTN)


def test_vmap_over_inputs_and_over_parameters() -> None:
    layer = layers.ADTNLinear(adtn.Generator((6, 8), TTN))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 3, 8)), jnp.float32)
    np.testing.assert_allclose(jax.vmap(layer)(x), layer(x), rtol=1e-4, atol=1e-5)
    graph, state = nnx.split(layer)
    many = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), state)
    both = jax.vmap(lambda s: nnx.merge(graph, s)(x[0]))(many)
    for i in range(2):
        alone = nnx.merge(graph, jax.tree.map(lambda p, i=i: p[i], many))
        np.testing.assert_allclose(both[i], alone(x[0]), rtol=1e-4, atol=1e-5)


def test_tied_layers_have_one_state_and_parameters_come_back() -> None:
    class Tied(nnx.Module):
        def __init__(self) -> None:
            self.embed = layers.ADTNEmbedding(adtn.Generator((32, 8), TTN))
            self.head = layers.ADTNLinear(self.embed.generated, bias=False)

        def __call__(self, i):
            return self.head(self.embed(i))

    model, i = Tied(), jnp.array([1, 31])
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    assert len(jax.tree.leaves(params)) == len(model.embed.generated.names)
    twin = nnx.merge(graph, jax.tree.map(lambda p: 2 * p, params), rest)
    assert twin.embed.generated is twin.head.generated
    assert not jnp.allclose(twin(i), model(i))
    np.testing.assert_allclose(twin.embed.generated.generator().weight(), twin.embed.weight, rtol=1e-4, atol=1e-5)


def test_training_with_optax_learns() -> None:
    optax = pytest.importorskip("optax")
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((64, 16)), jnp.float32)
    y = x @ jnp.asarray(adtn.Generator((8, 16), TTN, seed=5).weight()).T
    layer = layers.ADTNLinear(adtn.Generator((8, 16), TTN, seed=5))
    layer.generated.root[...] = layer.generated.root[...] * 0.5
    optimizer = nnx.Optimizer(layer, optax.adam(0.02), wrt=nnx.Param)

    @nnx.jit
    def step(layer, optimizer):
        loss, grads = nnx.value_and_grad(lambda layer: ((layer(x) - y) ** 2).mean())(layer)
        optimizer.update(layer, grads)
        return loss

    losses = [float(step(layer, optimizer)) for _ in range(60)]
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(dtype: str) -> None:
    layer = layers.ADTNConv2d(adtn.Generator((8, 4, 3, 3), TTN), padding=1)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 5, 4)), jnp.float32)
    want = layer(x)
    graph, state = nnx.split(layer)
    half = nnx.merge(graph, jax.tree.map(lambda p: p.astype(dtype), state))
    got = half(x.astype(dtype))
    assert got.dtype == dtype
    np.testing.assert_allclose(np.asarray(got, np.float32), want, rtol=0, atol=0.1 * float(jnp.abs(want).max()))


def test_a_dtype_is_read_without_gathering_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = layers.GeneratedWeight(adtn.Generator((8, 4), TTN))
    monkeypatch.setattr(layers.GeneratedWeight, "arrays", None)
    assert weight.dtype == jnp.float32


def test_mismatches_are_refused() -> None:
    gen = adtn.Generator((4, 4), TTN)
    with pytest.raises(LayoutError, match="kernel"):
        layers.ADTNConv2d(gen)
    with pytest.raises(LayoutError, match=r"expected \(4,\)"):
        layers.ADTNLinear(gen, bias=np.ones(3))
    with pytest.raises(LayoutError, match="divisible by num_heads"):
        layers.ADTNMultiheadAttention(adtn.Generator((12, 4), TTN), gen, 3)


@pytest.mark.parametrize("name", GENERATORS)
def test_an_embedding_makes_only_the_rows_it_needs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gen = GENERATORS[name]()
    n = gen.shape[0]
    table = layers.ADTNEmbedding(gen)
    whole = np.asarray(table.weight)
    few = jnp.array([[n - 1, -n]])[:, : max(n // 4, 1)]
    asked: list[int] = []
    rows = layers.GeneratedWeight.rows
    monkeypatch.setattr(
        layers.GeneratedWeight, "rows", lambda self, i, *own: asked.append(i.size) or rows(self, i, *own)
    )
    np.testing.assert_allclose(nnx.jit(lambda t, i: t(i))(table, few), whole[np.asarray(few)], rtol=1e-4, atol=1e-5)
    assert bool(asked) == (4 * few.size <= n)
    every = jnp.arange(n)
    np.testing.assert_allclose(table(every), whole, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(table.attend(table(few)), whole[np.asarray(few)] @ whole.T, rtol=1e-4, atol=1e-3)
    assert np.isnan(np.asarray(table(jnp.array([n])))).all()
    weights = jnp.asarray(np.random.default_rng(0).standard_normal((*few.shape, table.embedding_dim)), jnp.float32)
    got = nnx.grad(lambda t: (t(few) * weights).sum())(table)
    want = nnx.grad(lambda t: (t.weight[few] * weights).sum())(table)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * float(jnp.abs(b).max() + 1))
