"""Files of every type: damaged in every way, written to bad places, interrupted, and read in older formats."""

from __future__ import annotations

import errno
import importlib
import json
import os
import random
import signal
import subprocess
import sys
import tracemalloc
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import adtn
import adtn.errors as errors
import numpy as np
import pytest
from adtn import Config, Layout
from adtn._atomic import write_atomic
from adtn._files import header_text, metadata_of, sealed, sealed_json
from adtn.backends import get_backend
from adtn.cli import app
from adtn.compression import Tuning, load_layers, read_header, run_folder, save_layers
from adtn.compression._layer_files import write_files, write_index
from adtn.compression._storage import from_bytes, to_bytes
from adtn.device._profile_store import find_profile, profile_path
from adtn.errors import ADTNError, CompressError, FileFormatError, FitError
from adtn.schedule._path_cache import PathCache
from safetensors.numpy import load as load_plain
from safetensors.numpy import save as save_plain
from typer.testing import CliRunner

# models of these tests are small and random: results are bad on purpose
pytestmark = pytest.mark.filterwarnings("ignore::adtn.errors.QualityWarning")

OutputError, OutputWarning = errors.OutputError, errors.OutputWarning
GEN = adtn.Generator((8, 12), adtn.TTN(bond=2), layout=Layout.of((8, 12), 4))
OTHER = adtn.Generator((12, 8), adtn.MPO(bond=2), layout=Layout.of((12, 8), 4, "interleaved"))
TARGET = np.sin(np.add.outer(np.arange(8) / 5, np.arange(12) / 7))
QUICK = Config(topology=adtn.TTN(bond=2), smallest=8, steps=2, tune_steps=4, targets=["0"])

# --- types of files ---


@dataclass
class Kind:
    """A type of file.

    ``make`` writes a file to a folder and returns its path; ``read`` returns a comparable value, and changes nothing.
    ``cache`` files are recreated if they are damaged; ``fine`` lists other files that are valid files of this type.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    cache: bool = False
    fine: tuple[str, ...] = ()


def numbers(generators: Any) -> dict[str, list[float]]:
    return {f"{n}/{k}": x.tolist() for n, g in generators.items() for k, x in g.params.items()}


def make_generator(folder: Path, dtype: Any = None) -> Path:
    adtn.save(folder / "g.safetensors", GEN, dtype)
    return folder / "g.safetensors"


def fitted(path: Path, stop: int | None = None, **options: Any) -> Any:
    stopping = [lambda step, _: step == stop] if stop is not None else []
    return adtn.fit(GEN, TARGET, steps=6, checkpoint=path, checkpoint_every=2, callbacks=stopping, **options)


def make_checkpoint(folder: Path) -> Path:
    fitted(folder / "fit.ckpt", stop=3)
    return folder / "fit.ckpt"


def read_checkpoint(path: Path) -> Any:
    before = path.read_bytes() if path.is_file() else b""
    found = fitted(path).history.tolist()
    path.write_bytes(before)
    return found


def torch_net() -> Any:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(12, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))


def torch_data(n: int = 2) -> Any:
    torch = pytest.importorskip("torch")
    rng = torch.Generator().manual_seed(1)
    return [(torch.randn(4, 12, generator=rng), torch.arange(4) % 3) for _ in range(n)]


def jax_net() -> Any:
    nnx = pytest.importorskip("flax.nnx")
    return nnx.Sequential(nnx.Linear(12, 8, rngs=nnx.Rngs(0)), nnx.Linear(8, 3, rngs=nnx.Rngs(1)))


def tune_torch(path: Path, stop: int | None = None, data: Any = None) -> list[float]:
    from adtn_backends.torch._model import TorchModel

    model = TorchModel(torch_net(), None)
    return model.tune(data or torch_data(), None, Tuning(steps=10, train="all", checkpoint=path), cut(stop))


def tune_jax(path: Path, stop: int | None = None, data: Any = None) -> list[float]:
    from adtn_backends.jax._model import NnxModel

    batches = data or [(np.asarray(x), np.asarray(y)) for x, y in torch_data()]
    return NnxModel(jax_net(), None).tune(batches, None, Tuning(steps=10, train="all", checkpoint=path), cut(stop))


class Cut(Exception):
    """An error that ends a run, as if the machine stopped."""


def cut(stop: int | None) -> Callable[[int, float], None]:
    def report(step: int, loss: float) -> None:
        if step == stop:
            raise Cut

    return report


def make_training(tune: Callable[..., Any]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        with pytest.raises(Cut):
            tune(folder / "training", 4)
        return folder / "training"

    return make


def make_compressed(net: Callable[[], Any], part: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        targets = ["layers.0"] if net is jax_net else ["0"]
        run_folder(net, replace(QUICK, targets=targets), folder / "small")
        (found,) = (folder / "small").glob(part)
        return found

    return make


def as_format_2(state: Path, generators: Any) -> None:
    """Write the folder of a compressed model as before format 3, with a file for every generator."""
    place = state.parent / "generators"
    layers = write_files(place, generators)
    write_index(place, layers)
    header = header_text("state of a compressed model", 2, layers=layers, beside={})
    state.write_bytes(sealed(save_plain(load_plain(state.read_bytes()), {"adtn": header})))


def make_older(net: Callable[[], Any]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        targets = ["layers.0"] if net is jax_net else ["0"]
        report = run_folder(net, replace(QUICK, targets=targets), folder / "small")
        as_format_2(folder / "small" / "state.safetensors", report.generators)
        return next((folder / "small" / "generators").glob(f"{targets[0]}*"))

    return make


def read_compressed(net: Callable[[], Any]) -> Callable[[Path], Any]:
    def read(path: Path) -> Any:
        folder = path.parent if path.name == "state.safetensors" else path.parent.parent
        model = adtn.load_model(net(), folder)
        x = np.linspace(-1, 1, 12, dtype=np.float32)[None]
        if net is torch_net:
            import torch

            return model(torch.from_numpy(x)).detach().numpy().tolist()
        return np.asarray(model(x)).tolist()

    return read


def make_adapter(part: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        layers = pytest.importorskip("adtn_backends.torch.layers")
        layers.save_adapter(layers.add_adapter(torch_net(), {"0": GEN}), folder / "adapter")
        return next((folder / "adapter").glob(part))

    return make


def read_torch_adapter(path: Path) -> Any:
    layers = pytest.importorskip("adtn_backends.torch.layers")
    return numbers(layers.adapter_generators(layers.load_adapter(torch_net(), path.parent)))


def read_jax_adapter(path: Path) -> Any:
    layers = pytest.importorskip("adtn_backends.jax.layers")
    nnx = pytest.importorskip("flax.nnx")
    entries = load_layers(path.parent, "adapter")  # layers have other names in this model
    assert set(entries) == {"0"}
    return numbers(layers.adapter_generators(layers.add_adapter(nnx.List([jax_net().layers[0]]), entries)))


def make_local(folder: Path) -> Path:
    adtn.compress(torch_net(), replace(QUICK, recipe="reconstruct"), folder=folder)
    return next(folder.glob("0-*.safetensors"))


def read_local(path: Path) -> Any:
    return numbers(adtn.compress(torch_net(), replace(QUICK, recipe="reconstruct"), folder=path.parent).generators)


KEY = "ab" * 32


def make_path(folder: Path) -> Path:
    PathCache(folder).find(KEY, 3, lambda: ((0, 2), (0, 1)))
    return folder / "ab" / f"{KEY}.json"


def read_path(path: Path) -> Any:
    return PathCache(path.parent.parent).find(KEY, 3, lambda: ((0, 2), (0, 1)))


def make_profile(folder: Path) -> Path:
    profile = adtn.DeviceProfile.shipped("generic-cpu", "float16")
    path = profile_path(get_backend("numpy"), "cpu", "float16")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, replace(profile, name="mine").to_json().encode())
    return path


def read_cached_profile(path: Path) -> Any:
    return find_profile(get_backend("numpy"), "cpu", "float16").name in ("mine", "generic-cpu")


KINDS = {
    "generator": Kind(make_generator, lambda path: numbers({"": adtn.load(path)}), fine=("generator",)),
    "generator-int8": Kind(
        lambda folder: make_generator(folder, "int8"),
        lambda path: numbers({"": adtn.load(path)}),
        fine=("generator",),
    ),
    "fit": Kind(make_checkpoint, read_checkpoint),
    "torch-training": Kind(make_training(tune_torch), tune_torch),
    "jax-training": Kind(make_training(tune_jax), tune_jax),
    "torch-state": Kind(make_compressed(torch_net, "state.safetensors"), read_compressed(torch_net)),
    "torch-layer": Kind(make_older(torch_net), read_compressed(torch_net)),
    "jax-state": Kind(make_compressed(jax_net, "state.safetensors"), read_compressed(jax_net)),
    "jax-layer": Kind(make_older(jax_net), read_compressed(jax_net)),
    "adapter-index": Kind(make_adapter("index.json"), read_torch_adapter),
    "adapter-layer": Kind(make_adapter("0*.safetensors"), read_torch_adapter),
    "adapter-in-jax": Kind(make_adapter("0*.safetensors"), read_jax_adapter),
    "profile": Kind(make_profile, lambda path: adtn.DeviceProfile.load(path)),
    "cached-profile": Kind(make_profile, read_cached_profile, cache=True),
    "cached-path": Kind(make_path, read_path, cache=True),
    "finished-layer": Kind(make_local, read_local, cache=True),
}


def flipped(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


FOREIGN = {
    "empty": b"",
    "noise": random.Random(0).randbytes(500),
    "json": b'{"a": [1, 2]}',
    "list": b"[[0, 1], [0, 1]]x",
    "safetensors": save_plain({"a": np.ones(3)}),
    "generator": to_bytes(OTHER),
}


def damages(data: bytes) -> dict[str, bytes]:
    rng = random.Random(len(data))
    found = {f"flip{n}": flipped(data, rng) for n in range(14)}
    found |= {f"head{n}": flipped(data[:300], rng) + data[300:] for n in range(6)}
    found |= {f"cut{n}": data[:n] for n in (3, 8, len(data) // 2, len(data) - 1)}
    for n, at in enumerate([at for at, byte in enumerate(data) if 48 <= byte < 58][-8:]):
        found[f"digit{n}"] = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
    at = rng.randrange(len(data))
    found |= {"more": data + b"\0", "inserted": data[:at] + b"7" + data[at:]}
    return found | FOREIGN


@pytest.mark.parametrize("name", KINDS)
def test_damaged_files(name: str, tmp_path: Path) -> None:
    """Check that a damaged cache is recreated, and that a damaged result raises one error that names the file."""
    kind = KINDS[name]
    path = kind.make(tmp_path)
    try:
        data = path.read_bytes()
        good = kind.read(path)
        for what, bad in damages(data).items():
            assert bad != data
            if what in kind.fine:
                continue
            path.write_bytes(bad)
            if kind.cache:
                assert kind.read(path) == good, what
                continue
            with pytest.raises(FileFormatError) as caught:
                kind.read(path)
            assert path.name in str(caught.value) or path.parent.name in str(caught.value), what
            assert path.read_bytes() == bad, "a damaged result is not deleted"
        path.unlink()
        path.mkdir()
        if kind.cache:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", OutputWarning)
                assert kind.read(path) == good
        else:
            with pytest.raises(ADTNError):
                kind.read(path)
        path.rmdir()
        path.write_bytes(data)
        assert kind.read(path) == good
    finally:
        if "profile" in name and path.exists():
            path.unlink()


@pytest.mark.parametrize("name", ["cached-path", "finished-layer"])
def test_a_damaged_cache_is_whole_again_afterwards(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    path = kind.make(tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[:-2])
    kind.read(path)
    assert path.read_bytes() == data


def test_a_state_is_a_plain_safetensors_file(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    path = KINDS["torch-state"].make(tmp_path)
    found = load_file(path)
    assert found["2.weight"].shape == (3, 8) and torch.isfinite(found["2.weight"]).all()


# --- older formats ---


FORMATS = {
    "generator": 1,
    "generator-int8": 2,
    "torch-layer": 1,
    "jax-layer": 1,
    "torch-state": 3,
    "jax-state": 3,
    "finished-layer": 1,
    "adapter-layer": 1,
    "adapter-in-jax": 1,
    "profile": 4,
    "cached-profile": 4,
}


@pytest.mark.parametrize("name", KINDS)
def test_files_have_the_published_format_number(name: str, tmp_path: Path) -> None:
    """Require a new number only with a new format, as an older adtn refuses it, and a test of the previous format."""
    path = KINDS[name].make(tmp_path)
    try:
        data = path.read_bytes()
        header = json.loads(data if data.startswith(b"{") else metadata_of(data)["adtn"])
        assert header["format"] == FORMATS.get(name, 2)
    finally:
        if "profile" in name:
            path.unlink()


def as_format_1(path: Path, **metadata: str) -> None:
    """Write tensors without the present header."""
    path.write_bytes(save_plain(load_plain(path.read_bytes()), metadata or None))


def test_a_fit_continues_from_an_older_checkpoint(tmp_path: Path) -> None:
    from adtn.optim._checkpoint import first_fingerprint
    from adtn.optim._options import FitOptions

    path = make_checkpoint(tmp_path)
    want = read_checkpoint(path)
    options = FitOptions(steps=6, dtype="float32")
    arrays = {**GEN.params, "target": TARGET}
    mark = first_fingerprint(
        GEN.topology, GEN.layout, GEN.scale, *options.mark(), *arrays, *map(np.asarray, arrays.values())
    )
    meta = json.loads(metadata_of(path.read_bytes())["adtn"])
    meta = {name: meta[name] for name in ("step", "best_loss", "best_step", "exact")} | {"mark": mark}
    as_format_1(path, **{"adtn.checkpoint": json.dumps(meta)})
    assert read_checkpoint(path) == want
    as_format_1(path, **{"adtn.checkpoint": json.dumps(meta | {"mark": "another"})})
    with pytest.raises(FitError, match="another fit"):
        read_checkpoint(path)


@pytest.mark.parametrize("name", ["torch-training", "jax-training"])
def test_a_training_continues_from_an_older_checkpoint(name: str, tmp_path: Path) -> None:
    path = KINDS[name].make(tmp_path)
    keep, want = path.read_bytes(), KINDS[name].read(path)
    path.write_bytes(keep)
    as_format_1(path)
    assert KINDS[name].read(path) == want


@pytest.mark.parametrize("name", ["torch-state", "jax-state"])
def test_an_older_folder_is_read(name: str, tmp_path: Path) -> None:
    layer = KINDS[name.replace("state", "layer")].make(tmp_path)
    state = layer.parent.parent / "state.safetensors"
    want = KINDS[name].read(state)
    as_format_1(state)
    (layer,) = (state.parent / "generators").glob("*.safetensors")
    layer.rename(layer.with_name(("layers.0" if name == "jax-state" else "0") + ".safetensors"))
    (state.parent / "generators" / "index.json").unlink()
    assert KINDS[name].read(state) == want


def test_older_layers_are_read_and_go_when_they_are_replaced(tmp_path: Path) -> None:
    for name in ("a.b", "c"):
        adtn.save(tmp_path / f"{name}.safetensors", GEN)
    (tmp_path / "mine.safetensors").write_bytes(save_plain({"a": np.ones(2)}))
    with pytest.raises(FileFormatError):
        load_layers(tmp_path, "layers")
    (tmp_path / "mine.safetensors").rename(tmp_path / "mine.st")
    assert numbers(load_layers(tmp_path, "layers")) == numbers({"a.b": GEN, "c": GEN})
    save_layers(tmp_path, {"c": OTHER})
    assert numbers(load_layers(tmp_path, "layers")) == numbers({"c": OTHER})
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    assert (tmp_path / "mine.st").exists()
    (tmp_path / "index.json").unlink()
    with pytest.raises(FileFormatError, match=r"no index\.json"):
        load_layers(tmp_path, "layers")


def test_an_older_profile_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    profile = adtn.DeviceProfile.shipped("generic-cpu", "float16")
    content = json.loads(profile.to_json())
    old = {key: value for key, value in content.items() if key not in ("sha256", "kind")} | {"format": 3}
    (tmp_path / "p.json").write_text(json.dumps(old))
    assert adtn.DeviceProfile.load(tmp_path / "p.json") == profile


# --- headers that demand too much ---


Piece = tuple[list[str], list[dict[str, Any]], list[str]]


def networks_file(pieces: list[Piece], shape: list[int], **tensors: np.ndarray) -> bytes:
    """Make a file of a few bytes with arbitrary networks (inputs, cores, outputs) and a correct digest."""
    header = read_header(to_bytes(GEN))
    default = {"kind": "core", "level": 0, "fan_in": 1, "init": "given", "noise": 0.0, "trainable": True, "seed": 0}
    written = [
        {"inputs": i, "cores": [{**default, **c} for c in cores], "outputs": o, "activation": "identity"}
        for i, cores, o in pieces
    ]
    header["topology"] = {
        "name": "Networks",
        "pieces": written,
        "activation": "tanh",
        "where": "inner",
        "share": False,
    }
    header["layout"] = {
        "shape": shape,
        "factors": [[n] for n in shape],
        "order": list(range(len(shape))),
        "max_padding": 1.5,
    }
    header |= {"sha256": "0" * 64, "base": None}
    return sealed(save_plain(tensors, {"adtn": json.dumps(header, sort_keys=True)}))


def core(name: str, inds: list[str], shape: list[int], **more: Any) -> dict[str, Any]:
    return {"name": name, "inds": inds, "shape": shape, "param": name, **more}


def test_frozen_cores_that_follow_from_a_rule_are_not_made_by_load(tmp_path: Path) -> None:
    n = 1 << 13
    rule = {"init": "seeded", "trainable": False}
    cores = [core("x", [], []), core("a", ["o", "i"], [n, n], **rule), core("b", ["o", "i"], [n, n], **rule)]
    data = networks_file([([], cores, ["o", "i"])], [n, n], x=np.ones((), np.float32))
    big = adtn.Generator((2048, 2048), adtn.ScaledRandom())
    for content in (data, to_bytes(big)):
        (tmp_path / "x").write_bytes(content)
        tracemalloc.start()
        gen = adtn.load(tmp_path / "x")
        assert gen.num_params == 1
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2 << 20
    small = adtn.Generator((8, 8), adtn.ScaledRandom(seed=3), seed=1)
    assert np.array_equal(from_bytes(to_bytes(small)).weight(), small.weight())


def test_load_searches_no_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def never(*args: Any, **options: Any) -> Any:
        raise AssertionError("a path is searched")

    monkeypatch.setattr("adtn.program._program.find_path", never)
    names = [f"c{n}" for n in range(4000)]
    cores = [core(n, ["o"], [2]) for n in names]
    data = networks_file([([], cores, ["o"])], [2], **{n: np.ones(2, np.float32) for n in names})
    (tmp_path / "x").write_bytes(data)
    assert adtn.load(tmp_path / "x").num_params == 8000


A, B = core("a", ["o", "k"], [4, 2]), core("b", ["k", "i"], [2, 4])
THREE = [core("x", ["a", "b"], [2, 2]), core("y", ["b", "c"], [2, 2]), core("z", ["c", "d"], [2, 2])]
ENDS = [core("u", ["a", "o"], [2, 4]), core("v", ["d", "i"], [2, 4]), core("w", ["nowhere", "i"], [2, 4])]


@pytest.mark.parametrize(
    "pieces",
    [
        [([], [A, B], ["o", "nowhere"])],
        [([], [A, B], ["o", "o"])],
        [([], [A, core("b", ["k", "i"], [3, 4])], ["o", "i"])],
        [([], [core("a", ["o"], [4.0])], ["o", "o"])],
        [([], [core("a", ["o"] * 100, [1] * 100, init="seeded", trainable=False)], ["o", "i"])],
        [([], [], ["o", "i"])],
        [([], THREE, ["a", "nowhere"]), (["a", "nowhere"], ENDS, ["o", "i"])],
        [(["a", "d"], ENDS, ["o", "i"])],
    ],
    ids=["unknown", "twice", "sizes", "floats", "axes", "none", "unknown-between", "no-state"],
)
def test_indices_that_do_not_fit(pieces: Any, tmp_path: Path) -> None:
    cores = [c for _, some, _ in pieces for c in some]
    tensors = {c["name"]: np.ones([int(n) for n in c["shape"]][:20], np.float32) for c in cores}
    (tmp_path / "x").write_bytes(networks_file(pieces, [4, 4], **tensors))
    with pytest.raises(FileFormatError, match="x"):
        adtn.load(tmp_path / "x")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_parameters_that_are_not_finite_are_refused_on_reading(value: float, tmp_path: Path) -> None:
    good = {"a": np.ones((4, 2), np.float32), "b": np.ones((2, 4), np.float32)}
    (tmp_path / "x").write_bytes(networks_file([([], [A, B], ["o", "i"])], [4, 4], **good))
    adtn.load(tmp_path / "x")
    good["b"][1, 1] = value
    (tmp_path / "x").write_bytes(networks_file([([], [A, B], ["o", "i"])], [4, 4], **good))
    with pytest.raises(FileFormatError, match="NaN or infinite.*'b'"):
        adtn.load(tmp_path / "x")


@pytest.mark.parametrize("name", ["torch-state", "jax-state"])
def test_a_state_with_parameters_that_are_not_finite_is_refused(name: str, tmp_path: Path) -> None:
    path = KINDS[name].make(tmp_path)
    data = path.read_bytes()
    tensors = load_plain(data)
    bad = next(key for key in tensors if key.endswith("generated.root"))
    tensors[bad] = np.full_like(tensors[bad], np.nan)
    header = json.loads(metadata_of(data)["adtn"])
    path.write_bytes(sealed(save_plain(tensors, {"adtn": json.dumps(header | {"sha256": "0" * 64})})))
    with pytest.raises(FileFormatError, match="NaN or infinite"):
        KINDS[name].read(path)


# --- folders ---

NAMES = [
    "0",
    "a/b",
    "../up",
    "/etc/adtn",
    "x" * 300,
    "日本語" * 40,
    "",
    ".",
    "..",
    "Fc",
    "fc",
    "a\\b",
    "con",
    "a\nb",
    "index.json",
]


def test_names_of_layers_are_data(tmp_path: Path) -> None:
    place = tmp_path / "deep" / "er"
    save_layers(place, dict.fromkeys(NAMES, GEN))
    found = load_layers(place, "layers")
    assert set(found) == set(NAMES)
    assert numbers(found) == numbers(dict.fromkeys(NAMES, GEN))
    everything = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert all(p.parent == place for p in everything) and len(everything) == len(NAMES) + 1
    assert len({p.name.lower() for p in everything}) == len(everything)


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_names_of_modules_are_data_in_compress_and_adapters(framework: str, tmp_path: Path) -> None:
    name = "日/\\ x" * 60
    if framework == "torch":
        nn = pytest.importorskip("torch").nn
        layers = pytest.importorskip("adtn_backends.torch.layers")
        model: Any = nn.ModuleDict({name: nn.Linear(12, 8)})
        want = GEN
        report = adtn.compress(model, replace(QUICK, targets=["Linear"], recipe="reconstruct"), folder=tmp_path / "l")
        assert set(report.generators) == {name}
        model = nn.ModuleDict({name: nn.Linear(12, 8)})
    else:
        nnx = pytest.importorskip("flax.nnx")
        layers = pytest.importorskip("adtn_backends.jax.layers")
        model, want = nnx.Dict({name: nnx.Linear(12, 8, rngs=nnx.Rngs(0))}), GEN
    layers.save_adapter(layers.add_adapter(model, {name: want}), tmp_path / "a")
    assert numbers(load_layers(tmp_path / "a", "adapter")) == numbers({name: want})
    assert {p.parent.name for p in tmp_path.rglob("*") if p.is_file()} <= {"a", "l"}


def test_an_index_names_only_files_of_its_folder(tmp_path: Path) -> None:
    adtn.save(tmp_path / "outside.safetensors", GEN)
    save_layers(tmp_path / "in", {"0": GEN})
    index = json.loads((tmp_path / "in/index.json").read_text())
    for bad in ("../outside.safetensors", str(tmp_path / "outside.safetensors"), "", 3):
        index["layers"]["0"]["file"] = bad
        (tmp_path / "in/index.json").write_bytes(sealed_json("index of layers", 2, layers=index["layers"]))
        with pytest.raises(FileFormatError, match="in"):
            load_layers(tmp_path / "in", "layers")


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_a_smaller_result_replaces_a_larger_one(framework: str, tmp_path: Path) -> None:
    layers = pytest.importorskip(f"adtn_backends.{framework}.layers")
    net = torch_net if framework == "torch" else jax_net
    first, last = ("0", "2") if framework == "torch" else ("layers.0", "layers.1")
    end = adtn.Generator((3, 8), adtn.TTN(bond=2))
    layers.save_adapter(layers.add_adapter(net(), {first: GEN, last: end}), tmp_path / "a")
    layers.save_adapter(layers.add_adapter(net(), {first: GEN}), tmp_path / "a")
    model = layers.load_adapter(net(), tmp_path / "a")
    assert set(layers.adapter_generators(model)) == {first}
    for targets in ([first, last], [first]):
        run_folder(net, replace(QUICK, targets=targets), tmp_path / "c")
    (state,) = (tmp_path / "c").glob("state*")
    names = [name.partition(".generated.") for name in load_plain(state.read_bytes())]
    assert {layer for layer, found, _ in names if found} == {first}
    assert read_compressed(net)(state) is not None


def test_a_folder_has_the_old_or_the_new_result_whenever_it_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupt before every single write and deletion of a second, smaller result."""
    end = replace(QUICK, targets=["0", "2"])
    outputs = []
    for config in (end, QUICK):
        run_folder(torch_net, config, tmp_path / "c")
        outputs.append(read_compressed(torch_net)(tmp_path / "c/state.safetensors"))
    seen = set()
    for n in range(40):
        run_folder(torch_net, end, tmp_path / "c")
        left = [n]

        def counted(real: Callable[..., Any], left: list[int] = left) -> Callable[..., Any]:
            def run(*args: Any, **options: Any) -> Any:
                left[0] -= 1
                if left[0] < 0:
                    raise Cut
                return real(*args, **options)

            return run

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", counted(os.replace))
            patch.setattr(Path, "unlink", counted(Path.unlink))
            try:
                run_folder(torch_net, QUICK, tmp_path / "c")
                done = True
            except Cut:
                done = False
        now = read_compressed(torch_net)(tmp_path / "c/state.safetensors")
        assert now in outputs
        seen.add(outputs.index(now))
        if done:
            break
    assert seen == {0, 1} and done


def test_several_may_write_one_folder(tmp_path: Path) -> None:
    def save(n: int) -> Any:
        save_layers(tmp_path, {f"{n}{k}": GEN for k in range(1 + n % 3)})
        return load_layers(tmp_path, "layers")

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(save, range(40)):
            first = min(found)
            assert set(found) == {f"{first[:-1]}{k}" for k in range(1 + int(first[:-1]) % 3)}
    assert len(list(tmp_path.iterdir())) == 1 + len(load_layers(tmp_path, "layers"))


# --- writing ---

WRITER = """
import sys
from adtn._atomic import write_atomic
print("ready", flush=True)
n = 0
while True:
    n += 1
    write_atomic(sys.argv[1], bytes([48 + n % 10]) * 300_000)
"""


@pytest.mark.parametrize("named", [False, True], ids=["unnamed", "named"])
def test_killed_processes_leave_no_temporary_files(named: bool, tmp_path: Path) -> None:
    program = ("import os\nos.__dict__.pop('O_TMPFILE', None)\n" if named else "") + WRITER
    rng = random.Random(0)
    for _ in range(4):
        writers = [
            subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "file")], stdout=subprocess.PIPE)
            for _ in range(2)
        ]
        for writer in writers:
            assert writer.stdout is not None
            writer.stdout.readline()
        for _ in range(rng.randrange(2000)):
            os.getpid()
        for writer in writers:
            os.kill(writer.pid, signal.SIGKILL)
            writer.communicate()
        if (tmp_path / "file").exists():
            content = (tmp_path / "file").read_bytes()
            assert len(content) == 300_000 and len(set(content)) == 1
        assert len(list(tmp_path.iterdir())) <= 2
    write_atomic(tmp_path / "file", b"last")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_system_that_gives_no_names_later_gives_them_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: Any, **options: Any) -> Any:
        raise OSError(errno.EPERM, "no")

    monkeypatch.setattr(os, "link", refused)
    write_atomic(tmp_path / "x", b"1")
    assert (tmp_path / "x").read_bytes() == b"1" and list(tmp_path.iterdir()) == [tmp_path / "x"]


@pytest.mark.parametrize("named", [False, True], ids=["unnamed", "named"])
def test_writing_leaves_the_process_alone_and_flushes_the_folder(
    named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = os.umask(0o027)
    try:
        with monkeypatch.context() as patch:
            if named:
                patch.delattr(os, "O_TMPFILE", raising=False)
            flushed: list[bool] = []
            real = os.fsync

            def fsync(handle: int) -> None:
                flushed.append(os.path.isdir(f"/proc/self/fd/{handle}"))
                real(handle)

            patch.setattr(os, "umask", lambda mask: pytest.fail("the umask belongs to the whole process"))
            patch.setattr(os, "fsync", fsync)
            write_atomic(tmp_path / "x", b"1")
            write_atomic(tmp_path / "x", b"2")
        assert flushed == [False, True] * 2
        assert (tmp_path / "x").read_bytes() == b"2"
        assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640
        assert list(tmp_path.iterdir()) == [tmp_path / "x"]
    finally:
        os.umask(before)


# --- places ---


def bad_places(folder: Path, kind: str) -> dict[str, Any]:
    (folder / "file").write_text("")
    (folder / "folder").mkdir()
    (folder / "link").symlink_to(folder / "nowhere")
    found: dict[str, Any] = {
        "below-a-file": folder / "file" / "x",
        "too-long": folder / ("x" * 300),
        "null": f"{folder}/a\0b",
        "device": "/dev/null",
    }
    if os.path.isdir("/proc/self"):
        found["read-only"] = "/proc/self/adtn-x"
    if kind == "file":
        return found | {"missing": folder / "no" / "x", "a-folder": folder / "folder"}
    return found | {"a-file": folder / "file", "link": folder / "link", "below-a-link": folder / "link" / "x"}


def command(*arguments: Any) -> None:
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    if done.exception is not None:
        raise done.exception


def never(*args: Any, **options: Any) -> Any:
    raise AssertionError("work has begun")


def forbid(monkeypatch: pytest.MonkeyPatch, work: str) -> None:
    module, _, name = work.rpartition(".")
    if work:
        monkeypatch.setattr(importlib.import_module(f"adtn.{module}"), name, never)


def weight_file(folder: Path) -> Path:
    np.save(folder / "w.npy", TARGET)
    return folder / "w.npy"


def save_adapter_of(framework: str) -> Callable[[Path, Any], Any]:
    def call(tmp: Path, bad: Any) -> Any:
        layers = pytest.importorskip(f"adtn_backends.{framework}.layers")
        net = torch_net() if framework == "torch" else jax_net()
        return layers.save_adapter(layers.add_adapter(net, {"0" if framework == "torch" else "layers.0": GEN}), bad)

    return call


# argument, kind, the call, and the work that must not have started
PLACES: dict[str, tuple[str, str, Callable[[Path, Any], Any], str]] = {
    "fit": ("checkpoint", "file", lambda t, b: adtn.fit(GEN, TARGET, steps=2, checkpoint=b), "optim._fit.plan_loss"),
    "compress": (
        "folder",
        "folder",
        lambda t, b: adtn.compress(torch_net(), QUICK, folder=b),
        "compression._local.solve",
    ),
    "run_folder": ("out", "folder", lambda t, b: run_folder(torch_net, QUICK, Path(b)), "compression._local.solve"),
    "save_layers": ("folder", "folder", lambda t, b: save_layers(b, {"0": GEN}), ""),
    "torch-adapter": ("folder", "folder", save_adapter_of("torch"), ""),
    "jax-adapter": ("folder", "folder", save_adapter_of("jax"), ""),
    "cli-fit": ("--out", "file", lambda t, b: command("fit", weight_file(t), "--out", b), "optim.fit"),
    "cli-fit-checkpoint": (
        "checkpoint",
        "file",
        lambda t, b: command("fit", weight_file(t), "--checkpoint", b),
        "optim._fit.plan_loss",
    ),
    "cli-compress": (
        "--out",
        "folder",
        lambda t, b: command("compress", "os:getcwd", "--out", b),
        "compression.run_folder",
    ),
    "cli-demo": ("--out", "folder", lambda t, b: command("demo", "--steps", "1", "--out", b), "demo.run_demo"),
    "cli-bench": ("--out", "file", lambda t, b: command("bench", "--out", b), "bench.run_bench"),
    "cli-calibrate": (
        "--out",
        "file",
        lambda t, b: command("calibrate", "--device", "numpy:cpu", "--out", b),
        "schedule.calibrate",
    ),
}


@pytest.mark.parametrize("name", PLACES)
def test_a_bad_place_is_found_before_the_work(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    argument, kind, call, work = PLACES[name]
    forbid(monkeypatch, work)
    monkeypatch.chdir(tmp_path)
    for what, bad in bad_places(tmp_path, kind).items():
        if what == "null" and name.startswith("cli"):
            continue  # an argument of a process cannot contain it
        with pytest.raises(ADTNError if what == "null" else OutputError) as caught:
            call(tmp_path, bad)
        text = str(caught.value)
        assert f"Got {argument}=" in text and "xpected" in text, what
        assert repr(str(bad)) in text, what
    assert {p.name for p in tmp_path.iterdir()} <= {"file", "folder", "link", "w.npy"}, "nothing is left behind"


def test_a_full_disk_is_found_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "write", full)
    for name, (_, kind, call, work) in PLACES.items():
        forbid(monkeypatch, work)
        with pytest.raises(OutputError, match="No space left"):
            call(tmp_path, tmp_path / f"{name}-{kind}")


def full(*args: Any, **options: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fills_up(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    """Let every rename into a folder fail from now on."""
    real = os.replace

    def rename(source: Any, target: Any) -> None:
        if Path(target).is_relative_to(place):
            full()
        real(source, target)

    monkeypatch.setattr(os, "replace", rename)


def test_a_disk_that_fills_up_costs_no_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    want = adtn.fit(GEN, TARGET, steps=6)
    fills_up(monkeypatch, tmp_path)
    with pytest.warns(OutputWarning, match="checkpoint.*No space"):
        got = fitted(tmp_path / "c")
    assert np.array_equal(got.history, want.history)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_costs_no_compressed_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = torch_data()
    want = adtn.compress(torch_net(), replace(QUICK, tune_steps=10), data=data)
    fills_up(monkeypatch, tmp_path)
    with pytest.warns(OutputWarning, match="No space"):
        got = adtn.compress(torch_net(), replace(QUICK, tune_steps=10), data=data, folder=tmp_path / "f")
    assert got.losses == want.losses
    with pytest.warns(OutputWarning), pytest.raises(OutputError, match="The result is in (.*) instead") as caught:
        run_folder(torch_net, QUICK, tmp_path / "out")
    place = Path(str(caught.value).partition("The result is in ")[2].partition(" instead")[0])
    assert read_compressed(torch_net)(place / "state.safetensors")


def test_a_disk_that_fills_up_costs_no_result_of_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = weight_file(tmp_path)
    fills_up(monkeypatch, tmp_path)
    with pytest.raises(OutputError, match="The result is in (.*) instead") as caught:
        command("fit", file, "--steps", "2", "--out", tmp_path / "x.safetensors")
    place = Path(str(caught.value).partition("The result is in ")[2].partition(" instead")[0])
    assert adtn.load(place).shape == TARGET.shape


# --- a checkpoint belongs to one problem ---


def task_of(factor: float, rows: int = 4) -> adtn.Task:
    x = np.ones((rows, 12), np.float32)

    def loss(weight: Any) -> Any:
        y = x @ weight.T * factor
        return (y * y).mean(), 2 * factor * y.T @ x / y.size

    return adtn.Task(loss)


def batches_of(shift: float) -> adtn.Task:
    def loss(weight: Any, x: Any) -> Any:
        y = x @ weight.T
        return (y * y).mean(), 2 * y.T @ x / y.size

    return adtn.Task(loss, batches=lambda rng: (rng.standard_normal((4, 12)).astype(np.float32) + shift,))


def doubled(weight: Any) -> Any:
    return float(weight.sum()) * 2, np.full(weight.shape, 2.0)


def tripled(weight: Any) -> Any:
    return float(weight.sum()) * 3, np.full(weight.shape, 3.0)


PROBLEMS: dict[str, tuple[Any, Any]] = {
    "closure": (lambda: (task_of(1.0), {}), lambda: (task_of(2.0), {})),
    "data": (lambda: (task_of(1.0), {}), lambda: (task_of(1.0, rows=5), {})),
    "code": (lambda: (adtn.Task(doubled), {}), lambda: (adtn.Task(tripled), {})),
    "batches": (lambda: (batches_of(0.0), {}), lambda: (batches_of(1.0), {})),
    "schedule": (
        lambda: (TARGET, {"schedule": lambda step: 0.01}),
        lambda: (TARGET, {"schedule": lambda step: 0.02}),
    ),
    "moment": (
        lambda: (adtn.DataAwareReconstruction(TARGET, np.eye(12)), {}),
        lambda: (adtn.DataAwareReconstruction(TARGET, np.eye(12) * np.arange(1, 13)), {}),
    ),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_fit_does_not_continue_with_another_problem(name: str, tmp_path: Path) -> None:
    first, second = PROBLEMS[name]

    def run(problem: Any, stop: int | None = None) -> Any:
        target, options = problem()
        stopping = [lambda step, _: step == stop]
        return adtn.fit(
            GEN, target, steps=6, checkpoint=tmp_path / "c", checkpoint_every=2, callbacks=stopping, **options
        )

    run(first, stop=3)
    with pytest.raises(FitError, match="belongs to another fit.*delete it"):
        run(second)
    assert run(first).steps == 6


def scaled_loss(factor: float) -> Callable[..., Any]:
    def loss(model: Any, batch: Any) -> Any:
        return (model(batch[0]) ** 2).mean() * factor

    return loss


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_a_compression_does_not_continue_with_another_problem(framework: str, tmp_path: Path) -> None:
    net = torch_net if framework == "torch" else jax_net
    config = replace(QUICK, targets=["0" if framework == "torch" else "layers.0"], tune_steps=10, recipe="finetune")
    plain = torch_data()
    data = plain if framework == "torch" else [(np.asarray(x), np.asarray(y)) for x, y in plain]

    def run(cut_at: str = "never", config: Config = config, data: Any = data, factor: float = 1.0) -> list[str]:
        lines: list[str] = []

        def progress(line: str) -> None:
            lines.append(line)
            if line.startswith(cut_at):
                raise Cut

        adtn.compress(net(), config, data=data, loss=scaled_loss(factor), folder=tmp_path, progress=progress)
        return [line for line in lines if line.startswith("step")]

    with pytest.raises(Cut):
        run("step 4")
    (checkpoint,) = tmp_path.glob("training-*")
    for other in ({"factor": 2.0}, {"data": data[::-1]}, {"data": data + data}, {"config": replace(config, clip=0.5)}):
        assert run(**other)[0].startswith("step 1 ")  # from the beginning
        assert checkpoint.exists()
    assert run()[0].startswith("step 4 ")


@pytest.mark.parametrize("tune", [tune_torch, tune_jax], ids=["torch", "jax"])
def test_a_training_does_not_continue_with_other_data(tune: Callable[..., Any], tmp_path: Path) -> None:
    path = make_training(tune)(tmp_path)
    kept = path.read_bytes()
    other = [(np.asarray(x) + 1, np.asarray(y)) for x, y in torch_data()]
    with pytest.raises(CompressError, match="other data.*[Dd]elete it"):
        tune(path, None, other)
    assert path.read_bytes() == kept
    assert len(tune(path)) == 10


# --- Hugging Face folders ---


@pytest.fixture(scope="module")
def dense_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    config = transformers.LlamaConfig(
        **sizes, num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=32, tie_word_embeddings=True
    )
    path = tmp_path_factory.mktemp("hf") / "dense"
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture
def hf(dense_folder: Path, tmp_path: Path) -> Path:
    import shutil

    shutil.copytree(dense_folder, tmp_path / "hf")
    return tmp_path / "hf"


def read_hf(folder: Path) -> Any:
    from adtn_backends.torch.huggingface import pretrained

    return pretrained(folder)


def test_tied_weights_do_not_count_as_missing(hf: Path) -> None:
    model = read_hf(hf)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def with_weights(folder: Path, change: Callable[[dict[str, np.ndarray]], Any]) -> None:
    path = folder / "model.safetensors"
    tensors = load_plain(path.read_bytes())
    change(tensors)
    path.write_bytes(save_plain(tensors, {"format": "pt"}))


UP = "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(UP), f"missing: {UP}"),
        (lambda t: t.update({UP: np.ones((3, 3), np.float32)}), f"another shape: {UP}"),
        (lambda t: t.update({UP + "x": t.pop(UP)}), f"missing: {UP}.*not used: {UP}x"),
    ],
    ids=["missing", "shape", "renamed"],
)
def test_missing_weights_are_refused_by_name(hf: Path, change: Any, message: str) -> None:
    with_weights(hf, change)
    with pytest.raises(CompressError, match=message):
        read_hf(hf)
    with pytest.raises(CompressError, match=message):
        run_folder(hf, Config(), hf.parent / "out")


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "{tmp}/outside.safetensors", "../outside.bin", "x.bin", 3, "gone.safetensors"]
)
def test_an_index_names_only_safetensors_of_its_folder(hf: Path, name: Any) -> None:
    weights = hf / "model.safetensors"
    tensors = load_plain(weights.read_bytes())
    for file in ("../outside.safetensors", "../outside.bin", "x.bin", "part.safetensors"):
        (hf / file).write_bytes(weights.read_bytes())
    weights.unlink()

    def index(value: Any) -> None:
        content = {"metadata": {}, "weight_map": dict.fromkeys(tensors, value)}
        (hf / "model.safetensors.index.json").write_text(json.dumps(content))

    index("part.safetensors")
    read_hf(hf)
    index(name.format(tmp=hf.parent) if isinstance(name, str) else name)
    with pytest.raises(CompressError, match=r"index\.json|gone"):
        read_hf(hf)


def test_weights_outside_of_the_folder_are_refused(hf: Path) -> None:
    weights, outside = hf / "model.safetensors", hf.parent / "o.safetensors"
    data = weights.read_bytes()
    weights.rename(outside)
    weights.symlink_to(outside)
    with pytest.raises(CompressError, match="a link to"):
        read_hf(hf)
    weights.unlink()
    (hf / "pytorch_model.bin").write_bytes(data)
    with pytest.raises(CompressError, match=r"pytorch_model\.bin.*not read"):
        read_hf(hf)
    # as in the cache of Hugging Face
    snapshot = hf.parent / "snapshots" / "abc"
    snapshot.parent.mkdir()
    hf.rename(snapshot)
    (hf.parent / "blobs").mkdir()
    outside.rename(hf.parent / "blobs" / "123")
    (snapshot / "model.safetensors").symlink_to("../../blobs/123")
    read_hf(snapshot)


CONFIGS: dict[str, Any] = {
    "text": "x",
    "list": "[]",
    "number": "3",
    "null": "null",
    "nested": "[" * 50_000,
    "nothing": "{}",
    "bytes": b"\xff\xfe",
    "no-file": None,
    **{
        f"architectures-{n}": {"architectures": bad}
        for n, bad in enumerate(
            [
                "LlamaForCausalLM",
                [],
                [3],
                ["GPT2LMHeadModel"],
                ["AutoModelForCausalLM"],
                ["pipeline"],
                ["Trainer"],
                ["PreTrainedModel"],
            ]
        )
    },
    "unknown-type": {"model_type": "nope"},
    "type-number": {"model_type": 3},
    "sizes": {"hidden_size": "a"},
    "odd": {"hidden_size": 15},
    "negative": {"hidden_size": -2},
    "huge": {"hidden_size": 10**13},
    "layers": {"num_hidden_layers": [1]},
    "missing-size": {"vocab_size": None},
    "act": {"hidden_act": "nope"},
    "dtype": {"dtype": "nope"},
    "quantized": {"quantization_config": 3},
    "kernels": {"attn_implementation": "kernels-community/flash"},
    "weights": {"transformers_weights": "../o.safetensors"},
    "mine": {"architectures": ["Mine"], "auto_map": {"AutoModel": "mine.Mine"}},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_broken_config_is_one_error(name: str, hf: Path) -> None:
    bad, path = CONFIGS[name], hf / "config.json"
    (hf / "mine.py").write_text("raise SystemExit('this is never run')")
    if isinstance(bad, dict):
        bad = json.dumps(json.loads(path.read_text()) | bad)
    path.unlink()
    if bad is not None:
        path.write_bytes(bad if isinstance(bad, bytes) else bad.encode())
    with pytest.raises(CompressError) as caught:
        read_hf(hf)
    assert str(hf) in str(caught.value)
    assert any(word in str(caught.value) for word in ("xpected", "remove it"))
    if name == "mine":
        assert "never run" in str(caught.value)


def test_code_beside_a_known_model_is_not_run(hf: Path) -> None:
    (hf / "mine.py").write_text("raise SystemExit('this is never run')")
    config = json.loads((hf / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"}
    (hf / "custom_generate").mkdir()
    (hf / "mine.py").rename(hf / "custom_generate" / "generate.py")
    (hf / "config.json").write_text(json.dumps(config))
    assert type(read_hf(hf)).__module__.startswith("transformers.")


@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.999])
def test_truncated_weights_are_one_error(part: float, hf: Path) -> None:
    path = hf / "model.safetensors"
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    with pytest.raises(CompressError, match="Cannot"):
        read_hf(hf)


def test_the_configuration_belongs_to_the_compressed_model(hf: Path) -> None:
    out = hf.parent / "small"
    run_folder(hf, Config(targets=["*.up_proj"], topology=adtn.TTN(bond=2), steps=1, smallest=8), out)
    adtn.load_pretrained(out)
    path = out / "config.json"
    path.write_text(path.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-02'))
    with pytest.raises(FileFormatError, match=r"config\.json"):
        adtn.load_pretrained(out)
