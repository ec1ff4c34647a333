"""Single weights: ``adtn fit | inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import typer

from .._files import check_writable, write_bytes, write_or_rescue
from ..errors import ADTNError
from ._names import Imports, optimizers
from ._structure import Activation, Bond, Layers, Leg, Order, layout_of, topology_of

_OPTIMIZERS = optimizers()  # once: annotations are evaluated several times, and this reads all entry points


def fit(
    file: Annotated[Path, typer.Argument(help="File with a weight: .npy, .npz or .safetensors.")],
    topology: Annotated[
        str, typer.Option(help="Topology: ttn, attn, mera, brickwall, tt, mpo, tensorring, tucker, cp, ...")
    ] = "ttn",
    bond: Bond = None,
    layers: Layers = None,
    activation: Activation = None,
    leg: Leg = None,
    order: Order = None,
    key: Annotated[str | None, typer.Option(help="Name of the array in a file with several.")] = None,
    device: Annotated[str, typer.Option(help="Device to train on.")] = "numpy:cpu",
    optimizer: Annotated[str, typer.Option(help=_OPTIMIZERS)] = "adam",
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
    top = topology_of(topology, bond=bond, layers=layers, activation=activation)
    layout = layout_of(weight.shape, top, leg, order)
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


def inspect(
    file: Annotated[
        Path,
        typer.Argument(
            help="A file written by adtn.save, any .npy, .npz or .safetensors file, or a folder of a compressed model."
        ),
    ],
    weight: Annotated[
        Path | None,
        typer.Option(help="File with the weight that it replaces, to show the error beside that of an SVD."),
    ] = None,
    key: Annotated[str | None, typer.Option(help="Name of that weight in a file with several.")] = None,
    bonds: Annotated[bool, typer.Option("--bonds", help="Show the bonds of all generators as well.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Write the bonds there as well: a page (.html), or JSON with all spectra.")
    ] = None,
    modules: Imports = None,
) -> None:
    """Show the content of a file: a generator with its segments, or plain weights with their spectra."""
    from ..compression import load, pick_weight, read_weights
    from ..errors import CompressError, FileFormatError

    if key is not None and weight is None:
        raise CompressError(f"Got --key {key!r} without --weight; pass the file that has this weight, or leave it out.")
    if out is not None and not bonds:
        raise CompressError(f"Got --out {str(out)!r} without --bonds; pass both, or leave it out.")
    if file.is_dir():
        if weight is not None:
            raise CompressError(f"Got --weight {str(weight)!r} and a folder; expected the file of one generator.")
        _inspect_folder(file, bonds, out)
        return
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
    if bonds:
        from ..bondspace import bonds as bonds_of

        _show_bonds(bonds_of(gen), out)


def _inspect_folder(folder: Path, bonds: bool, out: Path | None) -> None:
    """Show the generators of a compressed model."""
    from ..bondspace import ModelBonds
    from ..compression import read_generators

    generators = read_generators(folder)
    if not bonds:
        for name, gen in generators.items():
            print(f"{name}  {gen}")
        return
    _show_bonds(ModelBonds(generators), out)


def _show_bonds(bonds: Any, out: Path | None) -> None:
    print(f"\n{bonds}")
    if out is not None:
        target = check_writable(out, "--out", "file")
        bonds.save(target)
        print(f"saved to {target}")


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
