"""Generators of several layers in one folder: a file per layer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from .._errors import CompressError
from ..generator import Generator
from ._storage import StoreDtype, load, save

_SUFFIX = ".safetensors"


def save_layers(folder: str | Path, generators: Mapping[str, Generator], dtype: StoreDtype | None = None) -> None:
    """Write generators by name of the layer; ``dtype`` as of :func:`adtn.save`."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, generator in generators.items():
        save(Path(folder) / f"{name}{_SUFFIX}", generator, dtype)


def load_layers(folder: str | Path, what: str) -> dict[str, Generator]:
    """Read what :func:`save_layers` wrote.

    Parameters
    ----------
    folder : path
    what : str
        What it should be, for the message.

    Raises
    ------
    CompressError
        If there is none.
    """
    files = sorted(Path(folder).glob(f"*{_SUFFIX}"))
    if not files:
        raise CompressError(f"Got {folder}, which holds no {what}.")
    return {file.name.removesuffix(_SUFFIX): load(file) for file in files}
