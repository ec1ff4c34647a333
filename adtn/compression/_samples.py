"""Parts of the data: the first batches with some number of samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any


def first_samples(data: Iterable[Any], most: int) -> Iterator[Any]:
    """Yield batches until they contain ``most`` samples; the last one is whole.

    Examples
    --------
    >>> import numpy as np
    >>> len(list(first_samples([np.zeros((8, 3))] * 5, 20)))
    3
    """
    seen = 0
    for batch in data:
        yield batch
        seen += _samples_in(batch)
        if seen >= most:
            return


def _samples_in(batch: Any) -> int:
    """Return the number of samples of a batch: the length of the first axis of its first array."""
    while isinstance(batch, Mapping | tuple | list) and len(batch):
        batch = next(iter(batch.values())) if isinstance(batch, Mapping) else batch[0]
    shape = tuple[int, ...](getattr(batch, "shape", ()))
    return shape[0] if shape else 1
