"""Files with a digest of every byte, places to write to, and what is done when writing fails."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from ._atomic import try_writing, write_atomic
from .errors import FileFormatError, OutputError

KEY = "adtn"
"""Of the header in the metadata of a safetensors file."""

MAX_HEADER = 16 * 2**20
NO_DIGEST = "0" * 64
_FIELD = '"sha256": "'
_ESCAPED = json.dumps(_FIELD)[1:-1]  # as it stands inside the JSON of a safetensors file
_PROBE = 1 << 16


def header_text(kind: str, version: int, *, indent: int | None = None, **content: Any) -> str:
    """The header of a file that :func:`sealed` fills the digest in.

    Parameters
    ----------
    kind : str
        What the file is, in words.
    version : int
        Of the format of this kind.
    indent : int, optional
        Of the JSON; one line when not given.
    **content
        More.
    """
    return json.dumps({"sha256": NO_DIGEST, "kind": kind, "format": version, **content}, indent=indent)


def sealed(data: bytes, field: str = _ESCAPED) -> bytes:
    """The content of a file with the SHA-256 of all of it, its own 64 digits read as zeros."""
    at = _place(data, field, NO_DIGEST, len(data))
    if at is None:
        raise ValueError("The content has no place for a digest.")
    return b"".join((data[:at], hashlib.sha256(data).hexdigest().encode(), data[at + 64 :]))


def sealed_json(kind: str, version: int, *, indent: int | None = None, **content: Any) -> bytes:
    """A JSON file with a digest of every byte."""
    return sealed(header_text(kind, version, indent=indent, **content).encode(), _FIELD)


def _place(data: bytes, field: str, digest: str, end: int) -> int | None:
    """Where the digest stands: in a safetensors file behind the key of the header, whatever other keys there are."""
    start = max(data.find(f'"{KEY}"'.encode(), 0, end), 0) if field == _ESCAPED else 0
    at = data.find((field + digest).encode(), start, end)
    return at + len(field) if at >= 0 else None


def read_json(data: bytes, kind: str, newest: int) -> dict[str, Any]:
    """The content of what :func:`sealed_json` made.

    Raises
    ------
    FileFormatError
        If it is truncated, altered, foreign or of a newer version.
    """
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"This is no {kind} of adtn, or it is damaged ({error}).") from error
    return _checked(found, data, len(data), _FIELD, kind, newest)


def metadata_of(data: bytes) -> dict[str, Any]:
    """What a safetensors file says beside its tensors.

    Raises
    ------
    FileFormatError
        If the file is truncated or none.
    """
    end = 8 + int.from_bytes(data[:8], "little")
    if len(data) < 8 or end > min(len(data), 8 + MAX_HEADER):
        raise FileFormatError(f"The file is truncated: {len(data)} bytes, its header ends at {end}.")
    try:
        found = json.loads(data[8:end]).get("__metadata__", {})
        return dict(found)
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        raise FileFormatError("This is no safetensors file, or it is damaged.") from error


def read_header(data: bytes, kind: str, newest: int) -> dict[str, Any] | None:
    """The header of a safetensors file, checked against every byte; nothing for a file without one.

    Parameters
    ----------
    data : bytes
        The whole file.
    kind : str
        What it should be, see :func:`header_text`.
    newest : int
        The last version of the format that can be read.

    Raises
    ------
    FileFormatError
        If it is truncated, altered, of another kind or of a newer version.
    """
    meta = metadata_of(data)
    end = 8 + int.from_bytes(data[:8], "little")
    if KEY not in meta:
        if b"sha256" in data[8:end]:
            raise FileFormatError("The file was altered: it has a digest, but no header.")
        return None
    try:
        found = json.loads(meta[KEY])
    except (TypeError, ValueError, RecursionError) as error:
        raise FileFormatError(f"This is no {kind} of adtn: it has no adtn header that can be read.") from error
    return _checked(found, data, end, _ESCAPED, kind, newest)


def _checked(found: Any, data: bytes, end: int, field: str, kind: str, newest: int) -> dict[str, Any]:
    if not isinstance(found, dict) or "sha256" not in found or "format" not in found:
        raise FileFormatError(f"This is no {kind} of adtn: it has no adtn header.")
    version, digest = found["format"], str(found["sha256"])
    if not isinstance(version, int) or version > newest:
        raise FileFormatError(f"The file has format version {version}; this adtn reads up to {newest}. Upgrade adtn.")
    at = _place(data, field, digest, end)
    found_digest = hashlib.sha256(memoryview(data)[:at])
    found_digest.update(NO_DIGEST.encode())
    found_digest.update(memoryview(data)[(at or 0) + 64 :])
    if len(digest) != 64 or at is None or found_digest.hexdigest() != digest:
        raise FileFormatError("The file was altered: its digest does not match its content.")
    if found.get("kind", kind) != kind:
        raise FileFormatError(f"The file is a {found['kind']}; expected a {kind}.")
    return found


def read_whole(path: str | os.PathLike[str], what: str, error: type[FileFormatError] = FileFormatError) -> bytes:
    """The content of a file.

    Raises
    ------
    FileFormatError
        Or the subclass that is given, if it cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as cause:
        raise error(f"Cannot read {path}: {cause.strerror}. Expected {what}.") from cause


def check_writable(path: Any, name: str, kind: Literal["file", "folder"]) -> Path:
    """Refuse a place that cannot be written to, before any work is done.

    Something is written there and deleted again: permissions say little about a full disk, or about an administrator.

    Parameters
    ----------
    path : path
    name : str
        Of the argument, for the message.
    kind : {"file", "folder"}
        A file needs a folder that exists; a folder is made with all that it lies in.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    OutputError
        With what was got and what was expected.
    """
    try:
        place = Path(path)
        if not os.fspath(path):
            raise TypeError
        there = _mode_of(place)
        if there == ("folder" if kind == "file" else "file") or there == "other":
            raise OutputError(f"Got {name}={str(path)!r}, which is a {_WORDS[there]}; expected a {kind} or a new name.")
        folder = place.parent if kind == "file" else place
        while kind == "folder" and not os.path.lexists(folder) and folder != folder.parent:
            folder = folder.parent
        if _mode_of(folder) != "folder":
            what = "does not exist; make it first" if _mode_of(folder) == "nothing" else "is not a folder"
            raise OutputError(f"Got {name}={str(path)!r}, but {folder} {what}. Expected a {kind} that can be written.")
        try_writing(folder, _PROBE)
    except (TypeError, ValueError) as error:
        raise OutputError(f"Got {name}={path!r}; expected the path of a {kind}.") from error
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(
            f"Got {name}={str(path)!r}, where nothing can be written ({error.strerror}); expected a {kind} that can."
        ) from error
    return place


_WORDS = {"folder": "folder", "file": "file", "other": "device or pipe"}


def _mode_of(place: Path) -> str:
    try:
        place.stat()
    except FileNotFoundError:
        return "nothing"
    return "folder" if place.is_dir() else "file" if place.is_file() else "other"


def write_or_rescue(path: Path, write: Callable[[Path], object]) -> None:
    """Write a result; where that fails, write it to a new temporary folder instead.

    Parameters
    ----------
    path : path
        A file or folder.
    write : callable
        ``write(path)``.

    Raises
    ------
    OutputError
        If the result is elsewhere, with the place, or could not be written at all.
    """
    try:
        write(path)
        return
    except OSError as error:
        failed = error
    try:
        elsewhere = Path(tempfile.mkdtemp(prefix="adtn-")) / path.name
        write(elsewhere)
    except OSError as error:
        raise OutputError(
            f"Cannot write {path} ({failed.strerror or failed}), nor anywhere else ({error})."
        ) from failed
    raise OutputError(
        f"Cannot write {path} ({failed.strerror or failed}). The result is in {elsewhere} instead; move it from there."
    ) from failed


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """:func:`write_atomic` with an error of ours.

    Raises
    ------
    OutputError
        Names the path.
    """
    try:
        write_atomic(path, data)
    except OSError as error:
        raise OutputError(
            f"Cannot write {path} ({error.strerror or error}); expected a place for a file. The old file is untouched."
        ) from error
