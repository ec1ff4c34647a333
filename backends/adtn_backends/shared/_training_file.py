"""Checkpoints of trainings of whole models, for every framework: a digest of every byte, and of the data."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from adtn._atomic import write_atomic
from adtn._files import KEY, header_text, read_header, read_whole, sealed
from adtn.errors import CompressError, FileFormatError, ModelFileError, OutputWarning
from adtn.optim import fingerprint

FORMAT = 2  # the first one has no header
_KIND = "checkpoint of a training"


class Data:
    """A checkpoint and the data it belongs to, which the first batch stands for.

    The first one alone: draws for later ones may depend on what the model drew in between.

    Parameters
    ----------
    path : path, optional
        Of the checkpoint.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.known = self.first = ""

    def see(self, batch: Any) -> None:
        """The next batch, from the first one on.

        Raises
        ------
        CompressError
            If it is another one than the checkpoint's training had.
        """
        if self.path is None or self.first:
            return
        self.first = fingerprint(batch)
        if self.known not in ("", self.first):
            raise CompressError(
                f"{self.path} belongs to a training with other data: its first batch differs. Delete it to begin anew, "
                "or pass those data."
            )

    def metadata(self) -> dict[str, str]:
        """For the file."""
        return {KEY: header_text(_KIND, FORMAT, first_batch=self.first)}

    def write(self, content: bytes) -> None:
        """Whole or not at all; a full disk is no reason to lose a training."""
        assert self.path is not None
        try:
            write_atomic(self.path, sealed(content))
        except OSError as error:
            text = f"Cannot write the checkpoint {self.path} ({error}); the training goes on without."
            warnings.warn(text, OutputWarning, stacklevel=2)

    def read(self) -> bytes | None:
        """The checked content of the file, nothing where there is none.

        Raises
        ------
        ModelFileError
            If it is damaged.
        """
        if self.path is None or not self.path.exists():
            return None
        try:
            content = read_whole(self.path, "a checkpoint of a training")
            header = read_header(content, _KIND, FORMAT)
            self.known = str(header["first_batch"]) if header is not None else ""
        except (FileFormatError, KeyError) as error:
            raise self.unreadable(error) from error
        return content

    def unreadable(self, error: Exception) -> ModelFileError:
        """What to raise."""
        return ModelFileError(f"Cannot go on from {self.path} ({error}); delete it to begin anew.")
