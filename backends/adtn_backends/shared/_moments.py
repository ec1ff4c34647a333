"""Second moments of the inputs of layers, by sums over batches."""

from __future__ import annotations

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

    def add(self, name: str, rows: Any) -> None:
        """Add the rows of one batch, ``(rows, columns)``, an array of any framework."""
        rows = spaced(rows)
        self.add_product(name, rows, rows)

    def add_product(self, name: str, left: Any, right: Any) -> None:
        """Add products of each row of one array with the same row of another one."""
        products = backend_of(left).to_numpy(left.T @ right).astype(np.float64)
        if name in self._sums:
            self._sums[name] += products
        else:
            self._sums[name] = products
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
