"""The outputs of a PyTorch model for a batch, and its loss."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from adtn.errors import CompressError
from torch import nn

from ..shared._batches import IGNORED, check_labels, check_loss, class_axis, explained, has_labels, labels_of, logits_of


def outputs_of(model: nn.Module, batch: Any) -> Any:
    """Return the outputs for the inputs of a batch, or the logits among them where the model names them."""
    if isinstance(batch, Mapping):
        # encoder-decoder models make the decoder's inputs from the labels
        needs_labels = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
        return logits_of(model(**{k: v for k, v in batch.items() if needs_labels or k != "labels"}))
    return logits_of(model(batch[0] if isinstance(batch, tuple | list) else batch))


def classes_of(model: nn.Module, outputs: Any, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scores, ``(n, classes)``, and labels, ``(n,)``.

    Raises
    ------
    CompressError
        If the labels are not indices of classes that the outputs score.
    """
    labels = labels_of(batch)
    if _shifted(model, batch):
        outputs, labels = outputs[..., :-1, :], labels[..., 1:]
    axis = class_axis(outputs, labels, not labels.is_floating_point(), second=True)
    return outputs.movedim(axis, -1).reshape(-1, outputs.shape[axis]), labels.flatten().long()


def check_range(scores: torch.Tensor, labels: torch.Tensor) -> None:
    """Refuse labels that are not indices of classes, except while a CUDA graph is captured, when they are not read."""
    if labels.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    counted = labels[labels != IGNORED]
    if len(counted):
        check_labels(int(counted.min()), int(counted.max()), scores.shape[-1])


def loss_of(
    model: nn.Module, batch: Any, loss: Callable[..., Any] | None, teacher: nn.Module | None, distill: float
) -> torch.Tensor:
    """Compute the user's loss, the model's own or the cross entropy; a share ``distill`` compares with a teacher."""
    if loss is not None and teacher is None:
        return check_loss(loss(model, batch))
    if loss is None and teacher is not None and distill == 1.0:  # labels are not needed
        with torch.no_grad():
            targets = outputs_of(teacher, batch)
        return _distance(model, outputs_of(model, batch), targets, batch)
    takes_batch = isinstance(batch, Mapping) and (_takes_labels(model) or "labels" not in batch)
    result = model(**batch) if takes_batch else None
    outputs = logits_of(result) if result is not None else outputs_of(model, batch)
    if loss is not None:
        value = check_loss(loss(model, batch))
    elif getattr(result, "loss", None) is not None:
        value = result.loss  # type: ignore[union-attr]
    else:
        scores, labels = classes_of(model, outputs, batch)
        check_range(scores, labels)
        value = nn.functional.cross_entropy(exact(scores), labels)
    if teacher is None:
        return value
    with torch.no_grad():
        targets = outputs_of(teacher, batch)
    return (1.0 - distill) * value + distill * _distance(model, outputs, targets, batch)


def _distance(model: nn.Module, outputs: Any, targets: Any, batch: Any) -> torch.Tensor:
    """Compute the divergence of the classes' probabilities, or the squared error where labels are real numbers."""
    if not isinstance(outputs, torch.Tensor):
        raise CompressError(f"Got distill for a model that returns a {type(outputs).__name__}; expected one tensor.")
    outputs, targets = exact(outputs), exact(targets)
    if has_labels(batch) and labels_of(batch).is_floating_point():
        return nn.functional.mse_loss(outputs, targets)
    both = (outputs, targets)
    if has_labels(batch):
        with explained("distill"):
            both = tuple(classes_of(model, x, batch)[0] for x in both)
    outputs, targets = (x.reshape(-1, x.shape[-1]).log_softmax(-1) for x in both)
    return nn.functional.kl_div(outputs, targets, reduction="batchmean", log_target=True)


def exact(x: torch.Tensor) -> torch.Tensor:
    """Convert half precision to single, as half has too few digits for means."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _takes_labels(model: nn.Module) -> bool:
    """Return whether a model accepts labels and computes its own loss, as models of transformers do."""
    return "labels" in inspect.signature(model.forward).parameters


def _shifted(model: nn.Module, batch: Any) -> bool:
    """Return whether outputs predict the next label, as those of causal language models of transformers do."""
    causal = any(part in type(model).__name__ for part in ("CausalLM", "LMHead"))
    return isinstance(batch, Mapping) and causal and _takes_labels(model)
