"""Observers of a training, which look at its generators and the model around them from time to time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from .._checks import shown
from ..errors import ADTNError
from ..generator import Generator


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A training at one step.

    Parameters
    ----------
    step : int
        The number of updates so far.
    loss : float
        The last loss that was computed; NaN before the first one.
    generators : mapping of str to Generator
        The generators as they are now, by the names of their weights; a fit has one, ``"weight"``.
    model : object, optional
        The model of a framework, in evaluation mode; none in a fit.
    """

    step: int
    loss: float
    generators: Mapping[str, Generator]
    model: Any = None


@runtime_checkable
class Observer(Protocol):
    """An object that sees snapshots of a training: those of step 0, of every ``every`` steps, and of the last step.

    Pass it among the ``callbacks`` of :func:`adtn.fit` or :func:`adtn.compress`.
    """

    every: int

    def observe(self, snapshot: Snapshot) -> bool | None:
        """Look at a snapshot; a true result stops the training."""
        ...


def check_callbacks(callbacks: Sequence[Any], error: type[ADTNError]) -> None:
    """Refuse what is neither a function nor an observer.

    Raises
    ------
    ADTNError
        Of the given class.
    """
    for one in callbacks:
        if not (callable(one) or isinstance(one, Observer)):
            raise error(f"Got {shown(one)} in callbacks; expected functions of (step, loss), or observers.")
        if isinstance(one, Observer) and not (isinstance(one.every, int) and one.every > 0):
            raise error(f"Got an observer with every={shown(one.every)} in callbacks; expected a positive integer.")


def is_due(observer: Observer, step: int, last: int) -> bool:
    """Return whether an observer sees this step."""
    return step % observer.every == 0 or step == last
