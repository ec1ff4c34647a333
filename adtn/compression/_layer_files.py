"""Generators of several layers in one folder: a file per layer, and an index that says which belongs to which."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from .._atomic import locked_folder, write_atomic
from .._files import check_writable, read_json, read_whole, sealed_json
from ..errors import CompressError, FileFormatError, ModelFileError, OutputError
from ..generator import Generator
from ._storage import StoreDtype, from_bytes, load, read_header, to_bytes

INDEX = "index.json"
FORMAT = 2  # the first one has no index: files are called as layers
_KIND = "index of layers"
_SUFFIX = ".safetensors"
_OWN_NAME = re.compile(r"-[0-9a-f]{12}\.safetensors$")

Entries = Mapping[str, Mapping[str, str]]
"""By name of the layer: its ``file``, and the ``sha256`` of that."""


def save_layers(folder: str | Path, generators: Mapping[str, Generator], dtype: StoreDtype | None = None) -> None:
    """Write generators by name of the layer; what the folder had before goes.

    Names of layers are data: they stand in the index, and files have names of their own. The index is replaced in one
    step when all files are written, so that a folder holds the old or the new layers at any moment. Files of others
    that lie there are left alone.

    Parameters
    ----------
    folder : path
        Made when it does not exist.
    generators : mapping of str to Generator
    dtype : optional
        As of :func:`adtn.save`.

    Raises
    ------
    OutputError
        If nothing can be written there; the folder is then as it was.
    """
    place = check_writable(folder, "folder", "folder")
    try:
        place.mkdir(parents=True, exist_ok=True)
        with locked_folder(place):
            write_index(place, write_files(place, generators, dtype))
    except OSError as error:
        raise OutputError(f"Cannot write layers to {place} ({error}); what was there is untouched.") from error


def load_layers(folder: str | Path, what: str) -> dict[str, Generator]:
    """Read what :func:`save_layers` wrote, in this or the first format.

    Parameters
    ----------
    folder : path
    what : str
        What it should be, for the message.

    Raises
    ------
    CompressError
        If there is none.
    ModelFileError
        If something is missing, damaged or altered.
    """
    folder = Path(folder)
    index = folder / INDEX
    if index.exists():
        try:
            with locked_folder(folder, shared=True):
                return read_files(folder, read_json(read_whole(index, _KIND), _KIND, FORMAT)["layers"])
        except ModelFileError:
            raise
        except (FileFormatError, KeyError) as error:
            raise ModelFileError(f"{index}: {error} Expected {what}. Get the folder again.") from error
    files = sorted(folder.glob(f"*{_SUFFIX}"))
    if not files:
        raise CompressError(f"Got {folder}, which holds no {what}.")
    if any(_OWN_NAME.search(file.name) for file in files):
        raise ModelFileError(f"{folder} has no {INDEX}, which says what its files are. Get the folder again.")
    return {file.name.removesuffix(_SUFFIX): load(file) for file in files}


def write_files(
    folder: Path, generators: Mapping[str, Generator], dtype: StoreDtype | None = None
) -> dict[str, dict[str, str]]:
    """A file for every layer, beside what is there; the entries of an index."""
    folder.mkdir(parents=True, exist_ok=True)
    entries: dict[str, dict[str, str]] = {}
    for name, generator in generators.items():
        content = to_bytes(generator, dtype)
        mark = hashlib.sha256(name.encode(errors="surrogatepass") + b"\0" + content).hexdigest()
        entries[name] = {"file": f"{file_name(name, mark)}{_SUFFIX}", "sha256": hashlib.sha256(content).hexdigest()}
        write_atomic(folder / entries[name]["file"], content)
    return entries


def read_files(folder: Path, entries: Any) -> dict[str, Generator]:
    """The generators of an index.

    Raises
    ------
    ModelFileError
        If a file is missing, altered or not in the folder.
    """
    generators: dict[str, Generator] = {}
    try:
        for name, entry in entries.items():
            file = entry["file"]
            if Path(file).name != file:
                raise ModelFileError(f"{folder}: the index names the file {file!r}, which is not in the folder.")
            content = read_whole(folder / file, f"the layer {name!r}", ModelFileError)
            if hashlib.sha256(content).hexdigest() != entry["sha256"]:
                raise ModelFileError(f"{folder / file} is not what was written for {name!r}. Get the folder again.")
            generators[name] = from_bytes(content)
    except ModelFileError:
        raise
    except (FileFormatError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelFileError(f"{folder} has layers that cannot be read ({error}). Get the folder again.") from error
    return generators


def write_index(folder: Path, entries: Entries) -> None:
    """Replace the layers of a folder by these; files of others go."""
    write_atomic(folder / INDEX, sealed_json(_KIND, FORMAT, layers=entries))
    kept = {entry["file"] for entry in entries.values()}
    for file in folder.glob(f"*{_SUFFIX}"):
        if file.name not in kept and _is_generator(file):
            with suppress(OSError):
                file.unlink()


def _is_generator(file: Path) -> bool:
    """Also one that is damaged, when its name is of this library."""
    try:
        return bool(_OWN_NAME.search(file.name)) or bool(read_header(file.read_bytes()))
    except (FileFormatError, OSError):
        return False


def file_name(name: str, mark: str) -> str:
    """Return a file name for a layer: what is readable of its name, and 12 digits that no other one has."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", name)[:60].strip("._")
    return f"{plain or 'layer'}-{mark[:12]}"
