"""The spectra of bonds as a figure of small panels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..drawing import new_figure, write_figure
from ..errors import TopologyError
from ._bond import Bond

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = {"linear": "#1d4ed8", "hyper": "#7e22ce", "state": "#c2410c"}
_KINDS = {"linear": "inside a segment", "hyper": "hyper-index", "state": "leg of a state"}
_DEEPEST = 12  # decades below the largest value that are shown at most
_WIDE, _HIGH, _FONT = 1.3, 1.3, 7.0  # inches of a panel


def spectra(bonds: Iterable[Bond], path: str | Path | None) -> Figure:
    """Draw one panel per bond, all on the same scale; see :meth:`Bonds.draw`."""
    every = list(bonds)
    if not every:
        raise TopologyError("Got a generator without bonds; expected one with at least two cores that share an index.")
    values = [_relative(bond) for bond in every]
    columns = min(4 if len(every) <= 12 else 6, len(every))
    rows = math.ceil(len(every) / columns)
    own = new_figure(0.35 + _WIDE * columns, 0.55 + _HIGH * rows, "A picture of spectra")
    own.set_layout_engine("constrained")
    grid = own.subplots(rows, columns, sharey=True, squeeze=False)
    lowest = min(float(v.min()) for v in values)
    for k, axes in enumerate(grid.flat):
        if k >= len(every):
            axes.set_axis_off()
        else:
            _panel(axes, every[k], values[k], lowest)
            if k + columns >= len(every):
                axes.set_xlabel("component", fontsize=_FONT)
    own.supylabel("value / largest", fontsize=_FONT)
    _legend(own, every)
    if path is not None:
        write_figure(own, path)
    return own


def _relative(bond: Bond) -> Any:
    """Return the values of a bond over the largest, down to what is shown."""
    found = bond.state_spectrum() if bond.kind == "state" else bond.spectrum()
    found = found / max(float(found[0]) if found.size else 0.0, 1e-300)
    found = found[found > 10.0**-_DEEPEST]
    return found if found.size else np.ones(1)


def _legend(own: Figure, bonds: Sequence[Bond]) -> None:
    """Explain colours where there are several kinds of bonds, and hollow dots."""
    from matplotlib.lines import Line2D

    kinds = [kind for kind in COLORS if any(bond.kind == kind for bond in bonds)]
    style: dict[str, Any] = {"marker": "o", "ms": 3.0, "lw": 0.8}
    handles = [Line2D([], [], color=COLORS[kind], label=_KINDS[kind], **style) for kind in kinds if len(kinds) > 1]
    if any(not bond.exact for bond in bonds):
        color = next(COLORS[bond.kind] for bond in bonds if not bond.exact)
        handles.append(Line2D([], [], color=color, mfc="white", label="on a loop: predicts no errors", **style))
    if handles:
        columns = max(1, int(own.get_size_inches()[0] / 1.7))
        own.legend(handles=handles, loc="outside lower center", fontsize=_FONT, frameon=False, ncols=columns)


def _panel(axes: Any, bond: Bond, values: Any, lowest: float) -> None:
    color = COLORS[bond.kind]
    fill = color if bond.exact else "white"
    places = np.arange(1, len(values) + 1)
    axes.semilogy(places, values, "o-", color=color, mfc=fill, mec=color, ms=3.0, mew=0.8, lw=0.8)
    axes.set_xlim(0.5, max(bond.dim, 2) + 0.5)
    axes.set_ylim(min(lowest / 1.6, 0.08), 1.6)
    ticks = [1, bond.dim] if bond.dim < 4 else [1, (bond.dim + 1) // 2, bond.dim]
    axes.set_xticks(sorted(set(ticks)))
    axes.minorticks_off()
    axes.tick_params(labelsize=_FONT - 1, width=0.5, length=2)
    axes.set_title(f"{bond.name}\nrank {bond.effective_rank:.1f} of {bond.dim}", fontsize=_FONT)
    axes.grid(axis="y", lw=0.3, color="#d6d3d1")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_linewidth(0.5)
