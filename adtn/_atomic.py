"""Atomic file writes: a file is either written completely or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


def write_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a temporary file next to the target, flush it to disk, rename it, and flush the folder.

    The temporary file is unnamed where the system supports that. Elsewhere it has the same name on every attempt, so a
    killed process leaves at most one file behind, which the next write to the same target reuses. Several processes and
    threads may write to one target: each writes the complete file, one after the other.

    Parameters
    ----------
    path : path
        The target; an existing file is replaced in one step.
    data : bytes
        The complete content.

    Raises
    ------
    OSError
        The error of the operating system; the target is then untouched.
    """
    target = Path(path)
    if target.exists() and not target.is_file():
        kind = errno.EISDIR if target.is_dir() else errno.EEXIST
        raise OSError(kind, os.strerror(kind) if target.is_dir() else "Not a regular file", str(target))
    temporary = target.parent / temporary_name(target.name)
    if fcntl is None:  # Windows cannot rename open files
        temporary = temporary.with_suffix(f".{os.getpid()}.tmp")
        try:
            temporary.write_bytes(data)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        return
    # where an unnamed file cannot be linked afterwards, use a named one from the start
    done = _put(target, temporary, data, unnamed=True) or _put(target, temporary, data, unnamed=False)
    assert done
    _flush_folder(target.parent)


def _put(target: Path, temporary: Path, data: bytes, *, unnamed: bool) -> bool:
    """Write and rename; return whether this way of writing is supported."""
    with _opened(target.parent, temporary, unnamed) as (handle, named):
        try:
            with os.fdopen(handle, "wb", closefd=False) as file:
                file.write(data)
                file.flush()
                os.fsync(handle)
            if not named and not _name(handle, temporary):
                return False
            os.replace(temporary, target)
            return True
        except BaseException:
            if _is_at(handle, temporary):
                os.unlink(temporary)
            raise


@contextmanager
def locked_folder(folder: Path, *, shared: bool = False) -> Generator[None, None, None]:
    """Lock a folder, so that one process at a time writes a set of files in it and nobody reads them meanwhile.

    Parameters
    ----------
    folder : path
        The folder to lock.
    shared : bool
        Take a shared lock, which any number of readers can hold at once.
    """
    handle = None
    with suppress(OSError):  # the folder is missing or cannot be opened: whoever uses it reports that
        handle = os.open(folder, os.O_RDONLY)
        _lock(handle, "LOCK_SH" if shared else "LOCK_EX")
    try:
        yield
    finally:
        if handle is not None:
            _lock(handle, "LOCK_UN")  # also if a forked process holds the descriptor
            os.close(handle)


def try_writing(folder: Path, size: int) -> None:
    """Write ``size`` bytes to a new file in a folder and delete it again.

    Raises
    ------
    OSError
        The error of the operating system.
    """
    temporary = folder / temporary_name("adtn")
    if fcntl is None:
        temporary.write_bytes(bytes(size))
        temporary.unlink(missing_ok=True)
        return
    with _opened(folder, temporary) as (handle, _):
        try:
            if os.write(handle, bytes(size)) < size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(handle)
        finally:
            if _is_at(handle, temporary):
                os.unlink(temporary)


def temporary_name(name: str) -> str:
    """Return the name of the temporary file used while a file called ``name`` is written."""
    return f".{name[:40]}-{hashlib.sha256(name.encode(errors='surrogateescape')).hexdigest()[:8]}.tmp"


@contextmanager
def _opened(folder: Path, temporary: Path, unnamed: bool = True) -> Generator[tuple[int, bool]]:
    """Open and lock a file for writing; yield it and whether it already has a name. The lock holder renames it."""
    handle = _unnamed(folder) if unnamed else None
    named = handle is None
    if handle is None:
        handle = _locked(temporary, os.O_CREAT)
    try:
        if named:
            os.ftruncate(handle, 0)
        else:
            _lock(handle)
        yield handle, named
    finally:
        _lock(handle, "LOCK_UN")  # also if a forked process holds the descriptor
        os.close(handle)


def _unnamed(folder: Path) -> int | None:
    flag = getattr(os, "O_TMPFILE", 0)
    if not flag or not os.path.exists("/proc/self/fd"):
        return None
    try:
        return os.open(folder, flag | os.O_RDWR | os.O_CLOEXEC, 0o666)
    except OSError:
        return None  # not every file system supports it; opening a named file reports real errors


def _name(handle: int, temporary: Path) -> bool:
    """Link an unnamed file to a name; a file already there is waited for if in use, and removed if left over."""
    folder = os.open(temporary.parent, os.O_RDONLY)
    try:
        while True:
            try:
                # with directory descriptors Python follows the symbolic link, which is what names an unnamed file
                os.link(f"/proc/self/fd/{handle}", temporary.name, src_dir_fd=folder, dst_dir_fd=folder)
                return True
            except FileExistsError:
                with suppress(FileNotFoundError):
                    other = _locked(temporary, 0)
                    try:
                        os.unlink(temporary)
                    finally:
                        os.close(other)
            except OSError:
                return False
    finally:
        os.close(folder)


def _locked(temporary: Path, create: int) -> int:
    """Open the file of that name once no other process holds its lock."""
    while True:
        handle = os.open(temporary, os.O_RDWR | os.O_CLOEXEC | create, 0o666)
        try:
            _lock(handle)
            if _is_at(handle, temporary):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # it was renamed in the meantime


def _lock(handle: int, how: str = "LOCK_EX") -> None:
    """Lock a file where the file system supports it; elsewhere concurrent writers are not separated."""
    if fcntl is not None:
        with suppress(OSError):
            fcntl.flock(handle, getattr(fcntl, how))


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    except OSError:
        return False


def _flush_folder(folder: Path) -> None:
    """Flush a folder, so that a new name survives a power cut where the system guarantees that."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
