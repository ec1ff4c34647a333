"""The common part of a codec and a parked prefix: each is one file of arrays, with a digest of every byte."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np

from .._atomic import write_atomic
from .._files import KEY, check_writable, header_text, read_header, sealed
from ..errors import FileFormatError


class Stored(ABC):
    """A value that is saved as one safetensors file."""

    file_kind: ClassVar[str]
    """What the file is, in its header and in messages."""
    file_format: ClassVar[int]
    """The newest format that is read."""

    @abstractmethod
    def _content(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return the arrays, by name, and the entries of the header."""

    @classmethod
    @abstractmethod
    def _of_content(cls, arrays: Mapping[str, np.ndarray], header: Mapping[str, Any]) -> Self:
        """Build the object; what is missing raises ``KeyError``."""

    @property
    def _format(self) -> int:
        """The format that is written: an old one for what has nothing new, so that its digest stays the same."""
        return self.file_format

    def to_bytes(self) -> bytes:
        """Return the content of the file that :meth:`save` writes."""
        from safetensors.numpy import save

        arrays, header = self._content()
        own = {name: np.ascontiguousarray(x) for name, x in arrays.items()}
        return sealed(save(own, {KEY: header_text(self.file_kind, self._format, **header)}))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what :meth:`to_bytes` returns.

        Raises
        ------
        FileFormatError
            If it is damaged, or is something else.
        """
        from safetensors.numpy import load

        header = read_header(data, cls.file_kind, cls.file_format)
        if header is None:
            raise FileFormatError(f"This is not a {cls.file_kind}: it has no adtn header.")
        try:
            return cls._of_content(load(data), header)
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(f"The {cls.file_kind} cannot be read ({error!r}).") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file, atomically.

        Raises
        ------
        OutputError
            If nothing can be written there.
        """
        check_writable(path, "path", "file")
        write_atomic(path, self.to_bytes())

    @cached_property
    def nbytes(self) -> int:
        """The size of the file."""
        return len(self.to_bytes())
