"""pytest-benchmark over the bench set: ``pytest bench/micro``; ``--benchmark-json=...`` stores the times."""

from __future__ import annotations

import pytest
from adtn.bench import Work, bench_set

CASES = {case.label: case for case in bench_set(((256, 256), (1024, 1024)))}


@pytest.mark.parametrize("label", CASES)
@pytest.mark.parametrize(("task", "batch"), [("generate", None), ("apply", 64), ("train", 64), ("fit", None)])
def test_work(benchmark, device: str, label: str, task: str, batch: int | None) -> None:
    benchmark.group = f"{label} {task}"
    work = Work(generator=CASES[label].generator(), task=task, device=device, batch=batch)
    work.run()
    benchmark(work.run)
