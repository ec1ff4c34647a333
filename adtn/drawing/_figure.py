"""The figure of a picture, by matplotlib."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._files import write_bytes
from ..errors import OutputError, missing
from ._records import FONT, SCALE, Node, Picture
from ._shades import Shade

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_AXES = ("#c2410c", "#1d4ed8", "#0f766e", "#7e22ce", "#57534e")
_MARKERS = ("o", "o", "s", "^", "D")
_FILLS = {
    "root": "#d6d3d1",
    "isometry": "#bfdbfe",
    "leaf": "#bbf7d0",
    "disentangler": "#fed7aa",
    "gate": "#bfdbfe",
    "site": "#bfdbfe",
    "factor": "#bbf7d0",
    "core": "#d6d3d1",
    "noise": "#f5f5f4",
    "smoothing": "#bfdbfe",
    "window": "#bbf7d0",
    "control": "#f5f5f4",
    "boundary": "#f5f5f4",
    "dot": "#1c1917",
}
_INK, _GREY = "#1c1917", "#78716c"
_MARGIN = 0.2  # units
_DASHES = (0, (1.6, 0.8))


def new_figure(width: float, height: float, purpose: str) -> Figure:
    """Make a figure of a size in inches, which belongs to no window.

    Raises
    ------
    MissingDependencyError
        If matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing("matplotlib", "plot", purpose) from error

    class Shown(Figure):
        """A figure that notebooks show by itself, whether or not pyplot was imported."""

        def _repr_png_(self) -> bytes:
            return _encoded(self, "png")

    own = Shown(figsize=(width, height))
    FigureCanvasAgg(own)
    return own


def write_figure(own: Figure, path: str | Path) -> None:
    """Write a figure atomically, in the format that the ending of the name says (SVG, PNG or PDF).

    Raises
    ------
    OutputError
        If there is no such format, or the file cannot be written.
    """
    kind = Path(path).suffix.lower().removeprefix(".")
    if kind not in ("svg", "png", "pdf"):
        raise OutputError(f"Got path={str(path)!r}; expected a name that ends in .svg, .png or .pdf.")
    write_bytes(path, _encoded(own, kind))


def _encoded(own: Figure, kind: str) -> bytes:
    from matplotlib import rc_context

    buffer = io.BytesIO()
    # equal pictures give equal files
    with rc_context({"svg.hashsalt": "adtn", "svg.fonttype": "path"}):
        own.savefig(buffer, format=kind, dpi=200, metadata={} if kind == "png" else {_DATES[kind]: None})
    return buffer.getvalue()


_DATES = {"svg": "Date", "pdf": "CreationDate"}


def figure(picture: Picture, shades: Mapping[str, Shade] | None = None) -> Figure:
    """Draw a picture.

    Parameters
    ----------
    picture : Picture
    shades : mapping of str to Shade, optional
        The colours of bonds by their names; all are grey without them.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    MissingDependencyError
        If matplotlib is not installed.
    """
    left, bottom, right, top = picture.box
    wide, high = right - left + 2 * _MARGIN, top - bottom + 2 * _MARGIN
    bar = 0.75 if shades else 0.0
    width = max(wide * SCALE, 3.0) + bar
    entries = _entries(picture, shades or {})
    rows = math.ceil(sum(0.45 + 0.055 * len(entry["label"]) for entry in entries) / (width - bar))
    columns = math.ceil(len(entries) / max(rows, 1))
    keys = 0.08 + 0.16 * rows
    height = high * SCALE + keys
    own = new_figure(width, height, "A picture of a generator")
    axes = own.add_axes((0.0, keys / height, (width - bar) / width, 1.0 - keys / height))
    slack = ((width - bar) / SCALE - wide) / 2
    axes.set_xlim(left - _MARGIN - slack, right + _MARGIN + slack)
    axes.set_ylim(bottom - _MARGIN, top + _MARGIN)
    axes.set_axis_off()
    colors = _colormap()
    for rule in picture.rules:
        x, y = zip(*rule, strict=True)
        axes.plot(x, y, color=_GREY, lw=0.7, ls=(0, (4, 3)), zorder=0)
    _draw_lines(axes, picture, shades or {}, colors)
    for node in picture.nodes:
        axes.add_patch(_patch(node))
    for label in picture.labels:
        color = _GREY if label.axis is None else _color(label.axis)
        axes.text(*label.at, label.text, ha="center", va="center", fontsize=FONT, color=color, zorder=4)
    own.legend(
        handles=[_handle(entry) for entry in entries],
        loc="lower center",
        bbox_to_anchor=((width - bar) / width / 2, 0.0),
        ncols=max(columns, 1),
        fontsize=FONT,
        frameon=False,
        handlelength=1.6,
        columnspacing=1.2,
        borderaxespad=0.2,
    )
    if shades:
        tall = min(height - 0.3, 1.6)
        _bar(own, colors, (width - bar + 0.12) / width, (height - tall) / 2 / height, 0.09 / width, tall / height)
    return own


def _color(axis: int) -> str:
    return _AXES[axis % len(_AXES)]


def line_width(dim: int) -> float:
    """Return the width of the line of a bond in points."""
    return 0.8 + 0.75 * math.log2(max(dim, 1)) if dim < 256 else 6.8


def _colormap() -> Any:
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    whole = colormaps["viridis_r"]
    return ListedColormap([whole(0.1 + 0.9 * k / 255) for k in range(256)])  # its first colours are too light


def _draw_lines(axes: Any, picture: Picture, shades: Mapping[str, Shade], colors: Any) -> None:
    for line in picture.lines:
        for piece in line.pieces:
            shade = shades.get(piece.shade)
            color = _GREY if shade is None else colors(min(max(shade.share, 0.0), 1.0))
            if line.kind == "leg":
                color = _color(line.axis or 0)
            dashed = shade is not None and not shade.exact
            x, y = zip(*piece.points, strict=True)
            axes.plot(
                x,
                y,
                color=color,
                lw=line_width(line.dim),
                ls=_DASHES if dashed else "-",
                solid_capstyle="butt",
                dash_capstyle="butt",
                solid_joinstyle="round",
                zorder=1,
            )
        if line.tip is not None:
            axes.plot(*line.tip, zorder=2, **_mark(line.axis or 0))


def _mark(axis: int) -> dict[str, Any]:
    fill = "white" if axis == 1 else _color(axis)
    marker = _MARKERS[axis % len(_MARKERS)]
    return {"marker": marker, "ms": 3.6, "mfc": fill, "mec": _color(axis), "mew": 0.9, "ls": ""}


def _patch(node: Node) -> Any:
    from matplotlib.patches import Circle, Polygon, Rectangle

    (x, y), (w, h) = node.at, node.half
    style: dict[str, Any] = {
        "facecolor": _FILLS.get(node.kind, "#e7e5e4") if node.trained else "white",
        "edgecolor": _INK,
        "linewidth": 0.8,
        "zorder": 3,
    }
    if node.form == "triangle":
        return Polygon([(x, y + h), (x - w, y - h), (x + w, y - h)], joinstyle="round", **style)
    if node.form == "diamond":
        return Polygon([(x, y + h), (x - w, y), (x, y - h), (x + w, y)], joinstyle="round", **style)
    if node.form == "square":
        return Rectangle((x - w, y - h), 2 * w, 2 * h, joinstyle="round", **style)
    return Circle((x, y), w, **style)


def _bar(own: Figure, colors: Any, left: float, bottom: float, width: float, height: float) -> None:
    from matplotlib.cm import ScalarMappable

    axes = own.add_axes((left, bottom, width, height))
    bar = own.colorbar(ScalarMappable(cmap=colors), cax=axes, ticks=[0.0, 0.5, 1.0])
    bar.outline.set_linewidth(0.5)  # pyright: ignore[reportCallIssue]
    bar.ax.tick_params(labelsize=FONT - 1, width=0.5, length=2)
    bar.set_label("entropy / log(dim)", fontsize=FONT)


def _entries(picture: Picture, shades: Mapping[str, Shade]) -> list[dict[str, Any]]:
    """List what the legend explains: axes, dimensions of bonds, and what dashes are."""
    names = ("out", "in")
    legs = sorted({line.axis or 0 for line in picture.lines if line.kind == "leg"})
    found = [{"label": names[k] if k < 2 and len(legs) > 1 else f"axis {k}", **_mark(k)} for k in legs]
    dims = sorted({line.dim for line in picture.lines if line.kind != "leg"})
    for dim in dims if len(dims) < 4 else (dims[0], dims[len(dims) // 2], dims[-1]):
        found.append({"label": f"bond {dim}", "color": _GREY, "lw": line_width(dim), "solid_capstyle": "butt"})
    if any(not shade.exact for shade in shades.values()):
        found.append({"label": "on a loop", "color": _GREY, "lw": 2.0, "ls": _DASHES})
    return found


def _handle(entry: dict[str, Any]) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], **entry)
