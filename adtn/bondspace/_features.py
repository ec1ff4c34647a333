"""Statistics of bonds from layer to layer, and from step to step of a training, as a figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from .._checks import checked, shown
from ..drawing import new_figure, write_figure
from ..errors import TopologyError
from ._curve import line_style, plain_axes
from ._statistics import BondStatistics, Watched

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FONT = 8.0
_WIDE, _EACH, _HIGH = 1.2, 0.42, 2.9  # inches


@checked(TopologyError)
def draw_features(
    watched: Annotated[Watched | Mapping[str, Watched], "statistics of watch(), or several by name"],
    path: str | Path | None = None,
    *,
    names: Annotated[Sequence[str] | None, "names of bonds and others"] = None,
) -> Figure:
    """Draw effective ranks and, where there were labels, class separability of bonds, in the order of the layers.

    Parameters
    ----------
    watched : Watched or mapping of str to Watched
        The result of :func:`watch`, or several by name, such as those before and after a training: one line each.
    path : path, optional
        A file to write, atomically: SVG, PNG or PDF by its ending.
    names : sequence of str, optional
        What is shown, in this order; by default, all of the first result.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    MissingDependencyError
        If matplotlib is not installed.
    TopologyError
        If there is nothing to draw, or a result does not have all names.
    OutputError
        If the file cannot be written.
    """
    lines: dict[str, Watched] = {"": watched} if isinstance(watched, Watched) else dict(watched)
    names = list(next(iter(lines.values()), ()) if names is None else names)
    if not names or any(set(names) - set(found) for found in lines.values()):
        raise TopologyError(
            f"Got watched={shown(watched)} and the names {', '.join(names) or 'none'}; expected results that have all "
            "of them, and at least one name."
        )
    panels: dict[str, Callable[[BondStatistics], float]] = {"effective rank": lambda own: own.effective_rank}
    if all(found[name].has_labels for found in lines.values() for name in names):
        panels["class separability"] = lambda own: own.separability
    own = new_figure((_WIDE + _EACH * len(names)) * len(panels), _HIGH, "A picture of features")
    own.set_layout_engine("constrained")
    grid = own.subplots(1, len(panels), squeeze=False)
    for axes, (title, value) in zip(grid.flat, panels.items(), strict=True):
        for k, (name, found) in enumerate(lines.items()):
            axes.plot(range(len(names)), [value(found[n]) for n in names], label=name or None, **line_style(k))
        axes.set_ylabel(title, fontsize=_FONT)
        axes.set_xticks(range(len(names)), names, rotation=60, ha="right", rotation_mode="anchor")
        plain_axes(axes)
        axes.set_ylim(bottom=0.0)
        axes.margins(x=0.05)
    if any(lines):
        grid.flat[0].legend(fontsize=_FONT - 1, frameon=False)
    if path is not None:
        write_figure(own, path)
    return own
