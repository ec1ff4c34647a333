"""PyTorch modules: drop-in replacements of dense layers, with plain states that support all that modules support."""

from __future__ import annotations

import copy
import io
import os
import pickle
import subprocess
import sys
from pathlib import Path

import adtn
import numpy as np
import pytest
from adtn.backends import get_backend
from adtn.errors import LayoutError
from adtn.schedule import decide
from adtn.weight import Factored

from table import TOPOLOGIES

torch = pytest.importorskip("torch")
layers = pytest.importorskip("adtn_backends.torch.layers")
nn = torch.nn

GENERATORS = {
    "ttn": lambda: TOPOLOGIES["ttn"].generator(dtype="float32"),
    "nonlinear end": lambda: TOPOLOGIES["ttn-all"].generator(dtype="float32"),
    "frozen cores": lambda: TOPOLOGIES["brickwall"].generator(dtype="float32"),
    "seeded base": lambda: TOPOLOGIES["mpo"].generator(dtype="float32", base=adtn.SeededBase(1)),
    "padded": lambda: adtn.Generator((11, 13), adtn.TTN(bond=2)),
}
TTN = adtn.TTN(bond=2)


def linear():
    torch.manual_seed(0)
    return layers.ADTNLinear.from_linear(nn.Linear(24, 16), TTN), torch.randn(5, 24)


def conv(n: int, mode=None, **options):
    torch.manual_seed(0)
    dense = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[n - 1](6, 8, 3, **options)
    made = (layers.ADTNConv1d, layers.ADTNConv2d, layers.ADTNConv3d)[n - 1].from_conv(dense, TTN, mode=mode)
    return made, torch.randn(2, 6, *(7,) * n)


def embedding():
    torch.manual_seed(0)
    return layers.ADTNEmbedding.from_embedding(nn.Embedding(30, 8, padding_idx=3), TTN), torch.tensor([[1, 3, 29]])


def attention():
    torch.manual_seed(0)
    dense = nn.MultiheadAttention(16, 4, batch_first=True)
    for bias in (dense.in_proj_bias, dense.out_proj.bias):  # zeros at first, which would hide a lost bias
        nn.init.normal_(bias)
    return Attend(layers.ADTNMultiheadAttention.from_attention(dense, TTN)), torch.randn(2, 5, 16)


class Attend(nn.Module):
    """A self-attention as a function of one tensor."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x, x, x, need_weights=False)[0]

    def to_dense(self):
        return Attend(self.inner.to_dense())


LAYERS = {
    "linear": linear,
    "conv1d": lambda: conv(1, stride=2, padding=1),
    "conv2d": lambda: conv(2, padding="same", dilation=2),
    "conv2d grouped": lambda: conv(2, groups=2, stride=(1, 2), padding=(2, 0)),
    "conv2d reflected": lambda: conv(2, padding=1, padding_mode="reflect", bias=False),
    "conv2d circular": lambda: conv(2, padding="same", padding_mode="circular", dilation=2),
    "conv2d chained": lambda: conv(2, padding=1, mode="factored"),
    "conv3d": lambda: conv(3),
    "embedding": embedding,
    "attention": attention,
}
traces = pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`:UserWarning")


def parameters_of(layer):
    """Return cores and other parameters by name."""
    return dict(layer.named_parameters())


def grads_of(layer, x):
    y = layer(x)
    out = torch.autograd.grad((y * y.detach().cos()).sum(), list(parameters_of(layer).values()), allow_unused=True)
    return y, dict(zip(parameters_of(layer), out, strict=True))


@pytest.mark.parametrize("mode", ["materialise", "stream", "factored"])
def test_two_batches_before_one_backward_pass_and_an_input_without_gradient(mode: str) -> None:
    layer = layers.ADTNLinear(GENERATORS["seeded base"](), mode=mode)
    torch.manual_seed(0)
    given, wanted = torch.randn(4, 12), torch.randn(3, 12, requires_grad=True)
    (layer(given).sum() + (layer(wanted) ** 2).sum()).backward()
    found = {name: p.grad.clone() for name, p in layer.named_parameters()} | {"x": wanted.grad}
    layer.zero_grad()
    again = wanted.detach().requires_grad_()
    first, second = (nn.functional.linear(x, layer.weight, layer.bias) for x in (given, again))
    (first.sum() + (second**2).sum()).backward()
    for name, grad in ({name: p.grad for name, p in layer.named_parameters()} | {"x": again.grad}).items():
        assert (found[name] - grad).abs().max() <= 1e-4 * grad.abs().max(), name
    out = layer(given)
    with torch.no_grad():
        next(layer.generated.parameters()).mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.parametrize("mode", ["stream", "factored"])
def test_without_gradients_no_graph_is_made(mode: str) -> None:
    layer = layers.ADTNLinear(GENERATORS["ttn"](), mode=mode)
    with torch.no_grad():
        assert layer(torch.zeros(2, 20)).grad_fn is None
    layer.requires_grad_(False)
    assert not layer(torch.zeros(2, 20)).requires_grad


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("mode", [None, "materialise", "stream"])
def test_forward_and_gradients_are_those_of_the_dense_layer(name: str, mode: str | None) -> None:
    gen = GENERATORS[name]()
    layer = layers.ADTNLinear(gen, bias=np.arange(gen.shape[0]), mode=mode)
    x = torch.randn(2, 3, gen.shape[1], requires_grad=True)
    arrays = layer.generated.arrays()
    weight = gen.function(arrays)  # PyTorch differentiates this
    want = x @ weight.T + layer.bias
    got = layer(x)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.weight, weight, rtol=1e-4, atol=1e-5)
    leaves = [x, *layer.parameters()]
    for other in (got, x @ layer.weight.T + layer.bias):
        found = torch.autograd.grad((other**2).sum(), leaves)
        for a, b in zip(found, torch.autograd.grad((want**2).sum(), leaves, retain_graph=True), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.detach().abs().max()))
    with torch.no_grad():
        torch.testing.assert_close(layer.eval()(x), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_is_its_dense_form(name: str) -> None:
    layer, x = LAYERS[name]()
    dense = layer.to_dense()
    assert not any(isinstance(m, layers.GeneratedWeight) for m in dense.modules())
    y, grads = grads_of(layer, x)
    want, dense_grads = grads_of(dense, x)
    torch.testing.assert_close(y, want, rtol=1e-4, atol=1e-5)
    for key, grad in dense_grads.items():
        if key in grads and grads[key] is not None:  # biases
            torch.testing.assert_close(grads[key], grad, rtol=1e-3, atol=1e-5)
    # gradients of the cores follow by the chain rule from the dense layer's gradient of the weight
    for part, twin in ((m, dense.get_submodule(n)) for n, m in layer.named_modules() if hasattr(m, "generated")):
        attribute = "in_proj_weight" if isinstance(part, layers.ADTNMultiheadAttention) else "weight"
        key = next(k for k, p in dense.named_parameters() if p is getattr(twin, attribute))
        cores = list(part.generated.parameters())
        through = torch.autograd.grad((part.generated() * dense_grads[key]).sum(), cores)
        names = {id(p): k for k, p in layer.named_parameters()}
        for core, want_core in zip(cores, through, strict=True):
            got_core = grads[names[id(core)]]
            torch.testing.assert_close(got_core, want_core, rtol=1e-3, atol=1e-4 * float(want_core.abs().max()))
    layer.eval()
    dense.eval()
    with torch.no_grad():
        torch.testing.assert_close(layer(x), dense(x), rtol=1e-4, atol=1e-5)


@traces
@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_compiles_to_one_graph_and_exports(name: str) -> None:
    layer, x = LAYERS[name]()
    want, _ = grads_of(layer, x)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), want, rtol=1e-4, atol=1e-5)
    found = torch.autograd.grad(compiled(x).sum(), list(layer.parameters()))
    for a, b in zip(found, torch.autograd.grad(layer(x).sum(), list(layer.parameters())), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    exported = torch.export.export(layer.eval(), (x,)).module()
    torch.testing.assert_close(exported(x), want, rtol=1e-4, atol=1e-5)


_COMPILED_FIRST = """
import adtn, torch
from test_torch_layers import GENERATORS, LAYERS, layers
made = [LAYERS[name]() for name in ("linear", "conv2d", "embedding", "attention")]
generators = [GENERATORS["seeded base"](), GENERATORS["padded"]()]
generators.append(adtn.Generator((13, 11), adtn.TTN(bond=2, activation="gelu"), base=adtn.IdentityBase()))
for layer, x in made + [(layers.ADTNLinear(g), torch.randn(5, g.shape[1])) for g in generators]:
    y = torch.compile(layer, fullgraph=True, backend="eager")(x)
    torch.testing.assert_close(y, layer(x), rtol=1e-4, atol=1e-5)
    print("compiled")
"""


def test_a_process_may_start_with_a_compiled_layer() -> None:
    path = os.pathsep.join(filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH"))))
    env = os.environ | {"PYTHONPATH": path}  # beside the checkout that is tested here
    done = subprocess.run([sys.executable, "-c", _COMPILED_FIRST], capture_output=True, text=True, env=env)
    assert done.stdout.split() == ["compiled"] * 7, done.stderr[-2000:]


def test_an_adjoint_can_be_differentiated_and_is_nothing_for_what_has_no_influence() -> None:
    from adtn_backends.torch._vjp import differentiable_vjp

    x = torch.linspace(0.1, 1.0, 5, requires_grad=True)
    unused, frozen = torch.ones(3, requires_grad=True), torch.full((5,), 2.0)
    ybar = torch.arange(5.0)
    xbar, *others = differentiable_vjp(lambda: x**3 * frozen, [x, unused, frozen], ybar)
    assert others == [None, None]
    torch.testing.assert_close(xbar, 6.0 * x**2 * ybar)
    (again,) = torch.autograd.grad(xbar.sum(), x)
    torch.testing.assert_close(again, 12.0 * x * ybar)


@traces
@pytest.mark.parametrize("mode", [None, "factored", "materialise"])
def test_one_graph_for_every_batch_without_the_weight(mode: str | None) -> None:
    generator = adtn.Generator((256, 256), adtn.TTN(bond=2), layout=adtn.Layout.of((256, 256), leg=8))
    layer = layers.ADTNLinear(generator, mode=mode)
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()  # other tests compile layers as well, and the number of their graphs is limited
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=count)
    for batch in (3, 20, 70):
        x = torch.randn(batch, 256)
        torch.testing.assert_close(compiled(x), layer(x), rtol=1e-4, atol=1e-5)
    (graph,) = graphs
    values = [node.meta["example_value"] for node in graph.graph.nodes if "example_value" in node.meta]
    shapes = [tuple(v.shape) for v in values if isinstance(v, torch.Tensor)]
    assert ((256, 256) in shapes) == (mode == "materialise")
    assert (layer.generated.traced(mode) is None) == (mode == "materialise")


@pytest.mark.parametrize("name", ["ttn", "seeded base", "padded"])
def test_the_frameworks_own_backward_pass_is_the_adjoint(name: str) -> None:
    generator = GENERATORS[name]()
    plan = decide(generator, "train", device="torch:cpu", batch=5, mode="factored")
    assert isinstance(plan.executable, Factored)
    apply = plan.executable.on(get_backend("torch"))
    arrays = layers.GeneratedWeight(generator).arrays()
    x = torch.randn(5, generator.shape[1], requires_grad=True)
    leaves = [x, *(a for a in arrays.values() if a.requires_grad)]
    y = apply(arrays, x)
    ybar = torch.randn_like(y)
    want = torch.autograd.grad(y, leaves, ybar)
    found = torch.autograd.grad(get_backend("torch").with_vjp(apply)(arrays, x), leaves, ybar)
    for a, b in zip(found, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))


def test_a_layer_of_shapes_alone_exports() -> None:
    layer = linear()[0].to("meta").eval()
    exported = torch.export.export(layer, (torch.zeros(5, 24, device="meta"),)).module()
    assert exported(torch.zeros(5, 24, device="meta")).shape == (5, 16)


@pytest.mark.parametrize("name", LAYERS)
def test_the_state_is_plain_and_survives(name: str, tmp_path) -> None:
    from safetensors.torch import load_model, save_model

    layer, x = LAYERS[name]()
    keys = set(layer.state_dict())
    want = layer(x)
    layer.eval()(x)
    assert set(layer.state_dict()) == keys, "a forward pass adds nothing"
    assert all(type(p) in (torch.Tensor, nn.Parameter) for p in layer.state_dict().values())
    file, plain = io.BytesIO(), str(tmp_path / "m.safetensors")
    torch.save(layer, file)
    file.seek(0)
    save_model(layer, plain)
    fresh = [copy.deepcopy(layer) for _ in range(2)]
    for other in fresh:
        for p in other.parameters():
            nn.init.normal_(p)
    fresh[0].load_state_dict(layer.state_dict())
    load_model(fresh[1], plain)
    twins = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(file, weights_only=False), *fresh]
    for twin in twins:
        torch.testing.assert_close(twin.eval()(x), want, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(twin.train()(x), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", LAYERS)
def test_half_precision_and_autocast(name: str, dtype: str) -> None:
    layer, x = LAYERS[name]()
    want, grads = grads_of(layer, x)
    kind, scale = getattr(torch, dtype), float(want.detach().abs().max())
    with torch.autocast("cpu", dtype=kind):
        got, mixed = grads_of(layer, x)
    assert got.dtype == (want.dtype if name == "embedding" else kind)
    torch.testing.assert_close(got.float(), want, rtol=0, atol=0.03 * scale)
    for key, grad in grads.items():
        assert mixed[key].dtype == torch.float32
        torch.testing.assert_close(mixed[key], grad, rtol=0, atol=0.2 * float(grad.detach().abs().max()) + 1e-6)
    half = copy.deepcopy(layer).to(kind)
    assert {p.dtype for p in half.parameters()} == {kind}
    got = half(x.to(kind) if x.is_floating_point() else x)
    assert got.dtype == kind
    torch.testing.assert_close(got.float(), want, rtol=0, atol=0.1 * scale)


# a warning of PyTorch's own attention, which is mapped over parameters one by one
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.parametrize("name", LAYERS)
def test_function_transforms(name: str) -> None:
    layer, x = LAYERS[name]()
    params = {k: p.detach() for k, p in layer.named_parameters()}

    def loss(params, x):
        return (torch.func.functional_call(layer, params, (x,)) ** 2).sum()

    got = torch.func.grad(loss)(params, x)
    want = dict(zip(params, torch.autograd.grad((layer(x) ** 2).sum(), list(layer.parameters())), strict=True))
    for key in params:
        torch.testing.assert_close(got[key], want[key], rtol=1e-3, atol=1e-4)
    many = {k: torch.stack([p, 2 * p]) for k, p in params.items()}
    both = torch.func.vmap(loss, in_dims=(0, None))(many, x)
    single = [loss({k: p[i] for k, p in many.items()}, x) for i in range(2)]
    torch.testing.assert_close(both, torch.stack(single), rtol=1e-4, atol=1e-4)


# --- one generator, several layers ---


class Tied(nn.Module):
    """The embedding and the output layer of a language model, with one generator."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.embed = layers.ADTNEmbedding(adtn.Generator((32, 8), TTN, seed=seed))
        self.head = layers.ADTNLinear(self.embed.generated, bias=False)

    def forward(self, i):
        with self.embed.generated.once():
            return self.head(self.embed(i))


def test_layers_with_one_generator_stay_tied(tmp_path) -> None:
    from safetensors.torch import load_model, save_model

    model, i = Tied(), torch.tensor([1, 4, 31])
    assert len(list(model.parameters())) == len(list(model.embed.parameters()))
    weight = model.embed.weight.detach().requires_grad_()
    (slope,) = torch.autograd.grad((weight[i] @ weight.T).square().sum(), weight)
    through = torch.autograd.grad((model.embed.weight * slope).sum(), list(model.parameters()))
    got = torch.autograd.grad(model(i).square().sum(), list(model.parameters()))
    for a, b in zip(got, through, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.detach().abs().max()))
    file = str(tmp_path / "m.safetensors")
    save_model(model, file)
    for other in (Tied(seed=5), Tied(seed=6)):
        other.load_state_dict(model.state_dict())
        torch.testing.assert_close(other(i), model(i))
    other = Tied(seed=7)
    load_model(other, file)
    torch.testing.assert_close(other(i), model(i))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin.embed.generated is twin.head.generated
        with torch.no_grad():
            next(twin.parameters()).mul_(2.0)
        assert not torch.allclose(twin(i), model(i))


def test_once_makes_one_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    model, made = Tied(), []
    apply = layers._weight._Generate.apply
    monkeypatch.setattr(layers._weight._Generate, "apply", lambda *a: made.append(1) or apply(*a))
    with model.embed.generated.once() as weight:
        assert model.embed.weight is weight
        assert model.head.weight is weight
    assert len(made) == 1
    assert model.head.weight is not weight
    inner = LAYERS["attention"]()[0]
    made.clear()
    inner(torch.randn(1, 2, 16))
    assert len(made) == 2


# --- conversions ---


def test_parameters_go_to_a_generator_and_back() -> None:
    gen = TOPOLOGIES["mera"].generator(dtype="float32")
    layer = layers.ADTNLinear(gen)
    assert {k.removeprefix("generated.") for k in layer.state_dict()} == {*gen.params, "bias"}
    assert np.array_equal(layer.generated.generator().params["root"], gen.params["root"])
    with torch.no_grad():
        layer.generated.root.mul_(2.0)
    np.testing.assert_allclose(layer.generated.generator().weight(), layer.weight.detach(), rtol=1e-5, atol=1e-6)


def test_fixed_cores_are_part_of_the_state() -> None:
    base = np.random.default_rng(0).standard_normal((8, 8)).astype("float32")
    kept = layers.GeneratedWeight(adtn.Generator((8, 8), TTN, base=base))
    assert "frozen_base" in kept.state_dict()
    other = layers.GeneratedWeight(adtn.Generator((8, 8), TTN, base=0 * base))
    other.load_state_dict(kept.state_dict())
    torch.testing.assert_close(other(), kept())
    assert "frozen_base" not in layers.GeneratedWeight(GENERATORS["seeded base"]()).state_dict()


def test_fits_of_linear_topologies_start_from_a_decomposition() -> None:
    generator = adtn.Generator((8, 4, 3, 3), adtn.Tucker(bond=64))
    dense = nn.Conv2d(4, 8, 3)
    dense.weight.data = torch.tensor(generator.weight("numpy:cpu", "float32"))
    made = layers.ADTNConv2d.from_conv(dense, adtn.Tucker(bond=64), steps=5, optimizer="lbfgs")
    torch.testing.assert_close(made.weight, dense.weight, rtol=1e-3, atol=1e-4)


def test_from_dense_layers_fits() -> None:
    target = adtn.Generator((16, 24), TTN, seed=4).weight()
    dense = nn.Linear(24, 16, dtype=torch.float64)
    with torch.no_grad():
        dense.weight.copy_(torch.tensor(target))
    near = layers.ADTNLinear.from_linear(dense, TTN, steps=300, optimizer="lbfgs", seed=4)
    assert near.weight.dtype == torch.float64
    error = torch.linalg.norm(near.weight - dense.weight) / torch.linalg.norm(dense.weight)
    assert error < 0.05
    torch.testing.assert_close(near.bias, dense.bias)

    class Conv1D(nn.Module):  # as in GPT-2
        def __init__(self) -> None:
            super().__init__()
            self.nf, self.weight, self.bias = 16, nn.Parameter(dense.weight.T.contiguous()), dense.bias

    from_transposed = layers.ADTNLinear.from_linear(Conv1D(), TTN, steps=300, optimizer="lbfgs", seed=4)
    torch.testing.assert_close(from_transposed.weight, near.weight, rtol=1e-4, atol=1e-4)


def test_a_model_without_generated_weights_keeps_its_ties_and_its_original() -> None:
    model, i = nn.ModuleDict({"lm": Tied(), "norm": nn.BatchNorm1d(8), "none": None}), torch.tensor([1, 31])
    model["again"] = model["lm"].head
    before = {k: v.clone() for k, v in model.state_dict().items()}
    dense = layers.to_dense(model)
    assert not any(isinstance(m, layers.GeneratedWeight) for m in dense.modules())
    assert dense["lm"].head.weight is dense["lm"].embed.weight
    assert dense["again"] is dense["lm"].head
    torch.testing.assert_close(dense["lm"].head(dense["lm"].embed(i)), model["lm"](i))
    with torch.no_grad():
        for tensor in (*dense.parameters(), *dense.buffers()):
            tensor.zero_()
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[key])


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # PyTorch's exporter warns about itself
def test_the_dense_form_exports_to_onnx(tmp_path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    from onnx.reference import ReferenceEvaluator

    model = nn.Sequential(conv(2, stride=2)[0], nn.Flatten(), layers.ADTNLinear(adtn.Generator((5, 72), TTN))).eval()
    x = torch.randn(2, 6, 7, 7)
    file = str(tmp_path / "model.onnx")
    torch.onnx.export(layers.to_dense(model), (x,), file, dynamo=True, verbose=False)
    graph = onnx.load(file)
    (got,) = ReferenceEvaluator(graph).run(None, {graph.graph.input[0].name: x.numpy()})
    torch.testing.assert_close(torch.tensor(got), model(x).detach(), rtol=1e-3, atol=1e-4)


def test_mismatches_are_refused() -> None:
    with pytest.raises(LayoutError, match="n_out, n_in"):
        layers.ADTNLinear(adtn.Generator((4, 4, 4), TTN))
    with pytest.raises(LayoutError, match="kernel"):
        layers.ADTNConv2d(adtn.Generator((4, 4), TTN))
    with pytest.raises(LayoutError, match=r"expected \(4,\)"):
        layers.ADTNLinear(adtn.Generator((4, 4), TTN), bias=np.ones(3))
    with pytest.raises(LayoutError, match="Got a Conv1d; expected Conv2d"):
        layers.ADTNConv2d.from_conv(nn.Conv1d(2, 2, 3), TTN)
    with pytest.raises(LayoutError, match="other widths"):
        layers.ADTNMultiheadAttention.from_attention(nn.MultiheadAttention(8, 2, kdim=4), TTN)
    with pytest.raises(LayoutError, match="expected a divisor"):
        layers.ADTNConv1d(adtn.Generator((6, 4, 3), TTN), groups=4)


@pytest.mark.parametrize("topology", [TTN, adtn.MERA(bond=2), adtn.BrickWall(layers=2), adtn.MPO(bond=3)], ids=repr)
@pytest.mark.parametrize("base", [None, adtn.SeededBase(2)], ids=str)
def test_rows_are_those_of_the_weight(topology: adtn.Topology, base) -> None:
    weight = layers.GeneratedWeight(adtn.Generator((50, 3, 5), topology, base=base, dtype="float64"))
    index = torch.tensor([49, 0, 7, 7, 31])
    cotangent = torch.randn(5, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    grads = []
    for found in (weight.rows(index), weight()[index]):
        torch.testing.assert_close(found, weight()[index])
        grads.append(torch.autograd.grad((found * cotangent).sum(), list(weight.parameters())))
    for got, want in zip(*grads, strict=True):
        torch.testing.assert_close(got, want)


def test_an_embedding_makes_only_the_rows_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    table = layers.ADTNEmbedding(adtn.Generator((64, 8), TTN), padding_idx=3)
    indices = torch.tensor([[3, 60, 3], [5, 60, 0]])
    want = nn.functional.embedding(indices, table.weight, 3)
    want.square().sum().backward()
    grads = [p.grad.clone() for p in table.parameters()]
    table.zero_grad()

    def whole(self, arrays):
        raise AssertionError("the whole table was made")

    monkeypatch.setattr(layers.GeneratedWeight, "weight_of", whole)
    found = table(indices)
    torch.testing.assert_close(found, want)
    found.square().sum().backward()
    for p, grad in zip(table.parameters(), grads, strict=True):
        torch.testing.assert_close(p.grad, grad)
    with pytest.raises(AssertionError, match="whole table"):
        table(torch.arange(40))
