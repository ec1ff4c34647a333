"""Measurement of the time and memory of one task."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..backends import check_device
from ..generator import Generator
from ..schedule import Plan, plan

Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True, eq=False, kw_only=True)
class Work:
    """A task of a generator on a device, as the scheduler plans it.

    Parameters
    ----------
    generator : Generator
        The generator.
    task : {"generate", "apply", "train", "fit"}
        The task.
    device, dtype : str
        Device and dtype of the arrays.
    batch : int or None
        Rows of the input of ``"apply"`` and ``"train"``.
    mode : str or None
        Execution mode to force.
    """

    generator: Generator
    task: str
    device: str
    dtype: str = "float32"
    batch: int | None = None
    mode: str | None = None

    @cached_property
    def plan(self) -> Plan:
        """The plan of the scheduler."""
        task: Any = self.task
        mode: Any = self.mode
        return plan(self.generator, task, device=self.device, dtype=self.dtype, batch=self.batch, mode=mode)

    @cached_property
    def operand(self) -> np.ndarray:
        """The input of a layer, or the target of a fit."""
        shape = self.generator.shape if self.task in ("fit", "generate") else (self.batch or 1, self.generator.shape[1])
        return np.random.default_rng(7).standard_normal(shape, dtype=np.float32)

    @cached_property
    def run(self) -> Callable[[], Any]:
        """A function that runs the task once and waits for its result."""
        backend, where = check_device(self.device, self.dtype)
        operand = self.operand
        if self.task == "fit":
            operand = self.plan.fit.arrange(operand)
        operand = backend.asarray(operand, where, self.dtype, copy=False)
        if self.task == "apply":  # as a user calls it: a materialised weight is cached
            step: Callable[[], Any] = lambda: self.generator.apply(operand, mode=self.plan.mode)  # noqa: E731  # pyright: ignore[reportArgumentType]
        else:
            call, arrays = self.plan.step(backend), self.generator.arrays(self.device, self.dtype)
            step = lambda: call(arrays, operand)  # noqa: E731

        def run() -> Any:
            with backend.scope(self.dtype):
                result = step()
            backend.synchronize(where, result)
            return result

        return run

    def answer(self) -> np.ndarray:
        """Run the task and return its result as a NumPy array: weight, output, adjoint of the input, or loss."""
        backend, _ = check_device(self.device, self.dtype)
        result = self.run()
        if self.task in ("fit", "train"):
            result = result[0 if self.task == "fit" else 1]
        value = np.asarray(backend.to_numpy(result), np.float64)
        if self.task == "fit" and not self.plan.fit.exact:  # the squared norm of the target is not part of a step
            value = value + np.sum(np.square(self.operand, dtype=np.float64))
        return value


def median_seconds(run: Callable[[], Any], seconds: float = 0.3, least: int = 3, most: int = 200) -> float:
    """Measure the median over repetitions within a time budget, ignoring the first two runs."""
    return paired_seconds({"only": run}, seconds, least, most)["only"]


def paired_seconds(
    runs: Mapping[Name, Callable[[], Any]], seconds: float = 0.3, least: int = 3, most: int = 200, turns: int = 3
) -> dict[Name, float]:
    """Measure the medians of several functions in turns; see :func:`seconds_in_turns`."""
    measured = seconds_in_turns(runs, seconds, least, most, turns)
    return {name: statistics.median(times) for name, times in measured.items()}


def seconds_in_turns(
    runs: Mapping[Name, Callable[[], Any]], seconds: float = 0.3, least: int = 3, most: int = 200, turns: int = 3
) -> dict[Name, list[float]]:
    """Measure several functions in turns, and return the times of all repetitions.

    A turn is a block of repetitions of one function, of which the first is ignored: threads of one framework keep
    spinning for a moment after it finishes, which would be counted as time of the next one.
    """
    once: dict[Name, float] = {}
    for name, run in runs.items():
        run()
        start = time.perf_counter()
        run()
        once[name] = time.perf_counter() - start
    measured: dict[Name, list[float]] = {name: [] for name in runs}
    for _ in range(turns):
        for name, run in runs.items():
            run()
            for _ in range(max(-(-least // turns), min(most, int(seconds / turns / max(once[name], 1e-6))))):
                start = time.perf_counter()
                run()
                measured[name].append(time.perf_counter() - start)
    return measured


def peak_bytes(run: Callable[[], Any]) -> int | None:
    """Measure the growth of the peak resident memory of this process during ``run``; ``None`` if unsupported.

    Notes
    -----
    This works on Linux only and resets the high-water mark of the kernel first. Memory that an allocator retained from
    earlier work is reused without being seen, so a process that does nothing else gives the best measurement.
    """
    status, refs = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    try:
        refs.write_text("5")
        before = _resident(status, "VmRSS")
        run()
        return max(_resident(status, "VmHWM") - before, 0)
    except OSError:
        run()
        return None


def _resident(status: Path, field: str) -> int:
    for line in status.read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(field)
