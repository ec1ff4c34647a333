"""The outputs of a Flax NNX model for a batch, and its loss, as functions that JAX can trace."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from adtn.errors import CompressError

from ..shared._batches import IGNORED, check_labels, check_loss, class_axis, explained, has_labels, labels_of, logits_of


def outputs_of(model: Any, batch: Any) -> Any:
    """Return the outputs for the inputs of a batch, or the logits among them where the model names them."""
    if isinstance(batch, Mapping):
        outputs = model(**{k: v for k, v in batch.items() if k != "labels"})
    else:
        outputs = model(batch[0] if isinstance(batch, tuple) else batch)
    return logits_of(outputs)


def classes_of(outputs: Any, batch: Any) -> tuple[Any, Any]:
    """Return scores, ``(..., classes)``, and labels, ``(...)``.

    Raises
    ------
    CompressError
        If the labels are not indices of classes that the outputs score.
    """
    labels = labels_of(batch)
    class_axis(outputs, labels, not _is_real(labels))
    return outputs, labels


def check_range(outputs: Any, batch: Any) -> None:
    """Refuse labels that are not indices of classes; only the shapes of the outputs are needed.

    Raises
    ------
    CompressError
        If a label is out of range; the message says which classes the model has.
    """
    if not has_labels(batch):
        return
    labels = np.asarray(labels_of(batch))
    shape: tuple[int, ...] = tuple(getattr(outputs, "shape", ()))
    if labels.dtype.kind in "iu" and shape and shape[:-1] == labels.shape:
        counted = labels[labels != IGNORED]
        if counted.size:
            check_labels(int(counted.min()), int(counted.max()), shape[-1])


def loss_of(model: Any, batch: Any, loss: Callable[..., Any] | None, teacher: Any = None, distill: float = 0.0) -> Any:
    """Compute the user's loss or the cross entropy; a share ``distill`` compares the outputs with a teacher's."""
    if loss is not None and teacher is None:
        return check_loss(loss(model, batch))
    outputs = outputs_of(model, batch)
    if loss is None and teacher is not None and distill == 1.0:  # labels are not needed
        return _distance(outputs, outputs_of(teacher, batch), batch)
    value = _cross_entropy(outputs, batch) if loss is None else check_loss(loss(model, batch))
    if teacher is None:
        return value
    return (1.0 - distill) * value + distill * _distance(outputs, outputs_of(teacher, batch), batch)


def _cross_entropy(outputs: Any, batch: Any) -> Any:
    scores, labels = classes_of(outputs, batch)
    counts = labels != IGNORED
    each = optax.softmax_cross_entropy_with_integer_labels(exact(scores), jnp.where(counts, labels, 0))
    return jnp.where(counts, each, 0.0).sum() / jnp.maximum(counts.sum(), 1)


def _distance(outputs: Any, targets: Any, batch: Any) -> Any:
    """Compute the divergence of the classes' probabilities, or the squared error where labels are real numbers."""
    if not isinstance(outputs, jax.Array):
        raise CompressError(f"Got distill for a model that returns a {type(outputs).__name__}; expected one array.")
    outputs, targets = exact(outputs), exact(targets)
    if has_labels(batch) and _is_real(labels_of(batch)):
        return jnp.square(outputs - targets).mean()
    if has_labels(batch):
        with explained("distill"):
            classes_of(outputs, batch)
    targets = jax.nn.log_softmax(targets)
    return (jnp.exp(targets) * (targets - jax.nn.log_softmax(outputs))).sum(-1).mean()


def exact(x: Any) -> Any:
    """Convert half precision to single, as half has too few digits for means."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _is_real(labels: Any) -> bool:
    return jnp.issubdtype(labels.dtype, jnp.floating)
