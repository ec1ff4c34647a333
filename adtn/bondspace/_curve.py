"""The errors of a generator whose bonds become smaller and smaller."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from .._checks import checked, shown
from ..drawing import new_figure, write_figure
from ..errors import TopologyError
from ..generator import Generator
from ._metric import Metric
from ._truncate import Work

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FRACTIONS = tuple(k / 10 for k in range(9, 0, -1))
_COLORS = ("#1d4ed8", "#c2410c", "#0f766e", "#7e22ce", "#57534e")
_MARKERS = ("o", "s", "^", "D", "v")
_FONT = 8.0


@dataclass(frozen=True, kw_only=True)
class TruncationPoint:
    """One size on a curve.

    Parameters
    ----------
    params : int
        The number of parameters.
    relative_error : float
        The norm of the change of the weight over that of the weight, in the metric; see :class:`Truncation`.
    generator : Generator
        The generator of that size, balanced.
    """

    params: int
    relative_error: float
    generator: Generator


class TruncationCurve(Sequence[TruncationPoint]):
    """The relative errors by numbers of parameters, from the whole generator down; see :func:`truncation_curve`.

    Parameters
    ----------
    points : sequence of TruncationPoint
    """

    def __init__(self, points: Sequence[TruncationPoint]) -> None:
        self._points = tuple(points)

    def __len__(self) -> int:
        return len(self._points)

    def __iter__(self) -> Iterator[TruncationPoint]:
        return iter(self._points)

    def __getitem__(self, key: Any) -> Any:
        """Return a point by its position."""
        return self._points[key]

    def __str__(self) -> str:
        """Return a table."""
        return "\n".join(f"{p.params:>10,} parameters  relative error {p.relative_error:.3g}" for p in self)

    def draw(self, path: str | Path | None = None) -> Figure:
        """Draw the curve; :func:`draw_curves` draws several in one picture."""
        return draw_curves({"": self}, path)


@checked(TopologyError)
def truncation_curve(
    generator: Generator,
    metric: Metric | None = None,
    sizes: Annotated[Sequence[int] | None, "numbers of parameters"] = None,
) -> TruncationCurve:
    """Make the bonds of a generator smaller step by step, and note the error at some sizes.

    Bonds become smaller once for all sizes: a point is what :func:`adtn.truncate` returns for that number of
    parameters, except that its last step may be another one.

    Parameters
    ----------
    generator : Generator
    metric : Metric, optional
        See :func:`adtn.truncate`.
    sizes : sequence of int, optional
        The largest numbers of parameters; by default, tenths of those of the generator, as far as smaller bonds reach.

    Returns
    -------
    TruncationCurve
        It begins with the generator itself.

    Raises
    ------
    TopologyError
        If a size cannot be reached.

    Examples
    --------
    >>> import adtn
    >>> from adtn.bondspace import truncation_curve
    >>> curve = truncation_curve(adtn.Generator((64, 64), adtn.LowRank(bond=4)), sizes=[256])
    >>> [point.params for point in curve]
    [512, 256]
    """
    given = sizes is not None
    whole = generator.num_params
    wanted = sorted({int(f * whole) for f in _FRACTIONS} if sizes is None else set(sizes), reverse=True)
    if not all(isinstance(size, int) and size > 0 for size in wanted):
        raise TopologyError(f"Got sizes={shown(sizes)}; expected whole numbers of parameters, at least 1.")
    work = Work(generator, metric)
    points = [TruncationPoint(params=whole, relative_error=0.0, generator=generator)]
    for size in wanted:
        while work.generator.num_params > size:
            step = work.cheapest(math.inf, excess=work.generator.num_params - size)
            if step is None:
                break
            work.take(step)
        if work.generator.num_params > size:
            if given:
                raise TopologyError(
                    f"Got the size {size:,}; expected at least {work.generator.num_params:,}, where every bond that "
                    "can be truncated has the dimension 1."
                )
            break
        work.drop_unused()
        if work.generator.num_params < points[-1].params:
            points.append(_point(work))
    return TruncationCurve(points)


def _point(work: Work) -> TruncationPoint:
    lost = work.measured(work.generator) if work.can_measure else work.lost
    generator, error = work.refined(work.generator, math.sqrt(max(lost, 0.0)))
    return TruncationPoint(params=generator.num_params, relative_error=error, generator=generator.balanced())


@checked(TopologyError)
def draw_curves(
    curves: Annotated[Mapping[str, TruncationCurve], "curves by name"], path: str | Path | None = None
) -> Figure:
    """Draw relative errors against numbers of parameters.

    Parameters
    ----------
    curves : mapping of str to TruncationCurve
    path : path, optional
        A file to write, atomically: SVG, PNG or PDF by its ending.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    MissingDependencyError
        If matplotlib is not installed.
    OutputError
        If the file cannot be written.
    """
    own = new_figure(3.6, 2.6, "A picture of a truncation")
    own.set_layout_engine("constrained")
    axes = own.subplots()
    for k, (name, curve) in enumerate(curves.items()):
        axes.plot([p.params for p in curve], [p.relative_error for p in curve], label=name or None, **line_style(k))
    axes.set_xlabel("parameters", fontsize=_FONT)
    axes.set_ylabel("relative error", fontsize=_FONT)
    plain_axes(axes)
    axes.set_ylim(bottom=0.0)
    if any(curves):
        axes.legend(fontsize=_FONT - 1, frameon=False)
    if path is not None:
        write_figure(own, path)
    return own


def line_style(k: int) -> dict[str, Any]:
    """Return the colour and the marker of the k-th line."""
    return {"color": _COLORS[k % len(_COLORS)], "marker": _MARKERS[k % len(_MARKERS)], "ms": 3.5, "lw": 1.0}


def plain_axes(axes: Any) -> None:
    """Give axes the plain look of all pictures here."""
    axes.tick_params(labelsize=_FONT - 1, width=0.5, length=2)
    axes.grid(axis="y", lw=0.3, color="#d6d3d1")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_linewidth(0.5)
