"""Plugins: topologies, activations and optimizers of other distributions, loaded when their name is first used."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from .errors import ADTNError, TopologyError


class UnregisteredError(TopologyError):
    """A topology or activation is not registered in this process."""


def plugin_names(kind: str) -> tuple[str, ...]:
    """List the names of the entry points in the group ``adtn.<kind>`` without loading them."""
    return tuple(sorted({entry.name for entry in entry_points(group=f"adtn.{kind}")}))


def load_plugin(kind: str, name: str, error_class: type[ADTNError] = TopologyError) -> Any | None:
    """Load the entry point ``name`` of the group ``adtn.<kind>``; ``None`` if there is no such entry point.

    Parameters
    ----------
    kind, name : str
        Group and entry point.
    error_class : type
        Class of the error.

    Raises
    ------
    ADTNError
        An instance of ``error_class`` if the entry point cannot be loaded.
    """
    for entry in entry_points(group=f"adtn.{kind}"):
        if entry.name.lower() == name.lower():
            try:
                return entry.load()
            except Exception as error:
                raise error_class(
                    f"Got {name!r} from the entry point {entry.name} = {entry.value} ({kind}), which cannot be loaded "
                    f"({type(error).__name__}: {error}); expected an intact package. Reinstall or remove it."
                ) from error
    return None


def unregistered(kind: str, name: str, known: tuple[str, ...]) -> UnregisteredError:
    """Return the error for an unregistered name, which explains how to register it."""
    what = {"topologies": "topology", "activations": "activation"}[kind]
    return UnregisteredError(
        f"Got {what}={name!r}, which is not registered here; expected one of {', '.join(known)}. If your own "
        f"code defines it, import the module that calls adtn.register_{what} first (command line: --import MODULE), "
        f"or install a package with an entry point in the group 'adtn.{kind}'."
    )
