"""The README's block and the examples in the docstrings run."""

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


def test_the_readme_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    assert blocks
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(block, "README.md", "exec"), {})
        error, params = re.findall(r"[\d.]+", out.getvalue())[:2]
        assert float(error) < 0.2
        assert f"{int(params):,} numbers" in block, "the number in the README is the number that is printed"


def test_install_and_a_runnable_block_come_before_line_35() -> None:
    lines = README.read_text().splitlines()
    assert any("pip install adtn" in line for line in lines[:35])
    opened = lines.index("```python")
    assert "```" in lines[opened : opened + 20]
    assert lines[opened + 1 :].index("```") + opened + 1 < 35
    assert (
        lines.index(
            "make demo    # sets itself up in .venv, then trains digits through generated layers on every backend"
        )
        < 10
    )


def modules(package: ModuleType) -> list[str]:
    """All modules of a package that can be imported without running a command."""
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
    assert result.failed == 0
    text = inspect.getsource(module)
    assert result.attempted or ">>> " not in text, "there are examples, and none was run"
