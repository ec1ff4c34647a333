r"""Selected rows (and columns) of a generated weight, computed without the others.

Each output leg q of an axis is contracted with a one-hot core :math:`E_q[i, q]`, whose first index enumerates the
selected rows and is shared by all legs of that axis, so the network computes only the selection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from ..layout import Layout
from ..topology import Core, Segment
from ._program import Program, compile_program

NO_LEG = "probe"
"""The name of the core of ones that repeats the only row of an axis without legs."""


def chosen(segments: tuple[Segment, ...], layout: Layout, rows: int, columns: int = 0) -> tuple[Segment, ...]:
    """Extend segments to compute ``rows`` of the first axis and ``columns`` positions along all others together.

    Parameters
    ----------
    segments : tuple of Segment
        The segments of the whole weight.
    layout : Layout
        The layout of the weight.
    rows, columns : int
        Numbers of rows and columns; with 0 columns the legs of the other axes remain, in axis order.
    """
    last, legs = segments[-1], layout.leg_axes
    groups = ["rows" if axis == 0 else "columns" if columns else "" for axis, _ in legs]
    counts = {"rows": rows, "columns": columns}
    probes = tuple(
        Core(
            name=probe_name(q),
            inds=(group, i),
            shape=(counts[group], d),
            param=probe_name(q),
            kind="probe",
            trainable=False,
        )
        for q, (group, i, d) in enumerate(zip(groups, last.outputs, layout.dims, strict=True))
        if group
    )
    if "rows" not in groups:  # an axis of length 1 has no leg, so that all rows are equal
        probes += (Core(name=NO_LEG, inds=("rows",), shape=(rows,), param=NO_LEG, kind="probe", trainable=False),)
    free = [last.outputs[q] for q in sorted(range(len(legs)), key=lambda q: legs[q]) if not groups[q]]
    outputs = ("rows", *(["columns"] if columns else []), *free)
    return (*segments[:-1], replace(last, cores=(*last.cores, *probes), outputs=outputs))


def probe_name(q: int) -> str:
    """Return the name of the one-hot core on output leg ``q``."""
    return f"probe{q}"


def probe_digits(layout: Layout, axis: int) -> Sequence[tuple[str, int, int]]:
    """List ``(name, stride, dimension)`` of the legs of an axis; index n has the digit ``n // stride % dimension``."""
    digits: list[tuple[str, int, int]] = []
    for q, (leg_axis, k) in enumerate(layout.leg_axes):
        if leg_axis == axis:
            stride = 1
            for d in layout.factors[axis][k + 1 :]:
                stride *= d
            digits.append((probe_name(q), stride, layout.factors[axis][k]))
    return digits


@lru_cache(maxsize=64)
def rows_program(segments: tuple[Segment, ...], layout: Layout, rows: int) -> Program:
    """Compile the program of a number of rows; its output reshapes to ``(rows, *padded_shape[1:])``."""
    return compile_program(chosen(segments, layout, rows))
