"""Whole models: the choice of layers, what is preserved, failures, and the report."""

from __future__ import annotations

import base64
import copy
import io
import json
import math
import pickle
import re
import warnings
from collections import OrderedDict
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import adtn
import numpy as np
import pytest
from adtn.compression import Config, Layer, LayerRow, ModelCost, Stage, Tuning, _local, model_of
from adtn.compression._page import _png
from adtn.compression._quality import faults_of
from adtn.compression._state import state_bytes
from adtn.errors import CompressError, DeviceError, QualityWarning

from models import Language, batches, net, same, state_of, texts

torch = pytest.importorskip("torch")
layers = pytest.importorskip("adtn_backends.torch.layers")

# models of these tests are small and random: results are bad on purpose
pytestmark = pytest.mark.filterwarnings("ignore::adtn.errors.QualityWarning")
nn = torch.nn

TTN = adtn.TTN(bond=2)
QUICK: dict[str, Any] = {"topology": TTN, "steps": 5, "tune_steps": 3}


# --- the choice of layers ---


@pytest.mark.parametrize(
    ("options", "want"),
    [
        ({}, {"0", "4"}),
        ({"targets": ["Linear"]}, {"4"}),
        ({"targets": ["Linear"], "smallest": 10}, {"4", "6"}),
        ({"targets": ["[04]"]}, {"0", "4"}),
        ({"targets": ["*"], "exclude": ["Conv2d"]}, {"4"}),
    ],
)
def test_layers_are_chosen_by_name_pattern_and_class(options: dict[str, Any], want: set[str]) -> None:
    model = net()
    report = adtn.compress(model, Config(**QUICK, **options, recipe="reconstruct"))
    assert {r.name for r in report.layers} == want
    found = {n for n, m in model.named_modules() if hasattr(m, "generated")}
    assert found == want
    everything = {n for n, m in net().named_children() if list(m.parameters())}
    assert set(report.dense) == everything - want
    assert all(report.dense.values())


def test_what_stays_dense_says_why() -> None:
    report = adtn.compress(net(), Config(**QUICK, targets=["0"], recipe="reconstruct"))
    assert report.dense["4"] == "not among the targets"
    assert "BatchNorm2d" in report.dense["1"]
    report = adtn.compress(net(), Config(**QUICK, exclude=["0"], recipe="reconstruct"))
    assert report.dense["0"] == "excluded"
    assert "fewer than smallest" in report.dense["6"]


def test_layers_have_options_of_their_own() -> None:
    special = {"Conv2d": {"topology": adtn.MPO(bond=2)}, "4": {"leg": 4, "base": adtn.SeededBase(3)}}
    model = net()
    adtn.compress(model, Config(**QUICK, layers=special, recipe="reconstruct"))
    conv, linear = model[0].generated.generator(), model[4].generated.generator()
    assert isinstance(conv.topology, adtn.MPO)
    assert linear.base == adtn.SeededBase(3)
    assert max(linear.layout.dims) == 4


def test_ties_attention_and_keywords() -> None:
    model, data = Language(), texts()
    report = adtn.compress(model, Config(**QUICK), data=data, test=data)
    assert {r.name: r.tied for r in report.layers} == {"embed": ("head",), "attention": (), "recurrent": ()}
    assert model.embed.generated is model.head.generated
    assert isinstance(model.attention, layers.ADTNMultiheadAttention)
    recurrent = {"recurrent.weight_ih_l0", "recurrent.weight_hh_l0"}
    assert set(report.generators) == {"embed", "attention.in_proj", "attention.out_proj", *recurrent}
    assert report.after.accuracy is not None
    assert len(report.losses) == 3


class Sending(ThreadPoolExecutor):
    """An executor that pickles its arguments, as if they were sent to another process."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        return super().submit(pickle.loads(pickle.dumps(partial(fn, *args, **kwargs))))


def test_hooks_move_with_the_layers() -> None:
    model, data, seen = net(), batches(), []
    handles = [
        model[4].register_forward_hook(lambda module, inputs, output: seen.append(type(module).__name__)),
        model[4].register_forward_pre_hook(lambda module, inputs: (inputs[0] * 0.0,)),
    ]
    recipe = ["reconstruct", "distill-local"]
    with Sending(1) as pool:  # these hooks cannot be pickled
        adtn.compress(model, Config(**QUICK, recipe=recipe), data=data, executor=pool)
    seen.clear()
    with torch.no_grad():
        assert torch.equal(model[:5](data[0][0]), model[4].bias.expand(8, 32))
    assert seen == ["ADTNLinear"]
    for handle in handles:
        handle.remove()
    model(data[0][0])
    assert seen == ["ADTNLinear"]


def test_pruning_is_made_permanent_first() -> None:
    prune = pytest.importorskip("torch.nn.utils.prune")
    model = net()
    prune.l1_unstructured(model[4], "weight", 0.5)
    state = state_of(model)
    with pytest.raises(CompressError, match=r"Cannot copy the model.*prune.remove"):
        adtn.compress(model, Config(**QUICK, recipe="reconstruct"))
    assert same(model, state)
    other = net()
    prune.l1_unstructured(other[4], "weight", 0.5)
    with torch.no_grad():
        other(batches(1)[0][0])  # now its weight has no graph and is copied, and its hook stays with the dense layer
    prune.remove(model[4], "weight")
    for one in (model, other):
        adtn.compress(one, Config(**QUICK, recipe="reconstruct"))
        assert isinstance(one[4], layers.ADTNLinear)
        one(batches(1)[0][0])


# --- the default: a quarter of the bytes ---


@pytest.mark.parametrize("with_data", [False, True])
def test_without_a_topology_the_chosen_layers_have_a_quarter_of_their_bytes(with_data: bool) -> None:
    model, data = net(), batches() if with_data else None
    before = {name: p.numel() for name, p in model.named_parameters()}
    with warnings.catch_warnings():
        warnings.simplefilter("error", QualityWarning)
        report = adtn.compress(model, Config(tune_steps=3), data=data)
    chosen = 4 * (before["0.weight"] + before["4.weight"])
    assert {r.name for r in report.layers} <= {"0", "4"}
    dense = state_bytes(model_of(net(), None), {}, None)
    assert 0 < report.config.budget.bytes - (dense - chosen + chosen // 4) < 1000, "room for the headers"
    assert report.before.bytes - chosen < report.after.bytes
    assert report.file_bytes <= report.config.budget.bytes
    assert report.rest is None
    assert max(error for r in report.layers for error in r.local_errors) < 0.1
    assert (len(report.losses) == 3) == with_data
    ratio = f"{report.before.bytes / report.after.bytes:.1f}x"
    assert f"{report.before.bytes:,} -> {report.after.bytes:,} bytes ({ratio})" in str(report)
    assert f"{report.before.bytes:,} bytes of parameters, in a file of {report.file_bytes:,}" in report.to_html()
    integers = [r for r in report.layers if report.generators[r.name].precision is not None]
    assert integers and all(r.topology.endswith(str(report.generators[r.name].precision)) for r in integers)


def test_the_default_counts_only_the_chosen_layers() -> None:
    report = adtn.compress(net(), Config(targets=["4"]))
    assert report.before.bytes - report.after.bytes >= 0.7 * 4 * 32 * 128
    with pytest.raises(
        CompressError, match=r"Got no budget, which means a budget of 7,\d+ bytes and no data, .* no layer"
    ):
        adtn.compress(net(), Config(targets=["4"], precisions=()))


@pytest.mark.parametrize("recipe", ["reconstruct", "distill-local", ["reconstruct-data", "finetune"]])
def test_the_default_goes_with_every_recipe(recipe: Any) -> None:
    report = adtn.compress(net(), Config(recipe=recipe, steps=2, tune_steps=2), data=batches())
    assert report.after.bytes <= report.config.budget.bytes
    assert any(g.precision is not None for g in report.generators.values())


def test_topologies_of_some_layers_leave_the_others_dense() -> None:
    report = adtn.compress(net(), Config(layers={"Conv2d": {"topology": TTN}}, recipe="reconstruct", steps=2))
    assert [r.name for r in report.layers] == ["0"]
    assert report.config.budget is None
    assert report.dense["4"] == "has no topology, unlike other layers"


@pytest.mark.parametrize(("name", "value"), [("leg", 4), ("order", "axis"), ("base", adtn.IdentityBase())])
def test_options_of_a_topology_need_one(name: str, value: Any) -> None:
    with pytest.raises(CompressError, match=f"Got {name}=.* without a topology to use it; pass topology="):
        Config(**{name: value})
    with pytest.raises(CompressError, match="without a topology"):
        Config(layers={"4": {name: value}})
    assert Config(**{name: value}, topology=TTN)
    assert name == "base" or Config(**{name: value}, mode="adapter")


def test_an_adapter_without_a_topology_is_a_tree() -> None:
    report = adtn.compress(net(), Config(mode="adapter", targets=["4"], tune_steps=1), data=batches())
    assert report.generators["4"].topology == adtn.TTN(bond=4)
    config = Config(mode="adapter", layers={"4": {"topology": adtn.MPO(bond=2)}}, tune_steps=1)
    assert str(adtn.compress(net(), config, data=batches()).generators["4"].topology) == "MPO(bond=2)"


# --- failures ---


def failing(step: int):
    """Make a loss that fails at a step."""
    seen: list[int] = []

    def loss(model, batch):
        seen.append(1)
        if len(seen) > step:
            raise RuntimeError("lost")
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    return loss


@pytest.mark.parametrize("train", ["generated", "all"])
def test_a_model_is_unchanged_after_an_error(train: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = net(), batches()
    state, modules = state_of(model), dict(model.named_modules())
    with pytest.raises(RuntimeError, match="lost"):
        adtn.compress(model, Config(**QUICK, train=train), data=data, loss=failing(2))
    assert same(model, state)
    assert dict(model.named_modules()) == modules
    assert all(p.requires_grad for p in model.parameters())
    assert model.training

    def broken(task):
        if task.name == "4":
            raise MemoryError("no room")
        return real(task)

    real = _local.solve
    monkeypatch.setattr(_local, "solve", broken)
    with pytest.raises(MemoryError):
        adtn.compress(model, Config(**QUICK), data=data)
    assert same(model, state)
    assert dict(model.named_modules()) == modules


def test_a_loss_that_explodes_leaves_the_model_and_says_so() -> None:
    model, data = net(), batches()
    state = state_of(model)
    with pytest.raises(CompressError, match="lower tune_lr, which is 1e\\+30"):
        adtn.compress(model, Config(**QUICK, tune_lr=1e30), data=data)
    assert same(model, state)


def test_only_generated_parameters_are_trained_unless_all_are_requested() -> None:
    for train in ("generated", "all"):
        model, data = net(), batches()
        before = state_of(model)
        adtn.compress(model, Config(**QUICK, train=train), data=data)
        now = model.state_dict()
        moved = not torch.equal(now["6.weight"], before["6.weight"])
        assert moved == (train == "all")
        assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(("optimizer", "lr"), [("adam", 1e-2), ("sgd", 3e-2)])
def test_either_optimizer_lowers_the_loss(optimizer: str, lr: float) -> None:
    model, data = net(), batches()
    config = Config(**{**QUICK, "tune_steps": 60}, tune_lr=lr, tune_optimizer=optimizer)
    losses = adtn.compress(model, config, data=data).losses
    assert np.mean(losses[-6:]) < np.mean(losses[:6])
    with pytest.raises(CompressError, match="tune_optimizer"):
        Config(tune_optimizer="lion")


@pytest.mark.parametrize("rate", [None, 0.0])
def test_dropout_has_another_rate_in_training_and_its_own_again(rate: float | None) -> None:
    model, data = nn.Sequential(*net()[:5], nn.Dropout(0.5), *net()[5:]), batches(1)
    seen: list[Any] = []

    def loss(model: Any, batch: Any) -> Any:
        seen.extend([model[5].p] if model.training else [])
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    adtn.compress(model, Config(**QUICK, dropout=rate), data=data, loss=loss)
    assert set(seen) == {0.5 if rate is None else rate}
    assert model[5].p == 0.5
    with pytest.raises(CompressError, match="dropout"):
        Config(dropout=1.0)


@pytest.mark.parametrize("recipe", ["distill-local", "finetune"])
def test_training_multiplies_in_another_dtype_and_nothing_else_does(recipe: str) -> None:
    class Seen(nn.Module):
        def forward(self, x: Any) -> Any:
            trains = torch.is_grad_enabled()
            seen.add((trains, torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu")))
            return x

    seen: set[Any] = set()
    data = batches()
    layer = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(16), Seen(), layer)
    model(data[0][0])
    seen.clear()
    options: dict[str, Any] = {**QUICK, "targets": ["3.0"], "recipe": recipe, "tune_steps": 30, "seed": 1}
    states = []
    for autocast in (None, "bfloat16"):
        made = copy.deepcopy(model)
        report = adtn.compress(made, Config(**options, autocast=autocast), data=data, test=data)
        assert {p.dtype for p in made.parameters()} == {torch.float32}
        assert report.after.accuracy is not None
        states.append(made.state_dict())
    wanted = {(False, False), (True, False), (True, torch.bfloat16)}
    assert seen == (wanted if recipe == "finetune" else {(False, False)})
    seen.clear()
    if recipe == "finetune":
        with torch.autocast("cpu", torch.bfloat16):  # autocast of the caller stays on
            adtn.compress(copy.deepcopy(model), Config(**options), data=data)
        assert seen == {(False, torch.bfloat16), (True, torch.bfloat16)}
    pairs = [(states[0][name], x) for name, x in states[1].items()]
    assert any(not torch.equal(x, y) for x, y in pairs)
    for x, y in pairs:
        torch.testing.assert_close(x, y, rtol=0.1, atol=0.1)
    with pytest.raises(CompressError, match="autocast='float16'; expected 'bfloat16' or None"):
        Config(autocast="float16")


# --- recipes ---


@pytest.mark.parametrize("topology", [adtn.Tucker(bond=64), adtn.MPO(bond=64), adtn.CP(bond=8)], ids=repr)
def test_local_fits_start_from_a_decomposition_if_there_is_one(topology: adtn.Topology) -> None:
    """Start from a decomposition, as L-BFGS from random cores does not find an exact form in hundreds of steps."""
    generator = adtn.Generator((8, 4, 3, 3), topology)
    weight = generator.weight("numpy:cpu", "float32")
    model = net()
    model[0].weight.data = torch.tensor(weight)
    config = Config(targets=["0"], topology=topology, steps=30, recipe="reconstruct")
    error = adtn.compress(model, config).layers[0].local_errors[0]
    start = adtn.decompose(adtn.Generator(weight.shape, topology, scale=weight), weight)
    begun = np.linalg.norm(start.weight() - weight) / np.linalg.norm(weight)
    assert error <= begun + 1e-3
    assert error < (0.5 if isinstance(topology, adtn.CP) else 1e-2)


def test_outputs_are_reconstructed_where_there_are_data() -> None:
    """Use inputs in few directions, where the outputs of the layer matter, and not the weight."""
    torch.manual_seed(0)
    basis = torch.randn(2, 32)
    data = [(torch.randn(64, 2) @ basis, torch.zeros(64, dtype=torch.long)) for _ in range(3)]
    x = torch.cat([b[0] for b in data])
    errors, told = {}, {}
    for recipe in ("reconstruct", "reconstruct-data"):
        model = nn.Sequential(nn.Linear(32, 16), nn.ReLU())
        torch.manual_seed(1)
        nn.init.normal_(model[0].weight)
        want = model(x).detach()
        options = {"topology": adtn.TTN(bond=3), "steps": 100, "recipe": recipe}
        report = adtn.compress(model, Config(**options, targets=["0"]), data=data)
        errors[recipe] = float((model(x).detach() - want).norm() / want.norm())
        (told[recipe],) = report.layers[0].local_errors
    assert errors["reconstruct-data"] < 0.01 * errors["reconstruct"]
    assert told["reconstruct-data"] < 0.01 < 0.1 < told["reconstruct"]


def test_second_moments_of_convolutions_are_those_of_their_patches() -> None:
    from adtn_backends.torch._model import TorchModel

    for options in ({"padding": 1}, {"padding": "same", "dilation": 2}, {"stride": 2, "padding_mode": "reflect"}):
        model, data = nn.Sequential(nn.Conv2d(3, 5, 3, bias=False, **options)), batches()
        data = [(x[:, :3], y) for x, y in data]
        (moment,) = TorchModel(model, None).second_moments(["0"], data).values()
        weight = model[0].weight.detach().double().reshape(5, -1)
        outputs = torch.cat([model(x).detach().double().transpose(0, 1).reshape(5, -1) for x, _ in data], 1)
        power = float((outputs**2).sum() / outputs.shape[1])
        assert float(torch.trace(weight @ torch.tensor(moment) @ weight.T)) == pytest.approx(power, rel=1e-5)


def test_training_through_the_generators_and_distillation_help() -> None:
    torch.manual_seed(0)
    dense, data = net(), batches(8)
    optimizer = torch.optim.Adam(dense.parameters(), 5e-3)
    for _ in range(30):
        for x, y in data:
            optimizer.zero_grad()
            nn.functional.cross_entropy(dense(x), y).backward()
            optimizer.step()
    options = {"targets": ["4"], "topology": adtn.TTN(bond=3), "steps": 20}
    raw = adtn.compress(copy.deepcopy(dense), Config(**options, tune_steps=0), data=data, test=data)
    tuned = adtn.compress(copy.deepcopy(dense), Config(**options, tune_steps=150), data=data, test=data)
    assert raw.before.accuracy == tuned.before.accuracy > 90
    assert tuned.after.accuracy > raw.after.accuracy + 5
    copied = adtn.compress(copy.deepcopy(dense), Config(**options, tune_steps=150, distill=1.0), data=data, test=data)
    assert copied.after.accuracy > raw.after.accuracy + 5


# --- executors and folders ---


@pytest.mark.parametrize("kind", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_any_executor_gives_the_same_layers(kind: type) -> None:
    import multiprocessing

    options = {"mp_context": multiprocessing.get_context("spawn")} if kind is ProcessPoolExecutor else {}
    config = Config(**QUICK, recipe="reconstruct")
    want = adtn.compress(net(), config).generators
    with kind(2, **options) as executor:
        got = adtn.compress(net(), config, executor=executor).generators
    for name, generator in want.items():
        for key, x in generator.params.items():
            np.testing.assert_allclose(got[name].params[key], x, rtol=1e-5, atol=1e-7)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_dask_worker_that_is_killed_loses_no_layer(tmp_path: Path) -> None:
    import os
    import signal

    distributed = pytest.importorskip("distributed")
    config = Config(**QUICK, smallest=10, recipe="reconstruct")
    want = adtn.compress(net(), config).generators
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        victim = next(iter(client.run(os.getpid).values()))

        class Killing:
            """A client one of whose workers dies when it has received its task."""

            submitted = 0

            def submit(self, fn, task):
                future = client.submit(fn, task, pure=False)
                self.submitted += 1
                if self.submitted == len(want):
                    os.kill(victim, signal.SIGKILL)
                return future

        got = adtn.compress(net(), config, executor=Killing(), folder=tmp_path).generators
    assert len(list(tmp_path.glob("*.safetensors"))) == len(want)
    for name, generator in want.items():
        for key, x in generator.params.items():
            np.testing.assert_allclose(got[name].params[key], x, rtol=1e-5, atol=1e-7)


def test_finished_layers_are_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(**QUICK, recipe="reconstruct")
    solved: list[str] = []
    real = _local.solve

    def counted(task):
        if len(solved) == 1 and not tmp_path.joinpath("go").exists():
            raise KeyboardInterrupt
        solved.append(task.name)
        return real(task)

    monkeypatch.setattr(_local, "solve", counted)
    model = net()
    with pytest.raises(KeyboardInterrupt):
        adtn.compress(model, config, folder=tmp_path)
    assert solved == ["0"]
    tmp_path.joinpath("go").touch()
    first = adtn.compress(model, config, folder=tmp_path)
    assert solved == ["0", "4"]
    again = adtn.compress(net(), config, folder=tmp_path)
    assert solved == ["0", "4"]
    for name, generator in first.generators.items():
        np.testing.assert_array_equal(again.generators[name].weight(), generator.weight())
    damaged = next(tmp_path.glob("4-*.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:-3])
    adtn.compress(net(), config, folder=tmp_path)
    adtn.compress(net(), Config(**{**QUICK, "steps": 6}, recipe="reconstruct"), folder=tmp_path)
    assert solved == ["0", "4", "4", "0", "4"]


class Cut(Exception):
    """An error that ends a run, as if the machine stopped."""


def cut_at(text: str):
    def progress(line: str) -> None:
        if line.startswith(text):
            raise Cut

    return progress


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_an_interrupted_training_ends_with_the_same_parameters(optimizer: str, tmp_path: Path) -> None:
    model = nn.Sequential(*net()[:5], nn.Dropout(0.3), *net()[5:])
    rows = torch.utils.data.TensorDataset(*(torch.cat(part) for part in zip(*batches(), strict=True)))
    data = torch.utils.data.DataLoader(rows, batch_size=8, shuffle=True)
    config = Config(
        **(QUICK | {"tune_steps": 10, "recipe": ["reconstruct", "finetune", "finetune"], "tune_optimizer": optimizer})
    )
    whole = copy.deepcopy(model)
    report = adtn.compress(whole, config, data=data)
    with pytest.raises(Cut):
        adtn.compress(model, config, data=data, folder=tmp_path, progress=cut_at("step 7"))
    (checkpoint,) = tmp_path.glob("training-*")
    lines: list[str] = []
    again = adtn.compress(copy.deepcopy(model), config, data=data, folder=tmp_path, progress=lines.append)
    assert next(line for line in lines if line.startswith("step")).startswith("step 7 of 10")
    assert again.losses == report.losses
    assert not list(tmp_path.glob("training-*"))
    with pytest.raises(Cut):
        adtn.compress(model, config, data=data, folder=tmp_path, progress=cut_at("step 2"))
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    with pytest.raises(CompressError, match="delete it"):
        adtn.compress(model, config, data=data, folder=tmp_path)
    checkpoint.unlink()
    adtn.compress(model, config, data=data, folder=tmp_path)
    assert same(model, state_of(whole))


# --- the report ---


def test_the_report_counts_what_is_there_and_saves_whole_pages(tmp_path: Path) -> None:
    model, data = net(), batches()
    dense = sum(p.numel() for p in model.parameters())
    lines: list[str] = []
    plt = pytest.importorskip("matplotlib.pyplot")
    report = adtn.compress(model, Config(**QUICK), data=data, test=data, progress=lines.append)
    assert report.before.params == dense
    assert report.after.params == sum(p.numel() for p in model.parameters())
    assert report.after.bytes == 4 * report.after.params
    assert sum(r.params for r in report.layers) == sum(g.num_params for g in report.generators.values())
    assert report.ratio == pytest.approx(dense / report.after.params)
    assert [row.ratio for row in report.layers] == [row.dense / row.params for row in report.layers]
    assert replace(report.layers[0], params=0).ratio == report.layers[0].dense  # a frozen layer has none
    assert report.before.forward_seconds > 0
    assert any(line.startswith("4: relative error") for line in lines)
    assert any(line.startswith("step 3 of 3") for line in lines)
    for row in report.layers:
        assert row.name in str(report)
    assert "dense, no generated form of BatchNorm2d: 1" in str(report)
    assert f"adtn {adtn.__version__}, {report.date}, seed 0" in str(report)
    first, third = report.after.forward_quartiles
    assert 0 < first <= report.after.forward_seconds <= third
    content = json.loads(report.to_json())
    assert (content["title"], content["version"]) == ("Sequential", adtn.__version__)
    assert abs(datetime.now(UTC) - datetime.fromisoformat(content["date"])) < timedelta(minutes=10)
    assert content["layers"][1]["dense"] == 8 * 16 * 32
    assert content["config"]["topology"]["name"] == "TTN"
    for name in ("report.json", "report.html"):
        report.save(tmp_path / name)
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 2
    assert "<title>adtn: Sequential, compressed</title>" in page
    assert "<td>tune_steps</td><td>3</td>" in page and "<td>seed</td><td>0</td>" in page
    assert "<td>restarts</td>" not in page, "only what differs from the defaults"
    widths = [float(w) for w in re.findall(r"<rect [^>]*width='([\d.]+)'", page)]
    counts = [n for row in report.layers for n in (row.dense, row.params)]
    spread = max(counts) / min(counts)
    assert ("logarithmic" in page) == (spread >= 60)
    if spread < 60:
        np.testing.assert_allclose(np.divide(widths, widths[0]), np.divide(counts, counts[0]), rtol=0.05)
    assert "http" not in page
    pictures = re.findall("src='data:image/png;base64,([^']*)'", page)
    assert page.count("src=") == len(pictures) == 2 * len(report.generators)
    for picture, shape in zip(pictures[::2], [(8, 36), (32, 96)], strict=True):
        pixels = plt.imread(io.BytesIO(base64.b64decode(picture)))
        assert pixels.shape[:2] == shape
    dense, generated = report.corners["4"]
    np.testing.assert_allclose(generated, report.generators["4"].weight()[:96, :96], rtol=1e-4, atol=1e-6)
    x, color = dense[3, 5], plt.imread(io.BytesIO(base64.b64decode(pictures[2])))[3, 5]
    assert (color[0] > color[2]) == (x > 0)  # red is positive
    assert json.loads((tmp_path / "report.json").read_text()) == content


def test_biases_stay_the_very_parameters_that_others_may_share() -> None:
    from adtn_backends.torch._model import TorchModel

    attention = nn.MultiheadAttention(16, 4)
    model = nn.ModuleDict({"linear": nn.Linear(16, 16), "conv": nn.Conv2d(4, 8, 3), "attention": attention})
    biases = {name: p for name, p in model.named_parameters() if "bias" in name}
    adapter = TorchModel(model, None)
    shapes = {name: shape for layer in adapter.layers() for name, shape in layer.weights.items()}
    adapter.install({name: adtn.Generator(shape, TTN) for name, shape in shapes.items()})
    assert len(biases) == 4
    found = dict(model.named_parameters())
    assert {name for name in biases if found.get(name) is biases[name]} == set(biases)


def test_pictures_go_from_blue_over_white_to_red() -> None:
    plt = pytest.importorskip("matplotlib.pyplot")
    x = np.zeros((10, 12))
    x[2, 3], x[4, 5] = 1.0, -1.0  # more than three standard deviations
    pixels = np.rint(255 * plt.imread(io.BytesIO(_png(x)))[..., :3])
    assert pixels[2, 3].tolist() == [178, 24, 43] and pixels[4, 5].tolist() == [33, 102, 172]
    assert (pixels[x == 0] == 247).all()
    ramp = np.rint(255 * plt.imread(io.BytesIO(_png(np.linspace(-1, 1, 255)[None])))[0, :, :3])
    assert (np.diff(ramp[:128], axis=0) >= 0).all() and (np.diff(ramp[127:], axis=0) <= 0).all()


def test_the_memory_of_a_forward_pass_is_counted_to_the_byte() -> None:
    model = nn.Sequential(nn.Linear(256, 128, bias=False), nn.ReLU(), nn.Linear(128, 16, bias=False))
    data = [(torch.randn(32, 256), torch.zeros(32, dtype=torch.long))]
    config = Config(targets=["0"], topology=adtn.MPO(bond=2), mode="adapter", recipe="reconstruct", steps=1)
    report = adtn.compress(model, config, data=data)
    assert report.before.forward_peak_bytes == 4 * 32 * (128 + 128)
    assert report.after.forward_peak_bytes >= report.before.forward_peak_bytes
    assert "memory of a forward pass beside them 32 KiB" in str(report)


def test_the_report_shortens_long_names_and_lists() -> None:
    name = "a_name_that_is_far_too_long_to_stand_beside_the_bars"
    norms = {f"norm{n}": nn.BatchNorm1d(16) for n in range(6)}
    model = nn.Sequential(OrderedDict({name: nn.Linear(16, 16), **norms}))
    report = adtn.compress(model, Config(targets=[name], recipe="reconstruct", steps=2))
    assert "BatchNorm1d: norm0, norm1, norm2 and 3 more" in str(report)
    page = report.to_html()
    assert f">…{name[-39:]}</text>" in page
    assert f"<td>{name}</td>" in page
    assert "<td>norm5</td>" in page


def test_the_memory_of_parameters_and_buffers_counts_shared_ones_once() -> None:
    from adtn_backends.torch._model import TorchModel

    model = net()
    twice = nn.Sequential(model, model)
    parts = [*model.parameters(), *model.buffers()]
    size = sum(x.numel() * x.element_size() for x in parts)
    assert TorchModel(model, None).resident_bytes() == TorchModel(twice, None).resident_bytes() == size
    config = Config(targets=["4"], topology=adtn.ScaledRandom(), recipe="closed-form", steps=1)
    report = adtn.compress(model, config)
    assert report.before.resident_bytes == size
    assert report.after.resident_bytes > report.after.bytes + 4 * 4096, (
        "the random weight is in memory, not in the file"
    )


# --- warnings ---


def cost(**options: Any) -> ModelCost:
    return ModelCost(
        **({"params": 9, "bytes": 9, "accuracy": None, "forward_seconds": None, "forward_peak_bytes": None} | options)
    )


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ({"accuracy": 90.0}, {"accuracy": 88.1}, ""),
        ({"accuracy": 90.0}, {"accuracy": 87.9}, "The accuracy falls by 2.10, from 90.00 to 87.90"),
        ({"accuracy": 90.0}, {"accuracy": float("nan")}, "The accuracy was 90 and is nan now"),
        ({"score": 0.8}, {"score": 0.77}, ""),
        ({"score": 0.8}, {"score": 0.75}, "The score falls by 0.05"),
        ({"score": -40.0, "accuracy": 90.0}, {"score": -39.0, "accuracy": 10.0}, ""),
        ({"loss": 2.0}, {"loss": 2.19}, ""),
        ({"loss": 2.0}, {"loss": 2.21}, "The loss on the test data grows from 2.0000 to 2.2100"),
        ({"loss": -2.0}, {"loss": -1.7}, "grows"),
        ({"loss": 1.0}, {"loss": float("nan")}, "grows"),
        ({"loss": 0.01, "accuracy": 99.0}, {"loss": 0.1, "accuracy": 99.0}, ""),
        ({"loss": 0.5, "accuracy": 80.0}, {"loss": 0.7, "accuracy": 80.0}, "grows"),
        ({"loss": 0.5, "accuracy": 80.0}, {"loss": 0.7, "accuracy": 70.0}, "accuracy"),
    ],
)
def test_a_model_that_loses_much_is_noticed(before: dict[str, Any], after: dict[str, Any], message: str) -> None:
    faults = faults_of([], cost(**before), cost(**after), trained=True)
    assert len(faults) == bool(message)
    assert message in "".join(faults)


def test_one_warning_names_all_layers_with_large_errors() -> None:
    def row(name: str, *errors: float) -> LayerRow:
        sizes = {"dense": 9, "params": 3, "active": 3, "dense_bytes": 36, "bytes": 12}
        return LayerRow(name=name, kind="Linear", shapes=(), topology="", local_errors=list(errors), **sizes)

    rows = [row(f"l{n}", 0.2, 0.5 + n / 10) for n in range(7)]
    (fault,) = faults_of(rows, cost(), cost(), trained=False)
    assert fault.startswith("6 of 7 layers have a relative error above 0.5, and nothing was trained: l6 (1.10), l5 ")
    assert "l2 (0.70) and 1 more" in fault
    assert not faults_of(rows, cost(), cost(), trained=True)
    assert len(faults_of([row("a", float("nan"))], cost(), cost(), trained=False)) == 1


def test_a_ruined_model_causes_warnings_that_the_report_repeats_in_red() -> None:
    with pytest.warns(QualityWarning, match="2 of 2 layers have a relative error above 0.5") as caught:
        report = adtn.compress(net(), Config(**QUICK))
    assert [str(w.message) for w in caught] == report.warnings == json.loads(report.to_json())["warnings"]
    assert caught[0].filename == __file__, "the warning points at the call"
    assert report.summary()[0] == f"warning: {report.warnings[0]}"
    assert f"<p class='alarm'>warning: {report.warnings[0]}</p>" in report.to_html()
    assert ".alarm{color:#c62828" in report.to_html()
    scores = iter([50.0, 47.0])
    with pytest.warns(QualityWarning, match="The score falls by 3, from 50 to 47"):
        adtn.compress(net(), Config(**QUICK), data=batches(), score=lambda model: next(scores))


def test_a_warning_that_is_an_error_leaves_the_model_unchanged() -> None:
    model = net()
    state, modules = state_of(model), dict(model.named_modules())
    with warnings.catch_warnings():
        warnings.simplefilter("error", QualityWarning)
        with pytest.raises(QualityWarning):
            adtn.compress(model, Config(**QUICK))
    assert same(model, state)
    assert dict(model.named_modules()) == modules


def test_good_results_and_adapters_cause_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", QualityWarning)
        report = adtn.compress(net(), Config(targets=["4"], topology=adtn.LowRank(bond=28), recipe="closed-form"))
        adtn.compress(net(), Config(**QUICK, mode="adapter"), data=batches())
    assert report.warnings == []
    assert "alarm'>" not in report.to_html()


# --- configs ---


def test_configs_are_read_from_toml(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('recipe = ["closed-form", {name="finetune", steps=500}]')
    assert Config.load(file).recipe == ("closed-form", Stage("finetune", steps=500))
    file.write_text('[recipe]\nname = "finetune"\nbatches = 3')
    assert Config.load(file).recipe == Stage("finetune", batches=3)
    file.write_text(
        'targets = ["fc*"]\nrecipe = "reconstruct"\nbase = 3\ntopology = {name = "mera", bond = 3}\n'
        '[layers.Conv2d]\ntopology = "tucker"\nleg = 4\n[layers.Conv1d]\ntopology = {name = "attn", pairs = [[1, 2]]}\n'
    )
    config = Config.load(file)
    assert config.topology == adtn.MERA(bond=3)
    assert config.options_of(Layer(name="c", kind="Conv1d")).topology == adtn.ATTN(pairs=((1, 2),))
    assert config.base == adtn.SeededBase(3)
    assert config.options_of(Layer(name="c", kind="Conv2d")).topology == adtn.Tucker()
    assert config.options_of(Layer(name="c", kind="Conv2d")).leg == 4
    assert config.options_of(Layer(name="fc", kind="Linear")).topology == adtn.MERA(bond=3)
    file.write_text("steps = [")
    with pytest.raises(CompressError, match="Cannot read"):
        Config.load(file)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": "fc"}, r"expected a list of names, such as \['fc1'\]"),
        ({"recipe": "magic"}, "expected one or several of closed-form"),
        ({"targets": [1]}, r"expected a list of names"),
        ({"train": "some"}, "expected 'generated' or 'all'"),
        ({"optimizer": "best"}, "expected 'adam', 'adamw', 'sgd', 'lbfgs' or 'lm'"),
        ({"distill": 2.0}, "a number from 0 to 1"),
        ({"steps": -1}, "whole number of at least 0"),
        ({"steps": "5"}, "Got steps='5'; expected a whole number"),
        ({"restarts": 1.5}, "whole number of at least 1"),
        ({"seed": True}, "whole number from 0 to"),
        ({"leg": 1}, "whole number from 2 to"),
        ({"tune_lr": 0.0}, "Got tune_lr=0.0; expected a number above 0"),
        ({"lr": "fast"}, "Got lr='fast'; expected a number above 0"),
        ({"clip": -1.0}, "number above 0"),
        ({"rates": {"*": "a"}}, "expected numbers of at least 0 by names"),
        ({"rates": 3}, "expected numbers of at least 0 by names"),
        ({"budget": 8}, r"expected adtn.Budget\(ratio=20\)"),
        ({"budget": {"rat": 8}}, "one of accuracy_loss, bytes, bytes_ratio, params, ratio"),
        ({"budget": {"ratio": "8"}}, "Got ratio='8'; expected a number of at least 1"),
        ({"base": 1.5}, "expected adtn.SeededBase"),
        ({"layers": ["a"]}, "expected values by names"),
        ({"layers": {"a": "ttn"}}, "expected values by names"),
        ({"layers": {"a": {"leg": 0}}}, "Got leg=0"),
        ({"layers": {"a": {"bond": 2}}}, "expected topology, leg, order, base"),
        ({"colour": 1}, "in a config; expected"),
        ({"topology": {"name": "ttn", "legs": 3}}, "expected options among"),
    ],
)
def test_invalid_configs_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(CompressError, match=message):
        Config.from_dict(options)


def test_objects_of_another_class_are_refused() -> None:
    for options, message in (
        ({"topology": "ttn"}, r"Got topology='ttn'; expected a topology with its options, such as adtn.TTN"),
        ({"candidates": ("mpo",)}, "expected topologies"),
        ({"base": 3}, "expected adtn.SeededBase"),
        ({"budget": {"ratio": 3}}, r"expected adtn.Budget"),
    ):
        with pytest.raises(CompressError, match=message):
            Config(**options)


def test_what_cannot_be_compressed_is_refused_before_anything_is_done() -> None:
    model = net()
    state = state_of(model)
    with pytest.raises(CompressError, match="not a model of"):
        adtn.compress(object())
    with pytest.raises(CompressError, match="matches no layer"):
        adtn.compress(model, Config(targets=["nothing"]))
    with pytest.raises(CompressError, match="No layer can be replaced"):
        adtn.compress(model, Config(smallest=10**9))
    with pytest.raises(CompressError, match="without data"):
        adtn.compress(model, Config(recipe="finetune"))
    with pytest.raises(CompressError, match="without parameters"):
        adtn.compress(nn.ReLU())
    with pytest.raises(CompressError, match="is one layer"):
        adtn.compress(nn.Linear(64, 64), Config(**QUICK, recipe="reconstruct"))
    with pytest.raises(CompressError, match="exhausted"):
        adtn.compress(model, Config(**QUICK), data=iter(()), loss=failing(9))
    with pytest.raises(DeviceError):
        adtn.compress(model, Config(**QUICK, recipe="reconstruct"), device="torch:nowhere")
    assert same(model, state)


# --- folders and the command line ---

MODULE = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 3))

def data():
    rng = torch.Generator().manual_seed(0)
    return [(torch.randn(8, 16, generator=rng), torch.arange(8) % 3) for _ in range(2)]

nothing = 3
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import sys

    monkeypatch.chdir(tmp_path)
    tmp_path.joinpath("somenet.py").write_text(MODULE)
    tmp_path.joinpath("c.toml").write_text(
        'targets = ["0"]\ntopology = {name = "ttn", bond = 2}\nsteps = 5\ntune_steps = 3\n'
    )
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    sys.modules.pop("somenet", None)
    return tmp_path


def command(*arguments: str) -> Any:
    from adtn.cli import app
    from typer.testing import CliRunner

    return CliRunner().invoke(app, ["compress", *arguments])


def test_the_command_line_writes_a_folder_that_loads_back(here: Path) -> None:
    import somenet
    from safetensors.torch import save_model

    torch.manual_seed(3)
    dense = somenet.build()
    save_model(dense, "dense.safetensors")
    done = command(
        "somenet:build",
        "--weights",
        "dense.safetensors",
        "--config",
        "c.toml",
        "--data",
        "somenet:data",
        "--test",
        "somenet:data",
        "--out",
        "small",
    )
    assert done.exit_code == 0, done.output
    assert "accuracy" in done.output
    found = {str(p.relative_to(here / "small")) for p in (here / "small").rglob("*")} - {".lock"}
    assert found == {"state.safetensors", "report.json", "report.html"}, "weights are in the state, once"
    model = adtn.load_model(somenet.build(), "small")
    assert torch.equal(model[2].weight, dense[2].weight)
    want = model[0].generated.generator().weight()
    np.testing.assert_allclose(model[0].weight.detach(), want, rtol=1e-5, atol=1e-7)
    accuracy = json.loads((here / "small/report.json").read_text())["after"]["accuracy"]
    right = [(model(x).argmax(-1) == y).float().mean() for x, y in somenet.data()]
    assert accuracy == pytest.approx(100 * float(torch.stack(right).mean()))


def test_the_command_line_takes_a_budget_and_compares(here: Path) -> None:
    arguments = ["somenet:build", "--config", "c.toml", "--test", "somenet:data", "--out", "small"]
    sources = ["--data", "somenet:data", "--validation", "somenet:data"]
    done = command(*arguments, *sources, "--budget", "2x", "--baselines")
    assert done.exit_code == 0, done.output
    report = json.loads((here / "small/report.json").read_text())
    assert report["config"]["budget"]["bytes_ratio"] == 2.0
    assert report["file_bytes"] == (here / "small/state.safetensors").stat().st_size
    assert "int8, all layers" in [x["name"] for x in report["baselines"]]
    assert "whitened SVD" in done.stdout
    done = command(*arguments, "--budget", "half")
    assert "Got the budget 'half'; expected a ratio such as '4x'" in str(done.exception)


def test_the_command_line_without_options_keeps_the_model_usable(here: Path) -> None:
    done = command("somenet:build", "--out", "small")
    assert done.exit_code == 0, done.output
    report = json.loads((here / "small/report.json").read_text())
    assert report["config"]["topology"] is None and report["warnings"] == []
    assert report["after"]["bytes"] < report["before"]["bytes"] / 2
    assert (here / "small/state.safetensors").stat().st_size <= report["config"]["budget"]["bytes"]


def test_the_command_line_shows_warnings_once_and_without_the_source(here: Path) -> None:
    done = command("somenet:build", "--config", "c.toml", "--out", "small")
    assert done.exit_code == 0, done.output
    (warning,) = json.loads((here / "small/report.json").read_text())["warnings"]
    assert warning.startswith("1 of 1 layers have a relative error above 0.5")
    assert done.stderr == f"warning: {warning}\n"
    assert f"warning: {warning}" in done.stdout


def test_folders_and_names_that_do_not_fit_are_refused(here: Path) -> None:
    import somenet

    for arguments, message in (
        (["somenet"], "expected MODULE:FUNCTION"),
        (["somenet:missing"], "cannot be found"),
        (["elsewhere:build"], "cannot be found"),
        (["somenet:nothing"], "expected a function"),
        (["somenet:build", "--weights", "no.safetensors"], "Cannot load"),
    ):
        done = command(*arguments)
        assert done.exit_code != 0
        assert message in str(done.exception)
    with pytest.raises(CompressError, match="no generators"):
        adtn.load_model(somenet.build(), here)
    assert command("somenet:build", "--config", "c.toml", "--out", "small").exit_code == 0
    model = nn.Sequential(nn.Linear(16, 31), nn.ReLU(), nn.Linear(31, 3))
    state = state_of(model)
    with pytest.raises(CompressError, match="whose shape is \\(31, 16\\)"):
        adtn.load_model(model, "small")
    assert same(model, state)
    with pytest.raises(CompressError, match="not a weight that can be generated"):
        adtn.load_model(nn.Sequential(nn.ReLU(), nn.Linear(2, 2)), "small")
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    state = state_of(model)
    with pytest.raises(CompressError, match="Cannot load"):
        adtn.load_model(model, "small")
    assert same(model, state)


def test_the_report_has_predicted_times() -> None:
    report = adtn.compress(net(), Config(**QUICK), data=batches())
    assert all(row.predicted_seconds is not None and row.predicted_seconds > 0 for row in report.layers)
    assert "the scheduler expected" in str(report)
    assert adtn.compress(net(), Config(**QUICK, recipe="reconstruct")).layers[0].predicted_seconds is None


# --- stages ---


def test_stages_are_composed_and_need_data() -> None:
    def names(config: Config, has_data: bool) -> tuple[str, ...]:
        return tuple(stage.name for stage in config.stages(has_data))

    assert names(Config(topology=TTN), True) == ("reconstruct-data", "finetune")
    assert names(Config(topology=TTN), False) == ("reconstruct",)
    assert names(Config(), True) == ("closed-form", "compensate", "normalise", "finetune")
    assert names(Config(), False) == ("closed-form",)
    assert names(Config(recipe=["reconstruct", "distill-local"]), True) == ("reconstruct", "distill-local")
    assert names(Config(mode="adapter"), True) == ("finetune",)
    for recipe in ("distill-local", ["reconstruct", "finetune"]):
        with pytest.raises(CompressError, match="without data"):
            adtn.compress(net(), Config(**QUICK, recipe=recipe))


def test_stages_take_from_the_config_what_they_do_not_have() -> None:
    recipe = [
        "closed-form",
        Stage("reconstruct", steps=7),
        Stage("distill-local", lr=0.5),
        Stage("finetune", batches=2),
    ]
    config = Config(topology=TTN, recipe=recipe, steps=3, lr=0.1, tune_steps=4, tune_lr=0.2)
    assert config.stages(True) == (
        Stage("closed-form"),
        Stage("reconstruct", steps=7, lr=0.1),
        Stage("distill-local", steps=4, lr=0.5),
        Stage("finetune", steps=4, lr=0.2, batches=2),
    )
    assert Config(topology=TTN, recipe=Stage("finetune")).stages(True)[0].lr == 5e-3
    assert Config(recipe=Stage("finetune")).stages(True)[0].lr is None, "it is tried"
    assert Config(recipe=Stage("finetune"), tune_lr=0.2).stages(True)[0].lr == 0.2
    adapter = Config(mode="adapter", recipe=["closed-form", Stage("finetune", steps=9)])
    assert adapter.stages(True) == (Stage("finetune", steps=9, lr=5e-3),)
    tuning = config.tuning(config.stages(True)[2])
    assert (tuning.steps, tuning.lr) == (4, 0.5)


class Batches:
    """A loader of batches, with a record of what was drawn."""

    def __init__(self, n: int) -> None:
        self.batches, self.drawn = batches(n), set[int]()

    def __iter__(self) -> Any:
        for n, batch in enumerate(self.batches):
            self.drawn.add(n)
            yield batch


@pytest.mark.parametrize(
    "name", ["closed-form", "compensate", "normalise", "reconstruct-data", "distill-local", "finetune"]
)
def test_a_stage_uses_its_first_batches_only(name: Any) -> None:
    data = Batches(6)
    options = {} if name in ("closed-form", "compensate", "normalise", "reconstruct-data") else {"steps": 12}
    recipe = Stage(name, batches=3, **options)
    config = Config(targets=["4"], topology=adtn.LowRank(bond=4), steps=2, recipe=["reconstruct", recipe])
    report = adtn.compress(net(), config, data=data, validation=batches(1))
    assert data.drawn == {0, 1, 2}
    assert len(report.losses) == (12 if name == "finetune" else 0)
    stages = [
        Stage("closed-form", batches=2),
        Stage("reconstruct-data", batches=3, steps=1),
        Stage("finetune", steps=0),
    ]
    data.drawn.clear()
    adtn.compress(net(), replace(config, recipe=stages), data=data, validation=batches(1))
    assert data.drawn == {0, 1}, "they share second moments"


def test_stages_have_steps_and_rates_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, float]] = []
    real = _local.fit

    def fit(generator: Any, target: Any, **options: Any) -> Any:
        seen.append((options["steps"], options["lr"]))
        return real(generator, target, **options)

    monkeypatch.setattr(_local, "fit", fit)
    recipe = (Stage("reconstruct", steps=3, lr=0.5), Stage("finetune", steps=2), Stage("finetune", steps=4, lr=1e-30))
    told: list[str] = []
    config = Config(targets=["4"], topology=TTN, recipe=recipe)
    report = adtn.compress(net(), config, data=batches(1), baselines=True, test=batches(1), progress=told.append)
    assert seen == [(3, 0.5)]
    assert len(report.losses) == 6
    steps = [line.split(":")[0] for line in told if line.startswith("step")]
    assert steps == [f"step {n} of {m}" for m in (2, 4) for n in range(1, m + 1)]
    content = json.loads(report.to_json())["config"]["recipe"]
    assert content[2] == {
        "name": "finetune",
        "steps": 4,
        "lr": 1e-30,
        "batches": None,
        "keep": None,
        "components": None,
    }
    assert Config.from_dict({"recipe": content}).recipe == recipe


def test_the_stage_that_explodes_names_its_rate() -> None:
    config = Config(targets=["4"], topology=TTN, recipe=["reconstruct", Stage("finetune", steps=5, lr=1e30)], steps=2)
    with pytest.raises(CompressError, match=r"which is 1e\+30"):
        adtn.compress(net(), config, data=batches())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "closed-form", "steps": 5}, "Got steps=5 for the stage 'closed-form', which has only batches"),
        ({"name": "normalise", "lr": 1.0}, "Got lr=1.0 for the stage 'normalise'"),
        (
            {"name": "reconstruct", "batches": 1},
            "Got batches=1 for the stage .reconstruct., which has only steps",
        ),
        ({"name": "local-then-global"}, "Got name='local-then-global'; expected 'closed-form'"),
        ({"name": "finetune", "steps": -1}, "Got steps=-1; expected a whole number of at least 0"),
        ({"name": "finetune", "batches": 0}, "Got batches=0; expected a whole number of at least 1"),
        ({"name": "finetune", "lr": 0.0}, "Got lr=0.0; expected a number above 0"),
        ({"name": "finetune", "rate": 1}, "for a stage; expected a name, and options among steps, lr, batches"),
        ({"steps": 1}, "expected a name"),
    ],
)
def test_options_that_a_stage_does_not_have_are_refused(values: dict[str, Any], message: str) -> None:
    for recipe in (values, ["normalise", values]):
        with pytest.raises(CompressError, match=message):
            Config.from_dict({"recipe": recipe})


@pytest.mark.parametrize("workers", [0, 2])
def test_local_distillation_brings_outputs_nearer(workers: int) -> None:
    model, data = net(), batches()
    dense = copy.deepcopy(model).eval()
    lines: list[str] = []
    config = Config(targets=["0", "4"], topology=adtn.TTN(bond=6), recipe="distill-local", tune_steps=60, tune_lr=2e-2)
    executor = ThreadPoolExecutor(workers) if workers else None
    adtn.compress(model, config, data=data, progress=lines.append, executor=executor)
    errors = [line.split("outputs ")[1] for line in lines if "error of the outputs" in line]
    assert len(errors) == 2
    assert all(float(last) < 0.9 * float(first) for first, last in (e.split(" -> ") for e in errors))
    x = data[0][0]
    away = (model[0](x) - dense[0](x)).detach().std() / dense[0](x).detach().std()
    assert abs(float(away) - float(errors[0].split(" -> ")[1])) < 0.2


def test_seeds_are_dropped_by_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    real = _local.fit

    def fit(generator, target, **options):
        seen.append((options["steps"], 1))
        return real(generator, target, **options)

    monkeypatch.setattr(_local, "fit", fit)
    errors = {}
    for restarts in (1, 4):
        seen.clear()
        config = Config(targets=["4"], topology=TTN, steps=16, restarts=restarts, recipe="reconstruct")
        errors[restarts] = adtn.compress(net(), config).layers[0].local_errors[0]
    assert [steps for steps, _ in seen] == [4] * 4 + [8] * 2 + [16]
    assert errors[4] < errors[1] + 0.05


def test_seeds_are_dropped_by_the_loss_of_the_model() -> None:
    lines: list[str] = []
    config = Config(targets=["4"], topology=TTN, restarts=4, recipe="finetune", tune_steps=16)
    report = adtn.compress(net(), config, data=batches(), progress=lines.append)
    assert [line for line in lines if "go on" in line] == [
        "4 seeds trained for 2 steps, 2 go on",
        "2 seeds trained for 4 steps, 1 go on",
    ]
    assert len(report.losses) == 16


def test_rates_of_parameters() -> None:
    model = net()
    state = state_of(model)
    rates = {"*.generated.*": 1.0, "6.bias": 0.5, "*": 0.0}
    adtn.compress(model, Config(**QUICK, targets=["4"], rates=rates, train="all"), data=batches())
    now = model.state_dict()
    assert not torch.equal(now["6.bias"], state["6.bias"])
    assert torch.equal(now["6.weight"], state["6.weight"])
    assert model[6].weight.requires_grad
    with pytest.raises(CompressError, match="freeze all parameters"):
        adtn.compress(net(), Config(**QUICK, rates={"*": 0.0}), data=batches())
    with pytest.raises(CompressError, match="numbers of at least 0"):
        Config(rates={"*": -1.0})


def test_first_steps_are_in_proportion_to_the_entries_of_a_core() -> None:
    model = model_of(net(), None)
    gen = adtn.Generator((32, 128), adtn.LowRank(bond=3), seed=1, scale=0.1)
    gen = gen.with_params({"left": 9.0 * gen.params["left"], "right": gen.params["right"] / 9.0})
    model.install({"4": gen})
    bias = model.model[4].bias.detach().clone()
    tuning = Tuning(steps=1, lr=1e-3, train="all", relative=True, clip=None)
    model.tune(batches(), None, tuning, lambda step, loss: None)
    now = model.generators()["4"].params
    sizes = {name: math.sqrt(float(np.mean(np.square(x)))) for name, x in gen.params.items()}
    for name, x in gen.params.items():  # the first step of Adam changes every entry by the rate
        want = 1e-3 * sizes[name] / math.sqrt(sizes["left"] * sizes["right"])
        assert np.median(np.abs(now[name] - x)) == pytest.approx(want, rel=1e-3)
    assert float((model.model[4].bias.detach() - bias).abs().median()) == pytest.approx(1e-3, rel=1e-3)
    assert Config(relative_rates=True).tuning(Stage("finetune")).relative


def test_configs_are_read_from_toml_and_yaml(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    want = Config(targets=["fc*"], topology=adtn.MERA(bond=3), budget=adtn.Budget(ratio=10), rates={"*": 0.5})
    (tmp_path / "c.toml").write_text(
        'targets = ["fc*"]\nbudget = {ratio = 10}\nrates = {"*" = 0.5}\ntopology = {name = "mera", bond = 3}\n'
    )
    (tmp_path / "c.yaml").write_text(
        'targets: ["fc*"]\nbudget: {ratio: 10}\nrates: {"*": 0.5}\ntopology: {name: mera, bond: 3}\n'
    )
    assert Config.load(tmp_path / "c.toml") == want == Config.load(tmp_path / "c.yaml")
    for text, message in [
        ("- 1", "contains a list"),
        ("a: [", "Cannot read the config"),
        ("colour: 1", "in a config; expected"),
    ]:
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(CompressError, match=message):
            Config.load(tmp_path / "bad.yaml")


def test_a_loss_without_labels_goes_with_a_teacher() -> None:
    bare = [x for x, _ in batches()]
    config = Config(**QUICK, distill=0.5)
    report = adtn.compress(net(), config, data=bare, loss=lambda model, x: model(x).square().mean())
    assert len(report.losses) == 3
    assert report.losses[-1] < report.losses[0]


# --- distillation layer by layer ---


class Deep(nn.Module):
    """A model whose layers are called in another order than that in which they are listed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden = nn.ModuleList([nn.Linear(24, 24) for _ in range(5)])

    def forward(self, x: Any) -> Any:
        for layer in reversed(self.hidden):
            x = torch.relu(2.0 * layer(x))
        return x


def inputs_of_deep() -> list[Any]:
    torch.manual_seed(1)
    return [(torch.randn(32, 24), torch.zeros(32, dtype=torch.long)) for _ in range(4)]


def test_layers_are_distilled_in_the_order_of_calls_behind_compressed_ones() -> None:
    data, away = inputs_of_deep(), {}
    config = Config(
        topology=adtn.LowRank(bond=4), recipe=["closed-form", "distill-local"], tune_steps=200, tune_lr=5e-3
    )
    for executor in (None, ThreadPoolExecutor(1)):
        lines: list[str] = []
        model = Deep()
        dense = copy.deepcopy(model)
        adtn.compress(model, config, data=data, executor=executor, progress=lines.append)
        with torch.no_grad():
            away[executor] = max(float((model(x) - dense(x)).norm() / dense(x).norm()) for x, _ in data)
        names = [line.split(":")[0] for line in lines if "error of the outputs" in line]
        order = range(5) if executor else reversed(range(5))
        assert names == [f"hidden.{n}" for n in order]
    behind, apart = away.values()
    assert behind < 0.9 * apart


def test_distillation_sees_outputs_before_they_are_changed_in_place() -> None:
    model, data = nn.Sequential(nn.Linear(24, 24), nn.ReLU(inplace=True)), inputs_of_deep()
    lines: list[str] = []
    config = Config(targets=["0"], topology=adtn.LowRank(bond=24), recipe=["closed-form", "distill-local"])
    adtn.compress(model, replace(config, tune_steps=1), data=data, progress=lines.append)
    (line,) = [line for line in lines if "error of the outputs" in line]
    assert float(line.split("outputs ")[1].split(" -> ")[0]) < 1e-3


class Twice(nn.Module):
    """A model whose second layer also reads the state of the first, a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LSTM(16, 16, batch_first=True), nn.LSTM(16, 16, batch_first=True)

    def forward(self, x: Any) -> Any:
        y, state = self.first(x)
        return self.second(y, state)[0][:, -1]


@pytest.mark.parametrize("workers", [0, 1])
def test_layers_with_nested_inputs_are_distilled(workers: int) -> None:
    lines: list[str] = []
    data = [(torch.randn(8, 5, 16), torch.arange(8) % 3) for _ in range(2)]
    config = Config(topology=TTN, recipe="distill-local", tune_steps=5)
    executor = ThreadPoolExecutor(workers) if workers else None
    adtn.compress(Twice(), config, data=data, executor=executor, progress=lines.append)
    assert [line.split(":")[0] for line in lines if "error of the outputs" in line] == ["first", "second"]


def test_calls_that_do_not_correspond_keep_the_inputs_of_the_dense_model() -> None:
    from adtn_backends.shared._model import with_inputs

    def call(value: float, rows: int) -> Any:
        return (value,), {}, np.full(rows, value)

    dense, now = [call(1.0, 2), call(2.0, 3)], [call(3.0, 2), call(4.0, 3)]
    pairs = [(inputs[0], float(y[0])) for inputs, _, y in with_inputs(dense, now)]
    assert pairs == [(3.0, 1.0), (4.0, 2.0)]
    for other in (now[:1], [call(3.0, 2), call(4.0, 4)], []):
        assert with_inputs(dense, other) == dense
