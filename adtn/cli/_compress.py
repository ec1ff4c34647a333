"""Whole models: ``adtn compress``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from .._files import check_writable
from ._names import Imports, called, found, function_of


def compress(
    model: Annotated[
        str, typer.Argument(help="MODULE:FACTORY that returns a torch.nn.Module, or a Hugging Face folder.")
    ],
    weights: Annotated[Path | None, typer.Option(help="State of the dense model (.safetensors).")] = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML or YAML file with the configuration; see adtn.Config.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="MODULE:FACTORY that returns the training batches.")] = None,
    validation: Annotated[
        str | None, typer.Option(help="MODULE:FACTORY that returns batches that decide whether training has helped.")
    ] = None,
    test: Annotated[str | None, typer.Option(help="MODULE:FACTORY that returns the test batches.")] = None,
    loss: Annotated[
        str | None, typer.Option(help="MODULE:FUNCTION of (model, batch); by default the cross-entropy.")
    ] = None,
    score: Annotated[str | None, typer.Option(help="MODULE:FUNCTION of (model); larger is better.")] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Size of the whole model, instead of that of the config: 4x, 25% or 2MB; without both, and without a "
            "topology in the config, a quarter of the bytes of the chosen layers."
        ),
    ] = None,
    baselines: Annotated[
        bool, typer.Option("--baselines", help="Also measure integers, an SVD, controls and more training beside it.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="Device of the local fits.")] = None,
    out: Annotated[Path, typer.Option(help="Output folder for state and report.")] = Path("compressed"),
    rest: Annotated[
        str | None,
        typer.Option(
            help="Precision of everything else, instead of that of the config: same, float16, bfloat16, int8."
        ),
    ] = None,
    modules: Imports = None,
) -> None:
    """Compress a PyTorch model and save its state, with its generators, and a report."""
    import warnings
    from dataclasses import replace

    from rich.console import Console

    from ..compression import Budget, Config, run_folder
    from ..errors import QualityWarning

    def say(line: str) -> None:
        print(line, flush=True)

    check_writable(out, "--out", "folder")
    settings = Config.load(config) if config is not None else Config()
    if budget is not None:
        settings = replace(settings, budget=Budget.parse(budget))
    if rest is not None:
        settings = replace(settings, rest=cast(Any, rest))
    source = Path(model) if Path(model).is_dir() else function_of(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", QualityWarning)  # the report has them, and they follow in red
        report = run_folder(
            source,
            settings,
            out,
            weights=weights,
            data=called(data),
            validation=called(validation),
            test=called(test),
            loss=found(loss),
            score=found(score),
            device=device,
            progress=None if sys.stderr.isatty() else say,
            baselines=baselines,
        )
    print(report)
    for line in report.alarms():
        Console(stderr=True).print(line, style="bold red", markup=False, highlight=False, soft_wrap=True)
    print(f"State and report are in {out}/")
