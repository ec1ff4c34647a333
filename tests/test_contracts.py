"""Import contracts are broken by every forbidden import, even inside a function."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("importlinter")
ROOT = Path(__file__).parents[1]
PROGRAM = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True, no_logo=True))"
APART = "frameworks stand beside each other, on what they share"
TORCH, JAX = "PyTorch is imported in its own folder only", "JAX is imported in its own folder only"
NEVER = "adtn never reaches a framework or its own backends"
ROOM = "a kind of layer knows no table, and no other kind above it"


@dataclass(frozen=True, kw_only=True)
class Plant:
    """A forbidden import, and the contract that it must break."""

    module: str
    imported: str
    contract: str


PLANTS = [
    Plant(module="adtn_backends.torch.layers._conv", imported="adtn_backends.jax.layers", contract=APART),
    Plant(module="adtn_backends.jax.layers._conv", imported="adtn_backends.torch.layers", contract=APART),
    Plant(module="adtn_backends.numpy.layers", imported="adtn_backends.torch.backend", contract=APART),
    Plant(module="adtn_backends.null.backend", imported="adtn_backends.numpy.backend", contract=APART),
    Plant(module="adtn_backends.shared._geometry", imported="adtn_backends.jax.backend", contract=APART),
    Plant(module="adtn_backends.numpy.layers", imported="torch", contract=TORCH),
    Plant(module="adtn_backends.shared._pool", imported="torch", contract=TORCH),
    Plant(module="adtn_backends.jax._model", imported="transformers", contract=TORCH),
    Plant(module="adtn_backends.null.backend", imported="jax", contract=JAX),
    Plant(module="adtn_backends.shared._batches", imported="flax", contract=JAX),
    Plant(module="adtn_backends.torch._step", imported="optax", contract=JAX),
    Plant(module="adtn_backends", imported="torch", contract="the package of backends imports none of them"),
    Plant(module="adtn.generator._generator", imported="adtn_backends", contract=NEVER),
    Plant(module="adtn.layout._layout", imported="jax", contract=NEVER),
    Plant(module="adtn.layout._layout", imported="adtn.generator", contract="layers of adtn"),
    Plant(module="adtn.optim._fit", imported="adtn.bondspace", contract="layers of adtn"),
    Plant(module="adtn.precision._round", imported="adtn.layout", contract="layers of adtn"),
    Plant(module="adtn.cli._plan", imported="adtn.cli._compress", contract="a command knows no other command"),
    Plant(
        module="adtn.optim._objective",
        imported="adtn.optim._fit",
        contract="optimizers do not know the fit that runs them",
    ),
    Plant(
        module="adtn_backends.torch.layers._weight",
        imported="adtn_backends.torch.backend",
        contract="PyTorch: backend, models, layers",
    ),
    Plant(
        module="adtn_backends.torch.layers._linear",
        imported="adtn_backends.torch.layers._kinds",
        contract=f"PyTorch: {ROOM}",
    ),
    Plant(
        module="adtn_backends.jax.layers._weight",
        imported="adtn_backends.jax._model",
        contract="JAX: backend, models, layers",
    ),
    Plant(
        module="adtn_backends.jax.layers._linear",
        imported="adtn_backends.jax.layers._attention",
        contract=f"JAX: {ROOM}",
    ),
    Plant(
        module="adtn_backends.shared._fitted",
        imported="adtn_backends.shared._model",
        contract="what frameworks share goes in no circle",
    ),
    Plant(
        module="adtn_backends.numpy._threads",
        imported="adtn_backends.numpy.backend",
        contract="NumPy: layers and backend",
    ),
    Plant(
        module="adtn_backends.null._functions",
        imported="adtn_backends.null.backend",
        contract="null: backend and functions",
    ),
]


def copied(folder: Path) -> Path:
    """Copy the packages and their contracts to a folder."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "adtn", folder / "adtn", ignore=ignored)
    shutil.copytree(ROOT / "backends" / "adtn_backends", folder / "adtn_backends", ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def linted(folder: Path) -> tuple[int, str]:
    """Run import-linter on the packages in a folder, and return its output in lines of any length."""
    env = os.environ | {"PYTHONPATH": str(folder), "COLUMNS": "1000", "TERM": "dumb"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=folder, env=env, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def sections(text: str) -> dict[str, str]:
    """Split the output by the names of broken contracts."""
    _, _, broken = text.partition("Broken contracts")
    parts = re.split(r"^(.+)\n-+$", broken, flags=re.M)
    return {name.strip(): said for name, said in zip(parts[1::2], parts[2::2], strict=True)}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the output for all forbidden imports at once, each inside a function."""
    folder = copied(tmp_path_factory.mktemp("planted"))
    for n, plant in enumerate(PLANTS):
        path = folder / plant.module.replace(".", "/")
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        with path.open("a") as file:
            file.write(f"\n\ndef _planted_{n}():\n    import {plant.imported}\n")
    code, text = linted(folder)
    assert code == 1, text
    return sections(text)


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: f"{plant.module} {plant.imported}")
def test_a_forbidden_import_breaks_its_contract(plant: Plant, planted: dict[str, str]) -> None:
    assert f"{plant.module} -> {plant.imported} " in planted.get(plant.contract, "")


def test_every_contract_has_a_plant() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    assert {contract["name"] for contract in contracts} == {plant.contract for plant in PLANTS}


def test_contracts_hold_without_planted_imports(tmp_path: Path) -> None:
    code, text = linted(copied(tmp_path))
    assert code == 0, text


@pytest.mark.parametrize("folder", ["", "torch", "torch/layers", "jax", "jax/layers", "shared", "numpy", "null"])
def test_a_module_without_a_place_among_the_layers_is_refused(folder: str, tmp_path: Path) -> None:
    place = copied(tmp_path) / "adtn_backends" / folder
    (place / "newcomer.py").touch()
    code, text = linted(tmp_path)
    assert code == 1
    assert "newcomer" in text


def test_there_are_no_circles() -> None:
    """Count imports inside functions and behind TYPE_CHECKING as well."""
    grimp = pytest.importorskip("grimp")
    graph = grimp.build_graph("adtn", "adtn_backends", exclude_type_checking_imports=False)
    assert circles({name: set(graph.find_modules_directly_imported_by(name)) for name in graph.modules}) == []


def test_circles_are_seen() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules each of which reaches all others of its group."""

    def reached(name: str) -> set[str]:
        seen, left = set[str](), [name]
        while left:
            new = imports.get(left.pop(), set()) - seen
            seen |= new
            left += new
        return seen

    everything = {name: reached(name) for name in imports}
    groups = {frozenset(m for m in seen if name in everything[m]) for name, seen in everything.items() if name in seen}
    return sorted(sorted(group) for group in groups)
