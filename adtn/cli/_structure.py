"""Topologies and layouts that the command line describes."""

from __future__ import annotations

from typing import Annotated, Any, cast

import typer

from ..errors import ADTNError

Bond = Annotated[int | None, typer.Option(min=1, help="Bond dimension.")]
Layers = Annotated[int | None, typer.Option(min=1, help="Number of layers of a brick wall.")]
Activation = Annotated[str | None, typer.Option(help="Activation between levels.")]
Leg = Annotated[int | None, typer.Option(min=2, help="Target size of a leg.")]
Order = Annotated[str | None, typer.Option(help="Order of the legs: axis or interleaved.")]


def shape_of(text: str) -> tuple[int, ...]:
    """Return the shape that a text such as ``4096x4096`` gives."""
    try:
        return tuple(int(n) for n in text.split("x"))
    except ValueError:
        raise ADTNError(
            f"Got {text!r}, which is neither a file nor a shape; expected a shape such as 4096x4096."
        ) from None


def topology_of(name: str, **options: Any) -> Any:
    """Return the topology with this name and these options; those that are ``None`` have their default."""
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


def layout_of(shape: tuple[int, ...], topology: Any, leg: int | None, order: str | None) -> Any:
    """Return the layout for a target size and an order of the legs; ``None`` leaves it to the topology."""
    from ..layout import Layout

    if leg is None and order is None:
        return None
    return Layout.of(
        shape, leg or topology.leg, topology.order if order is None else cast(Any, order), exact=topology.exact
    )
