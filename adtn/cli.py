"""The command line: ``adtn demo | devices | fit | inspect | bench``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ._errors import ADTNError, MissingDependencyError
from ._version import __version__

app = typer.Typer(
    name="adtn",
    help="Neural-network layers stored as the output of small nonlinear tensor networks.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
Devices = Annotated[
    list[str] | None, typer.Option("--device", help="Device, may be repeated; all usable ones by default.")
]


def main() -> None:
    """Entry point: errors of the library become one line and exit code 1."""
    try:
        app()
    except ADTNError as error:
        print(f"adtn: {error}", file=sys.stderr)
        raise SystemExit(1) from None


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
def devices(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List devices with memory and dtypes, and why some are not usable."""
    from dataclasses import asdict

    from .schedule import devices as list_devices

    found = list_devices()
    print(json.dumps([asdict(d) for d in found], indent=1) if as_json else found)


@app.command()
def demo(
    data: Annotated[
        str, typer.Option(help="digits (comes with the package) or mnist (from the folder ADTN_DATA).")
    ] = "digits",
    device: Devices = None,
    seeds: Annotated[int, typer.Option(min=1, help="Independent repetitions.")] = 1,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Cases to run, may be repeated.")] = None,
    layer: Annotated[str, typer.Option(help="Only this layer: first or hidden.")] = "",
    out: Annotated[Path, typer.Option(help="Folder for generators, JSON and the picture.")] = Path("adtn-demo"),
) -> None:
    """Train a network through generated layers, beside controls, on every usable device."""
    from rich.console import Console

    from .demo import draw, run_demo, tables, verdict
    from .demo import load_images as check_data

    check_data(data)
    console = Console(width=None if sys.stdout.isatty() else 140)
    command = "adtn " + " ".join(sys.argv[1:])
    status = Console(stderr=True).status("training ...")

    def show(result: Any) -> None:
        line = f"{result.layer}: {result.case} on {result.device}, seed {result.seed}: {result.accuracy:.2f} %"
        status.update(line) if sys.stderr.isatty() else print(line, file=sys.stderr)

    with status:
        report = run_demo(
            data, devices=device, seeds=seeds, steps=steps, only=only or (), layer=layer,
            out=out, on_result=show, command=command,
        )  # fmt: skip
    for table in tables(report):
        console.print(table)
    for line in verdict(report):
        console.print(line, highlight=False)
    try:
        draw(report, out / f"demo-{report.data}.png")
    except MissingDependencyError as error:
        console.print(f"No picture: {error}", markup=False, highlight=False)
    console.print(f"Generators, JSON and picture are in {out}/", highlight=False)


@app.command()
def fit(
    file: Annotated[Path, typer.Argument(help="A weight: .npy, .npz or .safetensors.")],
    topology: Annotated[
        str, typer.Option(help="ttn, attn, mera, brickwall, tt, mpo, tensorring, tucker, cp, ...")
    ] = "ttn",
    bond: Annotated[int | None, typer.Option(min=1, help="Bond dimension.")] = None,
    layers: Annotated[int | None, typer.Option(min=1, help="Layers of a brick wall.")] = None,
    activation: Annotated[str | None, typer.Option(help="Between levels.")] = None,
    leg: Annotated[int | None, typer.Option(min=2, help="Wished size of a leg.")] = None,
    order: Annotated[str | None, typer.Option(help="Order of the legs: axis or interleaved.")] = None,
    key: Annotated[str | None, typer.Option(help="Name of the array in the file.")] = None,
    device: Annotated[str, typer.Option(help="Where to train.")] = "numpy:cpu",
    optimizer: Annotated[str, typer.Option(help="adam, adamw, sgd or lbfgs.")] = "adam",
    steps: Annotated[int, typer.Option(min=1)] = 1000,
    lr: Annotated[float, typer.Option(help="Largest learning rate.")] = 2e-2,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    start: Annotated[str, typer.Option(help="generator, or decomposition for linear topologies.")] = "generator",
    checkpoint: Annotated[Path | None, typer.Option(help="Checkpoint file; an existing one is continued.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where to save; FILE.adtn.safetensors by default.")] = None,
) -> None:
    """Fit a generator to a weight of your own and save it."""
    from .compress import pick_weight, save
    from .generator import Generator
    from .network import Layout, get_topology
    from .optim import fit as run

    name, weight = pick_weight(file, key)
    cls = get_topology(topology)
    options: dict[str, Any] = {"bond": bond, "layers": layers, "activation": activation}
    chosen = {k: v for k, v in options.items() if v is not None}
    unknown = [k for k in chosen if k not in cls.__dataclass_fields__]
    if unknown:
        raise ADTNError(
            f"{cls.__name__} takes no {', '.join('--' + k for k in unknown)}; "
            f"it takes {', '.join(cls.__dataclass_fields__)}."
        )
    top = cls(**chosen)
    layout = None
    if leg is not None or order is not None:
        layout = Layout.of(weight.shape, leg or cls.leg, order or cls.order, exact=cls.exact)  # type: ignore[arg-type]
    weight = np.asarray(weight, dtype=np.float64)
    generator = Generator(weight.shape, top, layout=layout, seed=seed, scale=weight)
    solution = run(
        generator, weight, device=device, optimizer=optimizer, steps=steps, lr=lr, start=start, checkpoint=checkpoint  # type: ignore[arg-type]
    )  # fmt: skip
    target = out or file.with_suffix(".adtn.safetensors")
    save(target, solution.generator)
    gen = solution.generator
    print(f"{name} {weight.shape} -> {type(top).__name__}, legs {gen.layout.dims}, on {device}")
    print(
        f"relative error {solution.relative_error:.4f}   parameters {gen.num_params:,} "
        f"(active {gen.num_active_params:,})   "
        f"ratio {gen.compression_ratio:,.0f}x   {target.stat().st_size:,} bytes   {solution.seconds:.1f} s"
    )
    print(f"{solution.status.name}: {solution.status.value}")
    print(f"saved to {target}")


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="A file of adtn.save, or any .npy, .npz, .safetensors.")],
) -> None:
    """Show what a file holds: a generator with its segments, or plain weights with their spectra."""
    from ._errors import FileFormatError
    from .compress import load, read_weights

    try:
        gen = load(file)
    except FileFormatError as error:
        if "no adtn header" not in str(error) and file.suffix == ".safetensors":
            raise
        for name, x in read_weights(file).items():
            print(f"{name:40s} {x.dtype!s:8s} {'x'.join(map(str, x.shape)):20s} {_spectrum(x)}")
        return
    print(gen)
    print(f"scale {gen.scale:.6g}   base {_base(gen.base)}   dtype {gen.dtype}   active {gen.num_active_params:,}")
    for t, (segment, stage) in enumerate(zip(gen.segments, gen.program.stages, strict=True), start=1):
        print(
            f"segment {t}: {len(segment.cores)} cores -> {stage.out_shape}, "
            f"then {segment.activation}, {stage.flops:,} flops"
        )
        for core in segment.cores:
            frozen = "" if core.trainable else "  frozen"
            print(f"  {core.name:16s} {core.kind:14s} {core.shape!s:20s} {' '.join(core.inds)}{frozen}")


@app.command()
def bench(
    device: Devices = None,
    size: Annotated[int, typer.Option(min=16, help="Rows and columns of the weight.")] = 512,
    steps: Annotated[int, typer.Option(min=1)] = 100,
    repeats: Annotated[int, typer.Option(min=1, help="Runs per device, interleaved.")] = 5,
    out: Annotated[Path | None, typer.Option(help="JSON file.")] = None,
) -> None:
    """Time one fit on every usable device, side by side."""
    from rich.console import Console

    from .demo import compare_backends

    report = compare_backends(device, size=size, steps=steps, repeats=repeats)
    Console(width=None if sys.stdout.isatty() else 140).print(report.table())
    if out is not None:
        report.write(out, "adtn " + " ".join(sys.argv[1:]))


def _spectrum(x: np.ndarray) -> str:
    if x.ndim < 2 or x.size > 2**24 or not np.issubdtype(x.dtype, np.floating):
        return ""
    values = np.linalg.svd(x.reshape(x.shape[0], -1).astype(np.float64), compute_uv=False)
    energy = np.cumsum(values**2) / max(float(np.sum(values**2)), 1e-300)
    rank = int(np.searchsorted(energy, 0.99)) + 1
    return f"std {x.std():.4g}   rank for 99 % of the energy: {rank} of {len(values)}"


def _base(base: Any) -> str:
    if base is None:
        return "none"
    return f"given {base.shape}" if isinstance(base, np.ndarray) else repr(base)
