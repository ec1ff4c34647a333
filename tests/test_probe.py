"""Values on the bonds of generated layers for an input, and changes of them, in models of PyTorch and Flax."""

from __future__ import annotations

from typing import Any

import adtn
import numpy as np
import pytest
from adtn.errors import TopologyError

pytest.importorskip("torch")
pytest.importorskip("flax")

import jax
import torch
from flax import nnx

import adtn_backends.jax as of_jax
import adtn_backends.torch as of_torch

TOPOLOGIES: dict[str, adtn.Topology] = {
    "TTN": adtn.TTN(bond=3, activation=None),
    "TTN, SiLU": adtn.TTN(bond=3),
    "MPO": adtn.MPO(bond=4),
    "ring": adtn.TensorRing(bond=3),
    "Tucker": adtn.Tucker(bond=3),
    "CP": adtn.CP(bond=4),
    "low rank": adtn.LowRank(bond=4),
    "aTTN": adtn.ATTN(bond=2),
    "MERA": adtn.MERA(bond=2, activation=None),
    "brick wall": adtn.BrickWall(layers=2),
}
SHAPE = (60, 35)  # with padding in some layouts


def generator(name: str, shape: tuple[int, ...] = SHAPE, **options: Any) -> adtn.Generator:
    return adtn.Generator(shape, TOPOLOGIES[name], seed=3, dtype="float64", **options)


def rows(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def torch_layer(gen: adtn.Generator, **options: Any) -> Any:
    return of_torch.ADTNLinear(gen, **options).double()


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_linear_layers_compute_the_same(name: str) -> None:
    order = np.random.default_rng(1).permutation(SHAPE[1])
    gen = generator(name, permutations=[None, order])
    layer, x = torch_layer(gen, bias=rows((SHAPE[0],), 5)), torch.tensor(rows((2, 3, SHAPE[1])), requires_grad=True)
    with adtn.probe(layer) as found:
        y = layer(x)
        assert {bond.removeprefix("bonds.") for bond in found} == set(layer.bonds)
    exact = layer(x)
    assert torch.allclose(y, exact, rtol=1e-12, atol=1e-12)
    for name, value in found.items():
        assert value.shape[:2] == (2, 3) and value.ndim == 4, name
    cotangent = torch.tensor(rows((2, 3, SHAPE[0]), 7))
    parameters = [x, *layer.parameters()]
    for a, b in zip(*(torch.autograd.grad(out, parameters, cotangent) for out in (y, exact)), strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_frameworks_find_the_same(name: str) -> None:
    gen, x = generator(name), rows((4, SHAPE[1])).astype(np.float32)
    layer, other = of_torch.ADTNLinear(gen).float(), of_jax.ADTNLinear(gen)
    with adtn.probe(layer) as found, adtn.probe(other) as same, torch.no_grad():
        y, z = layer(torch.tensor(x)), other(jax.numpy.asarray(x))
    assert np.allclose(y, z, rtol=1e-4, atol=1e-5) and list(found) == list(same)
    for bond in found:
        scale = float(found[bond].abs().max())
        assert np.allclose(found[bond], same[bond], rtol=1e-4, atol=1e-4 * scale)


def test_bonds_between_inputs_and_outputs_have_one_vector_per_sample() -> None:
    gen, x = generator("low rank"), rows((5, SHAPE[1]))
    layer = torch_layer(gen)
    with adtn.probe(layer, "bonds.r") as found, torch.no_grad():
        layer(torch.tensor(x))
    (value,) = found.values()
    assert value.shape == (5, 1, 4)
    # the weight is a product of what is left and of what is on the bond
    basis = np.linalg.lstsq(value[:, 0].numpy(), x @ np.asarray(gen.weight()).T, rcond=None)
    assert np.allclose(value[:, 0].numpy() @ basis[0], x @ np.asarray(gen.weight()).T)


@pytest.mark.parametrize("name", ["TTN", "TTN, SiLU", "MPO", "ring", "brick wall"])
def test_projections_take_away_what_is_on_a_bond(name: str) -> None:
    """Compare projections on a bond with the network in which its index is restricted."""
    gen, x = generator(name), rows((5, SHAPE[1]))
    layer = torch_layer(gen, bias=False)
    with adtn.probe(layer) as found, torch.no_grad():
        layer(torch.tensor(x))
    for full in found:
        bond, size = full.removeprefix("bonds."), found[full].shape[-1]
        kept = np.diag(np.arange(size) < size - 1).astype(float)
        with adtn.probe(layer, patch={full: torch.tensor(kept)}) as patched, torch.no_grad():
            y = layer(torch.tensor(x))
        assert not patched[full][..., -1].any()
        *_, last = gen.networks()
        first = next(iter(last.ind_map[bond]))
        tensor = last.tensor_map[first]
        changed = last.copy()
        at = tensor.inds.index(bond)
        data = np.moveaxis(np.moveaxis(tensor.data, at, -1) @ kept, -1, at)
        changed.tensor_map[first].modify(data=data)
        if changed.outer_inds() != last.outer_inds():  # pragma: no cover
            pytest.fail("the oracle has other indices")
        state = changed.contract(output_inds=gen.segments[-1].outputs, optimize="greedy").data
        if gen.segments[-1].inputs:
            continue  # the oracle has no incoming state
        weight = gen.weighting.from_state(state, {})
        assert np.allclose(y, x @ weight.T, rtol=1e-10, atol=1e-10)


CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "padding": {"padding": 1},
    "stride": {"padding": 2, "stride": 2},
    "dilation": {"dilation": 2},
    "groups": {"groups": 2, "padding": 1},
    "circular": {"padding": 1, "padding_mode": "circular"},
    "same": {"padding": "same"},
}


@pytest.mark.parametrize("options", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
@pytest.mark.parametrize("axes", [1, 2])
def test_convolutions_compute_the_same(axes: int, options: dict[str, Any]) -> None:
    groups = options.get("groups", 1)
    gen = adtn.Generator((8, 6 // groups, *(3,) * axes), adtn.TTN(bond=2), seed=3, dtype="float64")
    image = rows((2, 6, *(9, 8)[:axes]))
    layer = {1: of_torch.ADTNConv1d, 2: of_torch.ADTNConv2d}[axes](gen, rows((8,)), **options).double()
    with torch.no_grad():
        exact = layer(torch.tensor(image))
        with adtn.probe(layer) as found:
            assert torch.allclose(layer(torch.tensor(image)), exact)
            assert torch.allclose(layer(torch.tensor(image[0])), exact[0])
    assert found
    if options.get("padding") == "same":
        options = {"padding": "SAME"}
    flax = {1: of_jax.ADTNConv1d, 2: of_jax.ADTNConv2d}[axes](gen, rows((8,)), **options)
    moved = jax.numpy.asarray(np.moveaxis(image, 1, -1), jax.numpy.float32)
    with adtn.probe(flax):
        y = flax(moved)
    assert np.allclose(np.moveaxis(np.asarray(y), -1, 1), exact, atol=1e-4)


@pytest.mark.parametrize("bias_kv", [False, True])
def test_attention_computes_the_same(bias_kv: bool) -> None:
    torch.manual_seed(0)
    dense = torch.nn.MultiheadAttention(16, 4, batch_first=True, add_bias_kv=bias_kv)
    layer = of_torch.ADTNMultiheadAttention.from_attention(dense, adtn.TTN(bond=2)).eval()
    x, other = torch.randn(2, 7, 16), torch.randn(2, 5, 16)
    mask = torch.tensor([[False] * 5, [False, False, False, True, True]])
    for inputs, options in (
        ((x, x, x), {}),
        ((x, other, other), {"key_padding_mask": mask}),
        ((x, other, x[:, :5]), {}),
    ):
        with torch.no_grad():
            exact = layer(*inputs, **options)
            with adtn.probe(layer) as found:
                own = layer(*inputs, **options)
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(exact, own, strict=True))
        assert {name.split(".")[1] for name in found} == {"in_proj", "out_proj"}


def model() -> Any:
    return torch.nn.Sequential(
        torch_layer(generator("TTN")),
        torch.nn.ReLU(),
        torch_layer(adtn.Generator((10, 60), adtn.MPO(bond=3), seed=1, dtype="float64")),
    )


def test_bonds_are_modules_with_hooks() -> None:
    net, x = model(), torch.tensor(rows((4, SHAPE[1])))
    seen: list[tuple[int, ...]] = []
    keys = list(net.state_dict())
    with adtn.probe(net, "0.bonds.*") as found, torch.no_grad():
        point = net.get_submodule(found.names[0])
        handle = point.register_forward_hook(lambda module, args, value: seen.append(tuple(value.shape)) or 2.0 * value)
        y = net[0](x)
        handle.remove()
        assert torch.allclose(y, 2.0 * net[0](x))
        assert not hasattr(net[2], "bonds") and list(net.state_dict()) == keys
        assert "BondPoint(3)" in repr(net)
        kept = net[0].forward  # as tools do that wrap it
    assert seen == [tuple(found[found.names[0]].shape)] and len(found.calls(found.names[0])) == 2
    assert not hasattr(net[0], "bonds") and "forward" not in vars(net[0])
    assert torch.allclose(kept(x), net[0](x))


def test_functions_change_what_is_on_bonds() -> None:
    net, x = model(), torch.tensor(rows((4, SHAPE[1])))
    with torch.no_grad():
        with adtn.probe(net, "2.*", patch={"2.bonds.b0": lambda value: value.flip(0)}):
            y = net(x)
        assert torch.allclose(y, net(x.flip(0)).flip(0)[[0, 1, 2, 3]].flip(0))


def test_flax_finds_what_is_on_bonds_in_compiled_calls() -> None:
    layer, x = of_jax.ADTNLinear(generator("TTN")), jax.numpy.ones((3, SHAPE[1]))
    call = nnx.jit(lambda layer, x: layer(x))
    exact = layer(x)
    with adtn.probe(layer, patch={"bonds.*": lambda value: 1.0 * value}) as found:
        for factor in (1.0, 2.0):
            y = call(layer, factor * x)
            first = found[found.names[0]]
            assert np.allclose(y - layer.bias[...], factor * (exact - layer.bias[...]), rtol=1e-5, atol=1e-6)
        layer(x)
        assert np.allclose(first, 2.0 * found[found.names[0]], rtol=1e-5)
    assert type(layer) is of_jax.ADTNLinear and not any(key.startswith("bonds") for key in vars(layer))
    assert len(found) == len(found.names)


def test_layers_without_bonds_say_why() -> None:
    gen = adtn.Generator((20, 35), adtn.TTN(bond=2))
    with adtn.probe(of_torch.ADTNLinear(gen)) as found:
        pass
    assert len(found) == 0 and found.names
    with pytest.raises(KeyError, match=r"'bonds.b0'; expected one of bonds\."):
        found["bonds.b0"]
    with pytest.raises(KeyError, match="not passed, or not seen. Call the model inside the block"):
        found[found.names[0]]
    layer = of_torch.ADTNLinear(gen)
    recurrent = of_torch.parametrized(torch.nn.RNN(35, 20), {"weight_ih_l0": of_torch.GeneratedWeight(gen)})
    net = torch.nn.ModuleList([layer, layer, recurrent, of_torch.GeneratedWeight(gen)])
    assert adtn.probe(net).skipped == {
        "1": "the same layer as 0",
        "2": "ParametrizedRNN runs its own code with generated weights",
        "3": "this weight is read outside of a generated layer",
    }
    flax = nnx.List([of_jax.ADTNLinear(gen), of_jax.GeneratedWeight(gen)])
    assert adtn.probe(nnx.Dict(layers=flax)).skipped == {"layers.1": "this weight is read outside of a generated layer"}
    with pytest.raises(TopologyError, match=r"none of the 0 bonds.*Without bonds for inputs: 0: ParametrizedRNN runs"):
        adtn.probe(torch.nn.Sequential(recurrent))


@pytest.mark.parametrize(
    ("names", "patch", "match"),
    [
        ("0.bonds.b", None, r"'0.bonds.b', which fits none of the \d+ bonds.*0\.bonds\.b"),
        ("*", {"1.*": torch.eye(3)}, "'1.*', which fits none"),
        ("*", {"0.bonds.*": torch.eye(2)}, r"shape \(2, 2\) for '0.bonds..*'; expected \(3, 3\)"),
    ],
)
def test_wrong_names_and_patches_are_refused(names: str, patch: Any, match: str) -> None:
    net = model()
    with pytest.raises(TopologyError, match=match):
        adtn.probe(net, names, patch)
    assert not hasattr(net[0], "bonds")


def test_probes_are_opened_once() -> None:
    net = model()
    with adtn.probe(net) as found:
        with pytest.raises(TopologyError, match="open already"), found:
            pass
        with pytest.raises(TopologyError, match="Another probe is open in 0"), adtn.probe(net):
            pass
        assert hasattr(net[2], "bonds")
    flax = of_jax.ADTNLinear(generator("TTN"))
    with adtn.probe(flax), pytest.raises(TopologyError, match="Another probe"), adtn.probe(flax):
        pass
    with pytest.raises(TopologyError, match="Got a int"):
        adtn.probe(3)
    with pytest.raises(TopologyError, match="compiled"):
        adtn.probe(torch.compile(net, backend="eager"))


class Tripled(of_torch.ADTNLinear):
    """A layer that computes something else."""

    def forward(self, input: Any) -> Any:
        return 3.0 * super().forward(input)


class TripledInFlax(of_jax.ADTNLinear):
    """A layer that computes something else."""

    def __call__(self, inputs: Any, out_sharding: Any = None) -> Any:
        return 3.0 * super().__call__(inputs, out_sharding)


def test_layers_that_compute_something_else_are_left_alone() -> None:
    x = torch.tensor(rows((4, SHAPE[1])))
    wrapped = torch_layer(generator("TTN"))
    plain = wrapped.forward
    wrapped.forward = lambda x: plain(x) + 100.0
    net = torch.nn.ModuleList([Tripled(generator("TTN")).double(), wrapped, torch_layer(generator("MPO"))])
    exact = [layer(x) for layer in net]
    with adtn.probe(net) as found:
        assert all(torch.allclose(layer(x), y) for layer, y in zip(net, exact, strict=True))
    assert all(torch.allclose(layer(x), y) for layer, y in zip(net, exact, strict=True))
    assert set(found.skipped) == {"0", "1"} and "was replaced" in found.skipped["1"]
    assert {name.split(".")[0] for name in found} == {"2"}
    with pytest.raises(TopologyError, match="the call of this TripledInFlax was replaced"):
        adtn.probe(TripledInFlax(generator("TTN")))


def test_patches_that_return_something_else_are_refused_and_leave_the_model_as_it_was() -> None:
    for layer, x in (
        (torch_layer(generator("TTN")), torch.tensor(rows((4, SHAPE[1])))),
        (of_jax.ADTNLinear(generator("TTN")), jax.numpy.ones((4, SHAPE[1]))),
    ):
        exact = layer(x)
        for patch in (lambda value: value.reshape(-1), lambda value: value[..., :1]):
            with (
                pytest.raises(TopologyError, match="expected the shape of what is on the bond"),
                adtn.probe(layer, patch={"bonds.b1_0": patch}),
            ):
                layer(x)
            assert np.allclose(_host(layer(x)), _host(exact))
    nothing = adtn.probe(layer, patch={"bonds.b1_0": lambda value: None})
    with pytest.raises(TopologyError, match="Got NoneType"), nothing:
        layer(x)
    with adtn.probe(layer):
        assert np.allclose(_host(layer(x)), _host(exact), atol=1e-5)


def _host(x: Any) -> np.ndarray:
    return np.asarray(x.detach() if isinstance(x, torch.Tensor) else x)


def test_matrices_of_numpy_are_patches_and_autocast_keeps_its_dtype() -> None:
    layer, x = (
        of_torch.ADTNLinear(generator("low rank")).float(),
        torch.tensor(rows((4, SHAPE[1])), dtype=torch.float32),
    )
    with adtn.probe(layer, patch={"bonds.r": np.zeros((4, 4))}), torch.no_grad():
        assert torch.allclose(layer(x), layer.bias.expand(4, -1))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        plain = layer(x)
        with adtn.probe(layer):
            assert layer(x).dtype == plain.dtype == torch.bfloat16
        with adtn.probe(layer), pytest.raises(adtn.ADTNError, match="35"):
            layer(x[:, :7])
        with adtn.probe(layer):
            assert layer(x[:0]).shape == (0, SHAPE[0])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_masked_encoders_and_a_single_attention() -> None:
    torch.manual_seed(0)
    layers = torch.nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    encoder = torch.nn.TransformerEncoder(layers, 1).eval()
    config = adtn.Config(topology=adtn.MPO(bond=4), recipe="closed-form", largest_error=1.0)
    with pytest.warns(adtn.errors.QualityWarning):
        adtn.compress(encoder, config)
    x, mask = torch.randn(3, 7, 32), torch.zeros(3, 7, dtype=torch.bool)
    mask[1:, 5:] = True
    with torch.no_grad():
        exact = encoder(x, src_key_padding_mask=mask)
        with adtn.probe(encoder):
            found = encoder(x, src_key_padding_mask=mask)
    assert torch.allclose(exact[~mask], found[~mask], atol=1e-5)
    attention = encoder.layers[0].self_attn
    assert {name.split(".")[1] for name in adtn.probe(attention).names} == {"in_proj", "out_proj"}
