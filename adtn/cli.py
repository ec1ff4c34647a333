"""The command line: ``adtn demo | devices | calibrate | plan | fit | inspect | bench``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ._files import check_writable, write_bytes, write_or_rescue
from ._version import __version__
from .errors import ADTNError, MissingDependencyError
from .optim import optimizer_names

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


def _optimizers() -> str:
    """Names for the help, also those that other packages and ``--import`` add."""
    *names, last = optimizer_names()
    return f"{', '.join(names)} or {last}."


def _import(context: typer.Context, names: list[str] | None) -> list[str] | None:
    """Import modules that register something, also those of the working directory, before anything else is read."""
    for name in names or ():
        _module(name, name)
    for option in context.command.params:
        if option.name == "optimizer":
            option.help = _optimizers()  # type: ignore[attr-defined]
    return names


Imports = Annotated[
    list[str] | None,
    typer.Option(
        "--import",
        callback=_import,
        is_eager=True,
        help="Module that registers topologies, activations or optimizers of your own, may be repeated.",
    ),
]


def main() -> None:
    """Entry point: errors of the library and of the system become one line and exit code 1."""
    try:
        app()
    except (ADTNError, OSError, MemoryError) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        print(f"adtn: {text}", file=sys.stderr)
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

    from .device import devices as list_devices

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

    check_writable(out, "--out", "folder")
    wanted: Any = data
    check_data(data)
    console = Console(width=None if sys.stdout.isatty() else 140)
    command = "adtn " + " ".join(sys.argv[1:])
    status = Console(stderr=True).status("training ...")

    def show(result: Any) -> None:
        line = f"{result.layer}: {result.case} on {result.device}, seed {result.seed}: {result.accuracy:.2f} %"
        status.update(line) if sys.stderr.isatty() else print(line, file=sys.stderr)

    with status:
        report = run_demo(
            wanted, devices=device, seeds=seeds, steps=steps, only=only or (), layer=layer,
            out=out, on_result=show, command=command,
        )  # fmt: skip
    for table in tables(report):
        console.print(table)
    for line in verdict(report):
        console.print(line, highlight=False)
    try:
        draw(report, out / f"demo-{report.data}.png")
    except (MissingDependencyError, OSError) as error:
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
    optimizer: Annotated[str, typer.Option(help=_optimizers())] = "adam",
    steps: Annotated[int, typer.Option(min=1)] = 1000,
    lr: Annotated[float, typer.Option(help="Largest learning rate.")] = 2e-2,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    start: Annotated[str, typer.Option(help="generator, or decomposition for linear topologies.")] = "generator",
    checkpoint: Annotated[Path | None, typer.Option(help="Checkpoint file; an existing one is continued.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where to save; FILE.adtn.safetensors by default.")] = None,
    modules: Imports = None,
) -> None:
    """Fit a generator to a weight of your own and save it."""
    from .compression import pick_weight, to_bytes
    from .generator import Generator
    from .optim import Status
    from .optim import fit as run

    if not file.name:
        raise ADTNError(f"Got the file {str(file)!r}; expected a weight, .npy, .npz or .safetensors.")
    target = check_writable(out or file.with_suffix(".adtn.safetensors"), "--out", "file")
    name, weight = pick_weight(file, key)
    top = _topology(topology, bond=bond, layers=layers, activation=activation)
    layout = _layout(weight.shape, top, leg, order)
    weight = np.asarray(weight, dtype=np.float64)
    generator = Generator(weight.shape, top, layout=layout, seed=seed, scale=weight)
    chosen: dict[str, Any] = {"start": start}
    solution = run(
        generator,
        weight,
        device=device,
        optimizer=optimizer,
        steps=steps,
        lr=lr,
        checkpoint=checkpoint,
        **chosen,
    )
    gen = solution.generator
    content = to_bytes(gen)
    print(f"{name} {weight.shape} -> {type(top).__name__}, legs {gen.layout.dims}, on {device}")
    print(
        f"relative error {solution.relative_error:.4f}   parameters {gen.num_params:,} "
        f"(active {gen.num_active_params:,})   "
        f"ratio {gen.compression_ratio:,.0f}x   {len(content):,} bytes   {solution.seconds:.1f} s"
    )
    print(f"{solution.status.name}: {solution.status.value}")
    write_or_rescue(target, lambda place: write_bytes(place, content))
    print(f"saved to {target}")
    if solution.status is Status.INTERRUPTED:
        raise typer.Exit(130)


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="A file of adtn.save, or any .npy, .npz, .safetensors.")],
    modules: Imports = None,
) -> None:
    """Show what a file holds: a generator with its segments, or plain weights with their spectra."""
    from .compression import load, read_weights
    from .errors import FileFormatError

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
def calibrate(
    device: Devices = None,
    dtype: Annotated[str, typer.Option(help="Of the arrays.")] = "float32",
    out: Annotated[Path | None, typer.Option(help="Also write the profile here (one device).")] = None,
) -> None:
    """Measure what operations cost on a device, for all later plans; on an idle machine, under 20 seconds each."""
    from .device import devices as list_devices
    from .schedule import calibrate as measure

    names = device or [d.name for d in list_devices().usable]
    if out is not None and len(names) != 1:
        raise ADTNError(f"Got --out for {len(names)} devices; name one with --device.")
    if out is not None:
        check_writable(out, "--out", "file")
    for name in names:
        profile = measure(name, dtype)
        print(profile)
        if out is not None:
            content = profile.to_json().encode()
            write_or_rescue(out, lambda place, content=content: write_bytes(place, content))


@app.command()
def plan(
    shape: Annotated[str, typer.Argument(help="Of the weight, such as 4096x4096, or a file of adtn.save.")],
    topology: Annotated[str, typer.Option(help="ttn, attn, mera, brickwall, tt, mpo, ...")] = "ttn",
    bond: Annotated[int | None, typer.Option(min=1, help="Bond dimension.")] = None,
    layers: Annotated[int | None, typer.Option(min=1, help="Layers of a brick wall.")] = None,
    activation: Annotated[str | None, typer.Option(help="Between levels.")] = None,
    leg: Annotated[int | None, typer.Option(min=2, help="Wished size of a leg.")] = None,
    order: Annotated[str | None, typer.Option(help="Order of the legs: axis or interleaved.")] = None,
    task: Annotated[str, typer.Option(help="generate, apply, train or fit.")] = "apply",
    batch: Annotated[int, typer.Option(min=1, help="Rows of the input.")] = 1,
    device: Annotated[str | None, typer.Option(help="Where; numpy:cpu, or a profile's device, when not given.")] = None,
    dtype: Annotated[str, typer.Option(help="Of the arrays.")] = "float32",
    profile: Annotated[str | None, typer.Option(help="A shipped profile (h200, ...) or a file.")] = None,
    memory: Annotated[str | None, typer.Option(help="Largest extra memory, such as 512MiB.")] = None,
    mode: Annotated[str | None, typer.Option(help="Force materialise, stream or factored.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    modules: Imports = None,
) -> None:
    """Show how a task would be done: contractions, mode, tiles, predicted time and memory, and what lost."""
    from .schedule import Sketch
    from .schedule import plan as make

    if Path(shape).exists():
        from .compression import load

        thing: Any = load(Path(shape))
    else:
        size = _shape(shape)
        top = _topology(topology, bond=bond, layers=layers, activation=activation)
        thing = Sketch(size, top, _layout(size, top, leg, order) or top.default_layout(size), dtype)
    chosen: dict[str, Any] = {"task": task, "mode": mode}
    found = make(thing, **chosen, device=device, dtype=dtype, batch=batch, profile=profile, memory=memory)
    print(found.to_json() if as_json else found)


@app.command()
def compress(
    model: Annotated[str, typer.Argument(help="MODULE:FACTORY of a torch.nn.Module, or a Hugging Face folder.")],
    weights: Annotated[Path | None, typer.Option(help="State of the dense model, .safetensors.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML or YAML file with a config; see adtn.Config.")] = None,
    data: Annotated[str | None, typer.Option(help="MODULE:FACTORY of training batches.")] = None,
    test: Annotated[str | None, typer.Option(help="MODULE:FACTORY of test batches.")] = None,
    loss: Annotated[str | None, typer.Option(help="MODULE:FUNCTION of (model, batch); cross entropy if none.")] = None,
    score: Annotated[str | None, typer.Option(help="MODULE:FUNCTION of (model), the larger the better.")] = None,
    device: Annotated[str | None, typer.Option(help="Where local fits run.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for generators, state and report.")] = Path("compressed"),
    modules: Imports = None,
) -> None:
    """Compress a PyTorch model and save its generators, its state and a report."""
    from .compression import Config, run_folder

    def say(line: str) -> None:
        print(line, flush=True)

    check_writable(out, "--out", "folder")
    settings = Config.load(config) if config is not None else Config()
    source = Path(model) if Path(model).is_dir() else _function(model)
    report = run_folder(
        source, settings, out, weights=weights, data=_made(data), test=_made(test), loss=_named(loss),
        score=_named(score), device=device, progress=say,
    )  # fmt: skip
    print(report)
    print(f"generators, state and report are in {out}/")


def _module(name: str, argument: str) -> Any:
    import importlib

    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        return importlib.import_module(name)
    except ADTNError:
        raise
    except Exception as error:
        verb = "found" if isinstance(error, ImportError) else "imported"
        raise ADTNError(
            f"Got {argument!r}, which cannot be {verb} ({type(error).__name__}: {error}); check the module "
            "and the name."
        ) from error


def _function(name: str) -> Any:
    """What ``module:name`` means, also for modules of the working directory."""
    module, _, attribute = name.partition(":")
    if not attribute or not module:
        raise ADTNError(f"Got {name!r}; expected MODULE:FUNCTION, such as mypackage.models:build.")
    try:
        found = getattr(_module(module, name), attribute)
    except AttributeError as error:
        raise ADTNError(f"Got {name!r}, which cannot be found ({error}); check the module and the name.") from error
    if not callable(found):
        raise ADTNError(f"Got {name!r}, which is a {type(found).__name__}; expected a function.")
    return found


def _made(name: str | None) -> Any:
    return None if name is None else _function(name)()


def _named(name: str | None) -> Any:
    return None if name is None else _function(name)


@app.command()
def bench(
    config: Annotated[Path | None, typer.Argument(help="TOML file; a small set when not given.")] = None,
    device: Devices = None,
    seconds: Annotated[float | None, typer.Option(help="Time for the repetitions of one measurement.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file; a picture is put beside it.")] = None,
) -> None:
    """The same work on every usable device, side by side: time, peak memory, agreement."""
    from dataclasses import replace

    from rich.console import Console

    from .bench import BenchConfig, run_bench

    if out is not None:
        check_writable(out, "--out", "file")
    chosen = BenchConfig.read(config) if config is not None else BenchConfig()
    if device:
        chosen = replace(chosen, devices=tuple(device))
    if seconds is not None:
        chosen = replace(chosen, seconds=seconds)

    def show(result: Any) -> None:
        if sys.stderr.isatty():
            print(f"{result.case} {result.task} on {result.device}", file=sys.stderr)

    report = run_bench(chosen, show)
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(report.table())
    if out is not None:
        write_or_rescue(out, lambda place: report.write(place, "adtn " + " ".join(sys.argv[1:])))
        try:
            report.draw(out.with_suffix(".png"))
        except (MissingDependencyError, OSError) as error:
            console.print(f"No picture: {error}", markup=False, highlight=False)


def _shape(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(n) for n in text.split("x"))
    except ValueError:
        raise ADTNError(f"Got {text!r}, which is no file and no shape; expected such as 4096x4096.") from None


def _topology(name: str, **options: Any) -> Any:
    from .topology import get_topology

    cls = get_topology(name)
    chosen = {k: v for k, v in options.items() if v is not None}
    unknown = [k for k in chosen if k not in cls.__dataclass_fields__]
    if unknown:
        raise ADTNError(
            f"{cls.__name__} takes no {', '.join('--' + k for k in unknown)}; "
            f"it takes {', '.join(cls.__dataclass_fields__)}."
        )
    return cls(**chosen)


def _layout(shape: tuple[int, ...], topology: Any, leg: int | None, order: str | None) -> Any:
    from .layout import Layout

    if leg is None and order is None:
        return None
    wanted: Any = topology.order if order is None else order
    return Layout.of(shape, leg or topology.leg, wanted, exact=topology.exact)


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
