"""Batches of training data, for every framework."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from adtn._errors import CompressError

IGNORED = -100  # labels that do not count


def labels_of(batch: Any) -> Any:
    """The labels in ``(inputs, labels)`` or in a mapping.

    Raises
    ------
    CompressError
        If there are none.
    """
    if isinstance(batch, Mapping):
        if "labels" not in batch:
            raise CompressError(f"Got batches of {sorted(batch)}; expected 'labels', too, or pass loss= and no test=.")
        return batch["labels"]
    if not isinstance(batch, tuple | list) or len(batch) < 2:
        raise CompressError("Got batches without labels; pass (inputs, labels), or loss= and no test=.")
    return batch[1]


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
