"""The commands in the order of the help text, and how their errors are shown."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from .._version import __version__
from ..errors import ADTNError
from ._bench import bench
from ._compress import compress
from ._demo import demo
from ._devices import calibrate, devices
from ._kv import kv
from ._plan import plan
from ._weights import fit, inspect

app = typer.Typer(
    name="adtn",
    help="Neural-network layers stored as the output of small nonlinear tensor networks.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for _command in (devices, demo, fit, inspect, calibrate, plan, compress, bench):
    app.command()(_command)
app.add_typer(kv, name="kv")


def main() -> None:
    """Run the command line; errors of the library and of the system become one line and exit code 1."""
    try:
        app()
    except (ADTNError, OSError, MemoryError) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        print(f"adtn: {text}", file=sys.stderr)
        raise SystemExit(1) from None


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit
