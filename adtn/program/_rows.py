r"""Chosen rows (and columns) of a generated weight, without the others.

Each output leg q of an axis is closed with a one-hot core :math:`E_q[i, q]`, whose first index numbers the chosen rows
and is shared by all legs of that axis: the network then puts out nothing but the choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from ..layout import Layout
from ..topology import Core, Segment
from ._program import Program, compile_program


def chosen(segments: tuple[Segment, ...], layout: Layout, rows: int, columns: int = 0) -> tuple[Segment, ...]:
    """The segments that put out ``rows`` of the first axis and ``columns`` positions of all others together.

    Parameters
    ----------
    segments : tuple of Segment
        Of the whole weight.
    layout : Layout
        Its legs.
    rows, columns : int
        How many; with 0 columns the legs of the other axes stay, in their order.
    """
    last, legs = segments[-1], layout.leg_axes
    groups = ["rows" if axis == 0 else "columns" if columns else "" for axis, _ in legs]
    counts = {"rows": rows, "columns": columns}
    probes = tuple(
        Core(probe_name(q), (group, i), (counts[group], d), probe_name(q), "probe", trainable=False)
        for q, (group, i, d) in enumerate(zip(groups, last.outputs, layout.dims, strict=True))
        if group
    )
    free = [last.outputs[q] for q in sorted(range(len(legs)), key=lambda q: legs[q]) if not groups[q]]
    outputs = ("rows", *(["columns"] if columns else []), *free)
    return (*segments[:-1], replace(last, cores=(*last.cores, *probes), outputs=outputs))


def probe_name(q: int) -> str:
    """Of the one-hot core on output leg ``q``."""
    return f"probe{q}"


def probe_digits(layout: Layout, axis: int) -> Sequence[tuple[str, int, int]]:
    """For the legs of an axis ``(name, stride, dimension)``: entry n has the digit ``n // stride % dimension``."""
    found: list[tuple[str, int, int]] = []
    for q, (own, k) in enumerate(layout.leg_axes):
        if own == axis:
            stride = 1
            for d in layout.factors[axis][k + 1 :]:
                stride *= d
            found.append((probe_name(q), stride, layout.factors[axis][k]))
    return found


@lru_cache(maxsize=64)
def rows_program(segments: tuple[Segment, ...], layout: Layout, rows: int) -> Program:
    """For so many rows; what it puts out has the shape ``(rows, *padded_shape[1:])`` once it is reshaped."""
    return compile_program(chosen(segments, layout, rows))
