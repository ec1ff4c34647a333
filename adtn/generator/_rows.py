"""Selected rows of a generated weight, without the others."""

from __future__ import annotations

from .._typing import Array, Float, Int, Params
from ..calculus import forward
from ..program import NO_LEG, probe_digits, rows_program
from ..weight import OneHot
from ._generator import Generator


def generated_rows(
    generator: Generator, arrays: Params, index: Int[Array, " rows"], one_hot: OneHot
) -> Float[Array, " rows *inner"]:
    """Generate rows of the weight by their indices, differentiable by the framework of the arrays.

    Parameters
    ----------
    generator : Generator
        The generator, of which the structure, scale and layout are used.
    arrays : mapping of str to array
        Trained and frozen parameters.
    index : array of int
        The indices, ``(n,)``; one program is planned and cached for every n.
    one_hot : callable
        A function from ``(digits, d)`` to ``(n, d)``, in the dtype of the arrays.

    Returns
    -------
    array
        The rows, ``(n, *shape[1:])``.
    """
    layout, weighting, n = generator.layout, generator.weighting, index.shape[0]
    place = weighting.generated_index(index)
    probes = {name: one_hot(place // stride % d, d) for name, stride, d in probe_digits(layout, 0)}
    if not probes:
        probes = {NO_LEG: one_hot(place, 1).reshape(n)}
    state = forward(rows_program(generator.segments, layout, n), {**arrays, **probes})
    rows = weighting.rows(state)
    if not weighting.has_base:
        return rows
    return rows + weighting.scaled(weighting.base_rows(arrays, index, one_hot), arrays)
