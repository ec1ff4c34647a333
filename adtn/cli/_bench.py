"""Benchmarks: ``adtn bench``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .._files import check_writable, write_or_rescue
from ..errors import MissingDependencyError
from ._devices import Devices


def bench(
    config: Annotated[
        Path | None, typer.Argument(help="TOML file with the configuration; by default a small set.")
    ] = None,
    device: Devices = None,
    seconds: Annotated[float | None, typer.Option(help="Time budget for the repetitions of one measurement.")] = None,
    out: Annotated[Path | None, typer.Option(help="Output file in JSON; a figure is written next to it.")] = None,
) -> None:
    """Compare the same tasks on every usable device: time, peak memory, agreement."""
    from dataclasses import replace

    from rich.console import Console

    from ..bench import BenchConfig, run_bench

    if out is not None:
        check_writable(out, "--out", "file")
    settings = BenchConfig.read(config) if config is not None else BenchConfig()
    if device:
        settings = replace(settings, devices=tuple(device))
    if seconds is not None:
        settings = replace(settings, seconds=seconds)

    def show(result: Any) -> None:
        if sys.stderr.isatty():
            print(f"{result.case} {result.task} on {result.device}", file=sys.stderr)

    report = run_bench(settings, show)
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(report.table())
    if out is not None:
        write_or_rescue(out, lambda place: report.write(place, "adtn " + " ".join(sys.argv[1:])))
        try:
            report.draw(out.with_suffix(".png"))
        except (MissingDependencyError, OSError) as error:
            console.print(f"No figure: {error}", markup=False, highlight=False)
