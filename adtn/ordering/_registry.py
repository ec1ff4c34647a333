"""Names of ways to order."""

from __future__ import annotations

from typing import Any

from .._checks import listed, shown
from ..errors import OrderingError
from ._ordering import Ordering

_ORDERINGS: dict[str, Ordering] = {}


def register_ordering(name: str, ordering: Ordering) -> Ordering:
    """Register a way of ordering by name, for ``adtn.einsort(..., ordering=name)``.

    Parameters
    ----------
    name : str
        A new name.
    ordering : Ordering
        What it stands for.

    Returns
    -------
    Ordering
        The same.

    Raises
    ------
    OrderingError
        If the name is taken, or stands for something else than a way of ordering.

    Examples
    --------
    >>> from adtn.ordering import Norm, register_ordering
    >>> register_ordering("norm of columns", Norm(axes=(1,)))
    Norm(axes=(1,), absorbed=())
    """
    if not isinstance(name, str) or not name or not isinstance(ordering, Ordering):
        raise OrderingError(f"Got {shown(name)} for {shown(ordering)}; expected a name and an adtn.ordering.Ordering.")
    if name in _ORDERINGS:
        raise OrderingError(f"An ordering called {name!r} is already registered; choose another name.")
    _ORDERINGS[name] = ordering
    return ordering


def ordering_names() -> tuple[str, ...]:
    """List the registered names.

    Examples
    --------
    >>> "spectral" in ordering_names()
    True
    """
    return tuple(_ORDERINGS)


def get_ordering(given: Any) -> Ordering:
    """Return a way of ordering, or that of a name.

    Raises
    ------
    OrderingError
        If it is neither.
    """
    if isinstance(given, Ordering):
        return given
    if not isinstance(given, str) or given not in _ORDERINGS:
        raise OrderingError(
            f"Got ordering={shown(given)}; expected {listed([repr(name) for name in _ORDERINGS])}, or a record such as "
            "adtn.ordering.Buckets(k=4)."
        )
    return _ORDERINGS[given]
