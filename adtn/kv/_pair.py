"""Keys and values side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True, kw_only=True)
class Pair(Generic[T]):
    """A pair of the same thing for keys and for values.

    Parameters
    ----------
    k, v
        Of keys, and of values.
    """

    k: T
    v: T

    def map(self, fn: Callable[[T], U]) -> Pair[U]:
        """Apply a function to both."""
        return Pair(k=fn(self.k), v=fn(self.v))

    def __iter__(self) -> Iterator[T]:
        """Iterate over keys, then values."""
        yield self.k
        yield self.v
