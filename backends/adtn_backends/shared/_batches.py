"""Batches of training data, for every framework."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from adtn._checks import shown
from adtn.errors import CompressError

IGNORED = -100  # labels that do not count


def labels_of(batch: Any) -> Any:
    """The labels in ``(inputs, labels)`` or in a mapping.

    Raises
    ------
    CompressError
        If there are none.
    """
    if isinstance(batch, Mapping):
        if "labels" not in batch:
            raise CompressError(f"Got batches of {sorted(batch)}; expected 'labels', too, or pass loss=.")
        return batch["labels"]
    if not has_labels(batch):
        raise CompressError("Got batches without labels; pass (inputs, labels), or loss=.")
    return batch[1]


def has_labels(batch: Any) -> bool:
    """Whether :func:`labels_of` finds some."""
    return "labels" in batch if isinstance(batch, Mapping) else isinstance(batch, tuple | list) and len(batch) > 1


def logits_of(outputs: Any) -> Any:
    """Outputs that a model returned, or its logits where it calls something so."""
    if isinstance(outputs, Mapping) and "logits" in outputs:
        return outputs["logits"]
    return getattr(outputs, "logits", outputs)


def class_axis(outputs: Any, labels: Any, whole: bool, *, second: bool = False) -> int:
    """The axis of the outputs that has a score for every class.

    Parameters
    ----------
    outputs, labels : array
    whole : bool
        Whether labels are whole numbers.
    second : bool
        Whether it may be the second axis, as of images in PyTorch.

    Raises
    ------
    CompressError
        If the labels do not number classes that the outputs score.
    """
    if not hasattr(outputs, "shape"):
        raise CompressError(
            f"The model returns a {type(outputs).__name__}; expected scores of classes, by themselves or as 'logits'. "
            "Pass loss=, and score= to measure it."
        )
    shape, given = tuple(outputs.shape), tuple(labels.shape)
    if whole and shape[:-1] == given:
        return len(shape) - 1
    if whole and second and shape[:1] + shape[2:] == given:
        return 1
    raise CompressError(
        f"Got outputs of {shape} and labels of {given}, {labels.dtype}; expected the number of a class for every row "
        "of scores. Pass loss= for other tasks, and score= to measure them."
    )


def check_labels(least: int, most: int, classes: int) -> None:
    """Refuse labels that number no class.

    Raises
    ------
    CompressError
        Which the model has, and which the labels name.
    """
    if least < 0 or most >= classes:
        raise CompressError(
            f"Got labels from {least} to {most}; expected numbers of the {classes} classes that the model scores, 0 to "
            f"{classes - 1}, or {IGNORED} for what does not count."
        )


def check_loss(value: Any) -> Any:
    """Return what a caller's loss returned, if it is one number.

    Raises
    ------
    CompressError
        If it is something else, such as nothing.
    """
    if value is None or isinstance(value, str | bool) or getattr(value, "shape", ()) not in ((), (1,)):
        raise CompressError(f"Got {shown(value)} from loss(model, batch); expected one number, such as a mean.")
    return value


@contextmanager
def explained(option: str) -> Generator[None, None, None]:
    """Errors inside say which option of a config led to them."""
    try:
        yield
    except CompressError as error:
        raise CompressError(f"{error} (This is what {option} needs: leave it out, or give it such batches.)") from error


def cycled(data: Iterable[Any], steps: int) -> Iterator[Any]:
    """So many batches, beginning anew when the data are over.

    Raises
    ------
    CompressError
        If there is none.
    """
    taken = 0
    while taken < steps:
        before = taken
        for batch in data:
            if taken == steps:
                return
            taken += 1
            yield batch
        if taken == before:
            raise CompressError(
                "Got data without a batch, or an iterator that is used up; pass a list or a DataLoader."
            )
