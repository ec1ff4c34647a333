"""Topologies, activations and optimizers of other distributions, loaded when an unregistered name is asked for."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from .errors import ADTNError, TopologyError


class UnregisteredError(TopologyError):
    """A topology or activation is known elsewhere, but not in this process."""


def plugin_names(kind: str) -> tuple[str, ...]:
    """Names of the entry points in the group ``adtn.<kind>``; none of them is loaded."""
    return tuple(sorted({entry.name for entry in entry_points(group=f"adtn.{kind}")}))


def load_plugin(kind: str, name: str, error_class: type[ADTNError] = TopologyError) -> Any | None:
    """What an entry point of the group ``adtn.<kind>`` with this name refers to; ``None`` when there is none.

    Parameters
    ----------
    kind, name : str
        Group and entry point.
    error_class : type
        Class of the error.

    Raises
    ------
    ADTNError
        Of class ``error_class``, if it cannot be loaded.
    """
    for entry in entry_points(group=f"adtn.{kind}"):
        if entry.name.lower() == name.lower():
            try:
                return entry.load()
            except Exception as error:
                raise error_class(
                    f"Got {name!r} from the entry point {entry.name} = {entry.value} ({kind}), which cannot be loaded "
                    f"({type(error).__name__}: {error}); expected a package that is whole. Repair or remove it."
                ) from error
    return None


def unregistered(kind: str, name: str, known: tuple[str, ...]) -> UnregisteredError:
    """The error for a name that nobody has registered, with how to."""
    what = {"topologies": "topology", "activations": "activation"}[kind]
    return UnregisteredError(
        f"Got {what}={name!r}, which is not registered here; expected one of {', '.join(known)}. If it is your own, "
        f"import the module that calls adtn.register_{what} first (command line: --import MODULE), or install a "
        f"package with an entry point in the group 'adtn.{kind}'."
    )
