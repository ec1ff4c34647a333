"""Layers of PyTorch, JAX and NumPy with the same parameters, read from files, give the same outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import adtn
import numpy as np
import pytest
from adtn.errors import LayoutError

from adtn_backends.numpy import layers as numpy_layers
from adtn_backends.shared._geometry import Geometry
from table import usable

TTN = adtn.TTN(bond=2)
RNG = np.random.default_rng(0)
CONVS: dict[str, tuple[int, tuple[int, ...], dict[str, Any]]] = {
    "conv1d": (1, (8, 6, 3), {"stride": 2, "padding": 1}),
    "conv2d": (2, (8, 6, 3, 3), {}),
    "conv2d same": (2, (8, 6, 2, 3), {"padding": "same", "dilation": (2, 1)}),
    "conv2d grouped": (2, (8, 3, 3, 3), {"groups": 2, "stride": (1, 2), "padding": (2, 0)}),
    "conv2d reflect": (2, (4, 6, 3, 3), {"padding": 1, "padding_mode": "reflect"}),
    "conv2d replicate": (2, (4, 6, 3, 3), {"padding": 2, "padding_mode": "replicate"}),
    "conv2d circular": (2, (4, 6, 3, 3), {"padding": "same", "padding_mode": "circular"}),
    "conv3d": (3, (4, 6, 3, 2, 2), {"padding": "valid"}),
}


def modules():
    """Return the layers of installed frameworks, with conversions from and to NumPy."""
    found: dict[str, tuple[Any, Any, Any]] = {"numpy": (numpy_layers, lambda x: x, lambda y: y)}
    for key in ("torch", "jax"):
        usable(key)
    import jax.numpy as jnp
    import torch

    from adtn_backends.jax import layers as jax_layers
    from adtn_backends.torch import layers as torch_layers

    found["torch"] = (torch_layers, torch.tensor, lambda y: y.detach().numpy())
    found["jax"] = (jax_layers, jnp.asarray, np.asarray)
    return found


def through_a_file(tmp_path: Path, shape: tuple[int, ...], topology: adtn.Topology = TTN) -> adtn.Generator:
    adtn.save(tmp_path / "layer.safetensors", adtn.Generator(shape, topology, seed=3))
    return adtn.load(tmp_path / "layer.safetensors")


def agree(results: dict[str, np.ndarray]) -> None:
    want = results["torch"]
    for name, got in results.items():
        assert got.shape == want.shape, name
        np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-5 * np.abs(want).max(), err_msg=name)


@pytest.mark.parametrize("shape", [(3, 20), (6, 6), (20,), ()], ids=str)
def test_an_input_of_another_width_is_refused(shape: tuple[int, ...]) -> None:
    for name, (module, there, _) in modules().items():
        layer = module.ADTNLinear(adtn.Generator((8, 12), TTN))
        with pytest.raises(LayoutError, match="expected") as error:
            layer(there(np.zeros(shape, np.float32)))
        assert str(shape) in str(error.value), name


@pytest.mark.parametrize("mode", ["materialise", "stream", "factored"])
@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (16, 16)], ids=str)
def test_an_identity_base_is_made_and_not_held(shape: tuple[int, int], mode: Any) -> None:
    found = modules()
    plain = adtn.Generator(shape, adtn.MPO(bond=2), layout=adtn.Layout.of(shape, 4), seed=1)
    gen = adtn.Generator(shape, adtn.MPO(bond=2), layout=plain.layout, base=adtn.IdentityBase(), scale=0.1)
    gen = gen.with_params({**gen.params, **plain.params, "base.scale": np.float32(0.3)})
    x, ybar = RNG.standard_normal((5, shape[1])), RNG.standard_normal((5, shape[0]))
    arrays = gen.arrays("numpy:cpu", "float64")
    want = gen.function.vjp(arrays, ybar.T @ x)[1]
    torch_layers, tensor, _ = found["torch"]
    layer = torch_layers.ADTNLinear(gen, bias=False, mode=mode)
    assert not list(layer.buffers())
    y = layer(tensor(x.astype("float32")))
    np.testing.assert_allclose(y.detach().numpy(), x @ gen.weight(dtype="float64").T, rtol=1e-4, atol=1e-5)
    y.backward(tensor(ybar.astype("float32")))
    for name, p in layer.generated.arrays().items():
        np.testing.assert_allclose(p.grad.numpy(), want[name], rtol=1e-3, atol=1e-4)
    jax_layers, asarray, _ = found["jax"]
    layer = jax_layers.ADTNLinear(gen, bias=False, mode=mode)
    assert "base" not in layer.generated.arrays()
    np.testing.assert_allclose(layer(asarray(x)), x @ gen.weight(dtype="float64").T, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(layer.weight, gen.weight(), rtol=1e-4, atol=1e-5)
    rows = layer.generated.rows(asarray([3, 11]))
    np.testing.assert_allclose(rows, gen.weight()[[3, 11]], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("topology", [TTN, adtn.MPO(bond=3), adtn.TTN(bond=2, where="all")], ids=repr)
def test_linear_layers(topology: adtn.Topology, tmp_path: Path) -> None:
    gen, bias = through_a_file(tmp_path, (12, 20), topology), RNG.standard_normal(12).astype("float32")
    x = RNG.standard_normal((2, 3, 20)).astype("float32")
    agree({name: back(m.ADTNLinear(gen, bias)(to(x))) for name, (m, to, back) in modules().items()})


def test_embeddings(tmp_path: Path) -> None:
    gen, i = through_a_file(tmp_path, (30, 8)), np.array([[0, 29], [7, 7]])
    agree({name: back(m.ADTNEmbedding(gen)(to(i))) for name, (m, to, back) in modules().items()})


@pytest.mark.parametrize("name", CONVS)
def test_convolutions(name: str, tmp_path: Path) -> None:
    axes, shape, options = CONVS[name]
    gen, bias = through_a_file(tmp_path, shape), RNG.standard_normal(shape[0]).astype("float32")
    x = RNG.standard_normal((2, 6, *(7, 6, 5)[:axes])).astype("float32")
    results = {}
    for who, (m, to, back) in modules().items():
        layer = getattr(m, f"ADTNConv{axes}d")(gen, bias, **options)
        y = back(layer(to(np.moveaxis(x, 1, -1) if who == "jax" else x)))
        results[who] = np.moveaxis(y, -1, 1) if who == "jax" else y
    agree(results)


@pytest.mark.parametrize("bias", [True, False])
def test_attention(bias: bool, tmp_path: Path) -> None:
    found = modules()
    import torch

    torch.manual_seed(0)
    dense = torch.nn.MultiheadAttention(16, 4, bias=bias, batch_first=True)
    biases: list[Any] = [False, False]
    if bias:  # zeros at first
        biases = [torch.nn.init.normal_(b).detach().numpy() for b in (dense.in_proj_bias, dense.out_proj.bias)]
    layer = found["torch"][0].ADTNMultiheadAttention.from_attention(dense, TTN)
    adtn.save(tmp_path / "in.safetensors", layer.generated.generator())
    adtn.save(tmp_path / "out.safetensors", layer.out_proj.generated.generator())
    module, to, back = found["jax"]
    twin = module.ADTNMultiheadAttention(
        adtn.load(tmp_path / "in.safetensors"), adtn.load(tmp_path / "out.safetensors"), 4, *biases
    )
    q, k = (RNG.standard_normal((2, n, 16)).astype("float32") for n in (5, 3))
    want = layer(*(torch.tensor(x) for x in (q, k, k)), need_weights=False)[0].detach().numpy()
    np.testing.assert_allclose(back(twin(to(q), to(k), to(k))), want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_a_layer_in_place_of_a_dense_one_is_not_fitted_unasked(framework: str) -> None:
    """Require a weight with the standard deviation of the dense one, and otherwise independent of it."""
    module = modules()[framework][0]
    dense: dict[str, tuple[Any, np.ndarray]]
    if framework == "torch":
        from torch import nn

        made = {"linear": nn.Linear(12, 16), "conv": nn.Conv2d(6, 8, 3), "embedding": nn.Embedding(30, 8)}
        dense = {name: (one, one.weight.detach().numpy()) for name, one in made.items()}
    else:
        from flax import nnx

        rngs = nnx.Rngs(0)
        linear, conv, table = (
            nnx.Linear(12, 16, rngs=rngs),
            nnx.Conv(6, 8, (3, 3), rngs=rngs),
            nnx.Embed(30, 8, rngs=rngs),
        )
        dense = {
            "linear": (linear, np.asarray(linear.kernel[...]).T),
            "conv": (conv, np.asarray(conv.kernel[...]).transpose(3, 2, 0, 1)),
            "embedding": (table, np.asarray(table.embedding[...])),
        }
    classes = {"linear": module.ADTNLinear, "conv": module.ADTNConv2d, "embedding": module.ADTNEmbedding}
    for name, (one, values) in dense.items():
        layer = getattr(classes[name], f"from_{name}")(one, TTN, seed=3)
        want = adtn.Generator(values.shape, TTN, scale=values, seed=3)
        np.testing.assert_allclose(layer.generated.generator().weight(), want.weight(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 3}, "expected a divisor"),
        ({"padding_mode": "mirror"}, "expected 'zeros', 'reflect'"),
        ({"padding": "same", "stride": 2}, "requires a stride of 1"),
        ({"padding": "full"}, "'same', 'valid' or whole numbers"),
        ({"stride": (1, 2, 3)}, "one number or one for each"),
        ({"stride": 0}, "at least 1, or one for each"),
        ({"padding": -1}, "whole numbers of at least 0"),
    ],
)
def test_geometries_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        Geometry.of((8, 3, 3, 3), **options)


def test_numpy_layers_refuse_mismatches() -> None:
    gen = adtn.Generator((4, 4), TTN)
    with pytest.raises(LayoutError, match="kernel"):
        numpy_layers.ADTNConv2d(gen)
    with pytest.raises(LayoutError, match="bias of shape"):
        numpy_layers.ADTNLinear(gen, np.ones(3))
    with pytest.raises(LayoutError, match=r"expected \(batch, 2"):
        numpy_layers.ADTNConv1d(adtn.Generator((4, 2, 3), TTN))(np.ones((1, 3, 8)))


def test_inputs_have_the_names_of_the_dense_layers() -> None:
    import inspect

    for key in ("torch", "jax"):
        usable(key)
    import torch
    from flax import nnx

    from adtn_backends.jax import layers as jax_layers
    from adtn_backends.torch import layers as torch_layers

    pairs = [
        (torch_layers.ADTNLinear, torch.nn.Linear),
        (torch_layers.ADTNConv2d, torch.nn.Conv2d),
        (torch_layers.ADTNEmbedding, torch.nn.Embedding),
        (jax_layers.ADTNLinear, nnx.Linear),
        (jax_layers.ADTNConv2d, nnx.Conv),
        (jax_layers.ADTNEmbedding, nnx.Embed),
    ]
    for ours, dense in pairs:
        call = "forward" if issubclass(dense, torch.nn.Module) else "__call__"
        names = [list(inspect.signature(getattr(cls, call)).parameters)[1] for cls in (ours, dense)]
        assert names[0] == names[1], dense
    linear = torch_layers.ADTNLinear(adtn.Generator((4, 8), TTN))
    x = torch.randn(3, 8)
    assert torch.equal(linear(input=x), linear(x))
