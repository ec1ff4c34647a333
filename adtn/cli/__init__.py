"""The command line: ``adtn demo | devices | calibrate | plan | fit | compress | inspect | bench``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import typer

from .._files import check_writable, write_bytes, write_or_rescue
from .._version import __version__
from ..errors import ADTNError, MissingDependencyError
from ..optim import optimizer_names

app = typer.Typer(
    name="adtn",
    help="Neural-network layers stored as the output of small nonlinear tensor networks.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
Devices = Annotated[
    list[str] | None, typer.Option("--device", help="Device to use, may be repeated; by default all usable ones.")
]


def _optimizers() -> str:
    """List the optimizers for the help text, including those of other packages and of ``--import``."""
    *names, last = optimizer_names()
    return f"{', '.join(names)} or {last}."


def _import(context: typer.Context, names: list[str] | None) -> list[str] | None:
    """Import modules that register plugins, also from the working directory, before other options are parsed."""
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
        help="Module that registers your own topologies, activations or optimizers, may be repeated.",
    ),
]


def main() -> None:
    """Run the command line; errors of the library and of the system become one line and exit code 1."""
    try:
        app()
    except (ADTNError, OSError, MemoryError) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        print(f"adtn: {text}", file=sys.stderr)
        raise SystemExit(1) from None


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
def devices(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List devices with their memory and dtypes, and why some are not usable."""
    from dataclasses import asdict

    from ..device import devices as list_devices

    listing = list_devices()
    print(json.dumps([asdict(d) for d in listing], indent=1) if as_json else listing)


@app.command()
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


@app.command()
def fit(
    file: Annotated[Path, typer.Argument(help="File with a weight: .npy, .npz or .safetensors.")],
    topology: Annotated[
        str, typer.Option(help="Topology: ttn, attn, mera, brickwall, tt, mpo, tensorring, tucker, cp, ...")
    ] = "ttn",
    bond: Annotated[int | None, typer.Option(min=1, help="Bond dimension.")] = None,
    layers: Annotated[int | None, typer.Option(min=1, help="Number of layers of a brick wall.")] = None,
    activation: Annotated[str | None, typer.Option(help="Activation between levels.")] = None,
    leg: Annotated[int | None, typer.Option(min=2, help="Target size of a leg.")] = None,
    order: Annotated[str | None, typer.Option(help="Order of the legs: axis or interleaved.")] = None,
    key: Annotated[str | None, typer.Option(help="Name of the array in a file with several.")] = None,
    device: Annotated[str, typer.Option(help="Device to train on.")] = "numpy:cpu",
    optimizer: Annotated[str, typer.Option(help=_optimizers())] = "adam",
    steps: Annotated[int, typer.Option(min=1, help="Maximum number of steps.")] = 1000,
    lr: Annotated[float, typer.Option(help="Largest learning rate.")] = 2e-2,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the initial values.")] = 0,
    start: Annotated[
        str, typer.Option(help="Starting point: generator, or decomposition for linear topologies.")
    ] = "generator",
    checkpoint: Annotated[Path | None, typer.Option(help="Checkpoint file; an existing one is resumed.")] = None,
    out: Annotated[Path | None, typer.Option(help="Output file; by default FILE.adtn.safetensors.")] = None,
    modules: Imports = None,
) -> None:
    """Fit a generator to your own weight and save it."""
    from ..compression import pick_weight, to_bytes
    from ..generator import Generator
    from ..optim import Status
    from ..optim import fit as run

    if not file.name:
        raise ADTNError(f"Got the file {str(file)!r}; expected a file with a weight: .npy, .npz or .safetensors.")
    target = check_writable(out or file.with_suffix(".adtn.safetensors"), "--out", "file")
    name, weight = pick_weight(file, key)
    top = _topology(topology, bond=bond, layers=layers, activation=activation)
    layout = _layout(weight.shape, top, leg, order)
    weight = np.asarray(weight, dtype=np.float64)
    generator = Generator(weight.shape, top, layout=layout, seed=seed, scale=weight)
    solution = run(
        generator,
        weight,
        device=device,
        optimizer=optimizer,
        steps=steps,
        lr=lr,
        checkpoint=checkpoint,
        start=cast(Any, start),
    )
    gen = solution.generator
    content = to_bytes(gen)
    print(f"{name} {weight.shape} -> {type(top).__name__}, legs {gen.layout.dims}, on {device}")
    print(
        f"relative error {solution.relative_error:.4f}{_beside(weight, gen.num_params)}   "
        f"parameters {gen.num_params:,} (active {gen.num_active_params:,})   "
        f"ratio {gen.compression_ratio:,.0f}x   {len(content):,} bytes   {solution.seconds:.1f} s"
    )
    print(f"{solution.status.name}: {solution.status.value}")
    write_or_rescue(target, lambda place: write_bytes(place, content))
    print(f"saved to {target}")
    if solution.status is Status.INTERRUPTED:
        raise typer.Exit(130)


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="A file written by adtn.save, or any .npy, .npz or .safetensors file.")],
    weight: Annotated[
        Path | None,
        typer.Option(help="File with the weight that it replaces, to show the error beside that of an SVD."),
    ] = None,
    key: Annotated[str | None, typer.Option(help="Name of that weight in a file with several.")] = None,
    modules: Imports = None,
) -> None:
    """Show the content of a file: a generator with its segments, or plain weights with their spectra."""
    from ..compression import load, pick_weight, read_weights
    from ..errors import CompressError, FileFormatError

    if key is not None and weight is None:
        raise CompressError(f"Got --key {key!r} without --weight; pass the file that has this weight, or leave it out.")
    try:
        gen = load(file)
    except FileFormatError as error:
        if "no adtn header" not in str(error) and file.suffix == ".safetensors":
            raise
        for name, x in read_weights(file).items():
            print(f"{name:40s} {x.dtype!s:8s} {'x'.join(map(str, x.shape)):20s} {_spectrum(x)}")
        return
    error = "" if weight is None else _error_of(gen, *pick_weight(weight, key))
    print(gen)
    stored = gen.dtype if gen.precision is None else f"{gen.precision}, decoded to {gen.dtype}"
    print(f"scale {gen.scale:.6g}   base {_base(gen.base)}   dtype {stored}   active {gen.num_active_params:,}")
    bits = 8 * gen.nbytes / max(gen.num_params, 1)
    if error:
        print(error)
    print(f"parameters {gen.nbytes:,} bytes   {bits:.2f} bits each   {8 * gen.nbytes / gen.layout.size:.3f} per entry")
    for t, (segment, stage) in enumerate(zip(gen.segments, gen.program.stages, strict=True), start=1):
        print(
            f"segment {t}: {len(segment.cores)} cores -> {stage.out_shape}, "
            f"then {segment.activation}, {stage.flops:,} flops"
        )
        for core in segment.cores:
            frozen = "" if core.trainable else "  frozen"
            codes = f"  {gen.codes[core.param].precision}" if core.param in gen.codes else ""
            print(f"  {core.name:16s} {core.kind:14s} {core.shape!s:20s} {' '.join(core.inds)}{frozen}{codes}")


@app.command()
def calibrate(
    device: Devices = None,
    dtype: Annotated[str, typer.Option(help="Dtype of the arrays.")] = "float32",
    out: Annotated[
        Path | None, typer.Option(help="File to which the profile is also written (for a single device).")
    ] = None,
) -> None:
    """Measure the cost of operations on devices, for later plans; takes under 20 seconds each on an idle machine."""
    from ..device import devices as list_devices
    from ..schedule import calibrate as measure

    names = device or [d.name for d in list_devices().usable]
    if out is not None and len(names) != 1:
        raise ADTNError(f"Got --out for {len(names)} devices; expected one. Select it with --device.")
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
    shape: Annotated[
        str, typer.Argument(help="Shape of the weight, such as 4096x4096, or a file written by adtn.save.")
    ],
    topology: Annotated[str, typer.Option(help="Topology: ttn, attn, mera, brickwall, tt, mpo, ...")] = "ttn",
    bond: Annotated[int | None, typer.Option(min=1, help="Bond dimension.")] = None,
    layers: Annotated[int | None, typer.Option(min=1, help="Number of layers of a brick wall.")] = None,
    activation: Annotated[str | None, typer.Option(help="Activation between levels.")] = None,
    leg: Annotated[int | None, typer.Option(min=2, help="Target size of a leg.")] = None,
    order: Annotated[str | None, typer.Option(help="Order of the legs: axis or interleaved.")] = None,
    task: Annotated[str, typer.Option(help="Task to plan: generate, apply, train or fit.")] = "apply",
    batch: Annotated[int, typer.Option(min=1, help="Rows of the input.")] = 1,
    device: Annotated[str | None, typer.Option(help="Device; by default that of the profile, or numpy:cpu.")] = None,
    dtype: Annotated[str, typer.Option(help="Dtype of the arrays.")] = "float32",
    profile: Annotated[str | None, typer.Option(help="Device profile: a shipped one (h200, ...) or a file.")] = None,
    memory: Annotated[str | None, typer.Option(help="Limit of extra memory, such as 512MiB.")] = None,
    mode: Annotated[str | None, typer.Option(help="Force a mode: materialise, stream or factored.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    modules: Imports = None,
) -> None:
    """Show the plan of a task: contractions, mode, tiles, predicted time and memory, and the alternatives."""
    from ..schedule import Sketch
    from ..schedule import plan as make

    if Path(shape).exists():
        from ..compression import load

        generator: Any = load(Path(shape))
    else:
        size = _shape(shape)
        top = _topology(topology, bond=bond, layers=layers, activation=activation)
        generator = Sketch(size, top, _layout(size, top, leg, order) or top.default_layout(size), dtype)
    options: dict[str, Any] = {"task": task, "mode": mode}
    result = make(generator, **options, device=device, dtype=dtype, batch=batch, profile=profile, memory=memory)
    print(result.to_json() if as_json else result)


@app.command()
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
    source = Path(model) if Path(model).is_dir() else _function(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", QualityWarning)  # the report has them, and they follow in red
        report = run_folder(
            source,
            settings,
            out,
            weights=weights,
            data=_call(data),
            validation=_call(validation),
            test=_call(test),
            loss=_find(loss),
            score=_find(score),
            device=device,
            progress=None if sys.stderr.isatty() else say,
            baselines=baselines,
        )
    print(report)
    for line in report.alarms():
        Console(stderr=True).print(line, style="bold red", markup=False, highlight=False, soft_wrap=True)
    print(f"State and report are in {out}/")


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
            f"Got {argument!r}, which cannot be {verb} ({type(error).__name__}: {error}). Check the module "
            "and the name."
        ) from error


def _function(name: str) -> Any:
    """Resolve ``module:name``, also in modules of the working directory."""
    module, _, attribute = name.partition(":")
    if not attribute or not module:
        raise ADTNError(f"Got {name!r}; expected MODULE:FUNCTION, such as mypackage.models:build.")
    try:
        function = getattr(_module(module, name), attribute)
    except AttributeError as error:
        raise ADTNError(f"Got {name!r}, which cannot be found ({error}). Check the module and the name.") from error
    if not callable(function):
        raise ADTNError(f"Got {name!r}, which is a {type(function).__name__}; expected a function.")
    return function


def _call(name: str | None) -> Any:
    return None if name is None else _function(name)()


def _find(name: str | None) -> Any:
    return None if name is None else _function(name)


@app.command()
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


def _shape(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(n) for n in text.split("x"))
    except ValueError:
        raise ADTNError(
            f"Got {text!r}, which is neither a file nor a shape; expected a shape such as 4096x4096."
        ) from None


def _topology(name: str, **options: Any) -> Any:
    from ..topology import get_topology

    cls = get_topology(name)
    given = {k: v for k, v in options.items() if v is not None}
    unknown = [k for k in given if k not in cls.__dataclass_fields__]
    if unknown:
        raise ADTNError(
            f"{cls.__name__} has no option {', '.join('--' + k for k in unknown)}; "
            f"expected some of {', '.join(cls.__dataclass_fields__)}."
        )
    return cls(**given)


def _layout(shape: tuple[int, ...], topology: Any, leg: int | None, order: str | None) -> Any:
    from ..layout import Layout

    if leg is None and order is None:
        return None
    return Layout.of(
        shape, leg or topology.leg, topology.order if order is None else cast(Any, order), exact=topology.exact
    )


def _error_of(generator: Any, name: str, weight: np.ndarray) -> str:
    """Describe how far a generator is from the weight that it replaces."""
    if weight.shape != generator.shape:
        raise ADTNError(f"Got {name!r} of shape {weight.shape}; expected {generator.shape}, that of the generator.")
    dense = np.asarray(weight, np.float64)
    error = float(np.linalg.norm(generator.weight() - dense) / (np.linalg.norm(dense) or 1.0))
    return f"relative error {error:.4f} of {name}{_beside(dense, generator.num_params)}"


def _beside(weight: np.ndarray, params: int) -> str:
    """Describe the error of a singular value decomposition of as many parameters; empty for vectors."""
    from ..optim import svd_error

    if weight.ndim < 2 or weight.size > 2**24:
        return ""
    return f" (a truncated SVD of equal size {svd_error(weight, params):.4f})"


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
    return f"array {base.shape}" if isinstance(base, np.ndarray) else repr(base)
