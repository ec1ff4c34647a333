"""A folder of parked prefixes: prompt caching on disk."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .._atomic import locked_folder, write_atomic
from .._files import check_writable
from .._typing import Int
from ..errors import FileFormatError, KVCacheError, OutputWarning
from ._codec import KVCodec
from ._parked import Parked, small_ids

_SUFFIX = ".parked"


@dataclass(frozen=True, kw_only=True)
class Found:
    """A stored beginning of a prompt.

    Parameters
    ----------
    cache
        Of the first ``tokens`` tokens of the prompt.
    tokens : int
    """

    cache: Any
    tokens: int


class PromptStore:
    """A folder that holds parked prefixes of one codec, up to a limit in bytes.

    Several processes may use one folder at the same time. The least recently used prefixes are deleted to make room.

    Parameters
    ----------
    folder : path
        It is made if it does not exist.
    codec : KVCodec
        With its model.
    limit : int
        The most bytes of all prefixes together, those of other codecs included.

    Raises
    ------
    OutputError
        If nothing can be written to the folder.
    """

    def __init__(self, folder: str | os.PathLike[str], codec: KVCodec, limit: int = 1 << 30) -> None:
        if not isinstance(limit, int) or limit < 1:
            raise KVCacheError(f"Got limit={limit!r}; expected a positive number of bytes.")
        self.folder = check_writable(folder, "folder", "folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.codec = codec
        self.limit = limit

    def put(self, cache: Any, token_ids: Any, **options: Any) -> Parked:
        """Encode the cache of a prefix and store it; see :meth:`KVCodec.encode` for the options.

        Raises
        ------
        KVCacheError
            If it alone is larger than the limit.
        """
        parked = self.codec.encode(cache, token_ids, **options)
        data = parked.to_bytes()
        if len(data) > self.limit:
            raise KVCacheError(f"The prefix has {len(data):,} bytes; the store has a limit of {self.limit:,}.")
        with locked_folder(self.folder):
            self._make_room(len(data), except_for=self._path(parked.token_ids))
            write_atomic(self._path(parked.token_ids), data)
        return parked

    def get(self, token_ids: Any, least: int = 1) -> Found | None:
        """Return the cache of the longest beginning of a prompt that is stored.

        A stored prefix that goes on differently serves as far as it agrees, since no token depends on later ones.

        Parameters
        ----------
        token_ids : array, (tokens,)
        least : int
            The fewest tokens that are worth it.
        """
        ids = small_ids(token_ids)
        with locked_folder(self.folder, shared=True):
            agreeing = sorted(((_common(ids, own), path) for path, own in self._prefixes()), key=lambda x: -x[0])
            for n, path in agreeing:
                if n < max(least, 1):
                    break
                try:
                    parked = Parked.load(path)
                    cache = self.codec.decode(parked)
                except FileFormatError as error:
                    _drop(path, error)
                    continue
                with suppress(OSError):
                    os.utime(path)
                if n < parked.tokens:
                    cache.crop(n - parked.tokens)
                return Found(cache=cache, tokens=n)
        return None

    @property
    def nbytes(self) -> int:
        """The bytes of all prefixes."""
        return sum(size for _, size, _ in self._files())

    def __len__(self) -> int:
        return sum(1 for _ in self.folder.glob(f"{self.codec.digest[:16]}-*{_SUFFIX}"))

    def _path(self, ids: Int[np.ndarray, " tokens"]) -> Path:
        digest = hashlib.sha256(ids.astype(np.uint32).tobytes()).hexdigest()
        return self.folder / f"{self.codec.digest[:16]}-{digest[:32]}{_SUFFIX}"

    def _prefixes(self) -> Iterator[tuple[Path, Int[np.ndarray, " tokens"]]]:
        """Return the token ids of all prefixes of this codec, without reading the rest."""
        from safetensors import SafetensorError, safe_open

        for path in self.folder.glob(f"{self.codec.digest[:16]}-*{_SUFFIX}"):
            try:
                with safe_open(path, "numpy") as file:
                    yield path, file.get_tensor("token_ids")
            except FileNotFoundError:
                continue  # another process has deleted it
            except (OSError, SafetensorError) as error:
                _drop(path, error)

    def _files(self) -> list[tuple[float, int, Path]]:
        """Return times of last use, sizes and paths."""
        found: list[tuple[float, int, Path]] = []
        for path in self.folder.glob(f"*{_SUFFIX}"):
            with suppress(FileNotFoundError):
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        return sorted(found)

    def _make_room(self, needed: int, except_for: Path) -> None:
        files = [file for file in self._files() if file[2] != except_for]
        total = sum(size for _, size, _ in files)
        for _, size, path in files:
            if total + needed <= self.limit:
                break
            path.unlink(missing_ok=True)
            total -= size


def _common(a: Int[np.ndarray, " n"], b: Int[np.ndarray, " m"]) -> int:
    """Return the length of the longest common prefix."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n


def _drop(path: Path, error: Exception) -> None:
    warnings.warn(f"{path.name} is damaged and was deleted from the store ({error}).", OutputWarning, stacklevel=3)
    path.unlink(missing_ok=True)
