"""Values on the bonds of embeddings, transposed convolutions, attention and slices."""

from __future__ import annotations

from typing import Any

import adtn
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("flax")

import jax.numpy as jnp
import torch

import adtn_backends.jax as of_jax
import adtn_backends.torch as of_torch

IDS = np.array([[3, 7, 0], [19, 3, 3]])


def rows(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def generator(shape: tuple[int, ...], topology: adtn.Topology | None = None, **options: Any) -> adtn.Generator:
    return adtn.Generator(shape, topology or adtn.TTN(bond=3), seed=3, **options)


def same_gradients(layer: Any, first: torch.Tensor, second: torch.Tensor, cotangent: torch.Tensor) -> None:
    parameters = list(layer.parameters())
    for a, b in zip(*(torch.autograd.grad(y, parameters, cotangent) for y in (first, second)), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


@pytest.mark.parametrize(
    "topology",
    [adtn.TTN(bond=3), adtn.MPO(bond=4)],
    ids=["TTN", "MPO"],
)
def test_lookups_pass_bonds(topology: adtn.Topology) -> None:
    order = np.random.default_rng(1).permutation(20)
    gen = generator((20, 35), topology, permutations=[order, None], base=adtn.SeededBase(1))
    layer, flax = of_torch.ADTNEmbedding(gen, 7, scale_grad_by_freq=True), of_jax.ADTNEmbedding(gen)
    exact = layer(torch.tensor(IDS))
    with adtn.probe(layer) as found:
        y = layer(torch.tensor(IDS))
        assert layer(torch.tensor(IDS[:0])).shape == (0, 3, 35)
        with pytest.raises(IndexError, match="got 20; expected 0 to 19"):
            layer(torch.tensor([20]))
    assert torch.allclose(y, exact, atol=1e-5)
    same_gradients(layer, y, exact, torch.tensor(rows((2, 3, 35))))
    with adtn.probe(flax) as same:
        assert np.allclose(flax(jnp.asarray(IDS)), exact.detach(), atol=1e-5)
        assert np.isnan(flax(jnp.array([20]))).all() and np.allclose(flax(jnp.array([-1]))[0], flax(jnp.array([19]))[0])
        assert flax(jnp.asarray(IDS[:0])).shape == (0, 3, 35)
        flax(jnp.asarray(IDS))
    for name, value in found.items():
        assert value.shape[:2] == (2, 3) and np.allclose(value.detach(), same[name], atol=1e-4), name
        assert torch.equal(value[0, 0], value[1, 1])  # the same id


def test_lookups_have_finished_outputs_only() -> None:
    layout = adtn.Layout.from_factors((20, 36), [(4, 5), (4, 9)])
    for topology, rest in ((adtn.MPO(bond=4), 4), (adtn.LowRank(bond=4), 1)):
        gen = generator((20, 36), topology, layout=layout if rest > 1 else None)
        layer = of_torch.ADTNEmbedding(gen)
        with adtn.probe(layer) as found, torch.no_grad():
            layer(torch.tensor(IDS))
        (value,) = found.values()
        assert value.shape == (2, 3, rest, 4)
        (sites,) = gen.networks()
        if rest > 1:  # the site of the first digit of the row and of the column
            site = next(t for t in sites.tensors if "a0_0" in t.inds).transpose("a0_0", "a1_0", "b0").data
            assert np.allclose(value, site[IDS // 5], atol=1e-6)


def test_a_patch_of_an_embedding_is_a_matrix_on_its_bond() -> None:
    gen = generator((20, 36), adtn.MPO(bond=4))
    matrix = rows((4, 4))
    ids = torch.tensor(IDS)
    expected = of_torch.ADTNEmbedding(gen.with_bond("b0", matrix))(ids)
    layer = of_torch.ADTNEmbedding(gen)
    with adtn.probe(layer, patch={"bonds.b0": matrix}), torch.no_grad():
        y = layer(ids)
    assert torch.allclose(y, expected, atol=1e-5) and not torch.allclose(y, layer(ids), atol=1e-2)


@pytest.mark.parametrize(
    "options", [{"padding": 1, "stride": 2}, {"groups": 2, "dilation": 2}], ids=["stride", "groups"]
)
def test_convolutions_over_volumes_compute_the_same(options: dict[str, Any]) -> None:
    gen = generator((4, 4 // options.get("groups", 1), 2, 3, 2))
    layer, x = of_torch.ADTNConv3d(gen, rows((4,)), **options), rows((2, 4, 5, 6, 5))
    exact = layer(torch.tensor(x))
    with adtn.probe(layer) as found:
        assert torch.allclose(layer(torch.tensor(x)), exact, atol=1e-5)
    flax = of_jax.ADTNConv3d(gen, rows((4,)), **options)
    with adtn.probe(flax) as same:
        y = flax(jnp.asarray(np.moveaxis(x, 1, -1)))
    assert np.allclose(np.moveaxis(np.asarray(y), -1, 1), exact.detach(), atol=1e-4) and set(same) == set(found)


@pytest.mark.parametrize(
    ("axes", "options"),
    [
        (1, {"padding": 1}),
        (2, {"stride": 2, "output_padding": 1, "groups": 2}),
        (3, {"dilation": 2, "bias": False}),
    ],
)
def test_transposed_convolutions_compute_the_same(axes: int, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    dense = [torch.nn.ConvTranspose1d, torch.nn.ConvTranspose2d, torch.nn.ConvTranspose3d][axes - 1](6, 4, 3, **options)
    shape = tuple(dense.weight.shape)
    gen = generator(shape, permutations=[np.random.default_rng(0).permutation(6), *[None] * (len(shape) - 1)])
    layer, x = (
        of_torch.parametrized(dense, {"weight": of_torch.GeneratedWeight(gen)}),
        torch.randn(2, 6, *(5, 4, 3)[:axes]),
    )
    exact = layer(x)
    with adtn.probe(layer) as found:
        y = layer(x)
        assert torch.allclose(layer(x[0]), exact[0], atol=1e-5) and layer(x[:0]).shape == exact[:0].shape
    assert found and torch.allclose(y, exact, atol=1e-5)
    same_gradients(layer, y, exact, torch.randn(y.shape))


@pytest.mark.parametrize("has_bias", [True, False])
def test_attention_of_flax_computes_the_same(has_bias: bool) -> None:
    into, out = generator((48, 16), adtn.LowRank(bond=3)), generator((16, 16), adtn.LowRank(bond=3))
    biases = (rows((48,)), rows((16,))) if has_bias else (False, False)
    layer = of_jax.ADTNMultiheadAttention(into, out, 4, *biases)
    dense = torch.nn.MultiheadAttention(16, 4, batch_first=True, bias=has_bias)
    if has_bias:
        dense.in_proj_bias.data, dense.out_proj.bias.data = map(torch.tensor, biases)
    other = of_torch.ADTNMultiheadAttention.of(dense, *map(of_torch.GeneratedWeight, (into, out))).eval()
    x, context = rows((2, 7, 16)), rows((2, 5, 16), 1)
    for inputs in ((x, x, x), (x, context, context)):
        shared = {id(a): jnp.asarray(a) for a in inputs}
        given = [shared[id(a)] for a in inputs]
        exact = layer(*given)
        with adtn.probe(layer) as found, adtn.probe(other) as same, torch.no_grad():
            y, (z, _) = layer(*given), other(*map(torch.tensor, inputs))
        assert np.allclose(y, exact, atol=1e-5) and np.allclose(y, z, atol=1e-5)
        assert list(found) == list(same) == ["bonds.in_proj.r", "bonds.out_proj.r"]
        for name, value in found.items():
            assert value.shape[0] == 2 and np.allclose(value, same[name], atol=1e-5)


def test_slices_pass_the_bonds_of_the_whole_network() -> None:
    gen = generator((60, 27), base=adtn.SeededBase(1))
    wholes = of_torch.GeneratedWeight(gen), of_jax.GeneratedWeight(gen)
    x, image = rows((5, 20)), rows((2, 3, 6, 6))
    of: Any  # both packages have the same names
    whole: Any
    for of, whole in zip((of_torch, of_jax), wholes, strict=True):
        convert: Any = torch.tensor if of is of_torch else jnp.asarray
        linear = of.ADTNLinear(of.GeneratedSlice(whole, 10, (30, 20)))
        conv = of.ADTNConv2d(of.GeneratedSlice(whole, 40, (8, 3, 3, 3)))
        table = of.ADTNEmbedding(of.GeneratedSlice(whole, 5, (20, 16)))
        for layer, given in (
            (conv, image if of is of_torch else np.moveaxis(image, 1, -1)),
            (table, IDS),
            (linear, x),
        ):
            exact = layer(convert(given))
            with adtn.probe(layer) as found:
                assert np.allclose(_host(layer(convert(given))), _host(exact), atol=1e-5)
        with adtn.probe(of.ADTNLinear(whole)) as same:  # inputs that the slice does not have are zero
            same.model(convert(np.pad(x, ((0, 0), (0, 7)))))
        assert len(found) and all(np.allclose(_host(found[name]), _host(same[name]), atol=1e-5) for name in same)
    transposed = of_torch.parametrized(
        torch.nn.ConvTranspose1d(6, 4, 3), {"weight": of_torch.GeneratedSlice(wholes[0], 7, (6, 4, 3))}
    )
    signal = torch.tensor(rows((2, 6, 5)))
    exact = transposed(signal)
    with adtn.probe(transposed):
        assert torch.allclose(transposed(signal), exact, atol=1e-5)


def _host(x: Any) -> np.ndarray:
    return np.asarray(x.detach() if isinstance(x, torch.Tensor) else x)
