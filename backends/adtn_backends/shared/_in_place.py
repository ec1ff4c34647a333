"""Operations in place, for backends whose arrays can be written to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class InPlace:
    """A base of backends that loop in Python and update arrays in place."""

    def loop(self, n: int, body: Callable[[Any, Any], Any], carry: Any) -> Any:
        """Run a Python loop."""
        for i in range(n):
            carry = body(i, carry)
        return carry

    def take(self, x: Any, i: int) -> Any:
        """View one entry of the first axis."""
        return x[i]

    def put(self, x: Any, i: int, y: Any) -> Any:
        """Write one entry of the first axis in place."""
        x[i] = y
        return x

    def add_at(self, x: Any, i: int, y: Any) -> Any:
        """Add to one entry of the first axis in place."""
        x[i] += y
        return x

    def add(self, x: Any, y: Any) -> Any:
        """Add in place."""
        x += y
        return x

    def subtract(self, x: Any, y: Any) -> Any:
        """Subtract in place."""
        x -= y
        return x
