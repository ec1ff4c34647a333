"""Checkpoints of the training of whole models, for every framework, with digests of their content and of the data."""

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
_KIND = "checkpoint of a training"  # part of the format


class Checkpoint(Protocol):
    """The state of a training, and the file to which it is written."""

    data: Data

    def write(self, losses: list[float]) -> None:
        """Write the training as it is now."""
        ...

    def read(self) -> list[float]:
        """Restore a training that was interrupted, and return its losses; none where there is no file."""
        ...

    def restore_random(self) -> None:
        """Continue the random numbers where they were at the checkpoint."""
        ...


def run(
    training: Checkpoint,
    step: Callable[[Any, int], float],
    batches: Iterator[Any],
    tuning: Tuning,
    report: Callable[[int, float], bool | None],
) -> list[float]:
    """Do the remaining steps of a training, and return the losses of all steps.

    Parameters
    ----------
    training : Checkpoint
        The training, which may have been interrupted.
    step : callable
        ``step(batch, n)`` does update ``n``, counted from 0, and returns the loss before it.
    batches : iterator
        One batch per step, from the first step on.
    tuning : Tuning
        The options of the training.
    report : callable
        ``report(step, loss)`` is called after each step; a true result ends the training.

    Raises
    ------
    CompressError
        If a loss is not finite, or the data are not those of the checkpoint.
    """
    losses = training.read()
    for _, batch in zip(list(losses), batches, strict=False):  # draw the batches of the steps that are done
        training.data.see(batch)
    training.restore_random()
    for batch in batches:
        training.data.see(batch)
        losses.append(step(batch, len(losses)))
        tuning.check(losses)
        stops = report(len(losses), losses[-1])
        if tuning.checkpoint is not None and len(losses) % tuning.every == 0:
            training.write(losses)
        if stops:
            break
    return losses


def cosine(n: int, steps: int) -> float:
    """Return the factor of the learning rate at update ``n``, counted from 0, which falls from 1 to 0."""
    return 0.5 * (1.0 + math.cos(math.pi * n / max(steps, 1)))


class Data:
    """A checkpoint file and the data it belongs to, which are identified by their first batch.

    Later batches may depend on random numbers that the model draws in between, so they are not compared.

    Parameters
    ----------
    path : path, optional
        The path of the checkpoint.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.expected = self.first = ""

    def see(self, batch: Any) -> None:
        """Compare the first batch with that of the checkpoint; later batches are ignored.

        Raises
        ------
        CompressError
            If the first batch differs from that of the checkpoint's training.
        """
        if self.path is None or self.first:
            return
        self.first = fingerprint(batch)
        if self.expected not in ("", self.first):
            raise CompressError(
                f"{self.path} belongs to a training with other data: its first batch differs. Delete it to start from "
                "the beginning, or pass the same data."
            )

    def metadata(self) -> dict[str, str]:
        """Return the metadata of the file."""
        return {KEY: header_text(_KIND, FORMAT, first_batch=self.first)}

    def write(self, content: bytes) -> None:
        """Write the file atomically; if that fails, as on a full disk, warn and let the training continue."""
        assert self.path is not None
        try:
            write_atomic(self.path, sealed(content))
        except OSError as error:
            message = f"Cannot write the checkpoint {self.path} ({error}); the training continues without it."
            warnings.warn(message, OutputWarning, stacklevel=2)

    def read(self) -> bytes | None:
        """Return the verified content of the file, or ``None`` where there is no file.

        Raises
        ------
        ModelFileError
            If the file is damaged.
        """
        if self.path is None or not self.path.exists():
            return None
        try:
            content = read_whole(self.path, "a checkpoint of a training")
            header = read_header(content, _KIND, FORMAT)
            self.expected = str(header["first_batch"]) if header is not None else ""
        except (FileFormatError, KeyError) as error:
            raise self.unreadable(error) from error
        return content

    def unreadable(self, error: Exception) -> ModelFileError:
        """Make the error for a file that cannot be read."""
        return ModelFileError(
            f"Cannot continue from the checkpoint {self.path} ({error}); delete it to start from the beginning."
        )
