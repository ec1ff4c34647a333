"""The README's block and the examples in the docstrings run."""

from __future__ import annotations

import contextlib
import doctest
import importlib
import io
import pkgutil
import re
from pathlib import Path

import adtn
import pytest

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


MODULES = sorted(m.name for m in pkgutil.walk_packages(adtn.__path__, "adtn.") if m.name not in ("adtn.__main__",))


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name: str) -> None:
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    if name.endswith("_activation"):
        from adtn.network._activation import _ACTIVATIONS

        _ACTIVATIONS.pop("gaussian", None)
    if name.endswith("_optimizer"):
        from adtn.optim._optimizer import _OPTIMIZERS

        _OPTIMIZERS.pop("sign-descent", None)
    assert result.failed == 0


def test_every_public_topology_and_function_has_an_example() -> None:
    public = [getattr(adtn, n) for n in dir(adtn) if not n.startswith("_")]
    topologies = [x for x in public if isinstance(x, type) and issubclass(x, adtn.Topology) and x is not adtn.Topology]
    for thing in (
        *topologies,
        adtn.Generator,
        adtn.Layout,
        adtn.fit,
        adtn.save,
        adtn.decompose,
        adtn.devices,
        adtn.Task,
        adtn.Optimizer,
        adtn.register_optimizer,
    ):
        assert ">>>" in (thing.__doc__ or ""), thing
