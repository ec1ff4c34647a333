"""Rounded generators: the same cores, bit for bit, in files and in the layers of every framework."""

from __future__ import annotations

import copy
import io
import json
import pickle
from functools import cache
from typing import Any

import adtn
import numpy as np
import pytest
from adtn import Layout, Precision
from adtn.compression._sizes import rounded_bytes
from adtn.compression._storage import from_bytes, to_bytes
from adtn.errors import GeneratorError
from adtn.precision import Codes, stored_bytes

from table import relative_error, to_numpy

INT4 = Precision("int4", 16)
WHOLE = Layout((40, 50), ((40,), (50,)), (0, 1))


def frozen_networks() -> adtn.Generator:
    """Make a generator with a frozen core that has no rule."""
    import quimb.tensor as qtn

    a = qtn.TensorNetwork([qtn.rand_tensor((6, 6), ("x", "y"), tags="A", seed=1)])
    b = qtn.TensorNetwork(
        [qtn.rand_tensor((6, 40), ("x", "out"), seed=2), qtn.rand_tensor((6, 50), ("y", "in"), tags="A", seed=3)]
    )
    return adtn.Generator.from_networks([a, b], activation="tanh", trainable="A")


GENERATORS = {
    "dense": lambda: adtn.Generator((40, 50), adtn.Dense(), layout=WHOLE),
    "dense-legs": lambda: adtn.Generator((16, 20), adtn.Dense(), layout=Layout.of((16, 20), 4, "interleaved")),
    "low rank": lambda: adtn.Generator((32, 48), adtn.LowRank(bond=5)),
    "mpo": lambda: adtn.Generator((32, 48), adtn.MPO(bond=4)),
    "tucker": lambda: adtn.Generator((32, 48), adtn.Tucker(bond=5)),
    "ttn": lambda: adtn.Generator((48, 32), adtn.TTN(bond=5), dtype="float64"),
    "seeded": lambda: adtn.Generator((32, 32), adtn.TTN(bond=4), base=adtn.SeededBase(1)),
    "given": lambda: adtn.Generator((40, 50), adtn.Dense(), layout=WHOLE, base=np.ones((40, 50))),
    "networks": frozen_networks,
    "random": lambda: adtn.Generator((16, 16), adtn.ScaledRandom(seed=3)),
}
PRECISIONS = [
    Precision("int8"),
    Precision("int4", 16),
    Precision("int3", 20),
    Precision("int2"),
    Precision("coded", rate=3.0),
    Precision("bfloat16"),
    Precision("float16"),
    Precision("float32"),
]


@cache
def rounded(name: str, precision: Precision) -> adtn.Generator:
    return GENERATORS[name]().rounded(precision)


@pytest.fixture(params=GENERATORS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=PRECISIONS, ids=str)
def gen(request: pytest.FixtureRequest, name: str) -> adtn.Generator:
    return rounded(name, request.param)


def same_codes(one: adtn.Generator, other: adtn.Generator) -> bool:
    return one.precision == other.precision and {k: c.data.tobytes() for k, c in one.codes.items()} == {
        k: c.data.tobytes() for k, c in other.codes.items()
    }


# --- generators ---


def test_the_cores_have_the_precision(gen: adtn.Generator, name: str) -> None:
    whole, precision = GENERATORS[name](), gen.precision
    assert precision is not None and set(gen.codes) == set(whole.stored) == set(gen.stored)
    for key, x in whole.stored.items():
        codes = gen.codes[key]
        expected = "float32" if x.size == 1 else "float16" if x.size < 64 and precision.bits < 16 else precision.format
        assert codes.precision.format == expected
        decoded = gen.stored[key]
        assert decoded.dtype == np.dtype(gen.dtype) and not decoded.flags.writeable
        assert np.array_equal(decoded, codes.decode())
        assert relative_error(decoded, x) < {8: 0.02, 4: 0.15, 3: 0.33, 2: 0.6}.get(codes.precision.bits, 0.01)
    assert gen.num_params == whole.num_params == sum(x.size for x in gen.stored.values())
    assert gen.nbytes == sum(stored_bytes(x.shape, precision.of(x.shape)) for x in whole.stored.values())
    assert gen.rounded(precision) is gen
    assert f", {precision})" in repr(gen) and whole.precision is None and not whole.codes


def test_other_parameters_are_not_rounded(gen: adtn.Generator) -> None:
    plain = gen.with_params(gen.params)
    assert plain.precision is None and not plain.codes
    assert plain.weight().tobytes() == gen.weight().tobytes()
    assert plain.nbytes == plain.num_params * np.dtype(gen.dtype).itemsize
    assert all(x.tobytes() == gen.stored[k].tobytes() for k, x in plain.stored.items())


def test_copies(gen: adtn.Generator) -> None:
    for other in (pickle.loads(pickle.dumps(gen)), copy.deepcopy(gen), from_bytes(to_bytes(gen))):
        assert same_codes(other, gen) and other.weight().tobytes() == gen.weight().tobytes()
        assert not any(codes.data.flags.writeable for codes in other.codes.values())


def test_nothing_decoded_is_cached() -> None:
    gen = rounded("dense", Precision("int4", 16))
    x = np.ones((3, 50), np.float32)
    for mode in (None, "materialise"):
        gen.apply(x, mode=mode)  # type: ignore[arg-type]
    assert not len(gen._weights) and not gen._placed.get(("numpy:cpu", "float32"), lambda: {"nothing": x})
    assert gen.params["weight"] is not gen.params["weight"]


def test_errors_of_rounding() -> None:
    gen = GENERATORS["dense"]()
    with pytest.raises(GeneratorError, match=r"hessians of \['wieght'\]; expected some of \['weight'\]"):
        gen.rounded(Precision("int4"), {"wieght": np.eye(50)})
    with pytest.raises(GeneratorError, match="Cannot round the core 'weight': Got a hessian of shape"):
        gen.rounded(Precision("int4"), {"weight": np.eye(40)})
    with pytest.raises(GeneratorError, match="precision='int4'; expected a Precision"):
        gen.rounded("int4")  # type: ignore[arg-type]
    with pytest.raises(GeneratorError, match="expected those of"):
        gen.with_codes(Precision("int4"), {})
    with pytest.raises(GeneratorError, match=r"expected the shape \(40, 50\) in int4"):
        gen.with_codes(Precision("int4"), {"weight": Codes.blank((40, 50), Precision("int8"))})
    broken = gen.with_params({"weight": np.full((40, 50), np.nan)})
    with pytest.raises(GeneratorError, match="NaN or infinite"):
        broken.rounded(Precision("int4"))


def test_hessians_make_products_better() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 8)) @ rng.standard_normal((8, 50)) + 0.1 * rng.standard_normal((400, 50))
    gen = GENERATORS["dense"]()
    want, precision = x @ gen.weight().T, Precision("int3", 25)
    plain = gen.rounded(precision)
    better = plain.with_params(gen.params).rounded(precision, {"weight": x.T @ x})
    assert relative_error(x @ better.weight().T, want) < 0.5 * relative_error(x @ plain.weight().T, want)
    assert better.nbytes == plain.nbytes


def test_row_hessians_make_low_rank_products_better() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 8)) @ rng.standard_normal((8, 50)) + 0.1 * rng.standard_normal((400, 50))
    gen, precision = adtn.Generator((40, 50), adtn.TT(bond=12), layout=WHOLE), Precision("int4", 25)
    want = x @ gen.weight().T
    inner = gen.rounded(precision, {"site1": x.T @ x})
    kernel = inner.params["site1"]
    outer = gen.rounded(precision, {"site1": x.T @ x}, row_hessians={"site0": kernel @ (x.T @ x) @ kernel.T})
    errors = [relative_error(x @ g.weight().T, want) for g in (gen.rounded(precision), inner, outer)]
    assert errors[2] < 0.95 * errors[1] < 0.9 * errors[0]
    assert rounded_bytes(gen.topology, gen.layout, precision) == outer.nbytes


def test_fits_start_from_decoded_values() -> None:
    gen = rounded("ttn", Precision("int4"))
    solution = adtn.fit(gen, GENERATORS["ttn"]().weight(), steps=5, progress=False)
    assert solution.generator.precision is None and solution.relative_error < 0.5


# --- every framework ---


def test_weights_on_every_device(gen: adtn.Generator, device: str) -> None:
    for key, x in gen.arrays(device, "float32").items():
        if key in gen.codes:
            assert np.array_equal(to_numpy(x), gen.codes[key].decode())
    assert relative_error(to_numpy(gen.weight(device, "float32")), gen.weight()) < 1e-5


def torch_cores(gen: adtn.Generator) -> Any:
    layers = pytest.importorskip("adtn_backends.torch")
    return layers.GeneratedWeight(gen)


def jax_cores(gen: adtn.Generator) -> Any:
    pytest.importorskip("flax")
    return pytest.importorskip("adtn_backends.jax").GeneratedWeight(gen)


@pytest.mark.parametrize("cores", [torch_cores, jax_cores])
def test_layers_decode_the_same_bits(gen: adtn.Generator, cores: Any) -> None:
    weight = cores(gen)
    arrays = {key: to_numpy(x) for key, x in weight.arrays().items()}
    assert all(np.array_equal(arrays[key], codes.decode()) for key, codes in gen.codes.items())
    assert same_codes(weight.generator(), gen)
    assert relative_error(to_numpy(weight()), gen.weight()) < 1e-5


def linear_layers(gen: adtn.Generator) -> dict[str, Any]:
    numpy = pytest.importorskip("adtn_backends.numpy")
    found: dict[str, Any] = {"numpy": numpy.ADTNLinear(gen)}
    for name in ("torch", "jax"):
        pytest.importorskip("flax" if name == "jax" else name)
        found[name] = pytest.importorskip(f"adtn_backends.{name}").ADTNLinear(gen, False)
    return found


@pytest.mark.parametrize("batch", [1, 70])
@pytest.mark.parametrize("kind", ["dense", "mpo", "tucker", "ttn", "given"])
def test_linear_layers(kind: str, batch: int) -> None:
    gen = rounded(kind, Precision("int4", 16))
    x = np.random.default_rng(0).standard_normal((batch, gen.shape[1])).astype(np.float32)
    want = x @ gen.weight().astype(np.float32).T
    for name, layer in linear_layers(gen).items():
        if name == "numpy":
            assert relative_error(layer(x), want) < 1e-5
        elif name == "torch":
            import torch

            layer = layer.to(torch.float32)
            assert relative_error(layer(torch.tensor(x)).numpy(), want) < 1e-5
        else:
            from flax import nnx

            assert relative_error(layer(x), want) < 1e-5
            assert relative_error(nnx.jit(lambda layer, x: layer(x))(layer, x), want) < 1e-5


@pytest.mark.parametrize("axes", [1, 2])
def test_convolutions(axes: int) -> None:
    torch, numpy = pytest.importorskip("torch"), pytest.importorskip("adtn_backends.numpy")
    from adtn_backends import torch as layers

    shape = (8, 4, 3, 3)[: 2 + axes]
    gen = adtn.Generator(shape, adtn.TTN(bond=4)).rounded(Precision("int4"))
    x = np.random.default_rng(0).standard_normal((2, 4, 7, 7)[: 2 + axes]).astype(np.float32)
    conv = (torch.nn.functional.conv1d, torch.nn.functional.conv2d)[axes - 1]
    want = conv(torch.tensor(x), torch.tensor(gen.weight()))
    assert relative_error(getattr(layers, f"ADTNConv{axes}d")(gen, False)(torch.tensor(x)), to_numpy(want)) < 1e-5
    layer = getattr(numpy, f"ADTNConv{axes}d")(gen)
    assert relative_error(layer(x), to_numpy(want)) < 1e-5 and "_cached" not in vars(layer)


def test_embeddings() -> None:
    torch, numpy = pytest.importorskip("torch"), pytest.importorskip("adtn_backends.numpy")
    from adtn_backends import torch as layers

    gen = rounded("mpo", Precision("int4", 16))
    index = np.array([[0, 31, 7], [7, 2, 2]])
    layer = numpy.ADTNEmbedding(gen)
    assert np.array_equal(layer(index), gen.weight()[index]) and "_cached" not in vars(layer)
    for some in (index, np.arange(32)):
        got = layers.ADTNEmbedding(gen)(torch.tensor(some))
        assert relative_error(got, gen.weight()[some]) < 1e-5


def test_attention() -> None:
    torch = pytest.importorskip("torch")
    from adtn_backends import torch as layers

    dense = torch.nn.MultiheadAttention(32, 4, batch_first=True)
    parts = [adtn.Generator(shape, adtn.MPO(bond=4)).rounded(Precision("int4", 16)) for shape in ((96, 32), (32, 32))]
    layer = layers.ADTNMultiheadAttention.of(dense, *map(layers.GeneratedWeight, parts))
    x = torch.randn(2, 5, 32)
    want = layer.to_dense()
    assert not want.in_proj_weight.requires_grad and want.in_proj_bias.requires_grad
    assert torch.allclose(layer(x, x, x)[0], want(x, x, x)[0], atol=1e-5)


# --- modules ---


def torch_linear(precision: Precision = INT4, kind: str = "dense") -> Any:
    layers = pytest.importorskip("adtn_backends.torch")
    return layers.ADTNLinear(rounded(kind, precision))


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_modules_of_torch(precision: Precision) -> None:
    layer = torch_linear(precision)
    import torch

    assert [name for name, _ in layer.named_parameters()] == ["bias"]
    state = layer.state_dict()
    assert sorted(state) == ["bias", "generated.codes_weight"] and state["generated.codes_weight"].dtype == torch.uint8
    assert state["generated.codes_weight"].numel() == rounded("dense", precision).nbytes
    layer(torch.zeros(3, 50))
    held = {id(t): t.nbytes for m in layer.modules() for t in vars(m).values() if isinstance(t, torch.Tensor)}
    assert not held and (precision.is_coded or layer.generated._cache is None), "nothing decoded stays"
    want = layer.weight
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(buffer, weights_only=False)):
        assert torch.equal(other.weight, want)
    blank = GENERATORS["dense"]().with_params({"weight": np.zeros((40, 50))}).rounded(precision)
    other = type(layer)(blank)
    other.load_state_dict(state)
    assert torch.equal(other.weight, want) and same_codes(other.generated.generator(), rounded("dense", precision))
    with torch.device("meta"):
        meta = type(layer)(blank).to("meta")
    meta.load_state_dict(state, assign=True)
    assert torch.equal(meta.weight, want) and meta.weight.device.type == "cpu"


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_conversions_keep_the_codes(dtype: str) -> None:
    layer = torch_linear(Precision("int3", 20), "ttn")
    import torch

    kind = getattr(torch, dtype)
    moved = copy.deepcopy(layer).to(kind)
    assert moved.weight.dtype is kind and moved.bias.dtype is kind
    assert same_codes(moved.generated.generator(), layer.generated.generator())
    assert relative_error(moved.weight.double(), layer.weight.double()) < 0.05
    assert moved(torch.zeros(2, 32, dtype=kind)).dtype is kind
    assert torch.equal(moved.to(torch.float64).weight, layer.to(torch.float64).weight)


def test_what_trains_is_what_is_left() -> None:
    layer = torch_linear()
    import torch

    x, y = torch.randn(16, 50), torch.randn(16, 40)
    before, optimizer = layer.weight.clone(), torch.optim.SGD(layer.parameters(), 0.1)
    first = torch.nn.functional.mse_loss(layer(x), y)
    first.backward()
    optimizer.step()
    assert torch.nn.functional.mse_loss(layer(x), y) < first and torch.equal(layer.weight, before)
    assert not layer.generated.trains and not layer.to_dense().weight.requires_grad
    x.requires_grad_()
    layer(x).sum().backward()
    assert torch.allclose(x.grad, before.sum(0).expand(16, -1), atol=1e-4)


@pytest.mark.parametrize("kind", ["linear", "mpo", "conv"])
def test_autograd_keeps_nothing_decoded(kind: str) -> None:
    torch = pytest.importorskip("torch")
    from adtn_backends import torch as layers

    if kind == "conv":
        layer = layers.ADTNConv2d(adtn.Generator((8, 4, 3, 3), adtn.TTN(bond=4)).rounded(INT4), padding=1)
        x = torch.randn(2, 4, 6, 6, requires_grad=True)
    else:
        layer = layers.ADTNLinear(rounded("dense" if kind == "linear" else kind, INT4))
        x = torch.randn(2, layer.in_features, requires_grad=True)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        y = layer(x)
    assert sum(kept) <= 2 * x.numel(), "the input, but no weight"
    y.square().sum().backward()
    got, x.grad = x.grad, None
    layer.to_dense()(x).square().sum().backward()
    assert torch.allclose(got, x.grad, atol=1e-3)


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`:UserWarning")
@pytest.mark.parametrize(("kind", "precision"), [("dense", Precision("int3", 20)), ("mpo", INT4)])
def test_compilers_make_one_graph(kind: str, precision: Precision) -> None:
    layer = torch_linear(precision, kind)
    import torch

    x = torch.randn(5, layer.in_features)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x), layer(x), atol=1e-5)
    exported = torch.export.export(layer, (x,))
    assert torch.allclose(exported.module()(x), layer(x), atol=1e-5)
    functional = torch.func.functional_call(layer, {**dict(layer.named_parameters()), **dict(layer.named_buffers())}, x)
    assert torch.allclose(functional, layer(x), atol=1e-5)


def test_modules_of_flax() -> None:
    nnx = pytest.importorskip("flax.nnx")
    import jax.numpy as jnp

    from adtn_backends.jax import ADTNLinear
    from adtn_backends.jax._model import NnxModel

    gen = rounded("dense", INT4)
    layer = ADTNLinear(gen)
    params = nnx.state(layer, nnx.Param)
    assert [path for path, _ in nnx.to_flat_state(params)] == [("bias",)]
    grads = nnx.grad(lambda layer: (layer(jnp.ones((2, 50))) ** 2).sum())(layer)
    assert [path for path, _ in nnx.to_flat_state(grads)] == [("bias",)]
    small = copy.deepcopy(layer)
    small.generated.astype(jnp.bfloat16)
    assert small.weight.dtype == jnp.bfloat16 and same_codes(small.generated.generator(), gen)
    other = ADTNLinear(GENERATORS["dense"]().with_params({"weight": np.zeros((40, 50))}).rounded(INT4))
    nnx.update(other, nnx.state(layer))
    assert np.array_equal(other.weight, layer.weight)
    assert NnxModel(layer, None).sizes() == (2040, gen.nbytes + 160)


def test_inspect_shows_the_precision(tmp_path: Any) -> None:
    from adtn.cli import app
    from typer.testing import CliRunner

    adtn.save(tmp_path / "g.safetensors", rounded("dense", INT4))
    text = CliRunner().invoke(app, ["inspect", str(tmp_path / "g.safetensors")]).output
    assert "int4/16, decoded to float32" in text and "bits each" in text
    assert f"parameters {rounded('dense', Precision('int4', 16)).nbytes:,} bytes" in text
    assert json.loads(json.dumps(INT4.to_json())) == {"format": "int4", "group": 16, "along": "longer"}
