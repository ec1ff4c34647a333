"""A training step of a PyTorch model: run operation by operation, or captured as a CUDA graph and replayed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from adtn._checks import shown
from adtn.compression import Tuning
from adtn.errors import CompressError
from torch import nn

from ..shared._training_file import cosine

Value: TypeAlias = Callable[[Any], torch.Tensor]
"""A function from a batch to a differentiable loss."""
_EAGER = 3  # updates before the capture, in which optimizers and libraries allocate their buffers


def step_of(value: Value, parts: Mapping[float, Sequence[nn.Parameter]], tuning: Tuning) -> Step:
    """Make the training step for the given options.

    Parameters
    ----------
    value : callable
        A function from a batch to the loss.
    parts : mapping of float to sequence of torch.nn.Parameter
        The trained parameters, by the factor of their learning rate.
    tuning : Tuning
        The options of the training.

    Raises
    ------
    CompressError
        If the step cannot be captured as a CUDA graph as requested.
    """
    return (RecordedStep if tuning.capture else Step)(value, parts, tuning)


class Step:
    """A training step: loss, gradients, clipping and update; see :func:`step_of`."""

    def __init__(self, value: Value, parts: Mapping[float, Sequence[nn.Parameter]], tuning: Tuning) -> None:
        self.value, self.tuning = value, tuning
        self.trained = [p for params in parts.values() for p in params]
        self.groups: list[dict[str, Any]] = [
            {"params": list(params), "lr": tuning.lr * rate, "initial_lr": tuning.lr * rate}
            for rate, params in parts.items()
        ]
        self.optimizer = self._optimizer()

    def __call__(self, batch: Any, n: int) -> torch.Tensor:
        """Do update ``n``, counted from 0, and return the loss before it, which the next update may overwrite."""
        self._set_rates(cosine(n, self.tuning.steps))
        return self._run(batch)

    def _optimizer(self) -> torch.optim.Optimizer:
        sgd = self.tuning.optimizer == "sgd"
        return torch.optim.SGD(self.groups, momentum=0.9) if sgd else torch.optim.Adam(self.groups)

    def _set_rates(self, share: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = share * group["initial_lr"]

    def _run(self, batch: Any) -> torch.Tensor:
        return self._update(batch)

    def _update(self, batch: Any) -> torch.Tensor:
        if self.tuning.autocast is None:  # autocast of the caller stays on
            loss = self.value(batch)
        else:
            with torch.autocast(self.trained[0].device.type, getattr(torch, self.tuning.autocast)):
                loss = self.value(batch)
        if not isinstance(loss, torch.Tensor) or not loss.requires_grad:
            raise CompressError(
                f"Got the loss {shown(loss)}, which has no gradient; expected one number that depends on the model."
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.tuning.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.trained, self.tuning.clip)
        self.optimizer.step()
        return loss.detach()


class RecordedStep(Step):
    """A step that is captured as a CUDA graph at the fourth batch, so that no Python runs between the kernels.

    Small generators consist of hundreds of kernels of a few microseconds, which take longer to launch than to run.
    Batches of another shape are run operation by operation.
    """

    _before = 0
    _graph: torch.cuda.CUDAGraph | None = None
    _batch: Any = None
    _loss: Any = None

    def _run(self, batch: Any) -> torch.Tensor:
        if self._before < _EAGER:
            self._before += 1
            return self._on_side_stream(batch)
        if self._graph is None:
            self._graph = self._recorded(batch)
        static_inputs, inputs = _tensors(self._batch), _tensors(batch)
        if [(x.shape, x.dtype) for x in static_inputs] != [(x.shape, x.dtype) for x in inputs]:
            return self._update(batch)
        for x, y in zip(static_inputs, inputs, strict=True):
            x.copy_(y)
        self._graph.replay()
        return self._loss

    def _optimizer(self) -> torch.optim.Optimizer:
        """Make an optimizer whose changing state is all on the device."""
        where = self.trained[0].device
        for group in self.groups:
            group["lr"] = torch.tensor(group["lr"], device=where)
        if self.tuning.optimizer == "sgd":
            return torch.optim.SGD(self.groups, momentum=0.9, fused=True)
        return torch.optim.Adam(self.groups, capturable=True)

    def _set_rates(self, share: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"].fill_(share * group["initial_lr"])

    def _on_side_stream(self, batch: Any) -> torch.Tensor:
        """Update on a side stream, as CUDA graphs require before a capture."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            loss = self._update(batch)
        torch.cuda.current_stream().wait_stream(stream)
        return loss

    def _recorded(self, batch: Any) -> torch.cuda.CUDAGraph:
        self._batch = copy.deepcopy(batch)
        graph = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad(set_to_none=True)
        try:
            with torch.cuda.graph(graph):
                self._loss = self._update(self._batch)
        except RuntimeError as error:
            raise CompressError(
                f"Cannot capture the training as a CUDA graph ({str(error).splitlines()[0]}): the loss or a layer "
                "waits for the device, or copies from the host. Pass capture=False."
            ) from error
        return graph


def _tensors(batch: Any) -> list[torch.Tensor]:
    """Return the tensors of a batch in order; other objects keep the values of the captured batch."""
    if isinstance(batch, Mapping):
        batch = tuple(batch.values())
    if isinstance(batch, tuple | list):
        return [x for part in batch for x in _tensors(part)]
    return [batch] if isinstance(batch, torch.Tensor) else []
