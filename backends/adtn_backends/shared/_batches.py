"""Batches of training data, for every framework."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from adtn._checks import shown
from adtn.errors import CompressError

IGNORED = -100  # the label of entries that do not count


def labels_of(batch: Any) -> Any:
    """Return the labels in ``(inputs, labels)`` or in a mapping.

    Raises
    ------
    CompressError
        If there are none.
    """
    if isinstance(batch, Mapping):
        if "labels" not in batch:
            raise CompressError(f"Got batches of {sorted(batch)}; expected 'labels' as well. Add them, or pass loss=.")
        return batch["labels"]
    if not has_labels(batch):
        raise CompressError("Got batches without labels; pass (inputs, labels), or loss=.")
    return batch[1]


def has_labels(batch: Any) -> bool:
    """Return whether :func:`labels_of` finds labels."""
    return "labels" in batch if isinstance(batch, Mapping) else isinstance(batch, tuple | list) and len(batch) > 1


def logits_of(outputs: Any) -> Any:
    """Return the logits among the outputs of a model, or the outputs themselves where none are called so."""
    if isinstance(outputs, Mapping) and "logits" in outputs:
        return outputs["logits"]
    return getattr(outputs, "logits", outputs)


def class_axis(outputs: Any, labels: Any, whole: bool, *, second: bool = False) -> int:
    """Find the axis of the outputs that has a score for every class.

    Parameters
    ----------
    outputs, labels : array
        What the model returned, and the labels of the batch.
    whole : bool
        Whether the labels are whole numbers.
    second : bool
        Whether it may be the second axis, as for images in PyTorch.

    Raises
    ------
    CompressError
        If the labels are not indices of classes that the outputs score.
    """
    if not hasattr(outputs, "shape"):
        raise CompressError(
            f"Got a {type(outputs).__name__} from the model; expected scores of classes, as an array or as 'logits'. "
            "Pass loss=, and score= to measure it."
        )
    shape, label_shape = tuple(outputs.shape), tuple(labels.shape)
    if whole and shape[:-1] == label_shape:
        return len(shape) - 1
    if whole and second and shape[:1] + shape[2:] == label_shape:
        return 1
    raise CompressError(
        f"Got outputs of shape {shape} and labels of shape {label_shape} and dtype {labels.dtype}; expected the index "
        "of a class for every row of scores. Pass loss= for other tasks, and score= to measure them."
    )


def check_labels(least: int, most: int, classes: int) -> None:
    """Refuse labels that are not indices of classes.

    Raises
    ------
    CompressError
        If a label is out of range; the message says which classes the model has.
    """
    if least < 0 or most >= classes:
        raise CompressError(
            f"Got labels from {least} to {most}; expected indices of the {classes} classes that the model scores, 0 to "
            f"{classes - 1}, or {IGNORED} for entries that do not count."
        )


def check_loss(value: Any) -> Any:
    """Return the value of a user's loss function if it is one number.

    Raises
    ------
    CompressError
        If it is anything else, such as ``None``.
    """
    if value is None or isinstance(value, str | bool) or getattr(value, "shape", ()) not in ((), (1,)):
        raise CompressError(f"Got {shown(value)} from loss(model, batch); expected one number, such as a mean.")
    return value


@contextmanager
def explained(option: str) -> Generator[None, None, None]:
    """Add to errors inside this block which option of a config led to them."""
    try:
        yield
    except CompressError as error:
        raise CompressError(f"{error} (Needed for {option}: leave it out, or pass such batches.)") from error


def cycled(data: Iterable[Any], steps: int) -> Iterator[Any]:
    """Yield ``steps`` batches, starting the data again when they end.

    Raises
    ------
    CompressError
        If the data yield no batch.
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
            raise CompressError("Got data without a batch, or an exhausted iterator; pass a list or a DataLoader.")
