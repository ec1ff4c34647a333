"""Generated layers of Flax in real use: no silent errors when parameters are written, copied or saved."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from trust_flax import ADAPTERS, EMBEDDINGS, LAYERS, MERGED, TTN, Case, jax, jnp, layers, nnx


@pytest.fixture(params=LAYERS)
def case(request: pytest.FixtureRequest) -> Case:
    """Run a test with every layer."""
    return LAYERS[request.param]


def close(got: Any, want: Any, factor: float = 1.0) -> None:
    np.testing.assert_allclose(np.asarray(got), np.asarray(want), rtol=factor * 1e-4, atol=factor * 2e-5)


def scaled(layer: Any, factor: float, kind: Any = None) -> None:
    """Scale the values of all variables of a kind, as an optimizer or moving average would."""
    kind = kind or nnx.Param
    nnx.update(layer, jax.tree.map(lambda v: factor * v, nnx.state(layer, kind)))


# --- weights follow the parameters ---


@pytest.mark.parametrize("jit", [False, True])
def test_the_weight_is_that_of_the_parameters_now(case: Case, jit: bool) -> None:
    layer, other, x = case.layer(), case.layer(), case.x()
    call = nnx.jit(lambda layer, x: layer(x)) if jit else lambda layer, x: layer(x)
    before = call(layer, x)
    scaled(layer, 0.7)
    if isinstance(other, layers.Adapted):
        other.unmerge()
    scaled(other, 0.7)
    close(call(layer, x), other(x), 10.0)
    assert not np.allclose(call(layer, x), before)


# --- second derivatives ---


# compiling second derivatives takes seconds; those of all adapters are those of the linear ones
DIFFERENT = [n for n in LAYERS if not n.startswith(("adapted", "merged", "conv1d", "conv3d")) or n.endswith("linear")]


@pytest.mark.parametrize("name", DIFFERENT)
def test_gradients_can_be_differentiated_again(name: str) -> None:
    case = LAYERS[name]
    with jax.enable_x64(True):
        layer, x = case.layer(), case.x()
        graph, params, rest = nnx.split(layer, nnx.Param, ...)
        x = x.astype("float64") if jnp.issubdtype(x.dtype, jnp.floating) else x
        params, rest = (jax.tree.map(lambda v: v.astype("float64"), part) for part in (params, rest))
        factor = jnp.sin(1.0 + nnx.merge(graph, params, rest)(x))

        def norm(params: Any) -> Any:
            def loss(params: Any) -> Any:
                y = nnx.merge(graph, params, rest)(x)
                return (y * factor).sum() + (y**2).sum()

            return sum((g**2).sum() for g in jax.tree.leaves(jax.grad(loss)(params)))

        norm = jax.jit(norm)
        got = jax.jit(jax.grad(norm))(params)
        rng = np.random.default_rng(0)
        way = jax.tree.map(lambda v: jnp.asarray(rng.standard_normal(v.shape)), params)
        slope = sum(float((g * d).sum()) for g, d in zip(jax.tree.leaves(got), jax.tree.leaves(way), strict=True))
        h = 1e-5
        ends = [float(norm(jax.tree.map(lambda v, d, s=s: v + s * h * d, params, way))) for s in (1.0, -1.0)]
        want = (ends[0] - ends[1]) / (2 * h)
        assert abs(slope - want) < 1e-3 * max(abs(want), 1.0)


# --- embeddings ---


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_ids_are_those_of_a_dense_embedding(name: str) -> None:
    layer = EMBEDDINGS[name].layer()
    dense, n = layer.to_dense(), layer.num_embeddings
    for ids in ([200], [-1], [n], [0, n + 3], [-n], [-n - 1], [], [0, n - 1, 0], list(range(n))):
        for dtype in ("int32", "int16", "uint16", "uint8"):
            if not dtype.startswith("u") or min(ids, default=0) >= 0:
                index = jnp.asarray(np.array(ids, dtype))
                close(layer(index), dense(index))
    for bad in (jnp.array([1.0]), jnp.array([True])):
        with pytest.raises(ValueError, match="integer"):
            dense(bad)
        with pytest.raises(ValueError, match="integer"):
            layer(bad)


# --- merged adapters ---


@pytest.mark.parametrize("name", MERGED)
@pytest.mark.parametrize("jit", [False, True])
def test_a_merged_adapter_is_saved_and_loaded_as_if_it_were_not(name: str, jit: bool) -> None:
    call = nnx.jit(lambda layer, x: layer(x)) if jit else lambda layer, x: layer(x)
    x = MERGED[name].x()
    merged, other = MERGED[name].layer(), ADAPTERS[name.replace("merged", "adapted")].layer()
    want = call(merged, x)
    close(want, other(x), 10.0)
    scaled(other, 0.0)
    nnx.update(other, nnx.state(merged))  # saved merged, loaded unmerged
    close(call(other, x), want)
    scaled(other, 0.5)
    nnx.update(merged, nnx.state(other, nnx.Param))  # loaded while merged
    assert merged.merged
    close(call(merged, x), other(x))
    nnx.update(merged, nnx.state(other))
    close(call(merged, x), other(x))
    merged.unmerge()
    close(call(merged, x), other(x))


@pytest.mark.parametrize("name", MERGED)
def test_training_merged_adapters_equals_training_unmerged_ones(name: str) -> None:
    merged, beside, x = MERGED[name].layer(), ADAPTERS[name.replace("merged", "adapted")].layer(), MERGED[name].x()
    for layer in (merged, beside):
        for _ in range(3):
            slopes = nnx.jit(nnx.grad(lambda layer, x: (layer(x) ** 2).sum()))(layer, x)
            state = nnx.state(layer, nnx.Param)
            nnx.update(layer, jax.tree.map(lambda v, g: v - 1e-4 * g, state, slopes))
    for a, b in zip(
        jax.tree.leaves(nnx.state(merged, nnx.Param)), jax.tree.leaves(nnx.state(beside, nnx.Param)), strict=True
    ):
        close(a, b, 10.0)
    close(merged(x), beside(x), 10.0)


@pytest.mark.parametrize("name", MERGED)
@pytest.mark.parametrize("jit", [False, True])
def test_one_entry_of_the_dense_weight_is_seen(name: str, jit: bool) -> None:
    call = nnx.jit(lambda layer, x: layer(x)) if jit else lambda layer, x: layer(x)
    merged, beside, x = MERGED[name].layer(), ADAPTERS[name.replace("merged", "adapted")].layer(), MERGED[name].x()
    for layer in (merged, beside):
        base = layer.base_layer
        kernel = base.embedding if hasattr(base, "embedding") else base.kernel
        kernel[...] = kernel[...].at[tuple(n // 2 for n in kernel.shape)].add(3.0)
    close(call(merged, x), beside(x))


@pytest.mark.parametrize("name", MERGED)
def test_removing_leaves_what_is_merged(name: str) -> None:
    class Model(nnx.Module):
        def __init__(self) -> None:
            self.layer = MERGED[name].layer()

    model, x = Model(), MERGED[name].x()
    want = model.layer(x)
    close(layers.remove_adapters(model).layer(x), want)


# --- states, shapes, batches ---


def test_a_state_is_enough_for_a_layer_without_values(case: Case) -> None:
    layer, x = case.layer(), case.x()
    other = nnx.eval_shape(case.layer)
    nnx.update(other, nnx.state(layer))
    close(other(x), layer(x))


def test_empty_batches(case: Case) -> None:
    layer, x = case.layer(), case.x()
    assert layer(x[:0]).shape == (0, *layer(x).shape[1:])
    graph, params, rest = nnx.split(layer, nnx.Param, ...)
    slopes = jax.grad(lambda params: nnx.merge(graph, params, rest)(x[:0]).sum())(params)
    assert not any(np.asarray(g).any() for g in jax.tree.leaves(slopes))


@pytest.mark.parametrize("name", DIFFERENT)
def test_batches_may_be_open_in_exported_functions(name: str) -> None:
    from jax import export

    case = LAYERS[name]
    layer, x = case.layer(), case.x()
    (batch,) = export.symbolic_shape("batch")
    exported = export.export(jax.jit(lambda x: layer(x)))(jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype))
    for n in (1, 2, x.shape[0]):
        close(exported.call(x[:n]), layer(x[:n]))


# --- refused layers ---


def test_layers_whose_behaviour_would_be_lost_are_refused() -> None:
    class Doubled(nnx.Linear):
        def __call__(self, x: Any) -> Any:
            return 2.0 * super().__call__(x)

    class Scaled(nnx.Embed):
        def __call__(self, x: Any) -> Any:
            return 2.0 * super().__call__(x)

    from adtn.errors import LayoutError

    with pytest.raises(LayoutError, match="Doubled"):
        layers.ADTNLinear.from_linear(Doubled(8, 8, rngs=nnx.Rngs(0)), TTN)
    with pytest.raises(LayoutError, match="Scaled"):
        layers.ADTNEmbedding.from_embedding(Scaled(8, 8, rngs=nnx.Rngs(0)), TTN)
    odd = nnx.Linear(8, 8, dot_general=lambda *a, **k: 2.0 * jax.lax.dot_general(*a, **k), rngs=nnx.Rngs(0))
    with pytest.raises(LayoutError, match="dot_general"):
        layers.ADTNLinear.from_linear(odd, TTN)
