"""Second moments of gradients with respect to the outputs of layers, which tell what errors of their weights cost.

Labels are drawn from the outputs of the model itself, and for other outputs random directions, so that the squares of
the gradients have the curvature of the distance between outputs as their mean.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from adtn.errors import CompressError
from torch import nn

from ..shared._model import spaced_outputs
from ..shared._moments import Moments
from ._loss import exact

_SEED = 0  # of labels and directions


def output_moments(
    run: Callable[[Any], Any], watched: Mapping[str, tuple[nn.Module, int]], batches: Iterable[Any], *, classes: bool
) -> dict[str, np.ndarray]:
    """Compute sums of ``g gᵀ`` over the outputs of layers, per row of the model's outputs.

    Parameters
    ----------
    run : callable
        ``run(batch)`` returns the outputs of the model, one tensor.
    watched : mapping of str to (torch.nn.Module, int)
        The layers, with the axis of their outputs that has the rows of the weight.
    batches : iterable of batches
    classes : bool
        Whether the last axis of the outputs has scores of classes.

    Returns
    -------
    dict of str to numpy.ndarray
        ``(n_out, n_out)`` in single precision: with it, ``tr(G D C Dᵀ)`` is the expected loss of a change D, where C is
        the mean of ``x xᵀ`` over the inputs.

    Raises
    ------
    CompressError
        If a layer or the whole model is not differentiable, or its outputs are not one tensor of finite numbers.
    """
    moments = Moments()
    power, first, count = 0.0, torch.zeros(()), 0
    random: torch.Generator | None = None

    def take(name: str, axis: int, gradient: torch.Tensor) -> None:
        rows = exact(gradient.movedim(axis, -1).reshape(-1, gradient.shape[axis]))
        moments.add_product(name, rows, rows)

    for n, batch in enumerate(batches):
        with _graph_through(watched, take):
            outputs = _differentiable(run(batch), n)
            random = random or torch.Generator(outputs.device).manual_seed(_SEED)
            (_of_labels if classes else _in_directions)(outputs, random).backward()
        rows = outputs.detach().double()
        count, power, first = count + len(rows), power + float(rows.square().sum()), first + rows.sum(0).cpu()
    if not count:
        return {}
    variance = power / count - float((first / count).square().sum())
    scale = 0.5 / count if classes else 1.0 / max(count * variance, np.finfo(float).tiny)
    return {name: (scale * total).astype(np.float32) for name, total in moments.sums().items()}


def _differentiable(y: Any, batch: int) -> torch.Tensor:
    """Return ``(rows, columns)`` of the outputs for a batch."""
    if not isinstance(y, torch.Tensor) or not y.ndim:
        what = "a number" if isinstance(y, torch.Tensor) else f"a {type(y).__name__}"
        raise CompressError(
            f"Got {what} from the model; expected one tensor (batch, ..., outputs), or an object with logits, as "
            "gradients of its outputs are needed. Compress a module that returns one tensor, or leave out the stage "
            "'truncate'."
        )
    if not y.isfinite().all():
        raise CompressError(
            f"Got outputs of the model that are NaN or infinite for batch {batch}; expected finite numbers. Check the "
            "data and the dtype of the model."
        )
    if not y.requires_grad:
        raise CompressError(
            "Got outputs of the model without gradients; expected that they depend on its layers. Do not run the model "
            "under torch.no_grad and do not detach its outputs, or leave out the stage 'truncate'."
        )
    return exact(spaced_outputs(y))


@contextmanager
def frozen(model: nn.Module) -> Generator[None, None, None]:
    """Differentiate no parameter inside this block."""
    own = [p for p in model.parameters() if p.requires_grad]
    for p in own:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in own:
            p.requires_grad_(True)


def _of_labels(scores: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """Return the log-likelihood of labels that are drawn from the scores: its Hessian is that of the divergence."""
    log_p = scores.log_softmax(-1)
    labels = torch.multinomial(log_p.detach().exp(), 1, generator=random)
    return log_p.gather(-1, labels).sum()


def _in_directions(outputs: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """Return the products with random directions, whose squares are the squared norms on average."""
    directions = torch.randn(outputs.shape, generator=random, device=outputs.device, dtype=outputs.dtype)
    return (directions * outputs).sum()


@contextmanager
def _graph_through(
    watched: Mapping[str, tuple[nn.Module, int]], take: Callable[[str, int, torch.Tensor], None]
) -> Generator[None, None, None]:
    """Build a graph from the outputs of layers on inside this block; their gradients are taken in its backward pass."""

    def hooked(name: str, axis: int) -> Any:
        def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            if not torch.is_grad_enabled():
                raise CompressError(
                    f"Got a model that runs {name} under torch.no_grad; expected that gradients pass it. Compress it "
                    "without no_grad, exclude this layer, or leave out the stage 'truncate'."
                )
            if not output.requires_grad:  # parameters are not differentiated, so the graph begins here
                output = output + torch.zeros((), dtype=output.dtype, device=output.device, requires_grad=True)
            output.register_hook(lambda gradient: take(name, axis, gradient))
            return output

        return hook

    hooks = [module.register_forward_hook(hooked(name, axis)) for name, (module, axis) in watched.items()]
    try:
        with torch.enable_grad():
            yield
    finally:
        for hook in hooks:
            hook.remove()
