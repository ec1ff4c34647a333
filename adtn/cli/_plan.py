"""Plans: ``adtn plan``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ._names import Imports
from ._structure import Activation, Bond, Layers, Leg, Order, layout_of, shape_of, topology_of


def plan(
    shape: Annotated[
        str, typer.Argument(help="Shape of the weight, such as 4096x4096, or a file written by adtn.save.")
    ],
    topology: Annotated[str, typer.Option(help="Topology: ttn, attn, mera, brickwall, tt, mpo, ...")] = "ttn",
    bond: Bond = None,
    layers: Layers = None,
    activation: Activation = None,
    leg: Leg = None,
    order: Order = None,
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
        size = shape_of(shape)
        top = topology_of(topology, bond=bond, layers=layers, activation=activation)
        generator = Sketch(size, top, layout_of(size, top, leg, order) or top.default_layout(size), dtype)
    options: dict[str, Any] = {"task": task, "mode": mode}
    result = make(generator, **options, device=device, dtype=dtype, batch=batch, profile=profile, memory=memory)
    print(result.to_json() if as_json else result)
