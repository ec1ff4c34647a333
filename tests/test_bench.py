"""The measurements of ``adtn bench``: which runs count, and how many there are."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from adtn.bench import BenchConfig, _measure, bench_set, median_seconds, paired_seconds
from adtn.bench._cases import TOPOLOGIES
from adtn.bench._report import BenchReport, BenchResult


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that holds one number, which simulated work increases."""
    now = [0.0]
    monkeypatch.setattr(_measure.time, "perf_counter", lambda: now[0])
    return now


@pytest.mark.parametrize(("least", "turns", "counted"), [(3, 3, 1), (4, 3, 2), (6, 3, 2), (5, 1, 5)])
def test_slow_work_is_measured_as_often_as_documented(least: int, turns: int, counted: int, clock: list[float]) -> None:
    calls: list[str] = []

    def work(name: str, seconds: float) -> None:
        # other times for the two runs before all turns, and for the first one of a turn
        ignored = calls.count(name) < 2 or calls[-1] != name
        calls.append(name)
        clock[0] += 1000.0 if ignored else seconds

    found = paired_seconds(
        {"a": lambda: work("a", 2.0), "b": lambda: work("b", 3.0)}, seconds=0.0, least=least, turns=turns
    )
    assert found == {"a": 2.0, "b": 3.0}
    turn = ["a"] * (1 + counted) + ["b"] * (1 + counted)
    assert calls == ["a", "a", "b", "b", *turn * turns]


def test_fast_work_is_repeated_until_the_time_is_over(clock: list[float]) -> None:
    calls: list[int] = []

    def work() -> None:
        calls.append(1)
        clock[0] += 0.001

    assert median_seconds(work, seconds=0.3) == pytest.approx(0.001)
    assert len(calls) == pytest.approx(2 + 3 + 300, abs=3)
    calls.clear()
    assert median_seconds(work, seconds=0.3, most=7) == pytest.approx(0.001)
    assert len(calls) == 2 + 3 * (1 + 7)


def test_brick_walls_are_measured_on_powers_of_two() -> None:
    cases = bench_set([(1024, 4096), (1024, 1000), (784, 64)])
    on = {shape: [c.name for c in cases if c.shape == shape] for shape in ((1024, 4096), (1024, 1000), (784, 64))}
    others = [name for name in TOPOLOGIES if "wall" not in name]
    assert on == {(1024, 4096): list(TOPOLOGIES), (1024, 1000): others, (784, 64): others}
    assert len(others) == len(TOPOLOGIES) - 3


def test_a_report_compares_with_the_first_device_and_has_a_panel_per_task(tmp_path: Path) -> None:
    plt = pytest.importorskip("matplotlib.pyplot")
    rich = pytest.importorskip("rich.console")
    one = BenchResult(
        case="TTN 4 64x64",
        task="apply",
        batch=16,
        device="numpy:cpu",
        dtype="float32",
        mode="stream",
        tiles=4,
        seconds=0.25,
    )
    other, failed = replace(one, device="torch:cpu", seconds=0.5), replace(one, device="jax:cpu", error="no memory")
    fit = replace(one, task="fit", batch=None, seconds=0.125)
    report = BenchReport(BenchConfig(), [one, other, failed, fit])
    shown = io.StringIO()
    rich.Console(width=160, file=shown).print(report.table())
    rows = [line.replace("│", " ").split() for line in shown.getvalue().splitlines()]
    found = {
        (row[3], row[row.index("float32") - 1]): row[row.index("float32") + 1 :] for row in rows if "float32" in row
    }
    assert found["apply", "numpy:cpu"][:5] == ["stream,", "4", "tiles", "250", "1.00"]
    assert found["apply", "torch:cpu"][3:5] == ["500", "2.00"]
    assert found["apply", "jax:cpu"] == ["no", "memory"]
    assert found["fit", "numpy:cpu"][3:5] == ["125", "1.00"]
    widths: list[int] = []
    for results in ([one, other], [one, fit], [one, fit, replace(one, task="train")]):
        BenchReport(BenchConfig(), results).draw(tmp_path / "x.png")
        widths.append(plt.imread(tmp_path / "x.png").shape[1])
    assert widths == sorted(set(widths)), "a panel beside the others for every task"
