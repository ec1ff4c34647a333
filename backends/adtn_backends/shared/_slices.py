"""Slices of a matrix as weights of layers."""

from __future__ import annotations

import math

from adtn.errors import LayoutError


def check_slice(whole: tuple[int, ...], start: int, shape: tuple[int, ...]) -> int:
    """Refuse a slice that is not inside its matrix, and return its number of columns.

    Parameters
    ----------
    whole : tuple of int
        The shape of the matrix, ``(rows, columns)``.
    start : int
        The first row.
    shape : tuple of int
        The shape of the slice, ``(rows, ...)``, with all axes but the first in the columns.

    Raises
    ------
    LayoutError
        If it needs other rows or columns.

    Examples
    --------
    >>> check_slice((96, 32), 64, (16, 3, 3, 3))
    27
    """
    columns = math.prod(shape[1:])
    if len(whole) != 2 or start < 0 or start + shape[0] > whole[0] or columns > whole[1]:
        raise LayoutError(
            f"Got a slice of shape {shape} from row {start} of a weight of shape {whole}; expected one that is inside "
            "a matrix with at least as many rows and columns."
        )
    return columns
