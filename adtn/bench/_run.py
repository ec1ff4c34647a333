"""Execution of a benchmark on every device, with interleaved repetitions."""

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
    """Run the same tasks on every device.

    Parameters
    ----------
    config : BenchConfig
        The configuration.
    on_result : callable, optional
        Function that is called with every result.

    Returns
    -------
    BenchReport
        The results, including failed runs with their errors.
    """
    where = config.devices or tuple(d.name for d in list_devices().usable)
    for device in where:  # an unusable device is a result, an unknown backend is a mistake
        get_backend(split_device(device)[0])
    report = BenchReport(config)
    for piece in _pieces(config):
        results = {
            device: BenchResult(
                case=piece.case.label, task=piece.task, batch=piece.batch, device=device, dtype=piece.dtype
            )
            for device in where
        }
        works: dict[str, Work] = {}
        reference = _reference(piece)
        for device, result in results.items():
            work = Work(
                generator=piece.case.generator(),
                task=piece.task,
                device=device,
                dtype=piece.dtype,
                batch=piece.batch,
                mode=config.mode,
            )
            try:
                if get_backend(device.partition(":")[0]).compiles:
                    work.run()  # compiling takes memory as well
                result.peak_bytes = peak_bytes(work.run)
                value = work.answer()
            except Exception as error:  # a failed run is a result
                result.error = f"{type(error).__name__}: {error}".splitlines()[0]
                continue
            works[device] = work
            result.mode, result.tiles = work.plan.mode, work.plan.tiles
            result.predicted_seconds, result.predicted_peak_bytes = work.plan.predicted_seconds, work.plan.peak_bytes
            result.relative_error = float(np.linalg.norm(value - reference) / np.linalg.norm(reference))
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
    """Compute the reference result in double precision with NumPy, by the plain program."""
    generator = piece.case.generator()
    weight = generator.function(generator.arrays("numpy:cpu", "float64"))
    if piece.task == "generate":
        return weight
    operand = Work(generator=generator, task=piece.task, device="numpy:cpu", batch=piece.batch).operand.astype(
        np.float64
    )
    if piece.task == "fit":
        return np.asarray(np.sum((weight - operand) ** 2))
    output = operand @ weight.T
    return output if piece.task == "apply" else output @ weight  # a training step uses its output as the cotangent
