"""Checkpoints of trainings of whole models, for every framework: a digest of every byte, and of the data."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from adtn._atomic import write_atomic
from adtn._files import KEY, header_text, read_header, read_whole, sealed
from adtn.compression import Tuning
from adtn.errors import CompressError, FileFormatError, ModelFileError, OutputWarning
from adtn.optim import fingerprint

FORMAT = 2  # the first one has no header
_KIND = "checkpoint of a training"


class Checkpoint(Protocol):
    """The state of a training, and where it is written."""

    data: Data

    def write(self, losses: list[float]) -> None:
        """Write the training as it is now."""
        ...

    def read(self) -> list[float]:
        """Read a training that was cut off; returns its losses, none where there is no file."""
        ...

    def restore_random(self) -> None:
        """Let random numbers go on where they were."""
        ...


def run(
    training: Checkpoint,
    step: Callable[[Any, int], float],
    batches: Iterator[Any],
    tuning: Tuning,
    report: Callable[[int, float], None],
) -> list[float]:
    """Do all steps of a training that is not done yet; returns the losses.

    Parameters
    ----------
    training : Checkpoint
    step : callable
        ``step(batch, n)``, an update that is counted from 0; returns the loss before it.
    batches : iterator
    tuning : Tuning
    report : callable
        ``report(step, loss)`` after each.

    Raises
    ------
    CompressError
        If a loss is not finite, or the data are not those of the checkpoint.
    """
    losses = training.read()
    for _, batch in zip(list(losses), batches, strict=False):  # the data draw what they drew
        training.data.see(batch)
    training.restore_random()
    for batch in batches:
        training.data.see(batch)
        losses.append(step(batch, len(losses)))
        tuning.check(losses)
        report(len(losses), losses[-1])
        if tuning.checkpoint is not None and len(losses) % tuning.every == 0:
            training.write(losses)
    return losses


def cosine(n: int, steps: int) -> float:
    """The share of the learning rate before update ``n``, counted from 0: from 1 down to 0."""
    return 0.5 * (1.0 + math.cos(math.pi * n / max(steps, 1)))


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
        """Metadata of the file."""
        return {KEY: header_text(_KIND, FORMAT, first_batch=self.first)}

    def write(self, content: bytes) -> None:
        """Write the file whole or not at all; a full disk is no reason to lose a training."""
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
        """The error to raise."""
        return ModelFileError(f"Cannot go on from {self.path} ({error}); delete it to begin anew.")
