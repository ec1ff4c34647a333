"""Files with a digest of every byte, checks of output paths, and recovery when a write fails."""

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
"""Key of the header in the metadata of a safetensors file."""

MAX_HEADER = 16 * 2**20
NO_DIGEST = "0" * 64
_FIELD = '"sha256": "'
_ESCAPED = json.dumps(_FIELD)[1:-1]  # as it appears inside the JSON of a safetensors file
_PROBE = 1 << 16


def header_text(kind: str, version: int, *, indent: int | None = None, **content: Any) -> str:
    """Build the header of a file, with a placeholder that :func:`sealed` replaces by the digest.

    Parameters
    ----------
    kind : str
        Description of the type of file.
    version : int
        Version of the format of this type.
    indent : int, optional
        Indentation of the JSON; a single line when not given.
    **content
        Further entries of the header.
    """
    return json.dumps({"sha256": NO_DIGEST, "kind": kind, "format": version, **content}, indent=indent)


def sealed(data: bytes, field: str = _ESCAPED) -> bytes:
    """Fill in the SHA-256 digest of the complete content, computed with its own 64 digits as zeros."""
    at = _place(data, field, NO_DIGEST, len(data))
    if at is None:
        raise ValueError("The content has no placeholder for a digest.")
    return b"".join((data[:at], hashlib.sha256(data).hexdigest().encode(), data[at + 64 :]))


def sealed_json(kind: str, version: int, *, indent: int | None = None, **content: Any) -> bytes:
    """Build the content of a JSON file with a digest of every byte."""
    return sealed(header_text(kind, version, indent=indent, **content).encode(), _FIELD)


def _place(data: bytes, field: str, digest: str, end: int) -> int | None:
    """Find the offset of the digest; in a safetensors file it follows the key of the header."""
    start = max(data.find(f'"{KEY}"'.encode(), 0, end), 0) if field == _ESCAPED else 0
    at = data.find((field + digest).encode(), start, end)
    return at + len(field) if at >= 0 else None


def read_json(data: bytes, kind: str, newest: int) -> dict[str, Any]:
    """Read and verify the content written by :func:`sealed_json`.

    Raises
    ------
    FileFormatError
        If the file is truncated, modified, not from adtn, or of a newer format version.
    """
    try:
        header = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"This is not an adtn {kind}, or it is corrupted ({error}).") from error
    return _checked(header, data, len(data), _FIELD, kind, newest)


def metadata_of(data: bytes) -> dict[str, Any]:
    """Read the metadata of a safetensors file.

    Raises
    ------
    FileFormatError
        If the file is truncated or is not a safetensors file.
    """
    end = 8 + int.from_bytes(data[:8], "little")
    if len(data) < 8 or end > min(len(data), 8 + MAX_HEADER):
        raise FileFormatError(f"The file is truncated: {len(data)} bytes, its header ends at {end}.")
    try:
        metadata = json.loads(data[8:end]).get("__metadata__", {})
        return dict(metadata)
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        raise FileFormatError("This is not a safetensors file, or it is corrupted.") from error


def read_header(data: bytes, kind: str, newest: int) -> dict[str, Any] | None:
    """Read the header of a safetensors file and verify its digest; ``None`` for a file without a header.

    Parameters
    ----------
    data : bytes
        The complete file.
    kind : str
        The expected type of file, see :func:`header_text`.
    newest : int
        The newest format version that can be read.

    Raises
    ------
    FileFormatError
        If the file is truncated, modified, of another type or of a newer format version.
    """
    metadata = metadata_of(data)
    end = 8 + int.from_bytes(data[:8], "little")
    if KEY not in metadata:
        if b"sha256" in data[8:end]:
            raise FileFormatError("The file was modified: it has a digest, but no header.")
        return None
    try:
        header = json.loads(metadata[KEY])
    except (TypeError, ValueError, RecursionError) as error:
        raise FileFormatError(f"This is not an adtn {kind}: it has no adtn header that can be read.") from error
    return _checked(header, data, end, _ESCAPED, kind, newest)


def _checked(header: Any, data: bytes, end: int, field: str, kind: str, newest: int) -> dict[str, Any]:
    if not isinstance(header, dict) or "sha256" not in header or "format" not in header:
        raise FileFormatError(f"This is not an adtn {kind}: it has no adtn header.")
    version, digest = header["format"], str(header["sha256"])
    if not isinstance(version, int) or version > newest:
        raise FileFormatError(f"The file has format version {version}; this adtn reads up to {newest}. Upgrade adtn.")
    at = _place(data, field, digest, end)
    computed = hashlib.sha256(memoryview(data)[:at])
    computed.update(NO_DIGEST.encode())
    computed.update(memoryview(data)[(at or 0) + 64 :])
    if len(digest) != 64 or at is None or computed.hexdigest() != digest:
        raise FileFormatError("The file was modified: its digest does not match its content.")
    if header.get("kind", kind) != kind:
        raise FileFormatError(f"The file is a {header['kind']}; expected a {kind}.")
    return header


def read_whole(path: str | os.PathLike[str], what: str, error: type[FileFormatError] = FileFormatError) -> bytes:
    """Read the complete content of a file.

    Raises
    ------
    FileFormatError
        An instance of ``error`` if the file cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as cause:
        raise error(f"Cannot read {path}: {cause.strerror}. Expected {what}.") from cause


def check_writable(path: Any, name: str, kind: Literal["file", "folder"]) -> Path:
    """Refuse an output path that cannot be written to, before any work is done.

    A probe is written there and deleted again, since permissions say nothing about a full disk and do not bind an
    administrator.

    Parameters
    ----------
    path : path
        The output path.
    name : str
        Name of the argument, for the error message.
    kind : {"file", "folder"}
        A file needs an existing parent folder; a folder is created along with its parents.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    OutputError
        If nothing can be written there.
    """
    try:
        target = Path(path)
        if not os.fspath(path):
            raise TypeError
        existing = _mode_of(target)
        if existing == ("folder" if kind == "file" else "file") or existing == "other":
            raise OutputError(
                f"Got {name}={str(path)!r}, which is a {_WORDS[existing]}; expected a {kind} or a new name."
            )
        folder = target.parent if kind == "file" else target
        while kind == "folder" and not os.path.lexists(folder) and folder != folder.parent:
            folder = folder.parent
        if _mode_of(folder) != "folder":
            what = "does not exist; create it first" if _mode_of(folder) == "nothing" else "is not a folder"
            raise OutputError(f"Got {name}={str(path)!r}, but {folder} {what}. Expected a writable {kind}.")
        try_writing(folder, _PROBE)
    except (TypeError, ValueError) as error:
        raise OutputError(f"Got {name}={path!r}; expected the path of a {kind}.") from error
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(
            f"Got {name}={str(path)!r}, which cannot be written to ({error.strerror}); expected a writable {kind}."
        ) from error
    return target


_WORDS = {"folder": "folder", "file": "file", "other": "device or pipe"}


def _mode_of(path: Path) -> str:
    try:
        path.stat()
    except FileNotFoundError:
        return "nothing"
    return "folder" if path.is_dir() else "file" if path.is_file() else "other"


def write_or_rescue(path: Path, write: Callable[[Path], object]) -> None:
    """Write a result; if that fails, write it to a new temporary folder instead.

    Parameters
    ----------
    path : path
        A file or folder.
    write : callable
        Function that writes the result to the path it is given.

    Raises
    ------
    OutputError
        If the result was written to the temporary folder, which the message names, or could not be written at all.
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
    """Write a file with :func:`write_atomic`, and raise an :class:`OutputError` if that fails.

    Raises
    ------
    OutputError
        If the file cannot be written; the message names the path.
    """
    try:
        write_atomic(path, data)
    except OSError as error:
        raise OutputError(
            f"Cannot write {path} ({error.strerror or error}); expected a writable path. An existing file is unchanged."
        ) from error
