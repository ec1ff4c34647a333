"""One update of a PyTorch model: called operation by operation, or recorded as a CUDA graph and replayed."""

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
"""A batch to a differentiable loss."""
_EAGER = 3  # updates before the recording: optimizers and libraries make their buffers in the first ones


def step_of(value: Value, parts: Mapping[float, Sequence[nn.Parameter]], tuning: Tuning) -> Step:
    """The update that a tuning asks for.

    Parameters
    ----------
    value : callable
    parts : mapping of float to sequence of torch.nn.Parameter
        What is trained, by the factor of its learning rate.
    tuning : Tuning

    Raises
    ------
    CompressError
        If it is to be recorded where that is not possible.
    """
    return (RecordedStep if tuning.capture else Step)(value, parts, tuning)


class Step:
    """Loss, gradients, clipping, update; see :func:`step_of`."""

    def __init__(self, value: Value, parts: Mapping[float, Sequence[nn.Parameter]], tuning: Tuning) -> None:
        self.value, self.tuning = value, tuning
        self.trained = [p for own in parts.values() for p in own]
        self.groups: list[dict[str, Any]] = [
            {"params": list(own), "lr": tuning.lr * rate, "initial_lr": tuning.lr * rate} for rate, own in parts.items()
        ]
        self.optimizer = self._optimizer()

    def __call__(self, batch: Any, n: int) -> torch.Tensor:
        """The loss before update ``n``, counted from 0; the next one may overwrite it."""
        self._set_rates(cosine(n, self.tuning.steps))
        return self._done(batch)

    def _optimizer(self) -> torch.optim.Optimizer:
        sgd = self.tuning.optimizer == "sgd"
        return torch.optim.SGD(self.groups, momentum=0.9) if sgd else torch.optim.Adam(self.groups)

    def _set_rates(self, share: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = share * group["initial_lr"]

    def _done(self, batch: Any) -> torch.Tensor:
        return self._update(batch)

    def _update(self, batch: Any) -> torch.Tensor:
        if self.tuning.autocast is None:  # a caller's own stays on
            loss = self.value(batch)
        else:
            with torch.autocast(self.trained[0].device.type, getattr(torch, self.tuning.autocast)):
                loss = self.value(batch)
        if not isinstance(loss, torch.Tensor) or not loss.requires_grad:
            raise CompressError(
                f"Got the loss {shown(loss)}, without a gradient; expected one number that depends on the model."
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.tuning.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.trained, self.tuning.clip)
        self.optimizer.step()
        return loss.detach()


class RecordedStep(Step):
    """A step on CUDA without Python between the kernels: a CUDA graph, recorded at the fourth batch.

    Small generators are hundreds of kernels of a few microseconds each, which take longer to launch than to run.
    Batches of another shape are done operation by operation.
    """

    _before = 0
    _graph: torch.cuda.CUDAGraph | None = None
    _batch: Any = None
    _loss: Any = None

    def _done(self, batch: Any) -> torch.Tensor:
        if self._before < _EAGER:
            self._before += 1
            return self._beside(batch)
        if self._graph is None:
            self._graph = self._recorded(batch)
        mine, given = _tensors(self._batch), _tensors(batch)
        if [(x.shape, x.dtype) for x in mine] != [(x.shape, x.dtype) for x in given]:
            return self._update(batch)
        for x, y in zip(mine, given, strict=True):
            x.copy_(y)
        self._graph.replay()
        return self._loss

    def _optimizer(self) -> torch.optim.Optimizer:
        """An optimizer of which all that changes is on the device."""
        where = self.trained[0].device
        for group in self.groups:
            group["lr"] = torch.tensor(group["lr"], device=where)
        if self.tuning.optimizer == "sgd":
            return torch.optim.SGD(self.groups, momentum=0.9, fused=True)
        return torch.optim.Adam(self.groups, capturable=True)

    def _set_rates(self, share: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"].fill_(share * group["initial_lr"])

    def _beside(self, batch: Any) -> torch.Tensor:
        """Update on another stream than the default one, which a recording must not meet."""
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
                f"Cannot record the training as a CUDA graph ({str(error).splitlines()[0]}): the loss or a layer waits "
                "for the device, or copies from the host. Pass capture=False."
            ) from error
        return graph


def _tensors(batch: Any) -> list[torch.Tensor]:
    """Tensors of a batch in order; what is no tensor stays as it was recorded."""
    if isinstance(batch, Mapping):
        batch = tuple(batch.values())
    if isinstance(batch, tuple | list):
        return [x for part in batch for x in _tensors(part)]
    return [batch] if isinstance(batch, torch.Tensor) else []
