"""Generated layers of PyTorch in real use: no silent errors when parameters are written, copied or saved."""

from __future__ import annotations

import copy
import io
import threading
from collections.abc import Iterable
from typing import Any

import adtn
import numpy as np
import pytest
from adtn.errors import LayoutError
from adtn.weight import Materialised

from trust_torch import ADAPTERS, EMBEDDINGS, LAYERS, MERGED, TTN, Case, cores_of, gen, layers, nn, torch

# models of these tests are small and random: results are bad on purpose
pytestmark = pytest.mark.filterwarnings("ignore::adtn.errors.QualityWarning")


@pytest.fixture(params=LAYERS)
def case(request: pytest.FixtureRequest) -> Case:
    """Run a test with every layer."""
    return LAYERS[request.param]


def limited(error: type[Exception], reason: str, *names: str, among: Iterable[str] = LAYERS) -> list[Any]:
    """List the rows of the table; those that a framework does not support must fail, so that a change is noticed."""
    mark = pytest.mark.xfail(raises=error, reason=reason, strict=True)
    assert set(names) <= set(among)
    return [pytest.param(name, marks=[mark] * (name in names)) for name in among]


def fresh(layer: Any) -> Any:
    """Make a copy with empty caches."""
    twin = copy.deepcopy(layer)
    for module in twin.modules():
        if isinstance(module, layers.Adapted):
            module.unmerge()
    return twin


def close(got: Any, want: Any, factor: float = 1.0) -> None:
    """Compare up to rounding of float32, or of a merged weight."""
    torch.testing.assert_close(got, want, rtol=factor * 1e-4, atol=factor * 1e-5)


# --- 1. cached weights ---


def _scale(layer: Any) -> None:
    for p in cores_of(layer).values():
        p.data.mul_(1.5)


def _ema(layer: Any) -> None:
    for p in cores_of(layer).values():
        p.data.copy_(0.5 * p.data + 0.1)


def _numpy(layer: Any) -> None:
    for p in cores_of(layer).values():
        p.detach().numpy()[...] *= -0.5


def _vector(layer: Any) -> None:
    from torch.nn.utils import parameters_to_vector, vector_to_parameters

    own = list(cores_of(layer).values())
    vector_to_parameters(parameters_to_vector(own) * 0.7, own)


def _swapped(layer: Any) -> None:
    for p in cores_of(layer).values():
        p.data = p.data * 0.3


def _fused(layer: Any) -> None:
    own = list(cores_of(layer).values())
    optimizer = torch.optim.Adam(own, lr=0.1, fused=True)
    for p in own:
        p.grad = torch.ones_like(p)
    optimizer.step()


def _state(layer: Any) -> None:
    layer.load_state_dict({k: 0.9 * v if v.is_floating_point() else v for k, v in layer.state_dict().items()})


WRITES = {
    "data.mul_": _scale,
    "data.copy_": _ema,
    "numpy": _numpy,
    "vector": _vector,
    "data =": _swapped,
    "fused": _fused,
    "state": _state,
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("training", [False, True])
def test_the_weight_is_that_of_the_parameters_now(case: Case, write: str, training: bool) -> None:
    layer, x = case.layer().train(training), case.x()
    with torch.no_grad():
        before = layer(x)
        layer(x)
        WRITES[write](layer)
        after = layer(x)
        want = fresh(layer)(x)
        close(after, want)
        assert not torch.equal(before, after)
        close(layer(x), want)
    with torch.inference_mode():
        close(layer(x), want)
        WRITES[write](layer)
        close(layer(x), fresh(layer)(x))


@pytest.mark.parametrize("training", [False, True])
def test_without_a_change_inference_makes_a_weight_once(
    case: Case, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x = case.layer().train(training), case.x()
    made: list[Any] = []
    make = Materialised.weight
    monkeypatch.setattr(Materialised, "weight", lambda *a, **k: made.append(1) or make(*a, **k))
    with torch.no_grad():
        for _ in range(3):
            layer(x)
        n = len(made)
        for _ in range(3):
            layer(x)
    assert len(made) == n


def test_a_base_is_read_again_after_invalidate() -> None:
    layer = LAYERS["linear given base"].layer().eval()
    x = LAYERS["linear given base"].x()
    with torch.no_grad():
        layer(x)
        layer.generated.frozen_base.mul_(2.0)  # detected by its version
        close(layer(x), fresh(layer)(x))
        layer.generated.frozen_base.data.mul_(2.0)
        layer.generated.invalidate()
        close(layer(x), fresh(layer)(x))


# parametrized modules name their weights differently
@pytest.mark.parametrize("case", [name for name in LAYERS if name not in ("lstm", "gru", "experts")], indirect=True)
def test_a_weight_that_was_read_can_be_written_to(case: Case) -> None:
    layer, x = case.layer().eval(), case.x()
    owner = next(m for m in layer.modules() if hasattr(type(m), "weight") and hasattr(m, "generated"))
    with torch.no_grad():
        want = layer(x)
        owner.weight.data.zero_()
        close(layer(x), want)


def test_inside_cached_weights_weights_are_generated_once(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = case.layer().eval(), case.x()
    with torch.no_grad(), layers.cached_weights(layer):
        want = layer(x)
        monkeypatch.setattr(Materialised, "weight", lambda *a, **k: pytest.fail("a weight was generated"))
        close(layer(x), want)


# --- 2. parameters that are not parameters ---


def replica_of(module: Any) -> Any:
    """Make a replica as DataParallel does: copies as plain attributes, and no parameters."""
    twin = module._replicate_for_data_parallel()
    for name, p in module._parameters.items():
        if p is None:
            twin._parameters[name] = None
        else:
            setattr(twin, name, p * 1.0)
    for name, child in module._modules.items():
        if child is not None:
            twin._modules[name] = replica_of(child)
    return twin


def test_replicas_train_all_parameters(case: Case) -> None:
    layer, x = case.layer().train(), case.x()
    if "RNN" in str([type(m).__mro__ for m in layer.modules()]):
        layer.eval()
    names = list(cores_of(layer))
    want = torch.autograd.grad(layer(x).square().sum(), [cores_of(layer)[n] for n in names])
    got = torch.autograd.grad(replica_of(layer)(x).square().sum(), [cores_of(layer)[n] for n in names])
    for a, b in zip(got, want, strict=True):
        close(a, b)


def test_functional_calls_differentiate_what_they_are_given(case: Case) -> None:
    layer, x = case.layer(), case.x()
    names = list(cores_of(layer))
    want = torch.autograd.grad(layer(x).square().sum(), [cores_of(layer)[n] for n in names])
    layer.requires_grad_(False)
    given = {name: p.detach().clone().requires_grad_() for name, p in cores_of(layer).items()}
    found = torch.func.functional_call(layer, given, (x,))
    got = torch.autograd.grad(found.square().sum(), list(given.values()))
    for a, b in zip(got, want, strict=True):
        close(a, b)


# --- 3. second derivatives ---


@pytest.mark.parametrize(
    "case", limited(RuntimeError, "PyTorch cannot differentiate the gradient of a bag", "embedding bag"), indirect=True
)
def test_gradients_can_be_differentiated_again(case: Case) -> None:
    """Compare the derivative of a gradient's norm with central differences of first-order gradients."""
    layer, x = case.layer(torch.float64), case.x(torch.float64)
    own = list(cores_of(layer).values())
    inputs = own if case.integers else [x.requires_grad_(), *own]

    factor = torch.sin(1.0 + layer(x).detach())

    def norm(graph: bool) -> Any:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):  # differentiable twice
            y = layer(x)
            first = torch.autograd.grad((y * factor).sum() + (y**2).sum(), inputs, create_graph=graph)
        return sum((g**2).sum() for g in first)

    got = torch.autograd.grad(norm(True), own)
    generator = torch.Generator().manual_seed(0)
    way = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in own]
    slope = sum(float((g * d).sum()) for g, d in zip(got, way, strict=True))
    h, values = 1e-5, []
    for sign in (1.0, -1.0):
        for p, d in zip(own, way, strict=True):
            p.data.add_(d, alpha=sign * h)
        values.append(float(norm(False)))
        for p, d in zip(own, way, strict=True):
            p.data.sub_(d, alpha=sign * h)
    want = (values[0] - values[1]) / (2 * h)
    assert abs(slope - want) < 1e-5 * max(abs(want), 1.0)


# --- 4. embeddings ---


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", EMBEDDINGS)
def test_ids_are_those_of_a_dense_embedding(name: str, grad: bool) -> None:
    layer = EMBEDDINGS[name].layer()
    dense, n = layer.to_dense(), layer.num_embeddings
    with torch.set_grad_enabled(grad):
        for _ in range(3):  # rows, then a table
            for bad in ([-1], [n], [0, n + 3], [-n]):
                for dtype in (torch.int64, torch.int32):
                    with pytest.raises(IndexError):
                        dense(torch.tensor(bad, dtype=dtype))
                    with pytest.raises(IndexError):
                        layer(torch.tensor(bad, dtype=dtype))
            for ids in ([], [0, n - 1, 0], list(range(n))):
                for dtype in (torch.int64, torch.int32):
                    index = torch.tensor(ids, dtype=dtype)
                    close(layer(index), dense(index))
            with pytest.raises((LayoutError, RuntimeError)):
                layer(torch.tensor([1.0]))


@pytest.mark.parametrize("options", [{"padding_idx": -1}, {"padding_idx": 2}, {"scale_grad_by_freq": True}])
@pytest.mark.parametrize("ids", [[1, 1, 2, 63, 1], list(range(64)) * 2])
def test_gradients_of_rows_are_those_of_a_dense_embedding(options: dict[str, Any], ids: list[int]) -> None:
    made = layers.ADTNEmbedding(gen(64, 8), **options)
    dense = nn.Embedding(64, 8, **options)
    made = {
        "constructor": made,
        "from_embedding": layers.ADTNEmbedding.from_embedding(dense, TTN),
        "layer_like": layers._kinds.layer_like(dense, layers.GeneratedWeight(gen(64, 8))),
    }
    for how, layer in made.items():
        index = torch.tensor(ids)
        table = layer.generated().detach().requires_grad_()
        y = nn.functional.embedding(index, table, dense.padding_idx, scale_grad_by_freq=dense.scale_grad_by_freq)
        y.square().sum().backward()
        names = list(cores_of(layer).values())
        want = torch.autograd.grad(layer.generated(), names, table.grad)
        got = torch.autograd.grad(layer(index).square().sum(), names)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4, msg=how)
        assert layer.to_dense().padding_idx == dense.padding_idx
        assert layer.to_dense().scale_grad_by_freq == dense.scale_grad_by_freq


def test_layers_whose_behaviour_would_be_lost_are_refused() -> None:
    class Scaled(nn.Embedding):
        def forward(self, input: Any) -> Any:
            return 2.0 * super().forward(input)

    class Doubled(nn.Linear):
        def forward(self, input: Any) -> Any:
            return 2.0 * super().forward(input)

    class Half(nn.Conv2d):
        def forward(self, input: Any) -> Any:
            return 0.5 * super().forward(input)

    class Quiet(nn.MultiheadAttention):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs)[0]

    refused = {
        "max_norm": lambda: layers.ADTNEmbedding.from_embedding(nn.Embedding(30, 8, max_norm=1.0), TTN),
        "sparse": lambda: layers.ADTNEmbedding.from_embedding(nn.Embedding(30, 8, sparse=True), TTN),
        "Scaled": lambda: layers.ADTNEmbedding.from_embedding(Scaled(30, 8), TTN),
        "Doubled": lambda: layers.ADTNLinear.from_linear(Doubled(8, 8), TTN),
        "Half": lambda: layers.ADTNConv2d.from_conv(Half(8, 8, 3), TTN),
        "Quiet": lambda: layers.ADTNMultiheadAttention.from_attention(Quiet(8, 2), TTN),
        "row": lambda: layers.ADTNEmbedding(gen(30, 8), padding_idx=30),
        "rows": lambda: layers.ADTNEmbedding(gen(30, 8), padding_idx=-31),
    }
    for what, make in refused.items():
        with pytest.raises(LayoutError, match=r"Got .*expected|Got .*: "):
            make()
            pytest.fail(what)
    for dense in (nn.Embedding(30, 8, max_norm=1.0), nn.Embedding(30, 8, sparse=True)):
        with pytest.raises(LayoutError):
            layers.Adapted(dense).add("a", layers.GeneratedWeight(gen(30, 8)))
        model = nn.Sequential(dense, nn.Linear(8, 30))
        with pytest.raises(LayoutError):
            layers.add_adapter(model, {"0": gen(30, 8)})
        assert model[0] is dense


# --- 5. merged adapters ---


@pytest.mark.parametrize("name", MERGED)
def test_a_merged_adapter_is_saved_and_loaded_as_if_it_were_not(name: str) -> None:
    case = MERGED[name]
    layer, x = case.layer().eval(), case.x()
    with torch.no_grad():
        want = layer(x)
        other = ADAPTERS[name.replace("merged", "adapted")].layer().eval()
        for p in other.parameters():
            p.mul_(0.0)
        other.load_state_dict(layer.state_dict())  # saved merged, loaded unmerged
        close(other(x), want)
        for p in layer.parameters():
            p.add_(0.3)
        layer.load_state_dict(other.state_dict())  # loaded while merged
        assert layer.merged
        close(layer(x), want)
        layer.unmerge()
        close(layer(x), want)
        assert torch.equal(layer.base_layer.weight, other.base_layer.weight)
        layer.merge()
        base = torch.randn_like(layer.base_layer.weight)
        state = layer.base_layer.state_dict() | {"weight": base}
        layer.base_layer.load_state_dict(state)  # only the base
        other.base_layer.load_state_dict(state)
        close(layer(x), other(x))
        layer.unmerge()
        assert torch.equal(layer.base_layer.weight, base)
        layer.merge()
        layer.base_layer.weight.data.mul_(0.5)  # an optimizer writes while it is merged
        want = layer(x)
        layer.unmerge()
        close(layer(x), want, 10.0)


@pytest.mark.parametrize("name", MERGED)
def test_training_merged_adapters_equals_training_unmerged_ones(name: str) -> None:
    merged, beside = MERGED[name].layer().train(), ADAPTERS[name.replace("merged", "adapted")].layer().train()
    x = MERGED[name].x()
    for layer in (merged, beside):
        optimizer = torch.optim.SGD(layer.adapters.parameters(), lr=1e-4)
        for _ in range(3):
            optimizer.zero_grad()
            layer(x).square().sum().backward()
            optimizer.step()
    for a, b in zip(merged.adapters.parameters(), beside.adapters.parameters(), strict=True):
        close(a, b, 10.0)
    with torch.no_grad():
        close(merged(x), beside(x), 10.0)
        merged.unmerge()
        assert torch.equal(merged.base_layer.weight, beside.base_layer.weight)


def test_adapters_of_pruned_layers_are_applied_separately_and_removed_all_or_none() -> None:
    from torch.nn.utils import prune

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 24), nn.Linear(24, 16)).eval()
    prune.l1_unstructured(model[1], "weight", 0.5)
    layers.add_adapter(model, {"0": gen(24, 24), "1": gen(16, 24)})
    x = torch.randn(3, 24)
    with torch.no_grad():
        want = model(x)
        layers.merge_adapters(model)
        close(model(x), want)
        first = model[0].base_layer.weight.clone()
        with pytest.raises(adtn.errors.CompressError, match="computed"):
            layers.remove_adapters(model)
        assert torch.equal(model[0].base_layer.weight, first)
        close(model(x), want)


@pytest.mark.parametrize("name", MERGED)
def test_copies_of_a_merged_layer_are_independent(name: str) -> None:
    layer, x = MERGED[name].layer().eval(), MERGED[name].x()
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    with torch.no_grad():
        want, base = layer(x), layer.state_dict()["base_layer.weight"].clone()
        for twin in (copy.deepcopy(layer), torch.load(file, weights_only=False)):
            twin.load_state_dict({k: 2.0 * v for k, v in layer.state_dict().items()})
            twin.base_layer.load_state_dict(twin.base_layer.state_dict())
            close(layer(x), want)
        layer.unmerge()
        assert torch.equal(layer.base_layer.weight, base)


# --- 6. the meta device ---


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("how", ["to_empty", "assign", "made on meta", "emptied in place"])
def test_a_state_is_enough_for_a_layer_without_values(name: str, how: str) -> None:
    case = LAYERS[name]
    layer, x = case.layer().eval(), case.x()
    if how == "made on meta":
        if name in ADAPTERS or name in MERGED or name == "attention":
            return  # it is made from existing dense layers
        with torch.device("meta"):
            other = case.build()
    else:
        other = case.layer() if how == "emptied in place" else case.layer().to("meta")
    if how != "assign":
        other = other.to_empty(device="cpu")
        for tensor in [*other.parameters(), *other.buffers()]:
            if how != "emptied in place" and tensor.is_floating_point() and tensor.requires_grad:
                tensor.data.fill_(7.0)
    with torch.no_grad():
        loaded = other.load_state_dict(layer.state_dict(), assign=how == "assign")
        assert not loaded.missing_keys and not loaded.unexpected_keys
        close(other.eval()(x), layer(x))


@pytest.mark.parametrize(
    "case",
    limited(
        NotImplementedError,
        "the requested rows decide what is computed",
        *EMBEDDINGS,
        "embedding seeded base",
        "adapted embedding",
        "merged embedding",
    ),
    indirect=True,
)
def test_meta_tensors_pass_through(case: Case) -> None:
    layer, x = case.layer().to("meta"), case.x()
    assert layer(x.to("meta")).shape == case.layer()(x).shape


# --- 7. side effects ---


def test_layers_draw_no_random_numbers(case: Case) -> None:
    layer, x = case.layer(), case.x()
    torch.manual_seed(11)
    want = torch.rand(3)
    torch.manual_seed(11)
    layer(x)
    if not isinstance(layer, layers.Adapted):
        layers.to_dense(layer)
    assert torch.equal(torch.rand(3), want)


def test_what_is_frozen_stays_frozen() -> None:
    made = {
        "linear": (nn.Linear(16, 16), layers.ADTNLinear.from_linear),
        "conv1d": (nn.Conv1d(8, 8, 3), layers.ADTNConv1d.from_conv),
        "conv2d": (nn.Conv2d(8, 8, 3), layers.ADTNConv2d.from_conv),
        "conv3d": (nn.Conv3d(8, 8, 3), layers.ADTNConv3d.from_conv),
        "attention": (nn.MultiheadAttention(16, 4, add_bias_kv=True), layers.ADTNMultiheadAttention.from_attention),
    }
    for name, (dense, make) in made.items():
        for p_name, p in dense.named_parameters():
            p.requires_grad_("bias" not in p_name)
        layer = make(dense, TTN)
        frozen = {n for n, p in layer.named_parameters() if "bias" in n and p.requires_grad}
        assert not frozen, name
        back = layers.to_dense(nn.Sequential(layer))[0]
        for (n, p), (_, q) in zip(dense.named_parameters(), back.named_parameters(), strict=True):
            assert p.requires_grad == q.requires_grad, (name, n)


def test_compressing_leaves_random_numbers_and_frozen_parameters_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    model[0].bias.requires_grad_(False)
    before = model[0].bias.detach().clone()
    data = [(torch.randn(8, 16), torch.randint(4, (8,))) for _ in range(2)]
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    state = np.random.get_state()[1].copy()  # noqa: NPY002 (the global generator is what is looked at)
    config = adtn.Config(
        targets=["0"], topology=TTN, steps=3, tune_steps=3, train="all", recipe=("distill-local", "finetune")
    )
    adtn.compress(model, config, data=data)
    assert torch.equal(torch.rand(3), want)
    assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    assert not model[0].bias.requires_grad
    assert torch.equal(model[0].bias, before)


# --- crashes ---


def test_gradients_after_inference_mode(case: Case) -> None:
    layer, x = case.layer().eval().requires_grad_(False), case.x()
    with torch.inference_mode():
        for _ in range(3):
            layer(x)
    if case.integers:
        close(layer(x), fresh(layer)(x))
        return
    x.requires_grad_()
    got = torch.autograd.grad(layer(x).square().sum(), x)[0]
    close(got, torch.autograd.grad(fresh(layer)(x).square().sum(), x)[0])


def test_threads_do_not_see_each_other(case: Case) -> None:
    layer, x = case.layer().eval(), case.x()
    with torch.no_grad():
        want = layer(x)
    wrong: list[Any] = []

    def work() -> None:
        try:
            for _ in range(20):
                with torch.no_grad():
                    if not torch.allclose(layer(x), want, atol=1e-4, rtol=1e-3):
                        wrong.append("other values")
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_empty_batches(case: Case) -> None:
    layer, x = case.layer(), case.x()[:0]
    dense_like = case.x()
    want = layer(dense_like).shape
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            y = layer(x)
            assert y.shape == (0, *want[1:])
        if grad and y.requires_grad:
            own = list(cores_of(layer).values())
            for p, g in zip(own, torch.autograd.grad(y.sum(), own, allow_unused=True), strict=True):
                assert g is None or (g.shape == p.shape and not g.any())


def test_pruned_cores_are_those_that_are_used(case: Case) -> None:
    from torch.nn.utils import prune

    layer, x = case.layer().eval(), case.x()
    weight = next(m for m in layer.modules() if isinstance(m, layers.GeneratedWeight))
    name = max(dict(weight.named_parameters(recurse=False)), key=lambda n: getattr(weight, n).numel())
    with torch.no_grad():
        layer(x)
        prune.l1_unstructured(weight, name, amount=0.5)
        pruned = layer(x)
        getattr(weight, f"{name}_orig").data.mul_(2.0)  # the parameter that an optimizer trains
        twice = layer(x)
        prune.remove(weight, name)
        close(layer(x), twice)
    assert not torch.allclose(pruned, twice)


def test_reparametrised_cores_are_those_that_are_used(case: Case) -> None:
    from torch.nn.utils import parametrize

    class Doubled(nn.Module):
        def forward(self, x: Any) -> Any:
            return 2.0 * x

    layer, x = case.layer().eval(), case.x()
    weight = next(m for m in layer.modules() if isinstance(m, layers.GeneratedWeight))
    name = max(dict(weight.named_parameters(recurse=False)), key=lambda n: getattr(weight, n).numel())
    with torch.no_grad():
        layer(x)
        parametrize.register_parametrization(weight, name, Doubled())
        got = layer(x)
        parametrize.remove_parametrizations(weight, name)
        close(got, fresh(layer)(x))
        close(got, layer(x))


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.*:DeprecationWarning")
def test_tracers_are_refused(case: Case) -> None:
    layer, x = case.layer().eval(), case.x()
    with pytest.raises(LayoutError, match="to_dense"), torch.no_grad():
        torch.jit.trace(layer, (x,), check_trace=False)
    with pytest.raises(
        (LayoutError, torch.fx.proxy.TraceError, TypeError)
    ):  # PyTorch's message for functions that accept any arguments
        torch.fx.symbolic_trace(layer)


def test_a_dense_copy_shares_nothing_and_has_the_parametrizations() -> None:
    from torch.nn.utils import parametrizations

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = parametrizations.weight_norm(nn.Conv1d(4, 8, 3))
            self.spectral = parametrizations.spectral_norm(nn.Linear(8, 8))
            self.rnn = nn.LSTM(8, 8, batch_first=True)
            self.last = nn.Linear(8, 32)

        def forward(self, x: Any) -> Any:
            return self.last(self.rnn(self.spectral(self.conv(x).transpose(1, 2)))[0])

    torch.manual_seed(0)
    model, x = Model().eval(), torch.randn(2, 4, 9)
    adtn.compress(model, adtn.Config(targets=["last"], topology=TTN, steps=2, recipe="reconstruct"))
    with torch.no_grad():
        want = model(x)
        dense = layers.to_dense(model)
        close(dense(x), want)
        for p in dense.parameters():
            p.mul_(0.5)
        close(model(x), want)
        assert not torch.allclose(dense(x), want)
        lstm = dense.rnn.weight_hh_l0.clone()
        dense.rnn.weight_hh_l0.mul_(0.0)
        first = dense(x)
        dense.rnn.weight_hh_l0.copy_(lstm)
        assert not torch.allclose(first, dense(x))


def test_convolutions_have_the_attributes_of_dense_ones() -> None:
    for dense in (nn.Conv1d(4, 4, 3), nn.Conv2d(4, 8, 3, padding="same"), nn.Conv3d(4, 4, 3, padding=(1, 2, 0))):
        made = {1: layers.ADTNConv1d, 2: layers.ADTNConv2d, 3: layers.ADTNConv3d}[dense.weight.ndim - 2]
        layer = made.from_conv(dense, TTN)
        for name in dense.__constants__:
            assert getattr(layer, name) == getattr(dense, name), name
        assert layer.transposed is dense.transposed
        assert layer.output_padding == dense.output_padding
        assert layer.padding == dense.padding


# --- copies, ties and other programs ---


@pytest.mark.parametrize("name", LAYERS)
def test_dense_copies_of_many_layers_do_not_mix_them_up(name: str) -> None:
    case = LAYERS[name]
    model = nn.ModuleList([case.build() for _ in range(3)])
    x = case.x()
    for n, layer in enumerate(model):
        for p in cores_of(layer).values():
            nn.init.normal_(p, std=0.3 + 0.1 * n)
        if case.merged:
            layer.merge()
    model.eval()
    with torch.no_grad():
        want = [layer(x) for layer in model]
        dense = layers.to_dense(model)
        for layer, y in zip(dense, want, strict=True):
            assert not cores_of(layer)
            torch.testing.assert_close(layer(x), y, rtol=1e-3, atol=1e-3)
        for p in dense.parameters():
            p.mul_(0.5)
        for layer, y in zip(model, want, strict=True):
            close(layer(x), y)


@pytest.mark.parametrize("name", [n for n in LAYERS if n not in ADAPTERS and n not in MERGED])
def test_dense_copies_keep_hooks_and_what_is_frozen(name: str) -> None:
    model = nn.Sequential(LAYERS[name].layer().requires_grad_(False)).eval()
    x, seen = LAYERS[name].x(), []
    inner = next(m for m in model.modules() if hasattr(m, "generated"))
    inner.register_forward_hook(lambda m, a, y: seen.append("kept"))
    dense = layers.to_dense(model)
    assert not any(p.requires_grad for p in dense.parameters())
    dense(x)
    assert seen == ["kept"]
    next(dense.children()).register_forward_hook(lambda m, a, y: seen.append("copy"))
    seen.clear()
    model(x)
    assert seen == ["kept"]


def test_shared_modules_weights_and_biases_stay_shared() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(16, 16)
            self.again = self.rnn
            self.first = nn.Linear(16, 16)
            self.second = nn.Linear(16, 16)
            self.second.bias = self.first.bias
            self.third = self.first
            self.attention = nn.MultiheadAttention(16, 4)
            self.other = self.attention
            self.owned = nn.Linear(16, 16)
            self.weight = self.owned.weight

        def forward(self, x: Any) -> Any:
            x = self.again(self.rnn(x)[0])[0]
            x = self.third(self.second(self.first(x)))
            x = self.other(*[self.attention(x, x, x)[0]] * 3)[0]
            return self.owned(x) @ self.weight

    torch.manual_seed(0)
    model = Shared()
    config = adtn.Config(targets=["*"], topology=TTN, steps=0, smallest=0, recipe="reconstruct")
    report = adtn.compress(model, config)
    assert model.again is model.rnn
    assert model.third is model.first
    assert model.other is model.attention
    assert model.second.bias is model.first.bias
    assert model.weight is model.owned.weight
    assert "shares its weight" in report.dense["owned"]
    x = torch.randn(3, 2, 16)
    close(layers.to_dense(model)(x), model(x), 10.0)


@pytest.mark.parametrize("merged", [False, True])
def test_code_that_reads_the_weight_of_an_adapted_layer_gets_all_of_it(merged: bool) -> None:
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, dropout=0.0).eval().requires_grad_(False)
    layers.add_adapter(encoder, {"linear1": gen(32, 16)})
    for p in cores_of(encoder).values():
        nn.init.normal_(p)
    if merged:
        layers.merge_adapters(encoder)
    x = torch.randn(2, 5, 16)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        want = encoder(x)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    got = encoder(x)
    assert got.requires_grad
    close(got, want)
    with torch.no_grad():
        close(encoder(x), want)


@pytest.mark.parametrize("name", MERGED)
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`:UserWarning")
def test_merged_layers_are_right_where_entries_cannot_be_read(name: str) -> None:
    layer, x = MERGED[name].layer().eval(), MERGED[name].x()
    own = cores_of(layer)
    both = {k: torch.stack([p, 2 * p]).detach() for k, p in own.items()}
    many = torch.func.vmap(lambda given: torch.func.functional_call(layer, given, (x,)))(both)
    assert not torch.allclose(many[0], many[1])
    compiled = torch.compile(layer, backend="aot_eager")
    with torch.no_grad():
        close(compiled(x), layer(x))
        _scale(layer)
        close(compiled(x), fresh(layer)(x))
        close(torch.func.functional_call(layer, layer.state_dict(), (x,)), layer(x))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # a warning of PyTorch's own forward mode
@pytest.mark.parametrize("name", LAYERS)
def test_moving_averages_and_forward_mode(name: str) -> None:
    import torch.autograd.forward_ad as forward

    case = LAYERS[name]
    layer, x = case.layer(torch.float64).eval().requires_grad_(False), case.x(torch.float64)
    average = torch.optim.swa_utils.AveragedModel(layer)
    with torch.no_grad():
        for _ in range(3):
            _scale(layer)
            layer(x)
            average.update_parameters(layer)
        plain = torch.optim.swa_utils.AveragedModel(fresh(case.layer(torch.float64).eval()))
        other = fresh(case.layer(torch.float64).eval())
        for _ in range(3):
            _scale(other)
            plain.update_parameters(other)
        close(average(x), plain(x))
    if any(isinstance(m, nn.RNNBase | nn.EmbeddingBag | nn.MultiheadAttention) for m in layer.modules()):
        return  # PyTorch has no forward mode for these layers, or for their fast paths
    cores = {k: p.detach().clone() for k, p in cores_of(layer).items()}
    with forward.dual_level():
        found = [
            forward.unpack_dual(
                torch.func.functional_call(
                    layer, {k: forward.make_dual(p, s * torch.ones_like(p)) for k, p in cores.items()}, (x,)
                )
            ).tangent
            for s in (1.0, 3.0)
        ]
    close(3.0 * found[0], found[1])
    with torch.no_grad():
        close(layer(x), fresh(layer)(x))


def test_fake_tensors_do_not_stay(case: Case) -> None:
    from torch._subclasses import FakeTensorMode

    layer, x = case.layer().eval(), case.x()
    with torch.no_grad():
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            if not case.integers:
                for _ in range(2):
                    layer(mode.from_tensor(x))
        close(layer(x), fresh(layer)(x))


def test_cached_weights_does_not_hide_gradients_and_writes_do_not_persist() -> None:
    layer, x = LAYERS["conv2d"].layer().eval(), LAYERS["conv2d"].x()
    with torch.no_grad():
        want = layer(x)
        with layers.cached_weights(layer):
            with torch.enable_grad():
                assert layer(x).requires_grad
            layer.weight.mul_(0.0)
        close(layer(x), want)
    with pytest.raises(LayoutError, match="max_norm"):
        layers.parametrized(nn.EmbeddingBag(30, 8, max_norm=1.0), {"weight": layers.GeneratedWeight(gen(30, 8))})


def test_many_gradients_at_once(case: Case) -> None:
    layer, x = case.layer(), case.x()
    own = list(cores_of(layer).values())
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        y = layer(x)
    ways = torch.stack([torch.ones_like(y), 2.0 * y.detach()])
    want = [torch.autograd.grad(y, own, way, retain_graph=True) for way in ways]
    got = torch.autograd.grad(y, own, ways, is_grads_batched=True)
    for n in range(2):
        for a, b in zip(got, want[n], strict=True):
            close(a[n], b, 10.0)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_nested_tensors() -> None:
    layer = LAYERS["linear None"].layer().eval()
    parts = [torch.randn(3, 24), torch.randn(5, 24)]
    with torch.no_grad():
        nested = layer(torch.nested.nested_tensor(parts))
        for part, y in zip(parts, nested.unbind(), strict=True):
            close(y, layer(part))
