"""Modules and functions that the command line names."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from ..errors import ADTNError
from ..optim import optimizer_names


def optimizers() -> str:
    """List the optimizers for the help text, including those of other packages and of ``--import``."""
    *names, last = optimizer_names()
    return f"{', '.join(names)} or {last}."


def _import(context: typer.Context, names: list[str] | None) -> list[str] | None:
    """Import modules that register plugins, also from the working directory, before other options are parsed."""
    for name in names or ():
        _module(name, name)
    for option in context.command.params:
        if option.name == "optimizer":
            option.help = optimizers()  # type: ignore[attr-defined]
    return names


Imports = Annotated[
    list[str] | None,
    typer.Option(
        "--import",
        callback=_import,
        is_eager=True,
        help="Module that registers your own topologies, activations or optimizers, may be repeated.",
    ),
]


def _module(name: str, argument: str) -> Any:
    import importlib

    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        return importlib.import_module(name)
    except ADTNError:
        raise
    except Exception as error:
        verb = "found" if isinstance(error, ImportError) else "imported"
        raise ADTNError(
            f"Got {argument!r}, which cannot be {verb} ({type(error).__name__}: {error}). Check the module "
            "and the name."
        ) from error


def function_of(name: str) -> Any:
    """Resolve ``module:name``, also in modules of the working directory."""
    module, _, attribute = name.partition(":")
    if not attribute or not module:
        raise ADTNError(f"Got {name!r}; expected MODULE:FUNCTION, such as mypackage.models:build.")
    try:
        function = getattr(_module(module, name), attribute)
    except AttributeError as error:
        raise ADTNError(f"Got {name!r}, which cannot be found ({error}). Check the module and the name.") from error
    if not callable(function):
        raise ADTNError(f"Got {name!r}, which is a {type(function).__name__}; expected a function.")
    return function


def called(name: str | None) -> Any:
    """Return the result of the function ``module:name``."""
    return None if name is None else function_of(name)()


def found(name: str | None) -> Any:
    """Return the function ``module:name``, if there is a name."""
    return None if name is None else function_of(name)
