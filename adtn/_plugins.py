"""Topologies and activations of other distributions, loaded when a name is asked for that nobody has registered."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from ._errors import TopologyError


class UnregisteredError(TopologyError):
    """A topology or activation is known elsewhere, but not in this process."""


def load_plugin(kind: str, name: str) -> Any | None:
    """What an entry point of the group ``adtn.<kind>`` with this name refers to; ``None`` when there is none.

    Raises
    ------
    TopologyError
        If it cannot be loaded.
    """
    for entry in entry_points(group=f"adtn.{kind}"):
        if entry.name.lower() == name.lower():
            try:
                return entry.load()
            except Exception as error:
                raise TopologyError(
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
