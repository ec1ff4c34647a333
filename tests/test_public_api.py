"""The public names, their documentation, and the cost of importing them."""

from __future__ import annotations

import enum
import importlib
import importlib.util
import inspect
import itertools
import re
import subprocess
import sys
from types import ModuleType
from typing import Any

import adtn
import pytest

NAMES = {  # listed by hand, so that public names change only on purpose
    "ADTNError",
    "ATTN",
    "BrickWall",
    "CP",
    "Budget",
    "CompressReport",
    "Config",
    "ConvolutionPlan",
    "DataAwareReconstruction",
    "Dense",
    "DeviceProfile",
    "Generator",
    "IdentityBase",
    "KVCodec",
    "KroneckerSum",
    "Layout",
    "LowRank",
    "MERA",
    "MPO",
    "Objective",
    "Optimizer",
    "Permutation",
    "Plan",
    "Precision",
    "RandomFeatures",
    "Reconstruction",
    "ScaledIdentity",
    "ScaledRandom",
    "SeededBase",
    "Solution",
    "SortedTensor",
    "Stage",
    "Status",
    "TT",
    "TTN",
    "Task",
    "TensorRing",
    "Topology",
    "Tucker",
    "bonds",
    "calibrate",
    "compress",
    "decompose",
    "devices",
    "einsort",
    "fit",
    "from_tensornetwork",
    "load",
    "load_model",
    "load_pretrained",
    "plan",
    "plan_convolution",
    "probe",
    "register_activation",
    "register_optimizer",
    "register_topology",
    "save",
    "save_model",
    "to_tensornetwork",
    "truncate",
}


def own(module: ModuleType) -> dict[str, Any]:
    """List the public names that are defined by adtn, those that are imported late among them."""
    names = {name: getattr(module, name) for name in sorted(dir(module)) if not name.startswith("_")}
    return {k: v for k, v in names.items() if (getattr(v, "__module__", None) or "").startswith("adtn")}


def test_the_public_names_are_these() -> None:
    assert set(own(adtn)) == NAMES


def public(module: ModuleType) -> dict[str, Any]:
    """List the public classes and functions."""
    return {
        f"{module.__name__}.{name}": thing
        for name, thing in own(module).items()
        if inspect.isclass(thing) or inspect.isfunction(thing)
    }


THINGS = public(adtn)
LAYERS: dict[str, Any] = {}
for framework, layers in {"torch": "adtn_backends.torch.layers", "flax": "adtn_backends.jax.layers"}.items():
    if importlib.util.find_spec(framework):
        LAYERS |= public(importlib.import_module(layers))
OWN = {  # other documented names; inherited methods once
    f"{cls}.{name}": member
    for cls, thing in (THINGS | LAYERS).items()
    if isinstance(thing, type)
    for name, member in vars(thing).items()
    if not name.startswith("_") and (isinstance(member, property | classmethod | staticmethod) or callable(member))
}


@pytest.mark.parametrize("layers", ["adtn", *sorted({name.rsplit(".", 1)[0] for name in LAYERS})])
def test_fits_and_layers_do_not_wait_for_whole_models(layers: str) -> None:
    script = f"import sys, adtn, {layers}; adtn.fit; assert 'adtn.compression' not in sys.modules; adtn.compress"
    subprocess.run([sys.executable, "-c", script], check=True)


def sections(thing: object) -> dict[str, list[str]]:
    """Split a docstring in NumPy's style by sections; the text before the first one is under ``""``."""
    found: dict[str, list[str]] = {"": []}
    lines = inspect.cleandoc(thing.__doc__ or "").splitlines()
    name = ""
    for line, below in zip(lines, [*lines[1:], ""], strict=True):
        if line and set(below) == {"-"} and len(below) == len(line):
            name = line
            assert name not in found, f"two sections {name!r}"
            found[name] = []
        elif not (set(line) == {"-"} and not found[name]):
            found[name].append(line)
    return found


def summary_fault(thing: object) -> str:
    """Return what is wrong with the first paragraph, or an empty string."""
    text = " ".join(itertools.takewhile(str.strip, sections(thing)[""]))
    if not text.endswith("."):
        return f"the summary {text!r} is no sentence"
    words = re.findall(r"\w+", re.sub("``.*?``", "code", text))
    return "" if words else f"the summary {text!r} has no words"


def documented(thing: object) -> list[str]:
    """List the names in the section of parameters, from lines without indentation, before the colon."""
    lines = sections(thing).get("Parameters", [])
    heads = [line.partition(" : ")[0] for line in lines if line and not line.startswith(" ")]
    return [name.strip().lstrip("*") for head in heads for name in head.split(",")]


def accepted(thing: Any) -> list[str]:
    """List the names of the parameters of a call."""
    if isinstance(thing, type) and (issubclass(thing, enum.Enum | Exception) or thing.__init__ is object.__init__):
        return []
    if isinstance(thing, type) and type(thing) is not type:  # Flax's classes are called through their metaclass
        thing = thing.__init__
    names = inspect.signature(getattr(thing, "__func__", thing)).parameters
    bound = ("self",) if inspect.isfunction(thing) else ("self", "cls")
    return [name for name in names if name not in bound]


@pytest.mark.parametrize("name", THINGS)
def test_every_public_name_documents_its_arguments_and_result(name: str) -> None:
    thing = THINGS[name]
    assert not summary_fault(thing)
    assert sorted(documented(thing)) == sorted(accepted(thing))
    if not isinstance(thing, type) and inspect.signature(thing).return_annotation not in (None, "None"):
        assert any(line.strip() for line in sections(thing).get("Returns", []))


@pytest.mark.parametrize(
    "name",
    [name for name, thing in THINGS.items() if not (isinstance(thing, type) and issubclass(thing, Exception))],
)
def test_every_public_name_has_an_example(name: str) -> None:
    assert any(line.startswith(">>> ") for line in sections(THINGS[name]).get("Examples", []))


@pytest.mark.parametrize("name", LAYERS | OWN)
def test_layers_and_methods_are_documented(name: str) -> None:
    member = (LAYERS | OWN)[name]
    assert not summary_fault(member)
    if "Parameters" in sections(member):
        assert sorted(documented(member)) == sorted(accepted(member))


@pytest.mark.parametrize(("framework", "name"), [("numpy", "numpy"), ("torch", "torch"), ("flax", "jax")])
def test_layers_are_found_beside_their_backend(framework: str, name: str) -> None:
    pytest.importorskip(framework)
    package = importlib.import_module(f"adtn_backends.{name}")
    layers = importlib.import_module(f"adtn_backends.{name}.layers")
    assert "ADTNLinear" in package.__all__ and set(package.__all__) <= set(dir(package))
    for name in package.__all__:
        assert getattr(package, name) is getattr(layers, name)
    with pytest.raises(AttributeError, match="has no attribute 'numpy_'"):
        _ = package.numpy_


def test_import_is_light() -> None:
    heavy = [
        "torch",
        "jax",
        "quimb",
        "matplotlib",
        "cotengra",
        "scipy",
        "optax",
        "rich",
        "typer",
        "safetensors",
    ]
    program = f"import sys, adtn; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_numpy_alone_is_enough() -> None:
    program = """
import sys
for name in ("torch", "jax", "optax", "flax", "matplotlib", "tensornetwork"):
    sys.modules[name] = None
import adtn, numpy as np
gen = adtn.Generator((32, 32), adtn.TTN(bond=2))
print(adtn.fit(gen, np.eye(32), steps=3).status.name)
try:
    gen.weight("torch:cpu")
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("FINISHED")
    assert "pip install 'adtn[torch]'" in done.stdout


def test_version() -> None:
    from importlib.metadata import version

    assert adtn.__version__ == version("adtn")
