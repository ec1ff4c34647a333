"""Some rows of a generated weight, without the others."""

from __future__ import annotations

from collections.abc import Callable

from autoray import do

from .._typing import Array, Params
from ..network import BASE, BASE_SCALE, forward, probe_digits, rows_program
from ._generator import Generator


def generated_rows(generator: Generator, arrays: Params, index: Array, one_hot: Callable[[Array, int], Array]) -> Array:
    """Rows by their numbers, differentiable by the framework of the arrays.

    Parameters
    ----------
    generator : Generator
        Its structure, scale and layout.
    arrays : mapping of str to array
        Trained and frozen numbers.
    index : array of int
        ``(n,)``; one program is planned and kept for every n.
    one_hot : callable
        ``(digits, d)`` to ``(n, d)``, in the dtype of the arrays.

    Returns
    -------
    array
        ``(n, *shape[1:])``.
    """
    layout, n = generator.layout, index.shape[0]
    probes = {name: one_hot(index // stride % d, d) for name, stride, d in probe_digits(layout, 0)}
    state = forward(rows_program(generator.segments, layout, n), {**arrays, **probes})
    found = do("reshape", state, (n, *layout.padded_shape[1:])) * generator.scale
    found = found[(slice(None), *(slice(0, k) for k in layout.shape[1:]))]
    if not generator.weighting.has_base:
        return found
    identity, width = generator.weighting.identity, layout.shape[-1]
    if identity is None:
        base = do("reshape", arrays[BASE], layout.shape)[index]
    else:  # its rows, without the others
        base = one_hot(index % width, width) * (index < width)[:, None] * identity
    return found + (base * arrays[BASE_SCALE] if BASE_SCALE in arrays else base)
