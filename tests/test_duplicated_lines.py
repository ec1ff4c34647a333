"""The script that finds code duplicated between frameworks finds planted code, and nothing in the tree."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "backends" / "adtn_backends"
COPIED = PACKAGE / "torch" / "layers" / "_conv.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """Import ``.ci/duplicated_lines.py`` as a module."""
    spec = importlib.util.spec_from_file_location("duplicated_lines", ROOT / ".ci" / "duplicated_lines.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look it up
    spec.loader.exec_module(module)
    return module


def test_frameworks_share_no_long_run_of_lines(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main([]) == 0, capsys.readouterr().out


def planted(folder: Path, text: str) -> Path:
    """Copy the package, with another file in the folder of JAX."""
    shutil.copytree(PACKAGE, folder / "adtn_backends", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "adtn_backends" / "jax" / "_copied.py").write_text(text)
    return folder / "adtn_backends"


def test_a_copied_file_is_found(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = planted(tmp_path, COPIED.read_text())
    assert script.main([str(folder)]) == 1
    assert "jax/_copied.py:" in (out := capsys.readouterr().out)
    assert "torch/layers/_conv.py:" in out
    assert max(run.length for run in script.duplicated(folder)) > 60


def test_a_copy_with_names_comments_and_docstrings_of_its_own_is_found(script: ModuleType, tmp_path: Path) -> None:
    text = COPIED.read_text().replace("import torch\n", "import jax\nfrom flax import nnx\n")
    for old, new in (
        ("torch.Tensor", "jax.Array"),
        ("nn.functional.", "jax.nn."),
        ("nn.", "nnx."),
        ('"""A', '"""Own A'),
    ):
        text = text.replace(old, new)
    text = text.replace("ADTNConv", "FlaxConv").replace("\n    def ", "\n\n    # in other words\n    def ")
    assert max(run.length for run in script.duplicated(planted(tmp_path, text))) > 30


def test_code_in_shared_is_not_a_copy(script: ModuleType, tmp_path: Path) -> None:
    folder = planted(tmp_path, "")
    shutil.copy(COPIED, folder / "shared" / "_copied.py")
    assert not script.duplicated(folder)


@pytest.mark.parametrize(("lines", "runs"), [(12, 0), (13, 1)])
def test_runs_of_twelve_lines_may_stay(lines: int, runs: int, script: ModuleType, tmp_path: Path) -> None:
    body = "\n".join(f"    x{n} = {n}" for n in range(lines - 1))
    for name in ("torch", "jax"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.py").write_text(f'"""{name}."""\nimport {name}\n\n\ndef f():\n{body}\n\n\ny = {name!r}\n')
    assert len(script.duplicated(tmp_path)) == runs
