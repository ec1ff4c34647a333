"""Second moments of the inputs of layers, by sums over batches."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from adtn.backends import backend_of

ROWS_PER_COLUMN = 16
"""Rows per column that one batch contributes to a second moment: more hardly change it and take as many products."""

ROWS_PER_COLUMN_OF_ALL = 64
"""Rows per column of all batches together, from which no more batches of sequences are needed."""
LEAST_ROWS = 1 << 15
"""Rows of every layer below which batches are cheap anyway."""


class Moments:
    """A running mean of ``x xᵀ`` over rows of all batches, for every layer.

    Products are those of a framework in the dtype of its inputs; sums are in double precision on the host. Of a batch
    with many more rows than columns, as in convolutions, evenly spaced rows are taken.
    """

    def __init__(self) -> None:
        self._sums: dict[str, np.ndarray] = {}
        self._counts: dict[str, int] = {}
        self._last: tuple[Any, Any, np.ndarray] | None = None  # layers with one input have one product

    def add(self, name: str, rows: Any) -> None:
        """Add the rows of one batch, ``(rows, columns)``, an array of any framework, see :func:`spaced`."""
        self.add_product(name, rows, rows)

    def add_product(self, name: str, left: Any, right: Any) -> None:
        """Add products of each row of one array with the same row of another one."""
        if self._last is None or self._last[0] is not left or self._last[1] is not right:
            self._last = left, right, backend_of(left).to_numpy(left.T @ right)
        products = self._last[2]
        if name in self._sums:
            self._sums[name] += products
        else:
            self._sums[name] = products.astype(np.float64)
        self._counts[name] = self._counts.get(name, 0) + left.shape[0]

    def rows(self, name: str) -> int:
        """Return the number of rows that were added for a layer."""
        return self._counts.get(name, 0)

    def has_rows(self, per_column: int, least: int) -> bool:
        """Return whether as many rows have been added for every layer of which there are any."""
        return bool(self._counts) and all(
            self._counts[name] >= max(per_column * len(total), least) for name, total in self._sums.items()
        )

    def sums(self) -> dict[str, np.ndarray]:
        """Return all sums by name."""
        return self._sums

    def means(self) -> dict[str, np.ndarray]:
        """Return all means by name."""
        return {name: total / self._counts[name] for name, total in self._sums.items()}


def spaced(rows: Any) -> Any:
    """Return evenly spaced rows of a batch that has many more rows than columns."""
    n, columns = rows.shape
    return rows[:: max(n // (ROWS_PER_COLUMN * columns), 1)]


class SpacedRows:
    """The rows of inputs, the same array for calls that follow each other with the same input."""

    def __init__(self) -> None:
        self._inputs: Any = None
        self._version: int | None = None
        self._rows: Any = None

    def of(self, inputs: Any, rows: Any) -> Any:
        """Return evenly spaced rows of an input."""
        if not _is_reshaped(inputs, rows):
            return spaced(rows)
        version = _version(inputs)
        if inputs is not self._inputs or version is None or version != self._version:
            self._inputs, self._version, self._rows = inputs, version, spaced(rows)
        return self._rows


def _is_reshaped(inputs: Any, rows: Any) -> bool:
    """Return whether rows are those of a linear layer, which are the same for all of them, unlike those of images."""
    return (
        len(inputs.shape) < 4 and inputs.shape[-1] == rows.shape[1] and math.prod(inputs.shape) == math.prod(rows.shape)
    )


def _version(inputs: Any) -> int | None:
    """Return how often a tensor was changed in place, 0 if it cannot be, ``None`` if that is not known."""
    try:
        return int(getattr(inputs, "_version", 0))
    except RuntimeError:  # a tensor of inference mode
        return None
