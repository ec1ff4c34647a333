"""Several layers from one generator: exactness, gradients, counts, files, and what is refused."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import adtn
import numpy as np
import pytest
from adtn.compression import Config, Layer, _share, first_rows, model_of, sharing
from adtn.errors import CompressError, LayoutError

from models import Language, same, state_of, texts

torch = pytest.importorskip("torch")
nnx = pytest.importorskip("flax.nnx")
jnp = pytest.importorskip("jax.numpy")
layers = pytest.importorskip("adtn_backends.torch.layers")
jax_layers = pytest.importorskip("adtn_backends.jax.layers")
nn = torch.nn

# models of these tests are small and random: results are bad on purpose
pytestmark = pytest.mark.filterwarnings("ignore::adtn.errors.QualityWarning")

FULL = {
    "low rank": adtn.LowRank(bond=200),
    "TT": adtn.TT(bond=400),
    "MPO": adtn.MPO(bond=400),
    "Tucker": adtn.Tucker(bond=400),
    "TTN": adtn.TTN(bond=400, activation="identity"),
}
SHARE = (("conv1", "conv2"), ("fc*",))
QUICK: dict[str, Any] = {"topology": adtn.TTN(bond=2), "steps": 3, "tune_steps": 3, "share": SHARE}
EXACT: dict[str, Any] = {"topology": FULL["low rank"], "recipe": "closed-form", "share": SHARE}


class TorchNet(nn.Module):
    """Two convolutions and two linear layers of different sizes, and an output layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.conv2 = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 9, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(9 * 16, 30), nn.Linear(30, 24)
        self.out = nn.Linear(24, 3)

    def forward(self, x):
        x = self.conv2(self.conv1(x).relu()).relu().flatten(1)
        return self.out(self.fc2(self.fc1(x).relu()).relu())


class FlaxNet(nnx.Module):
    """A network of Flax with the same layers."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.conv1, self.conv2 = nnx.Conv(4, 8, (3, 3), rngs=rngs), nnx.Conv(8, 9, (3, 3), rngs=rngs)
        self.fc1, self.fc2 = nnx.Linear(9 * 16, 30, rngs=rngs), nnx.Linear(30, 24, rngs=rngs)
        self.out = nnx.Linear(24, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.conv2(nnx.relu(self.conv1(x)))).reshape(x.shape[0], -1)
        return self.out(nnx.relu(self.fc2(nnx.relu(self.fc1(x)))))


class Square(nn.Module):
    """A network of three linear layers with as many columns."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 24)

    def forward(self, x):
        return self.c(self.b(self.a(x).relu()).relu())


@dataclass(frozen=True)
class Framework:
    make: Callable[[], Any]
    batches: list[tuple[Any, Any]]
    numpy: Callable[[Any], np.ndarray]
    state: Callable[[Any], dict[str, np.ndarray]]


def _flax_state(model: Any) -> dict[str, np.ndarray]:
    found = nnx.to_flat_state(nnx.state(model, nnx.Not(nnx.RngState)))
    return {".".join(map(str, path)): np.asarray(v[...]) for path, v in found}


RNG = np.random.default_rng(1)
IMAGES = [RNG.standard_normal((8, 4, 4, 4)).astype(np.float32) for _ in range(3)]
LABELS = [(x.mean((1, 2, 3)) > 0).astype(int) for x in IMAGES]
TORCH = Framework(
    TorchNet,
    [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in zip(IMAGES, LABELS, strict=True)],
    lambda x: x.detach().numpy(),
    lambda model: {k: v.numpy().copy() for k, v in model.state_dict().items()},
)
FLAX = Framework(FlaxNet, [(jnp.asarray(x), y) for x, y in zip(IMAGES, LABELS, strict=True)], np.asarray, _flax_state)
both = pytest.mark.parametrize("framework", [TORCH, FLAX], ids=["torch", "jax"])


def equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def weights_of(model: Any) -> dict[str, np.ndarray]:
    adapter = model_of(model, None)
    return {name: adapter.weight(name) for layer in adapter.layers() for name in layer.weights}


# --- the matrix ---


def test_blocks_of_a_matrix_are_the_weights() -> None:
    one, two = RNG.standard_normal((4, 2, 3, 3)), RNG.standard_normal((3, 30))
    for rows, starts in ((7, [0, 4]), (8, [0, 4]), (12, [0, 6])):
        assert first_rows((rows, 30), [one.shape, two.shape]) == starts
        matrix = _share.joined([one, two], (rows, 30))
        for start, weight in zip(starts, (one, two), strict=True):
            assert np.array_equal(matrix[start : start + len(weight), : weight[0].size].reshape(weight.shape), weight)
        assert np.count_nonzero(matrix) == one.size + two.size
    for shape in ((6, 30), (9, 30), (8, 29), (8, 6, 5)):
        with pytest.raises(LayoutError, match="expected one with all their rows and columns"):
            first_rows(shape, [one.shape, two.shape])


@pytest.mark.parametrize("leg", [None, 4, 4096])
@pytest.mark.parametrize("shapes", [[(30, 40), (24, 30)], [(8, 4, 3, 3), (9, 8, 3, 3)], [(8, 4, 3, 3), (9, 8, 2, 2)]])
@pytest.mark.parametrize("topology", FULL.values())
def test_layouts_begin_with_a_leg_for_the_layers(topology: Any, shapes: Any, leg: int | None) -> None:
    layout = _share.shared_layout(Config(topology=topology, leg=leg), shapes)
    rows, columns = max(s[0] for s in shapes), max(int(np.prod(s[1:])) for s in shapes)
    first_rows(layout.shape, shapes)
    if isinstance(topology, adtn.LowRank) and leg is None:
        assert layout.dims == (sum(s[0] for s in shapes), columns)
        return
    assert layout.factors[0][0] == 2
    assert layout.shape[0] // 2 >= rows
    assert layout.shape[1] == columns
    # the weights are the entries of the stack of the padded matrices
    matrix = _share.joined([RNG.standard_normal(s) for s in shapes], layout.shape)
    stack = np.zeros((2, layout.shape[0] // 2, columns))
    for g, (start, shape) in enumerate(zip(first_rows(layout.shape, shapes), shapes, strict=True)):
        stack[g, : shape[0]] = matrix[start : start + shape[0]]
    assert np.array_equal(stack.reshape(matrix.shape), matrix)


@pytest.mark.parametrize("topology", [adtn.BrickWall(), adtn.MERA(bond=2), adtn.ATTN(bond=2), adtn.CP(bond=2)])
def test_every_topology_generates_a_group(topology: Any) -> None:
    shapes = [(30, 40), (24, 30), (20, 40)]
    layout = _share.shared_layout(Config(topology=topology), shapes)
    first_rows(layout.shape, shapes)
    assert adtn.Generator(layout.shape, topology, layout=layout).weight().shape == layout.shape


def test_kernels_of_the_same_size_stay_legs_of_their_own() -> None:
    tucker = adtn.Tucker(bond=(2, 5, 4, None, None))
    layout = _share.shared_layout(Config(topology=tucker), [(8, 4, 3, 3), (9, 8, 3, 3)])
    assert layout.factors == ((2, 9), (8, 3, 3))


def test_the_mean_of_moments_needs_all_of_the_same_size() -> None:
    eye = np.eye(3)
    assert np.array_equal(_share.mean_moment([eye, 3 * eye]), 2 * eye)  # type: ignore[arg-type]
    assert _share.mean_moment([eye, None]) is None
    assert _share.mean_moment([eye, np.eye(4)]) is None


# --- layers ---


@both
@pytest.mark.parametrize("name", FULL)
def test_full_rank_is_exact(framework: Framework, name: str) -> None:
    model = framework.make()
    dense, x = weights_of(model), framework.batches[0][0]
    want = framework.numpy(model(x))
    report = adtn.compress(model, Config(**EXACT | {"topology": FULL[name]}))
    assert [row.name for row in report.layers] == ["conv1 + conv2", "fc1 + fc2"]
    for layer in ("conv1", "conv2", "fc1", "fc2"):
        generated = getattr(model, layer).generated
        assert np.allclose(framework.numpy(generated()), dense[layer], atol=2e-6)
    assert model.conv1.generated.whole is model.conv2.generated.whole
    assert np.allclose(framework.numpy(model(x)), want, atol=1e-5)


def test_gradients_are_those_of_explicit_slices_in_torch() -> None:
    model = TorchNet()
    adtn.compress(model, Config(**QUICK | {"recipe": "reconstruct"}))
    x, y = TORCH.batches[0]
    whole = {w: getattr(model, w).generated.whole for w in ("conv1", "fc1")}
    cores = [p for module in whole.values() for p in module.parameters()]
    found = torch.autograd.grad(nn.functional.cross_entropy(model.train()(x), y), cores)

    conv, fc = whole["conv1"](), whole["fc1"]()
    assert conv.shape == (18, 72)
    assert fc.shape == (60, 144)
    f = nn.functional
    h = f.conv2d(x, conv[:8, :36].reshape(8, 4, 3, 3), model.conv1.bias, padding=1).relu()
    h = f.conv2d(h, conv[9:18].reshape(9, 8, 3, 3), model.conv2.bias, padding=1).relu().flatten(1)
    h = f.linear(f.linear(h, fc[:30], model.fc1.bias).relu(), fc[30:54, :30], model.fc2.bias).relu()
    want = torch.autograd.grad(f.cross_entropy(model.out(h), y), cores)
    for a, b in zip(found, want, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-7)
        assert a.abs().max() > 0
    # function transforms generate the weight in the same way
    params = dict(model.named_parameters())
    traced = torch.func.grad(lambda p: f.cross_entropy(torch.func.functional_call(model, p, (x,)), y))(params)
    names = {id(p): name for name, p in params.items()}
    for core, b in zip(cores, want, strict=True):
        assert torch.allclose(traced[names[id(core)]], b, rtol=1e-4, atol=1e-7)


def test_gradients_are_those_of_explicit_slices_in_flax() -> None:
    import jax
    import optax

    model = FlaxNet()
    adtn.compress(model, Config(**QUICK | {"recipe": "reconstruct"}))
    x, y = FLAX.batches[0]

    def loss(model: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

    def explicit(model: Any) -> Any:
        conv, fc = model.conv1.generated.whole(), model.fc1.generated.whole()

        def convolve(x: Any, w: Any, b: Any) -> Any:
            y = jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "OIHW", "NHWC"))
            return nnx.relu(y + b)

        h = convolve(x, conv[:8, :36].reshape(8, 4, 3, 3), model.conv1.bias[...])
        h = convolve(h, conv[9:18].reshape(9, 8, 3, 3), model.conv2.bias[...]).reshape(len(x), -1)
        h = nnx.relu(h @ fc[:30].T + model.fc1.bias[...])
        h = nnx.relu(h @ fc[30:54, :30].T + model.fc2.bias[...])
        return optax.softmax_cross_entropy_with_integer_labels(model.out(h), y).mean()

    found, want = (nnx.grad(fn)(model) for fn in (loss, explicit))
    for name in ("conv1", "fc1"):
        a, b = jax.tree.leaves(found[name]["generated"]), jax.tree.leaves(want[name]["generated"])
        assert len(a) == len(b) > 0
        for one, two in zip(a, b, strict=True):
            assert np.allclose(one, two, rtol=1e-4, atol=1e-6)
            assert np.abs(one).max() > 0


def test_flax_computes_the_gradient_of_a_shared_weight_once() -> None:
    import jax

    from adtn_backends.jax.layers._slice import shared_once

    whole = jax_layers.GeneratedWeight(adtn.Generator((4 * 32, 32), adtn.TTN(bond=3)))
    parts = nnx.List([jax_layers.ADTNLinear(jax_layers.GeneratedSlice(whole, 32 * g, (32, 32))) for g in range(4)])
    table = jax_layers.ADTNEmbedding(jax_layers.GeneratedSlice(whole, 64, (32, 32)))

    class Model(nnx.Module):
        def __init__(self) -> None:
            self.parts, self.table = parts, table

        def __call__(self) -> Any:
            x = self.table(jnp.array([3, 5]))
            for part in self.parts:
                x = jnp.tanh(part(x))
            return x.sum()

    def once(model: Any) -> Any:
        with shared_once(model):
            return model()

    graph, state = nnx.split(Model())
    flops, grads = [], []
    for fn in (lambda model: model(), once):
        step = jax.jit(jax.grad(lambda state, fn=fn: fn(nnx.merge(graph, state)))).lower(state).compile()
        flops.append(step.cost_analysis()["flops"])
        grads.append(jax.tree.leaves(step(state)))
    assert flops[1] < 0.5 * flops[0]
    for a, b in zip(*grads, strict=True):
        assert np.allclose(a, b, rtol=1e-4, atol=1e-6)


def test_one_forward_generates_the_weight_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = TorchNet()
    adtn.compress(model, Config(**QUICK | {"recipe": "reconstruct"}))
    calls: list[int] = []
    kind = type(model.fc1.generated.whole._whole)
    generate = kind.weight
    monkeypatch.setattr(kind, "weight", lambda self, arrays: (calls.append(1), generate(self, arrays))[1])
    x = TORCH.batches[0][0]
    model.eval()
    with torch.no_grad():
        first = model(x)
        assert len(calls) == 2, "one for each group"
        assert torch.equal(model(x), first)
        assert len(calls) == 2
    with layers.cached_weights(model.train()):
        model(x)
    assert len(calls) == 4
    # training by compress generates once per step
    model, calls[:] = TorchNet(), []
    config = Config(**QUICK | {"recipe": "finetune", "share": [["fc1", "fc2"]], "targets": ["fc1", "fc2"]})
    tuned: list[int] = []

    def loss(model: Any, batch: Any) -> Any:
        before = len(calls)
        value = nn.functional.cross_entropy(model(batch[0]), batch[1])
        tuned.append(len(calls) - before)
        return value

    adtn.compress(model, config, data=TORCH.batches, loss=loss)
    assert tuned
    assert max(tuned) == 1


def test_slices_serve_embeddings_attention_and_recurrent_layers() -> None:
    model, data = Language(), texts()
    model.head.weight = nn.Parameter(torch.randn(32, 16))
    dense = copy.deepcopy(model)
    share = [["head", "embed"], ["attention.*", "recurrent.*"]]
    report = adtn.compress(model, Config(topology=adtn.LowRank(bond=99), recipe="closed-form", share=share))
    assert {row.name for row in report.layers} == {
        "head + embed",
        "attention.in_proj + attention.out_proj + recurrent.weight_ih_l0 + recurrent.weight_hh_l0",
    }
    with torch.no_grad():
        for ids in (data[0]["input_ids"], torch.tensor([[3, 31]])):
            assert torch.allclose(model(ids), dense(ids), atol=1e-5)
    ids = torch.tensor([[3, 31]])  # only these rows are generated
    y = model(ids)
    assert torch.allclose(y, dense(ids), atol=1e-5)
    y.sum().backward()
    assert model.embed.generated.whole._first().grad is not None
    assert torch.allclose(layers.to_dense(model)(ids), dense(ids), atol=1e-5)


def test_slices_are_checked_and_have_one_mode() -> None:
    for module in (layers, jax_layers):
        whole = module.GeneratedWeight(adtn.Generator((16, 8), adtn.TTN(bond=2)))
        for start, shape in ((9, (8, 8)), (-1, (8, 8)), (0, (8, 3, 3))):
            with pytest.raises(LayoutError, match="expected one that is inside"):
                module.GeneratedSlice(whole, start, shape)
        layer = module.ADTNLinear(module.GeneratedSlice(whole, 8, (8, 8)), mode="stream")
        x = torch.zeros(2, 8) if module is layers else jnp.zeros((2, 8))
        with pytest.raises(LayoutError, match="mode='stream' for a slice"):
            layer(x)
    table = jax_layers.ADTNEmbedding(jax_layers.GeneratedSlice(whole, 8, (8, 4)))
    assert np.allclose(table(jnp.array([5])), whole()[13:14, :4], atol=1e-6)
    assert np.allclose(table(jnp.arange(8)), whole()[8:, :4], atol=1e-6)


# --- whole models ---


@both
def test_parameters_and_bytes_count_once(framework: Framework, tmp_path: Path) -> None:
    model = framework.make()
    biases = sum(x.size for name, x in framework.state(model).items() if name.endswith("bias"))
    report = adtn.compress(model, Config(**EXACT | {"exclude": ["out"], "topology": adtn.TTN(bond=3)}))
    cores = sum(g.num_params for g in report.generators.values())
    want = cores + biases + 3 * 24
    assert report.after.params == want == model_of(model, None).sizes()[0]
    assert report.after.bytes == 4 * want
    assert report.after.resident_bytes == 4 * want
    assert sum(row.params for row in report.layers) == cores
    assert report.layers[0].shapes == ((8, 4, 3, 3), (9, 8, 3, 3))
    assert report.layers[0].dense == 8 * 36 + 9 * 72
    assert set(report.dense) == {"out"}
    assert "conv1 + conv2" in str(report)
    report.save(tmp_path / "report.html")
    report.save(tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["config"]["share"] == [["conv1", "conv2"], ["fc*"]]
    content = model_of(model, None).content({})
    tensors = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    tensors.pop("__metadata__", None)
    assert sum(int(np.prod(x["shape"])) for x in tensors.values()) == want


@both
def test_files_round_trip(framework: Framework, tmp_path: Path) -> None:
    model = framework.make()
    report = adtn.compress(model, Config(**QUICK, train="all"), data=framework.batches, test=framework.batches)
    assert len(report.losses) == 3
    assert report.layers[0].predicted_seconds
    adtn.save_model(model, tmp_path / "small", report)
    back = adtn.load_model(framework.make(), tmp_path / "small")
    assert equal(framework.state(back), framework.state(model))
    x = framework.batches[0][0]
    for module in (model, back):
        module.eval()
    assert np.array_equal(framework.numpy(back(x)), framework.numpy(model(x)))
    assert back.fc1.generated.whole is back.fc2.generated.whole


@both
def test_rounding_everything_else_leaves_the_cores(framework: Framework, tmp_path: Path) -> None:
    model = framework.make()
    report = adtn.compress(model, Config(**EXACT | {"rest": "float16"}))
    for generator in report.generators.values():
        for x in generator.params.values():
            assert not np.array_equal(np.asarray(x, np.float16).astype(np.float32), np.asarray(x, np.float32))
    adtn.save_model(model, tmp_path / "small", report)
    assert os.path.getsize(tmp_path / "small" / "state.safetensors") == report.file_bytes
    back = adtn.load_model(framework.make(), tmp_path / "small")
    assert equal(framework.state(back), framework.state(model))


@both
def test_an_error_restores_everything(framework: Framework) -> None:
    model = framework.make()
    before, calls = framework.state(model), []

    def score(model: Any) -> float:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return 0.0

    with pytest.raises(KeyboardInterrupt):
        adtn.compress(model, Config(**QUICK, train="all"), data=framework.batches, score=score)
    assert equal(framework.state(model), before)
    assert type(model.conv1).__name__ in ("Conv2d", "Conv")


@both
def test_training_continues_from_a_folder(framework: Framework, tmp_path: Path) -> None:
    config = Config(**QUICK | {"tune_steps": 20})
    whole, model, calls = framework.make(), framework.make(), []
    want = adtn.compress(whole, config, data=framework.batches)

    def stop(line: str) -> None:
        calls.append(line)
        if line.startswith("step 12"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adtn.compress(model, config, data=framework.batches, folder=tmp_path, progress=stop)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2, "a fit for each group"
    report = adtn.compress(model, config, data=framework.batches, folder=tmp_path)
    assert report.losses == want.losses
    assert equal(framework.state(model), framework.state(whole))


def test_copies_pickles_and_states_of_torch() -> None:
    model, x = TorchNet(), TORCH.batches[0][0]
    adtn.compress(model, Config(**QUICK | {"recipe": "reconstruct"}))
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    others = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(buffer, weights_only=False)]
    for other in others:
        assert other.fc1.generated.whole is other.fc2.generated.whole
        assert torch.equal(other(x), model(x))
    with torch.no_grad():
        others[0].fc1.generated.whole._first().mul_(2.0)
    assert not torch.equal(others[0](x), model(x))
    others[0].load_state_dict(model.state_dict())
    assert torch.equal(others[0](x), model(x))
    assert torch.allclose(layers.to_dense(model)(x), model(x), atol=1e-6)
    assert model.double()(x.double()).dtype == torch.float64


def test_huggingface_folders_round_trip(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    options = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(vocab_size=32, num_hidden_layers=2, max_position_embeddings=32, **options)
    model, ids = transformers.LlamaForCausalLM(config).eval(), torch.arange(24).reshape(2, 12) % 32
    share = [["*.q_proj", "*.k_proj"], ["*.mlp.*"]]
    report = adtn.compress(
        model, Config(targets=["*_proj"], topology=adtn.LowRank(bond=3), recipe="closed-form", share=share, smallest=9)
    )
    assert [len(row.shapes) for row in report.layers] == [1, 1, 1, 1, 4, 6]
    model.save_pretrained(tmp_path / "own")
    stored = sum(file.stat().st_size for file in (tmp_path / "own").glob("*.safetensors"))
    assert stored < 4 * model_of(model, None).sizes()[0] + 8000
    adtn.save_model(model, tmp_path / "small", report)
    others = [adtn.load_pretrained(tmp_path / "own")]
    torch.manual_seed(1)
    others.append(adtn.load_model(transformers.LlamaForCausalLM(config).eval(), tmp_path / "small"))
    with torch.no_grad():
        for other in others:
            assert torch.equal(other(ids).logits, model(ids).logits)


def test_the_metric_is_the_mean_of_second_moments() -> None:
    model = Square()
    scales = torch.logspace(0, -2, 32)
    data = [(torch.randn(64, 32, generator=torch.Generator().manual_seed(0)) * scales, torch.zeros(64).long())]
    adapter = model_of(model, None)
    moments = adapter.second_moments(["a", "b", "c"], data)
    joined = np.concatenate([adapter.weight(name) for name in "abc"])
    mean = sum(moments.values()) / 3
    report = adtn.compress(
        model, Config(topology=adtn.LowRank(bond=5), recipe="closed-form", share=[["a", "b", "c"]]), data=data
    )
    found = report.generators["a + b + c"]
    want = adtn.decompose(adtn.Generator(joined.shape, adtn.LowRank(bond=5), scale=joined), joined, moment=mean)
    assert found.num_params == 5 * (32 + 32 + 24 + 32)
    assert np.allclose(found.weight(), want.weight(), atol=1e-5)
    plain = np.linalg.svd(joined)
    nearest = (plain[0][:, :5] * plain[1][:5]) @ plain[2][:5]
    assert not np.allclose(found.weight(), nearest, atol=1e-2)


def test_compensation_leaves_groups_of_several_inputs_as_they_are() -> None:
    found: list[dict[str, adtn.Generator]] = []
    for recipe in (["closed-form"], ["closed-form", "compensate"]):
        data = [(torch.randn(64, 32, generator=torch.Generator().manual_seed(0)), torch.zeros(64).long())]
        config = Config(topology=adtn.LowRank(bond=5), recipe=recipe, share=[["a", "c"]])
        found.append(adtn.compress(Square(), config, data=data).generators)
    plain, compensated = ({name: np.asarray(g.weight()) for name, g in generators.items()} for generators in found)
    assert np.array_equal(plain["a + c"], compensated["a + c"])
    assert not np.allclose(plain["b"], compensated["b"])


@pytest.mark.parametrize("budget", [None, "5x", adtn.Budget(ratio=3)])
def test_a_group_has_one_format_within_a_budget(budget: Any, tmp_path: Path) -> None:
    def make() -> Any:
        return nn.Sequential(Square(), nn.Linear(24, 64))

    model, data = make(), [(torch.randn(32, 32), torch.zeros(32).long())]
    share = [["0.a", "0.b", "0.c"]]
    report = adtn.compress(model, Config(recipe="closed-form", share=share), budget=budget, data=data)
    assert set(report.generators) | set(report.dense) == {"0.a + 0.b + 0.c", "1"}
    group = next(row for row in report.layers if "+" in row.name)
    assert group.dense == (32 + 32 + 24) * 32
    assert group.sensitivity is not None
    adtn.save_model(model, tmp_path / "small", report)
    if report.file_bytes is not None:
        assert os.path.getsize(tmp_path / "small" / "state.safetensors") == report.file_bytes
    back = adtn.load_model(make(), tmp_path / "small")
    assert torch.equal(back(data[0][0]), model(data[0][0]))


def test_groups_have_the_options_of_their_layers() -> None:
    model = TorchNet()
    special = {"fc*": {"topology": adtn.MPO(bond=2), "leg": 6}}
    report = adtn.compress(model, Config(**QUICK | {"recipe": "reconstruct"}, layers=special))
    assert report.generators["fc1 + fc2"].topology == adtn.MPO(bond=2)
    assert report.generators["conv1 + conv2"].topology == adtn.TTN(bond=2)
    assert Config.from_dict({"share": [["fc1", "fc2"]], "topology": "ttn"}).share == (("fc1", "fc2"),)


# --- what is refused ---


def refused(match: str, model: Any = None, data: Any = None, **options: Any) -> None:
    model = model or TorchNet()
    before = state_of(model)
    with pytest.raises(CompressError, match=match):
        adtn.compress(model, Config(**QUICK | {"recipe": "reconstruct"} | options), data=data)
    assert same(model, before)


def test_groups_that_are_refused() -> None:
    refused("'fc9' in share, which matches no weight that is replaced; expected names among conv1", share=[["fc9"]])
    refused("fc2 stays dense: not among the targets", share=[["fc1", "fc2"]], targets=["fc1"])
    refused("one weight, 'fc1'; expected two or more", share=[["fc1"]])
    refused("one weight, ''; expected two or more", share=[[]])
    refused("'fc1' in two groups of share, 'fc1 . fc2' and", share=[["fc1", "fc2"], ["conv1", "fc1"]])
    refused("different values of topology", layers={"fc1": {"topology": adtn.MPO(bond=2)}})
    refused("different values of leg", layers={"fc1": {"leg": 4}})
    refused("base=SeededBase", base=adtn.SeededBase(0))
    refused("cannot generate: Got 3 ranks", topology=adtn.Tucker(bond=(2, 2, 2)), share=[["conv1", "fc1"]], leg=4)
    half = TorchNet()
    half.fc2.to(torch.bfloat16)
    refused("several dtypes or devices in a group of share: fc1 is float32 on cpu, fc2 is bfloat16 on cpu", half)
    empty = TorchNet()
    nn.init.zeros_(empty.fc2.weight)
    refused(r"'fc1 \+ fc2' in share, which is zero", empty)
    refused("'embed' in share, which has the same weight as head", Language(), share=[["embed", "attention.*"]])
    refused(
        "within a budget, whose weights have .30, 144. columns",
        budget=adtn.Budget(ratio=3),
        share=[["fc1", "fc2"]],
    )
    attention = {"attention": {"topology": adtn.TTN(bond=2)}}
    refused(
        "without a topology, unlike other layers",
        Language(),
        topology=None,
        layers=attention,
        share=[["recurrent.weight_ih_l0", "recurrent.weight_hh_l0"]],
    )


def test_configs_that_are_refused() -> None:
    with pytest.raises(CompressError, match="share with mode='adapter'"):
        Config(share=[["a", "b"]], mode="adapter")
    for recipe in ("distill-local", ["closed-form", adtn.Stage("distill-local")]):
        with pytest.raises(CompressError, match="share with the stage 'distill-local'"):
            Config(share=[["a", "b"]], topology=adtn.TTN(), recipe=recipe)
    for bad in ("fc1", ["fc1"], [["fc1", 2]], 3, None):
        with pytest.raises(CompressError, match="expected groups of names"):
            Config(share=bad)  # type: ignore[arg-type]
    with pytest.raises(CompressError, match="baselines=True with share"):
        adtn.compress(TorchNet(), Config(**EXACT), test=TORCH.batches, baselines=True)


@both
def test_adapters_of_models_refuse_other_groups(framework: Framework) -> None:
    model = framework.make()
    adapter = model_of(model, None)
    generator = adtn.Generator((60, 144), adtn.TTN(bond=2))
    with pytest.raises(CompressError, match="not a weight that can be generated"):
        adapter.install({"fc1 + fc3": generator})
    with pytest.raises(LayoutError, match="for weights of shapes"):
        adapter.install({"fc1 + fc2": adtn.Generator((40, 144), adtn.TTN(bond=2))})
    assert type(model.fc1).__name__ == "Linear"
    adapter.install({"fc1 + fc2": generator})
    with pytest.raises(CompressError, match="none is trained alone"):
        adapter.distill(framework.batches, Config(**QUICK).tuning(adtn.Stage("distill-local")), None, print)
    adapter.restore()
    assert type(model.fc1).__name__ == "Linear"


def test_names_of_groups() -> None:
    assert sharing(_share.shared_name(["a.b", "c"])) == ("a.b", "c")
    layer = Layer(name="x", kind="Linear", weights={"x": (3, 4)})
    assert _share.members_of(layer) == {"x": (3, 4)}
