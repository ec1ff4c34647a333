"""Run a config on every device, repetitions interleaved."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from ..backends import get_backend, split_device
from ..device import devices as list_devices
from ._cases import BenchCase, bench_set
from ._config import BenchConfig
from ._measure import Work, paired_seconds, peak_bytes
from ._report import BenchReport, BenchResult


@dataclass(frozen=True)
class _Piece:
    case: BenchCase
    task: str
    batch: int | None
    dtype: str


def run_bench(config: BenchConfig, on_result: Callable[[BenchResult], None] | None = None) -> BenchReport:
    """The same work on every device.

    Parameters
    ----------
    config : BenchConfig
        What to run.
    on_result : callable, optional
        Called with every result.

    Returns
    -------
    BenchReport
        Runs that failed are in it with their error.
    """
    where = config.devices or tuple(d.name for d in list_devices().usable)
    for device in where:  # one that is not usable is a result, one of no backend is a slip
        get_backend(split_device(device)[0])
    report = BenchReport(config)
    for piece in _pieces(config):
        results = {d: BenchResult(piece.case.label, piece.task, piece.batch, d, piece.dtype) for d in where}
        works: dict[str, Work] = {}
        want = _reference(piece)
        for device, result in results.items():
            work = Work(piece.case.generator(), piece.task, device, piece.dtype, piece.batch, config.mode)
            try:
                if get_backend(device.partition(":")[0]).compiles:
                    work.run()  # compiling takes memory, too
                result.peak_bytes = peak_bytes(work.run)
                got = work.answer()
            except Exception as error:  # a failed run is a result
                result.error = f"{type(error).__name__}: {error}".splitlines()[0]
                continue
            works[device] = work
            result.mode, result.tiles = work.plan.mode, work.plan.tiles
            result.predicted_seconds, result.predicted_peak_bytes = work.plan.predicted_seconds, work.plan.peak_bytes
            result.relative_error = float(np.linalg.norm(got - want) / np.linalg.norm(want))
        for device, seconds in paired_seconds({d: w.run for d, w in works.items()}, config.seconds).items():
            results[device].seconds = seconds
        report.results += results.values()
        for result in results.values():
            if on_result is not None:
                on_result(result)
    return report


def _pieces(config: BenchConfig) -> Iterator[_Piece]:
    for case in bench_set(config.shapes, config.topologies):
        for task in config.tasks:
            for batch in config.batches if task in ("apply", "train") else (None,):
                for dtype in config.dtypes:
                    yield _Piece(case, task, batch, dtype)


def _reference(piece: _Piece) -> np.ndarray:
    """The answer in double precision on NumPy, by the plain program."""
    generator = piece.case.generator()
    weight = generator.function(generator.arrays("numpy:cpu", "float64"))
    if piece.task == "generate":
        return weight
    operand = Work(generator, piece.task, "numpy:cpu", batch=piece.batch).operand.astype(np.float64)
    if piece.task == "fit":
        return np.asarray(np.sum((weight - operand) ** 2))
    output = operand @ weight.T
    return output if piece.task == "apply" else output @ weight  # a step takes its output as the cotangent
