"""The progress of a compression: lines, bars on a terminal, and silence elsewhere."""

from __future__ import annotations

import io
import sys
from typing import Any

import adtn
import pytest
from adtn.compression._progress import Progress
from adtn.errors import CompressError

from models import batches, net

# models of these tests are small and random: results are bad on purpose
pytestmark = pytest.mark.filterwarnings("ignore::adtn.errors.QualityWarning")

CONFIG = adtn.Config(targets=["0", "4"], topology=adtn.TTN(bond=2), steps=5, tune_steps=3)


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def show(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Make a terminal of standard error; in the test itself, as pytest sets its own stream after fixtures."""
    stream = Terminal()
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def test_nothing_is_printed_without_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    for progress in (None, False):
        adtn.compress(net(), CONFIG, data=batches(), progress=progress)
    assert capfd.readouterr() == ("", "")


def test_a_terminal_shows_a_bar_per_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = show(monkeypatch)
    adtn.compress(net(), CONFIG, data=batches())
    shown = terminal.getvalue()
    for stage in ("local fits", "training", "measurements"):
        assert stage in shown
    assert "100%" in shown


@pytest.mark.parametrize("progress", [False, [].append], ids=["off", "lines"])
def test_bars_are_replaced_by_silence_or_lines(monkeypatch: pytest.MonkeyPatch, progress: Any) -> None:
    terminal = show(monkeypatch)
    adtn.compress(net(), CONFIG, data=batches(), progress=progress)
    assert terminal.getvalue() == ""


def test_bars_end_when_the_work_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = show(monkeypatch)
    with pytest.raises(RuntimeError), Progress() as progress:
        progress.stage("first", 4)
        progress.advance()
        raise RuntimeError
    assert "25%" in terminal.getvalue() and "100%" not in terminal.getvalue()


def test_a_repeated_stage_keeps_its_bar_and_names_are_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = show(monkeypatch)
    with Progress(True) as progress:
        for _ in range(3):
            progress.stage("again", 2)
            progress("layer[red]x[/nothing]")
            progress.advance(2)
    last = terminal.getvalue().rstrip().splitlines()
    assert sum("again" in line for line in last[-2:]) == 1


def test_other_values_are_refused() -> None:
    with pytest.raises(CompressError, match="progress"):
        adtn.compress(net(), CONFIG, progress="yes")  # type: ignore[arg-type]
