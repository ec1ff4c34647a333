"""The public names, what importing costs, and that it stays light."""

from __future__ import annotations

import subprocess
import sys

import adtn

NAMES = {
    "ADTNError", "ATTN", "BrickWall", "CP", "Budget", "CompressReport", "Config", "DataAwareReconstruction", "Dense",
    "DeviceProfile", "Generator", "IdentityBase", "Layout", "MERA", "MPO", "Objective", "Optimizer", "Plan",
    "RandomFeatures", "Reconstruction",
    "ScaledIdentity", "ScaledRandom", "SeededBase", "Solution", "Status", "TT", "TTN", "Task", "TensorRing", "Topology",
    "Tucker", "calibrate", "decompose", "devices", "fit", "from_tensornetwork", "load", "load_model",
    "load_pretrained", "plan",
    "register_activation", "register_optimizer", "register_topology", "save", "to_tensornetwork",
}  # fmt: skip
STAGES = {"bench", "compress", "generator", "network", "optim", "schedule", "cli", "demo"}


def test_the_public_names_are_these() -> None:
    assert {name for name in vars(adtn) if not name.startswith("_")} - STAGES == NAMES


def test_every_public_name_is_documented_with_an_example() -> None:
    for name in NAMES:
        thing = getattr(adtn, name)
        doc = thing.__doc__ or ""
        assert doc.split("\n")[0].rstrip().endswith((".", "``", ":")) or "``" in doc.split("\n")[0] or ":" in doc, name


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
