"""Parts of the data: the first batches with some number of samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
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


def first_batches(data: Iterable[Any], most: int | None) -> Iterable[Any]:
    """Return the first batches of every pass over data; all of them for ``None``.

    Examples
    --------
    >>> first_batches([1, 2, 3], 2)
    [1, 2]
    >>> every_pass = first_batches(range(10), 2)
    >>> list(every_pass), list(every_pass)
    ([0, 1], [0, 1])
    """
    if most is None:
        return data
    return data[:most] if isinstance(data, list | tuple) else _First(data, most)


def halved(batches: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Divide batches into two halves; a single batch is divided along its first axis.

    Examples
    --------
    >>> halved([1, 2, 3])
    ([1, 3], [2])
    >>> import numpy as np
    >>> halved([(np.arange(5), {"mask": np.arange(5)})])[1]
    [(array([3, 4]), {'mask': array([3, 4])})]
    """
    if len(batches) != 1:
        return list(batches[0::2]), list(batches[1::2])
    n = _samples_in(batches[0])
    middle = (n + 1) // 2
    return [_part(batches[0], slice(0, middle), n)], [_part(batches[0], slice(middle, n), n)] if n > 1 else []


def _part(batch: Any, part: slice, n: int) -> Any:
    """Return a part of every array of a batch that has ``n`` samples."""
    if isinstance(batch, Mapping):
        return {name: _part(x, part, n) for name, x in batch.items()}
    if isinstance(batch, tuple | list):
        return type(batch)(_part(x, part, n) for x in batch)
    shape = tuple[int, ...](getattr(batch, "shape", ()))
    return batch[part] if shape and shape[0] == n else batch


class _First:
    """The first batches of every pass over data."""

    def __init__(self, data: Iterable[Any], most: int) -> None:
        self._data, self._most = data, most

    def __iter__(self) -> Iterator[Any]:
        return islice(self._data, self._most)


def _samples_in(batch: Any) -> int:
    """Return the number of samples of a batch: the length of the first axis of its first array."""
    while isinstance(batch, Mapping | tuple | list) and len(batch):
        batch = next(iter(batch.values())) if isinstance(batch, Mapping) else batch[0]
    shape = tuple[int, ...](getattr(batch, "shape", ()))
    return shape[0] if shape else 1
