"""What adapters of all frameworks have in common: their names, switching them, and their generators."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from adtn import Generator
from adtn.errors import CompressError

Layers: TypeAlias = Sequence[tuple[str, Any]]
"""Adapted layers by name."""


def names_of(layers: Layers) -> list[str]:
    """Of all adapters."""
    return sorted({name for _, layer in layers for name in layer.adapters})


def switch(layers: Layers, names: Iterable[str]) -> None:
    """Make these active and no others, or refuse unknown ones before anything is switched."""
    names, known = tuple(names), names_of(layers)
    unknown = set(names) - set(known)
    if unknown:
        raise CompressError(f"Got adapters {sorted(unknown)}; the model has {known}.")
    for _, layer in layers:
        layer.unmerge()
        layer.active = tuple(n for n in names if n in layer.adapters)


def generators_of(layers: Layers, name: str) -> dict[str, Generator]:
    """The numbers of one adapter, by layer."""
    found = {where: layer.adapters[name].generated.generator() for where, layer in layers if name in layer.adapters}
    if not found:
        raise CompressError(f"Got the adapter name {name!r}; the model has {names_of(layers)}.")
    return found
