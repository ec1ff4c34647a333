"""The code in the README and the examples in docstrings run."""

from __future__ import annotations

import contextlib
import doctest
import importlib
import inspect
import io
import pkgutil
import re
from pathlib import Path
from types import ModuleType

import adtn
import pytest

import adtn_backends

README = Path(__file__).parent.parent / "README.md"


BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
ENTRIES = ("I have a trained model", "I build with tensor networks", "I compare backends")


@pytest.mark.parametrize("number", range(len(ENTRIES)), ids=ENTRIES)
def test_the_entries_of_the_readme_run(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = BLOCKS[number]
    assert sum(bool(line.strip()) for line in block.splitlines()) == 5
    for package in ("torch",):
        if package in block:
            pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(block, "README.md", "exec"), {})
    printed = out.getvalue()
    if number == 0:
        assert "whole model" in printed
    elif number == 1:
        error, params = re.findall(r"[\d.]+", printed)[:2]
        assert float(error) < 0.2
        assert f"{int(params.rstrip('.')):,} parameters" in block, "the README has the printed count"
    else:
        errors = re.findall(r"relative error (\S+)", printed)
        assert len(errors) == 2 * len(adtn.devices().usable)
        assert all(float(error) < 1e-3 for error in errors)


def test_the_readme_is_short_and_has_three_entries() -> None:
    lines = README.read_text().splitlines()
    assert len(lines) <= 120
    assert len(BLOCKS) == len(ENTRIES)
    starts = [next(n for n, line in enumerate(lines) if line.startswith(f"**{entry}.**")) for entry in ENTRIES]
    assert starts == sorted(starts)
    assert any("pip install adtn" in line for line in lines[: starts[0]])
    assert any(line.startswith("make demo ") for line in lines[:10])


def modules(package: ModuleType) -> list[str]:
    """List all modules of a package that can be imported without running a command."""
    names = [m.name for m in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    return sorted(name for name in names if not name.endswith(".__main__"))


@pytest.mark.parametrize("name", [*modules(adtn), *modules(adtn_backends)])
def test_docstring_examples(name: str) -> None:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if str(error.name).startswith("adtn") or not name.startswith("adtn_backends."):
            raise
        pytest.skip(f"without {error.name}")
    result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    if name.endswith("_activation"):
        from adtn.topology._activation import _ACTIVATIONS

        _ACTIVATIONS.pop("gaussian", None)
    if name.endswith("_optimizer"):
        from adtn.optim._optimizer import _OPTIMIZERS

        _OPTIMIZERS.pop("sign-descent", None)
    if name.endswith("_topology"):
        from adtn.topology._topology import _TOPOLOGIES

        _TOPOLOGIES.pop("narrowtree", None)
    assert result.failed == 0
    text = inspect.getsource(module)
    assert result.attempted or ">>> " not in text, "there are examples, but none was run"
