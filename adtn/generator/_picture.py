"""The picture of a generator."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..drawing import figure, place, shades_of, write_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def drawn(generator: Any, path: str | Path | None, entropies: bool) -> Figure:
    """Draw a generator, and write the picture if there is a path."""
    own = figure(place(generator.segments, generator.layout), shades_of(generator) if entropies else None)
    if path is not None:
        write_figure(own, path)
    return own
