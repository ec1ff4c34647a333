"""Files that are either written whole or not at all."""

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
    """Write beside the target, flush to disk, rename, and flush the folder.

    The file that is being written has no name where the system can do that, and else the same name at every try, so
    that a process that is killed leaves at most one file behind, which the next write of the same target takes over.
    Several processes and threads may write one target: each of them writes it whole, one after the other.

    Parameters
    ----------
    path : path
        Existing files are replaced in one step.
    data : bytes
        The whole content.

    Raises
    ------
    OSError
        As the system says; the target is then untouched.
    """
    target = Path(path)
    if target.exists() and not target.is_file():
        kind = errno.EISDIR if target.is_dir() else errno.EEXIST
        raise OSError(kind, os.strerror(kind) if target.is_dir() else "Not a regular file", str(target))
    temporary = target.parent / temporary_name(target.name)
    if fcntl is None:  # open files cannot be renamed there
        temporary = temporary.with_suffix(f".{os.getpid()}.tmp")
        try:
            temporary.write_bytes(data)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        return
    # where a file cannot get its name later, it has one from the beginning
    done = _put(target, temporary, data, unnamed=True) or _put(target, temporary, data, unnamed=False)
    assert done
    _flush_folder(target.parent)


def _put(target: Path, temporary: Path, data: bytes, *, unnamed: bool) -> bool:
    """Write and rename; says whether that was possible in this way."""
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
    """What is made of several files in a folder is written by one process at a time, and read by none meanwhile.

    Parameters
    ----------
    folder : path
    shared : bool
        For readers, of which there may be many.
    """
    handle = None
    with suppress(OSError):  # no such folder, or it cannot be opened: what needs it says so
        handle = os.open(folder, os.O_RDONLY)
        _lock(handle, "LOCK_SH" if shared else "LOCK_EX")
    try:
        yield
    finally:
        if handle is not None:
            _lock(handle, "LOCK_UN")  # also if a fork has it open
            os.close(handle)


def try_writing(folder: Path, size: int) -> None:
    """Write so many bytes to a new file in a folder and drop it.

    Raises
    ------
    OSError
        As the system says.
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
    """Beside a file of that name, while it is written."""
    return f".{name[:40]}-{hashlib.sha256(name.encode(errors='surrogateescape')).hexdigest()[:8]}.tmp"


@contextmanager
def _opened(folder: Path, temporary: Path, unnamed: bool = True) -> Generator[tuple[int, bool]]:
    """A locked file to write to, and whether it has its name already; whoever renames it holds the lock."""
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
        _lock(handle, "LOCK_UN")  # also if a fork has it open
        os.close(handle)


def _unnamed(folder: Path) -> int | None:
    flag = getattr(os, "O_TMPFILE", 0)
    if not flag or not os.path.exists("/proc/self/fd"):
        return None
    try:
        return os.open(folder, flag | os.O_RDWR | os.O_CLOEXEC, 0o666)
    except OSError:
        return None  # not every file system has it; the other way says what is wrong


def _name(handle: int, temporary: Path) -> bool:
    """Give a file a name, if the system can; what is there is left by a killed process, or waited for."""
    folder = os.open(temporary.parent, os.O_RDONLY)
    try:
        while True:
            try:
                # with folders given, Python follows the link, which is how such a file gets a name
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
    """The file of that name, once no other process is at it."""
    while True:
        handle = os.open(temporary, os.O_RDWR | os.O_CLOEXEC | create, 0o666)
        try:
            _lock(handle)
            if _is_at(handle, temporary):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # it was renamed meanwhile


def _lock(handle: int, how: str = "LOCK_EX") -> None:
    """Where the system and the file system have locks; elsewhere, writers at the same time are not kept apart."""
    if fcntl is not None:
        with suppress(OSError):
            fcntl.flock(handle, getattr(fcntl, how))


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    except OSError:
        return False


def _flush_folder(folder: Path) -> None:
    """The new name survives a power cut, too, where the system can promise that."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
