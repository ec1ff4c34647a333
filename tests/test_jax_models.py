"""Whole models of Flax NNX: layers are replaced, trained, saved and restored as in PyTorch."""

from __future__ import annotations

import pickle
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import adtn
import numpy as np
import pytest
from adtn.compression import Config, Stage, Tuning, model_of, run_folder
from adtn.errors import CompressError, LayoutError

from flax_models import Language, Net, batches, numbers, same, texts

jax = pytest.importorskip("jax")
nnx = pytest.importorskip("flax.nnx")
layers = pytest.importorskip("adtn_backends.jax.layers")
kinds = pytest.importorskip("adtn_backends.jax.layers._kinds")

# models of these tests are small and random: results are bad on purpose
pytestmark = pytest.mark.filterwarnings("ignore::adtn.errors.QualityWarning")
jnp = jax.numpy

QUICK: dict[str, Any] = {"topology": adtn.TTN(bond=2), "steps": 5, "tune_steps": 3}


def test_layers_are_replaced_trained_and_reported() -> None:
    model, data = Net(), batches()
    report = adtn.compress(model, Config(**QUICK), data=data, test=data)
    assert {r.name: r.kind for r in report.layers} == {"conv": "Conv", "linears.0": "Linear"}
    assert report.dense["norm"] == "no generated form of BatchNorm"
    assert "fewer than smallest" in report.dense["linears.1"]
    assert isinstance(model.conv, layers.ADTNConv2d)
    assert isinstance(model.linears[0], layers.ADTNLinear)
    assert len(report.losses) == 3
    assert report.after.accuracy is not None
    assert report.after.params < report.before.params
    assert min(report.before.forward_peak_bytes, report.after.forward_peak_bytes) >= 4 * len(data[0][1])
    assert all(r.predicted_seconds > 0 for r in report.layers)
    for name, generator in report.generators.items():
        own = dict(nnx.iter_modules(model))[("linears", 0) if name == "linears.0" else ("conv",)]
        np.testing.assert_allclose(own.weight, generator.weight(), rtol=1e-4, atol=1e-6)
    assert not model.drop.deterministic  # still in training mode


def test_first_steps_are_in_proportion_to_the_entries_of_a_core() -> None:
    model = model_of(Net(), None)
    shape = model.weight("linears.0").shape
    gen = adtn.Generator(shape, adtn.LowRank(bond=3), seed=1, scale=0.1)
    gen = gen.with_params({"left": 9.0 * gen.params["left"], "right": gen.params["right"] / 9.0})
    model.install({"linears.0": gen})
    tuning = Tuning(steps=1, lr=1e-3, train="all", relative=True, clip=None)
    model.tune(batches(), None, tuning, lambda step, loss: None)
    now = model.generators()["linears.0"].params
    sizes = {name: float(np.sqrt(np.mean(np.square(x)))) for name, x in gen.params.items()}
    for name, x in gen.params.items():  # the first step of Adam changes every entry by the rate
        want = 1e-3 * sizes[name] / float(np.sqrt(sizes["left"] * sizes["right"]))
        assert np.median(np.abs(now[name] - x)) == pytest.approx(want, rel=1e-2)


def test_capture_and_autocast_are_refused() -> None:
    with pytest.raises(CompressError, match="are compiled anyway"):
        adtn.compress(Net(), Config(**QUICK, capture=True), data=batches())
    with pytest.raises(CompressError, match="dtype=jnp.bfloat16"):
        adtn.compress(Net(), Config(**QUICK, autocast="bfloat16"), data=batches())


def test_an_interrupted_training_ends_with_the_same_parameters(tmp_path) -> None:
    config = Config(**(QUICK | {"tune_steps": 10, "train": "all"}))
    whole, model, data = Net(), Net(), batches()

    def cut(line: str) -> None:
        if line.startswith("step 7"):
            raise KeyboardInterrupt

    report = adtn.compress(whole, config, data=data)
    with pytest.raises(KeyboardInterrupt):
        adtn.compress(model, config, data=data, folder=tmp_path, progress=cut)
    (checkpoint,) = tmp_path.glob("training-*")
    kept = checkpoint.read_bytes()
    checkpoint.write_bytes(kept[:-100])
    with pytest.raises(CompressError, match="delete it"):
        adtn.compress(model, config, data=data, folder=tmp_path)
    checkpoint.write_bytes(kept)
    assert adtn.compress(model, config, data=data, folder=tmp_path).losses == report.losses
    assert same(model, numbers(whole))


def test_one_fully_fitted_layer_gives_the_outputs_of_the_dense_one() -> None:
    """Use a generator that can be any weight, to check geometry, order of axes and biases."""
    rngs = nnx.Rngs(1)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, 6, 6, 4)), jnp.float32)
    dense = [
        (nnx.Conv(4, 6, (3, 3), strides=2, padding="SAME", rngs=rngs), x),
        (nnx.Conv(4, 6, (3, 2), padding=(1, 0), kernel_dilation=2, rngs=rngs), x),
        (nnx.Conv(4, 6, (3, 3), padding="VALID", feature_group_count=2, rngs=rngs), x),
        (nnx.Conv(4, 6, (3,), padding=1, rngs=rngs), x[:, 0]),
        (nnx.Linear(4, 5, use_bias=False, rngs=rngs), x),
        (nnx.LinearGeneral(4, (2, 3), rngs=rngs), x),
        (nnx.LinearGeneral((6, 4), 5, axis=(-2, -1), rngs=rngs), x),
        (nnx.Embed(10, 4, rngs=rngs), jnp.arange(7)),
    ]
    for layer, inputs in dense:
        if getattr(layer, "bias", None) is not None:
            layer.bias[...] = jnp.asarray(rng.standard_normal(layer.bias.shape), jnp.float32)
        weight, reason = kinds.weight_of(layer)
        assert not reason
        weight = np.asarray(weight)
        generator = adtn.decompose(adtn.Generator(weight.shape, adtn.MPO(bond=64)), weight)
        made = kinds.layer_like(layer, layers.GeneratedWeight(generator))
        np.testing.assert_allclose(made(inputs), layer(inputs), rtol=1e-4, atol=1e-4)
        back = made.to_dense()
        assert type(back) is type(layer)
        assert numbers(back).keys() == numbers(layer).keys()
        np.testing.assert_allclose(back(inputs), layer(inputs), rtol=1e-4, atol=1e-4)
        rows = kinds.kind_of(layer).rows(layer, inputs)
        if rows is not None:
            flat = np.asarray(rows) @ weight.reshape(weight.shape[0], -1).T
            got = np.asarray(layer(inputs))
            bias = np.asarray(layer.bias[...]).reshape(-1) if layer.bias is not None else 0.0
            np.testing.assert_allclose(flat + bias, got.reshape(-1, flat.shape[1]), rtol=1e-4, atol=1e-4)


def test_layers_are_made_of_dense_ones_and_become_dense_again() -> None:
    rngs = nnx.Rngs(1)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 6, 6, 4)), jnp.bfloat16)
    half: dict[str, Any] = {"param_dtype": jnp.bfloat16, "dtype": jnp.bfloat16, "rngs": rngs}
    exact: dict[str, Any] = {"topology": adtn.MPO(bond=64), "steps": 1, "progress": False, "optimizer": "lbfgs"}
    linear, table = nnx.Linear(4, 5, **half), nnx.Embed(10, 4, **half)
    conv = nnx.Conv(4, 6, (3, 3), strides=2, kernel_dilation=2, **half)
    for dense, make, inputs in [
        (linear, layers.ADTNLinear.from_linear, x),
        (conv, layers.ADTNConv2d.from_conv, x),
        (table, layers.ADTNEmbedding.from_embedding, jnp.arange(7)),
    ]:
        made = make(dense, **exact)
        assert made.weight.dtype == jnp.bfloat16
        assert made(inputs).dtype == jnp.bfloat16
        np.testing.assert_allclose(made(inputs).astype(float), dense(inputs).astype(float), rtol=0.1, atol=0.1)
    with pytest.raises(LayoutError, match="its kernel is"):
        layers.ADTNConv1d.from_conv(conv, **exact)
    odd = layers.ADTNConv2d(adtn.Generator((4, 4, 3, 3), adtn.TTN(bond=2)), padding=1, padding_mode="circular")
    with pytest.raises(LayoutError, match="circular"):
        odd.to_dense()


def test_a_whole_model_becomes_dense() -> None:
    class Both(nnx.Module):
        def __init__(self) -> None:
            weight = adtn.Generator((48, 16), adtn.TTN(bond=2))
            self.attention = layers.ADTNMultiheadAttention(weight, adtn.Generator((16, 16), adtn.TTN(bond=2)), 4)
            self.out = layers.ADTNLinear(adtn.Generator((16, 16), adtn.TTN(bond=2)), bias=False)
            self.again = self.out

        def __call__(self, x):
            return self.again(nnx.relu(self.out(self.attention(x, x, x))))

    model = Both()
    model.attention.bias[...] = jnp.linspace(-1.0, 1.0, 48)
    before = numbers(model)
    dense = layers.to_dense(model)
    assert {type(m).__name__ for _, m in nnx.iter_modules(dense)} == {
        "Both",
        "MultiHeadAttention",
        "LinearGeneral",
        "Linear",
    }
    assert dense.again is dense.out
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 16)), jnp.float32)
    np.testing.assert_allclose(dense(x), model(x), rtol=1e-4, atol=1e-5)
    assert same(model, before)
    assert type(layers.to_dense(model.out)) is nnx.Linear


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"padding": "CIRCULAR"}, "CIRCULAR"),
        ({"padding": ((0, 1), (1, 0))}, "padding"),
        ({"input_dilation": 2}, "transposed"),
        ({"mask": np.ones((3, 3, 4, 4))}, "masked"),
    ],
)
def test_layers_without_a_generated_form_say_why(options: dict[str, Any], why: str) -> None:
    assert why in kinds.weight_of(nnx.Conv(4, 4, (3, 3), rngs=nnx.Rngs(0), **options))[1]


def test_attention_and_a_tied_embedding() -> None:
    model, data = Language(), texts()
    report = adtn.compress(model, Config(**QUICK), data=data, test=data)
    assert {r.name for r in report.layers} == {"embed", *(f"attention.{p}" for p in ("query", "key", "value", "out"))}
    assert isinstance(model.embed, layers.ADTNEmbedding)
    assert isinstance(model.attention.query, layers.ADTNLinearGeneral)


def test_a_module_at_two_places_stays_one() -> None:
    class Twice(nnx.Module):
        def __init__(self) -> None:
            self.first = nnx.Linear(16, 16, rngs=nnx.Rngs(0))
            self.second = self.first
            self.third = nnx.Linear(16, 16, rngs=nnx.Rngs(1))
            self.third.kernel = self.first.kernel

        def __call__(self, x):
            return self.third(self.second(self.first(x)))

    model = Twice()
    with pytest.raises(CompressError, match="first: shares its weight with third; third: shares .* first, second"):
        adtn.compress(model, Config(**QUICK))
    model.third = nnx.Linear(16, 16, rngs=nnx.Rngs(1))
    report = adtn.compress(model, Config(**QUICK, targets=["first"]))
    assert report.layers[0].tied == ("second",)
    assert model.first is model.second


class Sending(ThreadPoolExecutor):
    """An executor that pickles tasks and results, as if they were sent between processes."""

    def submit(self, fn, /, *args):
        def run(content: bytes) -> bytes:
            fn, args = pickle.loads(content)
            return pickle.dumps(fn(*args))

        sent = super().submit(run, pickle.dumps((fn, args)))
        found: Future = Future()
        sent.add_done_callback(lambda f: found.set_result(pickle.loads(f.result())))
        return found


@pytest.mark.parametrize("executor", [None, Sending(2)], ids=["here", "elsewhere"])
def test_all_recipes_and_a_teacher(executor) -> None:
    model, data = Net(), batches()
    told: list[str] = []
    recipe = ["reconstruct-data", "distill-local", "finetune"]
    config = Config(**{**QUICK, "tune_steps": 30}, recipe=recipe, distill=0.5, train="all", rates={"norm.*": 0.0})
    scale = np.asarray(model.norm.scale[...])
    mean = np.asarray(model.norm.mean[...])
    report = adtn.compress(model, config, data=data, executor=executor, progress=told.append)
    improved = [line.rpartition("outputs ")[2].split(" -> ") for line in told if "error of the outputs" in line]
    assert len(improved) == 2
    assert all(float(b) < float(a) for a, b in improved)
    assert len(report.losses) == 30
    np.testing.assert_array_equal(model.norm.scale[...], scale)
    assert not np.array_equal(model.norm.mean[...], mean)  # running statistics change in training


class Deep(nnx.Module):
    """A model whose layers are called in another order than that in which they are listed."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.hidden = nnx.List([nnx.Linear(24, 24, rngs=rngs) for _ in range(4)])

    def __call__(self, x: Any) -> Any:
        for layer in reversed(list(self.hidden)):
            x = nnx.relu(2.0 * layer(x))
        return x


def test_layers_are_distilled_in_the_order_of_calls_behind_compressed_ones() -> None:
    draw = np.random.default_rng(1)
    data = [(draw.standard_normal((32, 24)).astype(np.float32), np.zeros(32, np.int64)) for _ in range(4)]
    config = Config(
        topology=adtn.LowRank(bond=4), recipe=["closed-form", "distill-local"], tune_steps=200, tune_lr=5e-3
    )
    away: list[float] = []
    for executor in (None, ThreadPoolExecutor(1)):
        lines: list[str] = []
        model, dense = Deep(), Deep()
        adtn.compress(model, config, data=data, executor=executor, progress=lines.append)
        want = [np.asarray(dense(x)) for x, _ in data]
        away.append(np.linalg.norm([model(x) - y for (x, _), y in zip(data, want, strict=True)]) / np.linalg.norm(want))
        names = [line.split(":")[0] for line in lines if "error of the outputs" in line]
        assert names == [f"hidden.{n}" for n in (range(4) if executor else reversed(range(4)))]
    assert away[0] < 0.9 * away[1]


def test_values_from_a_worker_are_arrays_of_jax() -> None:
    model = Net()
    adtn.compress(model, Config(**QUICK, targets=["Linear"], recipe="distill-local"), data=batches())
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(nnx.state(model, nnx.Param)))


@pytest.mark.parametrize(("optimizer", "lr"), [("adam", 1e-2), ("sgd", 3e-2)])
def test_training_lowers_the_loss_and_changes_only_generated_parameters(optimizer: str, lr: float) -> None:
    model, data = Net(), batches()
    before = np.asarray(model.linears[1].kernel[...])
    config = Config(**{**QUICK, "tune_steps": 60}, tune_lr=lr, tune_optimizer=optimizer, dropout=0.0)
    report = adtn.compress(model, config, data=data)
    assert np.mean(report.losses[-6:]) < np.mean(report.losses[:6])
    np.testing.assert_array_equal(model.linears[1].kernel[...], before)
    assert model.drop.rate == 0.1
    again = adtn.compress(Net(), Config(**QUICK, tune_lr=lr, tune_optimizer=optimizer), data=data).losses
    assert again[0] != report.losses[0]  # with its own dropout rate


def test_without_a_topology_the_chosen_layers_have_a_quarter_of_their_bytes() -> None:
    for data in (None, batches()):
        report = adtn.compress(Net(), Config(tune_steps=3), data=data)
        chosen = 4 * (8 * 4 * 3 * 3 + 32 * 32)
        assert report.after.bytes < report.before.bytes - 0.65 * chosen
        assert report.file_bytes <= report.config.budget.bytes
        assert max(error for r in report.layers for error in r.local_errors) < 0.1


def test_stages_have_steps_and_batches_of_their_own() -> None:
    drawn: set[int] = set()

    class Data:
        def __iter__(self) -> Any:
            for n, batch in enumerate(batches()):
                drawn.add(n)
                yield batch

    local = Stage("closed-form", batches=1), Stage("distill-local", steps=2, batches=1)
    recipe = [*local, Stage("finetune", steps=4, batches=2)]
    config = Config(topology=adtn.LowRank(bond=4), targets=["linears.0"], recipe=recipe)
    report = adtn.compress(Net(), config, data=Data(), validation=batches()[:1])
    assert len(report.losses) == 4
    assert drawn == {0, 1}


def test_a_budget_is_met() -> None:
    model, data = Net(), batches()
    report = adtn.compress(model, Config(**QUICK, budget=adtn.Budget(ratio=3), smallest=64), data=data)
    assert report.after.params <= report.before.params / 3


def test_a_model_is_unchanged_after_an_error() -> None:
    model, data = Net(), batches()
    state = numbers(model)
    modules = [id(m) for _, m in nnx.iter_modules(model)]

    def lost(model, batch):
        raise RuntimeError("lost")

    for loss, rate in ((lost, 5e-3), (None, 1e30)):
        with pytest.raises((RuntimeError, CompressError), match="lost|lower tune_lr"):
            adtn.compress(model, Config(**QUICK, train="all", tune_lr=rate), data=data, loss=loss)
        assert same(model, state)
        assert [id(m) for _, m in nnx.iter_modules(model)] == modules
        assert not model.drop.deterministic


def test_saved_models_are_the_same(tmp_path: Path) -> None:
    data = batches()
    config = Config(**QUICK, train="all", targets=["Conv", "Linear"])
    made: list[Net] = []

    def build() -> Net:
        made.append(Net())
        return made[-1]

    run_folder(build, config, tmp_path, data=data)
    other = adtn.load_model(Net(), tmp_path)
    for model in (made[0], other):
        model.eval()
    np.testing.assert_array_equal(made[0](data[0][0]), other(data[0][0]))
    wrong = Language()
    state = numbers(wrong)
    with pytest.raises(CompressError, match="conv"):
        adtn.load_model(wrong, tmp_path)
    assert same(wrong, state)


def test_a_model_in_bfloat16_stays_one() -> None:
    rngs = nnx.Rngs(0)
    half = {"param_dtype": jnp.bfloat16, "dtype": jnp.bfloat16, "rngs": rngs}
    model = nnx.Sequential(nnx.Linear(32, 32, **half), nnx.relu, nnx.Linear(32, 4, **half))
    rng = np.random.default_rng(0)
    x = rng.standard_normal((16, 32)).astype(np.float32)
    data = [(jnp.asarray(x, jnp.bfloat16), (x.sum(1) > 0).astype(int))]
    config = Config(
        targets=["layers.0"], smallest=16, budget=adtn.Budget(bytes=1500), steps=5, tune_steps=5, train="all"
    )
    report = adtn.compress(model, config, data=data, test=data)
    assert report.after.bytes <= 1500
    assert {str(x.dtype) for x in jax.tree.leaves(nnx.state(model, nnx.Param))} == {"bfloat16"}
    assert np.isfinite(report.losses).all()


@pytest.mark.parametrize("kind", ["linear", "heads", "conv", "table"])
def test_layers_keep_the_dtype_of_their_products(kind: str) -> None:
    mixed: dict[str, Any] = {"dtype": jnp.bfloat16, "rngs": nnx.Rngs(0)}
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, 6, 6, 16)), jnp.float32)
    dense: Any = {
        "linear": lambda: nnx.Linear(16, 8, **mixed),
        "heads": lambda: nnx.LinearGeneral(16, (2, 4), **mixed),
        "conv": lambda: nnx.Conv(16, 8, (3, 3), **mixed),
        "table": lambda: nnx.Embed(16, 8, **mixed),
    }[kind]()
    inputs = jnp.arange(3) if kind == "table" else x
    shape = kinds.weight_of(dense)[0].shape
    weight = layers.GeneratedWeight(adtn.Generator(shape, adtn.TTN(bond=2), seed=0))
    made: Any = kinds.layer_like(dense, weight)
    if kind != "table":
        made.bias = dense.bias
        dense.bias[...] = jnp.asarray(rng.standard_normal(dense.bias.shape), jnp.float32)
    for mode in ("materialise", "stream", "factored") if kind == "linear" else (None,):
        if mode:
            made.mode = mode
        exact = layers.to_dense(made)
        assert exact.dtype == made(inputs).dtype == exact(inputs).dtype == jnp.bfloat16
        np.testing.assert_allclose(made(inputs).astype(float), exact(inputs).astype(float), rtol=0.03, atol=0.03)
        grads = jax.tree.leaves(nnx.grad(lambda m: m(inputs).astype(jnp.float32).sum())(made))
        assert {str(g.dtype) for g in grads} == {"float32"}
        assert any(np.abs(g).max() > 0 for g in grads)
    if kind == "table":
        assert made.attend(x[..., :8]).dtype == exact.attend(x[..., :8]).dtype == jnp.bfloat16
        assert made(jnp.arange(16)).dtype == jnp.bfloat16  # all rows, so the table is generated


def test_batches_without_labels() -> None:
    bare = [x for x, _ in batches()]
    for data in (bare, [(x,) for x in bare]):
        with pytest.raises(CompressError, match="Got batches without labels"):
            adtn.compress(Net(), Config(**QUICK), data=data)
    report = adtn.compress(Net(), Config(**QUICK), data=bare, loss=lambda model, x: (model(x) ** 2).mean())
    assert len(report.losses) == 3
