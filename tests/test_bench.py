"""The measurements of ``adtn bench``: which runs count, and how many there are."""

from __future__ import annotations

import pytest
from adtn.bench import _measure, bench_set, median_seconds, paired_seconds
from adtn.bench._cases import TOPOLOGIES


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
