"""Folders with the generators of several layers: a file per layer, and an index of the files by layer."""

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
from ..precision import Precision
from ._storage import StoreDtype, from_bytes, load, read_header, to_bytes

INDEX = "index.json"
FORMAT = 2  # the first format has no index, and files have the names of layers
_KIND = "index of layers"
_SUFFIX = ".safetensors"
_FILE_NAME = re.compile(r"-[0-9a-f]{12}\.safetensors$")
_CHECKPOINT = re.compile(r"training-[0-9a-f]{16}")

Entries = Mapping[str, Mapping[str, str]]
"""The ``file`` of each layer and its ``sha256``, by name of the layer."""


def save_layers(
    folder: str | Path, generators: Mapping[str, Generator], dtype: StoreDtype | Precision | None = None
) -> None:
    """Write generators of several layers to a folder, replacing the layers that it contained.

    The names of layers are stored in the index only, and not used as file names. The index is replaced atomically when
    all files are written, so the folder contains either the old or the new layers at any moment. Other files in the
    folder are not touched.

    Parameters
    ----------
    folder : path
        The folder, which is made if it does not exist.
    generators : mapping of str to Generator
        Generators by name of the layer.
    dtype : optional
        The dtype of the stored parameters, see :func:`adtn.save`.

    Raises
    ------
    OutputError
        If the folder cannot be written; its layers are unchanged then.
    """
    place = check_writable(folder, "folder", "folder")
    try:
        place.mkdir(parents=True, exist_ok=True)
        with locked_folder(place):
            write_index(place, write_files(place, generators, dtype))
    except OSError as error:
        raise OutputError(f"Cannot write layers to {place} ({error}); the layers in it are unchanged.") from error


def load_layers(folder: str | Path, what: str) -> dict[str, Generator]:
    """Read the layers that :func:`save_layers` wrote, in this or the first format.

    Parameters
    ----------
    folder : path
        The folder.
    what : str
        A description of the expected content, for error messages.

    Raises
    ------
    CompressError
        If the folder contains no layers.
    ModelFileError
        If a file is missing, damaged or modified.
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
        raise CompressError(f"Got {folder}, which contains no {what}.")
    if any(_FILE_NAME.search(file.name) for file in files):
        raise ModelFileError(f"Got {folder}, which has no {INDEX} with its files by layer. Get the folder again.")
    return {file.name.removesuffix(_SUFFIX): load(file) for file in files}


def write_files(
    folder: Path, generators: Mapping[str, Generator], dtype: StoreDtype | Precision | None = None
) -> dict[str, dict[str, str]]:
    """Write a file for every layer beside the existing files, and return the entries of an index."""
    folder.mkdir(parents=True, exist_ok=True)
    entries: dict[str, dict[str, str]] = {}
    for name, generator in generators.items():
        content = to_bytes(generator, dtype)
        digest = hashlib.sha256(name.encode(errors="surrogatepass") + b"\0" + content).hexdigest()
        entries[name] = {"file": f"{file_name(name, digest)}{_SUFFIX}", "sha256": hashlib.sha256(content).hexdigest()}
        write_atomic(folder / entries[name]["file"], content)
    return entries


def read_files(folder: Path, entries: Any) -> dict[str, Generator]:
    """Read the generators of an index.

    Raises
    ------
    ModelFileError
        If a file is missing, modified or not in the folder.
    """
    generators: dict[str, Generator] = {}
    try:
        for name, entry in entries.items():
            file = entry["file"]
            if Path(file).name != file:
                raise ModelFileError(f"Got the file {file!r} in the index of {folder}; expected a name in that folder.")
            content = read_whole(folder / file, f"the layer {name!r}", ModelFileError)
            if hashlib.sha256(content).hexdigest() != entry["sha256"]:
                raise ModelFileError(
                    f"Got {folder / file}, which differs from the file written for {name!r}. Get the folder again."
                )
            generators[name] = from_bytes(content)
    except ModelFileError:
        raise
    except (FileFormatError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelFileError(f"Cannot read the layers in {folder} ({error}). Get the folder again.") from error
    return generators


def write_index(folder: Path, entries: Entries) -> None:
    """Replace the index of a folder, and delete the files of layers that it does not list."""
    write_atomic(folder / INDEX, sealed_json(_KIND, FORMAT, layers=entries))
    listed = {entry["file"] for entry in entries.values()}
    for file in folder.glob(f"*{_SUFFIX}"):
        if file.name not in listed and _is_generator(file):
            with suppress(OSError):
                file.unlink()


def remove_layers(folder: Path) -> None:
    """Delete the layers in a folder and their index, and the folder if nothing else is in it."""
    for file in folder.glob(f"*{_SUFFIX}"):
        if _is_generator(file):
            file.unlink(missing_ok=True)
    (folder / INDEX).unlink(missing_ok=True)
    with suppress(OSError):  # it does not exist, or has files of the user
        folder.rmdir()


def remove_cached(folder: Path) -> None:
    """Delete cached local fits and checkpoints of trainings, and the folder if nothing else is in it."""
    with suppress(OSError):  # it does not exist, or has files of the user
        for file in folder.iterdir():
            if _FILE_NAME.search(file.name) or _CHECKPOINT.fullmatch(file.name):
                file.unlink(missing_ok=True)
        folder.rmdir()


def _is_generator(file: Path) -> bool:
    """Return whether this library wrote a file, even if it is damaged."""
    try:
        return bool(_FILE_NAME.search(file.name)) or bool(read_header(file.read_bytes()))
    except (FileFormatError, OSError):
        return False


def file_name(name: str, digest: str) -> str:
    """Return a unique file name for a layer: the plain characters of its name, and 12 digits of a digest."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", name)[:60].strip("._")
    return f"{plain or 'layer'}-{digest[:12]}"
