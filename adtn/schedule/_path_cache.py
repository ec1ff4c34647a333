"""A cache of contraction paths on disk, keyed by canonical graph, sizes, profile and version of the objective."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path as FilePath

from .._atomic import write_atomic
from .._files import read_json, sealed_json
from .._recent import Recent
from .._typing import Inds
from ..device import cache_dir
from ..errors import FileFormatError
from ..program import Path

_PATHS = 4096
"""Paths in memory, a few kilobytes each."""
FORMAT = 2  # files of the first format, which has no digest, count as absent


class PathCache:
    """A cache of paths, in memory and in one small file per path.

    Concurrent processes see complete files or none; a file that is damaged or cannot be read counts as absent.

    Parameters
    ----------
    folder : path, optional
        The folder; by default, ``paths`` in the cache directory.
    """

    def __init__(self, folder: FilePath | None = None) -> None:
        self._folder = folder
        self._memory: Recent[str, Path] = Recent(_PATHS)

    def find(self, key: str, n_terms: int, search: Callable[[], Path]) -> Path:
        """Return the path of a key, which ``search`` finds if the key is new."""

        def read_or_search() -> Path:
            path = self._read(key, n_terms)
            if path is None:
                path = search()
                self._write(key, path)
            return path

        return self._memory.get(key, read_or_search)

    def _file(self, key: str) -> FilePath:
        return (self._folder or cache_dir() / "paths") / key[:2] / f"{key}.json"

    def _read(self, key: str, n_terms: int) -> Path | None:
        try:
            content = read_json(self._file(key).read_bytes(), "contraction path", FORMAT)
            path = tuple((int(i), int(j)) for i, j in content["path"])
        except (OSError, FileFormatError, ValueError, TypeError, KeyError):
            return None
        left = n_terms
        for i, j in path:
            if not 0 <= i < j < left:
                return None
            left -= 1
        return path if left == 1 else None

    def _write(self, key: str, path: Path) -> None:
        file = self._file(key)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(file, sealed_json("contraction path", FORMAT, path=path))
        except OSError:
            return  # without a cache, planning is slower but correct


def path_key(terms: tuple[Inds, ...], output: Inds, sizes: dict[str, int], *context: object) -> str:
    """Compute a key that does not depend on the names of indices."""
    number: dict[str, int] = {}
    graph = [[number.setdefault(i, len(number)) for i in inds] for inds in (*terms, output)]
    dims = [sizes[i] for i in number]
    return hashlib.sha256(json.dumps([graph, dims, [str(c) for c in context]]).encode()).hexdigest()
