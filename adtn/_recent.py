"""A bounded cache, owned by the object that fills it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """A cache of at most ``size`` values, which drops the least recently used one to make room for another.

    Parameters
    ----------
    size : int
        The largest number of values.

    Examples
    --------
    >>> squares = Recent(2)
    >>> [squares.get(n, lambda n=n: n * n) for n in (1, 2, 1, 3)]
    [1, 4, 1, 9]
    >>> len(squares), 2 in squares
    (2, False)
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._values: OrderedDict[K, V] = OrderedDict()
        self._lock = Lock()

    def get(self, key: K, make: Callable[[], V]) -> V:
        """Look up a value, or make it and cache it."""
        try:
            self._values.move_to_end(key)
            return self._values[key]
        except KeyError:  # also if another thread has just dropped it
            value = make()  # outside the lock, as it may take long and may use this cache for another key
        with self._lock:
            self._values[key] = value
            while len(self._values) > self.size:
                self._values.popitem(last=False)
        return value

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __len__(self) -> int:
        return len(self._values)

    def __reduce__(self) -> tuple[type[Recent[K, V]], tuple[int]]:
        return type(self), (self.size,)  # copies and pickles start empty
