"""A generated table of wrong calls: every public function, every argument, and a fixed list of meaningless values.

A value is taken, because the type of the argument allows it, or refused by one error of the library that has the name
of the argument, what was got and what was expected.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import io
import math
import re
import sys
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import adtn
import numpy as np
import pytest
from adtn.bench import BenchConfig
from adtn.bondspace import bond_gradients
from adtn.demo import run_demo
from adtn.device import parse_bytes
from adtn.optim import FitOptions, make_schedule
from adtn.schedule import decide

BAD: dict[str, Any] = {
    "'no'": "no",
    "''": "",
    "bytes": b"x",
    "-1": -1,
    "0": 0,
    "1.5": 1.5,
    "nan": float("nan"),
    "inf": float("inf"),
    "1j": 1j,
    "True": True,
    "False": False,
    "None": None,
    "[]": [],
    "{}": {},
    "object": object(),
    "complex array": np.array([1j, 2.0]),
    "text array": np.array(["a", "b"]),
    "wrong array": np.ones((3, 5, 2)),
    "nan array": np.full((8, 8), np.nan),
    "10**30": 10**30,
    "function": lambda *args: None,
    "module": math,
}

GEN = adtn.Generator((8, 8), adtn.TTN(bond=2), layout=adtn.Layout.of((8, 8), 4))
CONV = adtn.Generator((4, 3, 3, 3), adtn.TTN(bond=2))
W = np.add.outer(np.arange(8.0), np.cos(np.arange(8)))
MOMENT = np.eye(8)
LINEAR = adtn.Generator((8, 8), adtn.TT(bond=2), layout=adtn.Layout.of((8, 8), 4))


@dataclass(frozen=True)
class Call:
    """A function with valid arguments, and the bad values that are valid for some of its arguments.

    A flag takes True and False and an argument whose default is None takes None: that is read from the signature.
    """

    function: Callable[..., Any]
    good: dict[str, Any]
    takes: dict[str, str] = field(default_factory=dict)
    skip: str = ""


NOISE = {"noise": "0 1.5 10**30", "seed": "0", "activation": "None", "width": "1.5 10**30"}


def topology(cls: Any) -> Call:
    takes = {**NOISE, "where": "[]", "pairs": "[]"}
    return Call(cls, {}, takes)


CALLS: dict[str, Call] = {
    **{
        name: topology(getattr(adtn, name))
        for name in (
            "ATTN",
            "BrickWall",
            "CP",
            "Dense",
            "KroneckerSum",
            "LowRank",
            "MERA",
            "MPO",
            "RandomFeatures",
            "ScaledIdentity",
            "ScaledRandom",
            "TT",
            "TTN",
            "TensorRing",
            "Tucker",
        )
    },
    "SeededBase": Call(adtn.SeededBase, {"seed": 1}, {"seed": "0"}),
    "Layout": Call(
        adtn.Layout,
        {"shape": (8, 8), "factors": ((4, 2), (4, 2)), "order": (0, 1, 2, 3)},
        {"max_padding": "1.5 10**30"},
    ),
    "Layout.of": Call(adtn.Layout.of, {"shape": (8, 8)}, {"max_padding": "1.5 10**30"}),
    "Layout.from_factors": Call(
        adtn.Layout.from_factors, {"shape": (8, 8), "factors": ((4, 2), (4, 2))}, {"max_padding": "1.5 10**30"}
    ),
    "Generator": Call(
        adtn.Generator,
        {"shape": (8, 8), "topology": adtn.TTN(bond=2)},
        {"seed": "0", "scale": "-1 0 1.5 10**30 wrong_array", "params": "{}"},
    ),
    "Generator.weight": Call(GEN.weight, {}),
    "Generator.arrays": Call(GEN.arrays, {"device": "numpy:cpu", "dtype": "float32"}),
    "Generator.apply": Call(GEN.apply, {"x": np.ones((2, 8), "float32")}, {"memory": "0 10**30", "x": "nan_array"}),
    "Generator.with_bond": Call(
        LINEAR.with_bond,
        {"name": "b0", "matrix": np.eye(2)},
        {"matrix": ""},
    ),
    "bonds": Call(adtn.bonds, {"generator": W, "topology": adtn.TT(bond=2)}, {"generator": "wrong_array"}),
    "Bonds.cut": Call(adtn.bonds(LINEAR).cut, {"legs": ["a0_0"]}, {"legs": "[]"}),
    "Bond.state_spectrum": Call(adtn.bonds(GEN)["b1_0"].state_spectrum, {}),
    "bond_gradients": Call(bond_gradients, {"generator": GEN, "grads": dict(GEN.params)}, {"grads": "{}"}),
    "Generator.with_params": Call(GEN.with_params, {"params": dict(GEN.params)}),
    "register_topology": Call(adtn.register_topology, {"cls": adtn.TTN}),
    "register_activation": Call(
        adtn.register_activation,
        {"name": "tried", "value": lambda z: z * z, "derivative": lambda z: 2.0 * z},
        {"name": "'no'"},
    ),
    "Reconstruction": Call(adtn.Reconstruction, {"target": W}, {"target": "-1 1.5 True 10**30 wrong_array"}),
    "DataAwareReconstruction": Call(adtn.DataAwareReconstruction, {"target": W, "second_moment": MOMENT}),
    "Task": Call(
        adtn.Task,
        {"fn": lambda weight: (0.0, weight)},
        {"fn": "function", "params": "{}", "batches": "function"},
    ),
    "fit": Call(
        adtn.fit,
        {"generator": GEN, "target": W, "steps": 1, "progress": False},
        {
            "weight_decay": "0",
            "momentum": "0",
            "seed": "0",
            "tolerance": "0 1.5 10**30",
            "time_limit": "0 1.5 10**30",
            "callbacks": "[]",
            "lr_factors": "{}",
            "lr": "1.5 10**30",
            "clip": "1.5 10**30",
            "memory": "0",
            "checkpoint": "'no'",
            "progress": "True False",
        },
    ),
    "FitOptions": Call(
        FitOptions,
        {},
        {
            "weight_decay": "0",
            "momentum": "0",
            "seed": "0",
            "tolerance": "0 1.5 10**30",
            "time_limit": "0 1.5 10**30",
            "callbacks": "[]",
            "lr_factors": "{}",
            "lr": "1.5 10**30",
            "clip": "1.5 10**30",
            "checkpoint": "'no'",
            "progress": "True False",
            "device": "'no' ''",
            "dtype": "'no' ''",
            "schedule": "function",
            "memory": "0 'no' ''",
        },
    ),
    "make_schedule": Call(
        make_schedule, {"schedule": "cosine", "lr": 0.1, "steps": 3}, {"lr": "1.5 10**30", "schedule": "function"}
    ),
    "decompose": Call(
        adtn.decompose,
        {"generator": adtn.Generator((8, 8), adtn.TT(bond=2)), "target": W, "sweeps": 2},
        {"sweeps": "0"},
    ),
    "plan": Call(adtn.plan, {"generator": GEN}, {"memory": "0"}),
    "plan_convolution": Call(
        adtn.plan_convolution, {"generator": adtn.Generator((8, 8, 3, 3), adtn.TTN(bond=2)), "size": (4, 4)}, {}
    ),
    "decide": Call(
        decide, {"generator": GEN, "task": "fit", "device": "numpy:cpu"}, {"memory": "0"}, skip="modes only_rows"
    ),
    "parse_bytes": Call(parse_bytes, {"memory": "1KiB"}, {"memory": "0 None"}),
    "calibrate": Call(adtn.calibrate, {"device": "null:cpu"}, skip="save"),
    "devices": Call(adtn.devices, {}),
    "DeviceProfile.shipped": Call(adtn.DeviceProfile.shipped, {"name": "h200"}),
    "DeviceProfile.from_json": Call(
        adtn.DeviceProfile.from_json, {"text": adtn.DeviceProfile.shipped("h200").to_json()}
    ),
    "Budget": Call(
        adtn.Budget, {}, {"accuracy_loss": "0 1.5 10**30", "ratio": "1.5 10**30", "bytes_ratio": "1.5 10**30"}
    ),
    "Config": Call(
        adtn.Config,
        {},
        {
            "targets": "[] text_array",
            "exclude": "[] text_array",
            "share": "[]",
            "layers": "{}",
            "rates": "{}",
            "candidates": "[]",
            "precisions": "[]",
            "largest_error": "0",
            "orders": "True False",
            "smallest": "0",
            "steps": "0",
            "tune_steps": "0",
            "seed": "0",
            "distill": "0",
            "dropout": "0",
            "lr": "1.5 10**30",
            "tune_lr": "1.5 10**30",
            "clip": "1.5 10**30 None",
            "adapter": "'no'",
        },
    ),
    "Stage": Call(adtn.Stage, {"name": "finetune"}, {"steps": "0", "lr": "1.5 10**30"}),
    "Stage.from_dict": Call(adtn.Stage.from_dict, {"values": {"name": "finetune"}}),
    "Config.from_dict": Call(adtn.Config.from_dict, {"values": {}}, {"values": "{}"}),
    "load": Call(adtn.load, {"path": "missing.safetensors"}, {"path": "'no'"}),
    "save": Call(adtn.save, {"path": "out.safetensors", "generator": GEN}, {"path": "'no'"}),
    "load_model": Call(adtn.load_model, {"model": None, "folder": "missing"}, {"folder": "'no'"}, skip="model"),
    "load_pretrained": Call(adtn.load_pretrained, {"folder": "missing"}, {"folder": "'no'"}),
    "from_tensornetwork": Call(adtn.from_tensornetwork, {"nodes": []}),
    "BenchConfig": Call(
        BenchConfig,
        {},
        {
            "seconds": "1.5 10**30",
            **dict.fromkeys(("topologies", "shapes", "tasks", "batches", "devices", "dtypes"), "[] text_array"),
        },
    ),
    "run_demo": Call(
        run_demo,
        {"data": "digits", "only": ("nothing",)},
        {"devices": "[] text_array"},
        skip="only layer command out on_result",
    ),
}


def networks() -> dict[str, Call]:
    """Yield calls with networks of quimb."""
    import quimb.tensor as qtn

    operator = qtn.MPO_rand(3, 2, dtype="float64", seed=1)
    takes = {"activation": "None", "where": "[]", "scale": "-1 0 1.5 10**30 wrong_array None"}
    return {
        "Generator.from_networks": Call(adtn.Generator.from_networks, {"networks": [operator], "shape": (8, 8)}, takes),
        "to_tensornetwork": Call(adtn.to_tensornetwork, {"network": operator}),
    }


def models() -> dict[str, Call]:
    """Yield calls with whole models, if PyTorch is installed."""
    try:
        import torch
    except ImportError:
        return {}
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 3))
    batches = [(torch.ones(4, 8), torch.zeros(4, dtype=torch.long))]
    config = adtn.Config(targets=["nothing"])  # nothing is compressed, whatever is accepted
    takes = {
        "data": "[] wrong_array",
        "test": "[] wrong_array",
        "loss": "function",
        "score": "function",
        "folder": "'no'",
        "callbacks": "[]",
        "progress": "function True False",
    }
    good = {"model": model, "config": config, "data": batches}
    return {"compress": Call(adtn.compress, good, takes, skip="executor")}


def layers() -> dict[str, Call]:
    """Yield calls of layers of installed frameworks."""
    from adtn_backends.numpy import layers as numpy_layers

    takes = {"stride": "", "padding": "0", "padding_idx": "0 -1", "bias": "True False None"}
    found = {
        "numpy.ADTNLinear": Call(numpy_layers.ADTNLinear, {"generator": GEN}),
        "numpy.ADTNEmbedding": Call(numpy_layers.ADTNEmbedding, {"generator": GEN}),
        "numpy.ADTNConv2d": Call(numpy_layers.ADTNConv2d, {"generator": CONV}, takes | {"bias": "None"}),
    }
    for name, needs in (("torch", "torch"), ("jax", "flax")):
        if importlib.util.find_spec(needs) is None:
            continue
        module = importlib.import_module(f"adtn_backends.{name}.layers")
        found |= {
            f"{name}.GeneratedWeight": Call(module.GeneratedWeight, {"generator": GEN}),
            f"{name}.ADTNLinear": Call(module.ADTNLinear, {"weight": GEN}, takes, skip="dtype"),
            f"{name}.ADTNEmbedding": Call(module.ADTNEmbedding, {"weight": GEN}, takes, skip="dtype"),
            f"{name}.ADTNConv2d": Call(module.ADTNConv2d, {"weight": CONV}, takes, skip="dtype"),
        }
    return found


CALLS |= networks() | models() | layers()


def arguments(call: Call) -> list[inspect.Parameter]:
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    found = inspect.signature(call.function).parameters.values()
    return [p for p in found if p.kind not in kinds and p.name not in call.skip.split()]


CASES = [(name, p.name) for name, call in CALLS.items() for p in arguments(call)]


def may_take(call: Call, argument: str, label: str) -> bool:
    """Return whether a value is valid after all."""
    default = inspect.signature(call.function).parameters[argument].default
    if isinstance(default, bool) and label in ("True", "False"):
        return True
    if default is None and label == "None":
        return True
    return label.replace(" ", "_") in call.takes.get(argument, "").split()


def complain(error: Exception, argument: str) -> str:
    """Return what is missing from the message of an error."""
    text = str(error)
    missing = [] if "Got" in text else ["'Got'"]
    missing += [] if re.search(rf"\b{argument}\b", text) else [f"the name {argument!r}"]
    missing += (
        [] if re.search("expected|must|at least|at most|needs?|registered|[Pp]ass ", text) else ["what was expected"]
    )
    return f"{' and '.join(missing)} not in {text!r}" if missing else ""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run in a temporary folder, and remove registrations afterwards."""
    from adtn.topology import _activation, _topology

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_activation, "_ACTIVATIONS", dict(_activation._ACTIVATIONS))
    monkeypatch.setattr(_topology, "_TOPOLOGIES", dict(_topology._TOPOLOGIES))


@pytest.mark.parametrize(("name", "argument"), CASES, ids=[f"{a}-{b}" for a, b in CASES])
def test_a_wrong_value_is_refused_by_name(name: str, argument: str) -> None:
    call = CALLS[name]
    faults: list[str] = []
    for label, value in BAD.items():
        fine = may_take(call, argument, label)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                call.function(**{**call.good, argument: value})
        except adtn.ADTNError as error:
            found = "" if fine else complain(error, argument)
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
        else:
            found = "" if fine else "taken without a word"
        if found:
            faults.append(f"{argument}={label}: {found}")
    assert not faults, "\n".join(faults)


# command lines

WORDS = (
    "no",
    "",
    "-1",
    "0",
    "1.5",
    "nan",
    "inf",
    "1j",
    str(10**30),
    "missing/file",
    ".",
    "broken.safetensors",
    "w.txt",
)
"""What every option and argument is given; ``.`` is a folder, and the two files hold nothing that can be read."""

NET = """
import torch

def build():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))

def batches():
    return [(torch.ones(4, 16), torch.zeros(4, dtype=torch.long))]

def nothing(*args):
    return None

number = 3
"""

COMMANDS: dict[str, list[str]] = {
    "devices": [],
    "demo": ["--device", "numpy:cpu", "--steps", "1", "--only", "dense", "--layer", "first"],
    "fit": ["w.npy", "--steps", "1", "--leg", "4"],
    "inspect": ["g.safetensors"],
    "calibrate": ["--device", "null:cpu"],
    "plan": ["16x16", "--leg", "4"],
    "compress": ["trustnet:build", "--config", "c.toml"],
    "bench": ["b.toml", "--device", "numpy:cpu", "--seconds", "0.001"],
}
FINE = {
    "fit": {"lr": ("1.5", str(10**30)), "seed": ("0",), "checkpoint": WORDS, "out": WORDS},
    "demo": {"out": WORDS, "layer": ("",)},
    "plan": {"memory": (str(10**30), "1.5")},
    "compress": {"out": WORDS},
    "bench": {"seconds": ("1.5", str(10**30)), "out": WORDS},
}
"""What is right after all; every word names a file that can be written, or fails to."""


@cache
def commands() -> Any:
    """Return the commands by name; building them takes longer than running one with a wrong value."""
    import typer
    from adtn.cli import app

    return typer.main.get_command(app).commands  # type: ignore[attr-defined]


def options() -> list[tuple[str, str]]:
    """Yield every command with every argument and option that takes a value."""
    return [(c, p.name) for c in COMMANDS for p in commands()[c].params if not getattr(p, "is_flag", False)]


def line(command: str, parameter: str, word: str) -> list[str]:
    """Make a command line with one meaningless value."""
    found = {p.name: p for p in commands()[command].params}[parameter]
    rest = list(COMMANDS[command])
    if found.param_type_name == "argument":
        return [command, *rest[1:], "--", word] if rest else [command, "--", word]
    for option in found.opts:
        if option in rest:
            at = rest.index(option)
            del rest[at : at + 2]
    return [command, *rest, found.opts[0], word]


def outcome(args: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str, str]:
    from adtn.cli import main

    monkeypatch.setattr(sys, "argv", ["adtn", *args])
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        else:
            code = 0
    return code, out.getvalue(), err.getvalue()


@pytest.fixture
def _files(_elsewhere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save("w.npy", np.add.outer(np.arange(16.0), np.cos(np.arange(16))))
    adtn.save("g.safetensors", GEN)
    Path("broken.safetensors").write_bytes(b"\xff" * 100)
    Path("w.txt").write_bytes(b"\xff\xfe 1 2 3")
    Path("trustnet.py").write_text(NET)
    Path("c.toml").write_text('targets = ["0"]\nsmallest = 0\nsteps = 1\n')
    Path("b.toml").write_text('topologies = ["TTN 2"]\nshapes = [[16, 16]]\nbatches = [4]\ntasks = ["apply"]\n')
    monkeypatch.delitem(sys.modules, "trustnet", raising=False)
    monkeypatch.delenv("ADTN_DATA", raising=False)
    monkeypatch.setattr(sys, "path", ["", *sys.path])


@pytest.mark.usefixtures("_files")
@pytest.mark.parametrize(("command", "parameter"), options(), ids=["-".join(one) for one in options()])
def test_a_wrong_command_line_ends_in_one_line(command: str, parameter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if command == "compress":
        pytest.importorskip("torch")
    faults: list[str] = []
    first = options().index((command, parameter)) % 2
    for word in WORDS[first::2]:  # every word meets every command
        args = line(command, parameter, word)
        try:
            code, _, err = outcome(args, monkeypatch)
        except Exception as error:
            faults.append(f"{args}: {type(error).__name__}: {error}")
            continue
        if "Traceback" in err or (code == 1 and not (err.startswith("adtn: ") and err.count("\n") == 1)):
            faults.append(f"{args}: {err[-300:]}")
        if code == 0 and word not in FINE.get(command, {}).get(parameter, ()):
            faults.append(f"{args}: taken without a word")
    assert not faults, "\n".join(faults)
