"""The demonstration: ``adtn demo``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from .._files import check_writable
from ..errors import MissingDependencyError
from ._devices import Devices


def demo(
    data: Annotated[
        str, typer.Option(help="Data set: digits (included) or mnist (from the folder ADTN_DATA).")
    ] = "digits",
    device: Devices = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of repetitions with different seeds.")] = 1,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps; the default depends on the data.")] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Name of a case to run, may be repeated; by default all.")
    ] = None,
    layer: Annotated[str, typer.Option(help="Replace only this layer: first or hidden.")] = "",
    out: Annotated[Path, typer.Option(help="Folder for generators, JSON and the figure.")] = Path("adtn-demo"),
) -> None:
    """Train a network through generated layers, beside controls, on every usable device."""
    from rich.console import Console

    from ..demo import draw, run_demo, tables, verdict
    from ..demo import load_images as check_data

    check_writable(out, "--out", "folder")
    check_data(data)
    console = Console(width=None if sys.stdout.isatty() else 140)
    command = "adtn " + " ".join(sys.argv[1:])
    status = Console(stderr=True).status("training ...")

    def show(result: Any) -> None:
        line = f"{result.layer}: {result.case} on {result.device}, seed {result.seed}: {result.accuracy:.2f} %"
        status.update(line) if sys.stderr.isatty() else print(line, file=sys.stderr)

    with status:
        report = run_demo(
            cast(Any, data),
            devices=device,
            seeds=seeds,
            steps=steps,
            only=only or (),
            layer=layer,
            out=out,
            on_result=show,
            command=command,
        )
    for table in tables(report):
        console.print(table)
    for line in verdict(report):
        console.print(line, highlight=False)
    try:
        draw(report, out / f"demo-{report.data}.png")
    except (MissingDependencyError, OSError) as error:
        console.print(f"No figure: {error}", markup=False, highlight=False)
    console.print(f"Generators, JSON and figure are in {out}/", highlight=False)
