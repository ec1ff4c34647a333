"""Time and memory of one piece of work."""

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


@dataclass(frozen=True, eq=False)
class Work:
    """A task of a generator on a device, as the scheduler plans it.

    Parameters
    ----------
    generator : Generator
    task : {"generate", "apply", "train", "fit"}
    device, dtype : str
    batch : int or None
    mode : str or None
        Force one.
    """

    generator: Generator
    task: str
    device: str
    dtype: str = "float32"
    batch: int | None = None
    mode: str | None = None

    @cached_property
    def plan(self) -> Plan:
        """What the scheduler decides."""
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
        """Do it once, and wait for it."""
        backend, where = check_device(self.device, self.dtype)
        operand = self.operand
        if self.task == "fit":
            operand = self.plan.fit.arrange(operand)
        operand = backend.asarray(operand, where, self.dtype, copy=False)
        if self.task == "apply":  # as a user calls it: a materialised weight is kept
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
        """What it computes, as a NumPy array: weight, output, adjoint of the input, or loss of the fit."""
        backend, _ = check_device(self.device, self.dtype)
        result = self.run()
        if self.task in ("fit", "train"):
            result = result[0 if self.task == "fit" else 1]
        found = np.asarray(backend.to_numpy(result), np.float64)
        if self.task == "fit" and not self.plan.fit.exact:  # the target's square is no part of a step
            found = found + np.sum(np.square(self.operand, dtype=np.float64))
        return found


def median_seconds(run: Callable[[], Any], seconds: float = 0.3, least: int = 3, most: int = 200) -> float:
    """Median over repetitions within a budget of time; the first two runs are not counted."""
    return paired_seconds({"only": run}, seconds, least, most)["only"]


def paired_seconds(
    runs: Mapping[Name, Callable[[], Any]], seconds: float = 0.3, least: int = 3, most: int = 200, turns: int = 3
) -> dict[Name, float]:
    """Medians of several pieces of work in one run, in turns.

    A turn is a block of repetitions whose first one is not counted: threads of one framework go on spinning for a
    moment after its work is done, and would be counted as another one's time.
    """
    once: dict[Name, float] = {}
    for name, run in runs.items():
        run()
        began = time.perf_counter()
        run()
        once[name] = time.perf_counter() - began
    found: dict[Name, list[float]] = {name: [] for name in runs}
    for _ in range(turns):
        for name, run in runs.items():
            run()
            for _ in range(max(-(-least // turns), min(most, int(seconds / turns / max(once[name], 1e-6))))):
                began = time.perf_counter()
                run()
                found[name].append(time.perf_counter() - began)
    return {name: statistics.median(times) for name, times in found.items()}


def peak_bytes(run: Callable[[], Any]) -> int | None:
    """Largest resident memory of this process during ``run`` above what it had before; ``None`` where unknown.

    Notes
    -----
    Linux only: the kernel's high-water mark is set back before. Memory that an allocator kept from earlier work is
    used again without being seen, so a process that does nothing else gives the best number.
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
