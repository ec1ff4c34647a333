"""Batches of training data, for every framework."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from adtn._errors import CompressError

IGNORED = -100  # labels that do not count


def cycled(data: Iterable[Any], steps: int) -> Iterator[Any]:
    """So many batches, beginning anew when the data are over.

    Raises
    ------
    CompressError
        If there is none.
    """
    taken = 0
    while taken < steps:
        before = taken
        for batch in data:
            if taken == steps:
                return
            taken += 1
            yield batch
        if taken == before:
            raise CompressError(
                "Got data without a batch, or an iterator that is used up; pass a list or a DataLoader."
            )
