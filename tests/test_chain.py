"""Convolutions as chains of smaller ones: every topology and geometry against the convolution with the weight."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import adtn
import numpy as np
import pytest
from adtn import Generator, Layout, Permutation
from adtn.backends import get_backend
from adtn.errors import LayoutError, ScheduleError
from adtn.program import PARTS, Division
from adtn.schedule import Images, decide
from adtn.topology import sizes_of
from adtn.weight import chain_of

from adtn_backends.numpy import layers as numpy_layers
from adtn_backends.shared._geometry import Geometry
from table import usable

SHAPE, WHOLE = (12, 8, 3, 2), Layout.whole((12, 8, 3, 2))
NETWORKS: dict[str, Generator] = {
    "tucker": Generator(SHAPE, adtn.Tucker(bond=(5, 4, None, None)), layout=WHOLE),
    "cp": Generator(SHAPE, adtn.CP(bond=5), layout=WHOLE),
    "cp of legs": Generator(SHAPE, adtn.CP(bond=5)),
    "tt": Generator(SHAPE, adtn.TT(bond=4)),
    "mpo": Generator(SHAPE, adtn.MPO(bond=3), layout=Layout.of(SHAPE, 3, "interleaved")),
    "mpo of bond 1": Generator(SHAPE, adtn.MPO(bond=1), layout=Layout.of(SHAPE, 3, "interleaved")),
    "ring": Generator(SHAPE, adtn.TensorRing(bond=2)),
    "low rank": Generator(SHAPE, adtn.LowRank(bond=3)),
    "kronecker": Generator(SHAPE, adtn.KroneckerSum(terms=2)),
    "ttn": Generator(SHAPE, adtn.TTN(bond=3)),
    "ttn, linear": Generator(SHAPE, adtn.TTN(bond=3, activation=None)),
    "ttn, shared": Generator((16, 16, 3, 3), adtn.TTN(bond=2, share=True), layout=Layout.of((16, 16, 3, 3), 4)),
    "attn": Generator(SHAPE, adtn.ATTN(bond=3, noise=0.1)),
    "mera": Generator(SHAPE, adtn.MERA(bond=2, noise=0.1)),
    "padded": Generator((11, 7, 3, 2), adtn.TTN(bond=3), layout=Layout.of((11, 7, 3, 2), 2, exact=True, max_padding=9)),
    "permuted": Generator(SHAPE, adtn.TTN(bond=3), permutations=tuple(map(Permutation.random, SHAPE))),
    "one pixel": Generator((12, 8, 1, 1), adtn.TTN(bond=3)),
}
GEOMETRIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "strided": {"stride": 2, "padding": (1, 2), "dilation": (1, 2)},
    "circular": {"padding": 1, "padding_mode": "circular"},
}
SIZE = (6, 7)


def outputs_and_gradients(layer: Any, x: Any) -> list[np.ndarray]:
    """Return the output, and the gradients of the input and of all parameters in torch."""
    import torch

    x = torch.tensor(x, requires_grad=True)
    y = layer(x)
    weights = torch.linspace(-1.0, 1.0, y.numel(), dtype=y.dtype).reshape(y.shape)
    grads = torch.autograd.grad((y * weights).sum(), [x, *layer.parameters()])
    return [t.detach().numpy() for t in (y, *grads)]


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_chain_is_the_convolution_with_the_weight_in_torch(name: str, geometry: str) -> None:
    usable("torch")
    from adtn_backends.torch import ADTNConv2d

    gen = NETWORKS[name]
    chain, whole = (ADTNConv2d(gen, mode=mode, **GEOMETRIES[geometry]).double() for mode in ("factored", "materialise"))
    x = np.random.default_rng(0).normal(size=(3, gen.shape[1], *SIZE))
    for got, want in zip(outputs_and_gradients(chain, x), outputs_and_gradients(whole, x), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-11 * max(np.abs(want).max(), 1.0))


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("name", ["cp of legs", "mpo", "ttn", "padded", "permuted"])
def test_a_chain_is_the_convolution_with_the_weight_in_numpy(name: str, geometry: str) -> None:
    gen = NETWORKS[name]
    options: dict[str, Any] = GEOMETRIES[geometry]
    gen = Generator(gen.shape, gen.topology, layout=gen.layout, permutations=gen.permutations or None, dtype="float64")
    x = np.random.default_rng(0).normal(size=(3, gen.shape[1], *SIZE))
    bias = np.arange(float(gen.shape[0]))
    chain, whole = (numpy_layers.ADTNConv2d(gen, bias, mode=mode, **options) for mode in ("factored", "materialise"))
    for images in (x, x[:0]):
        np.testing.assert_allclose(chain(images), whole(images), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("geometry", ["strided", "same"])
@pytest.mark.parametrize("name", ["cp of legs", "mpo", "padded", "permuted"])
def test_a_chain_is_the_convolution_with_the_weight_in_jax(name: str, geometry: str) -> None:
    usable("jax")
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from adtn_backends.jax import ADTNConv2d

    gen = NETWORKS[name]
    options: dict[str, Any] = {**GEOMETRIES, "same": {"padding": "SAME", "stride": 2}}[geometry]
    layers = [ADTNConv2d(gen, mode=mode, **options) for mode in ("factored", "materialise")]
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, *SIZE, gen.shape[1])), jnp.float32)

    @nnx.jit
    def run(layer: Any, x: Any) -> Any:
        return layer(x), nnx.grad(lambda layer, x: jnp.sin(layer(x)).sum(), argnums=(0, 1))(layer, x)

    for got, want in zip(*(jax.tree.leaves(run(layer, x)) for layer in layers), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-5 * max(float(jnp.abs(want).max()), 1.0))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_parts_of_any_division_are_the_weight(name: str) -> None:
    """Contract the parts of divisions at random; those that are not possible are infinitely slow, and not chains."""
    gen = NETWORKS[name]
    rng, segments, weighting = np.random.default_rng(0), gen.segments, gen.weighting
    free = [c.name for c in segments[-1].cores if not any(i.startswith(("a2", "a3")) for i in c.inds)]
    x = rng.normal(size=(2, gen.shape[1], 5, 5))
    weight, tried = gen.weight(dtype="float64"), 0
    for _ in range(25):
        parts = {core.name: "kernel" for core in segments[-1].cores}
        parts |= {core: PARTS[rng.integers(3)] for core in free}
        d = Division(segments[-1], gen.layout, sizes_of(segments), parts)  # pyright: ignore[reportArgumentType]
        used = set(parts.values())
        if ("before" in used) != bool(d.before_in) or ("after" in used) != bool(d.after_out):
            continue
        if "kernel" not in used and not segments[-1].inputs:
            continue
        chain, tried = chain_of(d, segments, weighting, "float64"), tried + 1
        arrays = gen.arrays("numpy:cpu", "float64")
        plans = [decide(piece, "generate", device="numpy:cpu") for piece in chain.pieces]
        weights = [plan.materialised.on(get_backend("numpy")).weight(arrays) for plan in plans]
        for last in (False, True):
            given = np.moveaxis(x, 1, -1) if last else x
            y = chain(weights, given, lambda x, w, groups, last=last: convolved(x, w, groups, last), last=last)
            y = np.moveaxis(y, -1, 1) if last else y
            np.testing.assert_allclose(y, convolved(x, weight, 1, False), rtol=1e-10, atol=1e-12)
    assert tried >= 3


def convolved(x: np.ndarray, kernel: np.ndarray, groups: int, last: bool) -> np.ndarray:
    """Compute a convolution by windows and einsum, without padding."""
    x = np.moveaxis(x, -1, 1) if last else x
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[2:], axis=(2, 3))
    windows = windows.reshape(x.shape[0], groups, -1, *windows.shape[2:])
    grouped = kernel.reshape(groups, -1, *kernel.shape[1:])
    y = np.einsum("bgshwkl,gnskl->bgnhw", windows, grouped).reshape(x.shape[0], -1, *windows.shape[3:5])
    return np.moveaxis(y, 1, -1) if last else y


def test_what_has_no_chain_is_refused_with_the_reason() -> None:
    usable("torch")
    from adtn_backends.torch import ADTNConv2d

    shape = (8, 8, 3, 3)
    base = Generator(shape, adtn.TTN(bond=2), base=adtn.SeededBase(1))
    spatial = Generator(shape, adtn.LowRank(bond=2, split="spatial"), layout=Layout.whole(shape))
    activated = Generator(shape, adtn.TTN(bond=2, where="all"))
    with pytest.raises(ScheduleError, match="a base"):
        ADTNConv2d(base, mode="factored")
    with pytest.raises(ScheduleError, match="groups"):
        ADTNConv2d(Generator((8, 4, 3, 3), adtn.TTN(bond=2)), groups=2, mode="factored")
    with pytest.raises(ScheduleError, match="activation"):
        ADTNConv2d(activated, mode="factored")
    with pytest.raises(ScheduleError, match="leg of the window"):
        ADTNConv2d(spatial, mode="factored")
    with pytest.raises(LayoutError, match="mode"):
        ADTNConv2d(spatial, mode="stream")  # pyright: ignore[reportArgumentType]
    x = np.zeros((1, 8, 4, 4), np.float32)
    import torch

    for gen in (base, spatial, activated):  # by default, the weight is generated
        assert ADTNConv2d(gen)(torch.tensor(x)).shape == (1, 8, 2, 2)


def test_the_scheduler_divides_large_layers_and_leaves_small_ones_whole() -> None:
    def mode(shape: tuple[int, ...], topology: adtn.Topology, pixels: int, train: bool = True) -> str:
        task = "train" if train else "apply"
        return adtn.plan_convolution(Generator(shape, topology), task, batch=8, size=(1, pixels)).mode

    for topology in (adtn.TTN(bond=4), adtn.MERA(bond=4), adtn.MPO(bond=4)):
        assert mode((512, 512, 3, 3), topology, 64) == "factored"
    assert mode((512, 512, 3, 3), adtn.TTN(bond=4), 64, train=False) == "factored"
    assert mode((8, 8, 3, 3), adtn.TTN(bond=4), 1) == "materialise"
    assert mode((64, 64, 3, 3), adtn.LowRank(bond=64), 64) == "materialise"  # as many channels as before


def test_plans_are_made_for_ranges_of_sizes() -> None:
    sizes = [Images(batch=n, pixels_in=n, pixels_out=n, train=True).rounded for n in (0, 1, 5, 8, 9)]
    assert [s.batch for s in sizes] == [1, 1, 8, 8, 16]


@pytest.mark.parametrize("size", [(1, 1), (5, 4), (32, 31)])
@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1, "dilation": 2}, {"padding": (0, 3)}])
def test_the_size_of_an_output_is_predicted(size: tuple[int, int], options: dict[str, Any]) -> None:
    usable("torch")
    import torch

    predicted = Geometry.of((4, 3, 3, 2), **options).size_out(size)
    layer = torch.nn.Conv2d(3, 4, (3, 2), **options)
    try:
        assert predicted == tuple(layer(torch.zeros(1, 3, *size)).shape[2:])
    except RuntimeError:  # the image is smaller than the window
        assert min(predicted) == 1


def chained(name: str = "ttn", **options: Any) -> Any:
    """Make a layer of PyTorch that is always a chain."""
    usable("torch")
    from adtn_backends.torch import ADTNConv2d

    return ADTNConv2d(NETWORKS[name], padding=1, mode="factored", **options)


def test_images_may_be_single_or_none_or_have_their_channels_last() -> None:
    layer = chained("mpo")
    import torch

    whole = layer.to_dense()
    x = torch.randn(3, 8, *SIZE)
    with torch.no_grad():
        for images in (x, x[0], x[:0], x.to(memory_format=torch.channels_last), x.transpose(2, 3)):
            got, want = layer(images), whole(images)
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
            assert got.is_contiguous() or not images.is_contiguous()
        last = layer(x.to(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(RuntimeError, match="channels"):
        layer(x[:, :5])


def test_a_chain_works_under_transforms_and_autocast() -> None:
    layer = chained()
    import torch

    x = torch.randn(2, 3, 8, *SIZE)
    params = {name: p.detach() for name, p in layer.named_parameters()}

    def loss(params: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, params, (x,)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(params, x)
    layer(x[1]).square().sum().backward()
    for name, p in layer.named_parameters():
        torch.testing.assert_close(each[name][1], p.grad, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x[0]).dtype == layer.to_dense()(x[0]).dtype == torch.bfloat16


def test_a_layer_is_copied_and_sent_with_its_mode() -> None:
    layer = chained()
    import torch

    x = torch.randn(2, 8, *SIZE)
    want = layer(x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), want)
        assert "mode='factored'" in repr(other)
        with torch.no_grad():
            for p in other.parameters():
                p.mul_(0.5)
        assert not torch.equal(other(x), want)
    assert torch.equal(layer(x), want)


def test_parts_are_cached_without_gradients_until_a_core_changes() -> None:
    layer = chained()
    import torch

    x, calls = torch.randn(1, 8, *SIZE), []
    made = layer.generated.weight_of
    layer.generated.weight_of = lambda *given: calls.append(given) or made(*given)
    with torch.inference_mode():
        first = layer(x)
        count = len(calls)
        assert torch.equal(layer(x), first)
        assert len(calls) == count > 1
    with torch.no_grad():
        layer.generated.root.mul_(2.0)
        assert not torch.equal(layer(x), first)
        assert len(calls) == 2 * count
    layer(x).sum().backward()  # tensors of inference mode would refuse this
    assert len(calls) == 3 * count


def test_stored_codes_and_permuted_weights_are_chains_as_well() -> None:
    usable("torch")
    import torch

    from adtn_backends.torch import ADTNConv2d, GeneratedWeight

    x = torch.randn(2, 8, *SIZE)
    layer = ADTNConv2d(NETWORKS["ttn"].rounded(adtn.Precision("int8")), mode="factored")
    torch.testing.assert_close(layer(x), layer.to_dense()(x), rtol=1e-4, atol=1e-5)
    weight = GeneratedWeight(NETWORKS["ttn"])
    layer = ADTNConv2d(weight, bias=False, mode="factored")
    before = layer(x)
    order = Permutation.random(12)
    weight.permute(0, order)
    torch.testing.assert_close(layer(x), before[:, torch.tensor(order.array)])


def test_a_convolution_is_made_from_a_dense_one_with_a_mode() -> None:
    usable("torch")
    import torch

    from adtn_backends.torch import ADTNConv2d

    dense = torch.nn.Conv2d(8, 12, 3, padding=1)
    layer = ADTNConv2d.from_conv(
        dense, adtn.Tucker(bond=(12, 8, None, None)), Layout.whole((12, 8, 3, 3)), mode="factored"
    )
    assert layer.mode == "factored"
    assert layer(torch.zeros(1, 8, 4, 4)).shape == (1, 12, 4, 4)
