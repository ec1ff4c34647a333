"""The script that checks prose refuses planted faults, and nothing in the tree."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "english.py"
pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason=".ci/ is not here")


@pytest.fixture(scope="module")
def english() -> Any:
    spec = importlib.util.spec_from_file_location("english", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "text",
    [
        "a weight from 1,188 numbers",
        "the numbers of every core",
        "the wished size of a leg",
        "taught for 30,000 steps",
        "convolutions are trained along",
        "paths are kept on disk",
        "a kept weight is used",
        "first values of the cores",
        "computed as its transpose when turned",
        "the checkpoint is made anew",
        "looked up anew by its own",
        "the layer puts out a state",
        "it is no array",
    ],
)
def test_the_dialect_is_refused(english: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    markdown, comment, string, docstring = (tmp_path / name for name in ("a.md", "b.py", "c.py", "d.py"))
    markdown.write_text(f"A page.\n\nHere {text}.\n")
    comment.write_text(f"x = 1  # {text}\n")
    string.write_text(f"raise ValueError(f'Got {{x}}; {text}.')\n")
    docstring.write_text(f'"""A module.\n\nHere {text}.\n"""\n')
    for path, line in ((markdown, 3), (comment, 1), (string, 1), (docstring, 3)):
        assert english.main([str(path)]) == 1
        assert f"{path}:{line}: " in capsys.readouterr().out


@pytest.mark.parametrize(
    "text",
    [
        "random numbers are drawn by a counter",
        "the mode is turned off",
        "there is no such file",
        "it is no longer used",
        "``numbers = the turned, wished ones``",
        "a few numbers  # english: ok",
    ],
)
def test_plain_english_is_accepted(english: Any, tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.py"
    path.write_text(f"x = 1  # {text}\n")
    assert english.main([str(path)]) == 0


@pytest.mark.parametrize(
    "summary",
    [
        "Of the result.",
        "The same without padding.",
        "None.",
        "It is a tensor.",
        "As a dictionary.",
        "For people.",
        "With its scale.",
        "That of the device.",
        "Those that work.",
        "What it costs.",
        "How it is read.",
        "Where it lies.",
        "Whether it is large.",
        "``x`` reshaped.",
        "Seconds of a product.",
    ],
)
def test_a_summary_that_does_not_stand_alone_is_refused(english: Any, tmp_path: Path, summary: str) -> None:
    path = tmp_path / "a.py"
    path.write_text(f'def f() -> int:\n    """{summary}"""\n')
    assert english.main([str(path)]) == 1
    path.write_text(f'class A:\n    def _f(self) -> int:\n        """{summary}"""\n')
    assert english.main([str(path)]) == 0, "private functions have no page in help()"


def test_summaries_that_stand_alone_are_accepted(english: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text(
        '''"""Tools for tests."""


class A:
    """A tool."""

    @property
    def large(self) -> bool:
        """Whether the tool is large."""

    @property
    def size(self) -> int:
        """The number of entries."""

    def run(self) -> None:
        """Compute the size."""

    def other(self) -> None:
        """Computes the size."""
'''
    )
    assert english.main([str(path)]) == 0


def test_pending_folders_are_counted_and_not_refused(
    english: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(english, "ROOT", tmp_path)
    monkeypatch.setattr(english, "PENDING", ("old",))
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.py").write_text("x = 1  # the wished size\n")
    assert english.main([str(tmp_path / "old")]) == 0
    assert "pending, not refused: old (1)" in capsys.readouterr().out
    assert english.main([str(tmp_path / "new")]) == 1
    assert f"{Path('new/a.py')}:1: " in capsys.readouterr().out
