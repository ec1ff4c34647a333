"""One update of a PyTorch model: called operation by operation, or recorded as a CUDA graph and replayed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from adtn._errors import CompressError
from torch import nn

_EAGER = 3  # updates before the recording: optimizers and libraries make their buffers in the first ones


class Step:
    """Loss, gradients, clipping, update.

    Parameters
    ----------
    value : callable
        ``(batch) -> loss``, differentiable.
    trained : sequence of torch.nn.Parameter
    optimizer : torch.optim.Optimizer
        Of these; its groups have an ``"initial_lr"``.
    clip : float or None
        Largest norm of all gradients together.
    """

    def __init__(
        self,
        value: Callable[[Any], torch.Tensor],
        trained: Sequence[nn.Parameter],
        optimizer: torch.optim.Optimizer,
        clip: float | None,
    ) -> None:
        self.value, self.trained, self.optimizer, self.clip = value, trained, optimizer, clip

    def __call__(self, batch: Any, share: float) -> torch.Tensor:
        """The loss before the update, at a share of the initial learning rates."""
        self.set_rates(share)
        return self.update(batch)

    def set_rates(self, share: float) -> None:
        """Of all groups; a recorded update reads them from tensors."""
        for group in self.optimizer.param_groups:
            rate = share * group["initial_lr"]
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def update(self, batch: Any) -> torch.Tensor:
        """The loss before the update."""
        loss = self.value(batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.trained, self.clip)
        self.optimizer.step()
        return loss.detach()


class RecordedStep(Step):
    """The same on CUDA, without Python between the kernels: a CUDA graph, recorded at the fourth batch.

    Small generators are hundreds of kernels of a few microseconds each, which take longer to launch than to run.
    Batches of another shape are done operation by operation.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._done = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._batch: Any = None
        self._loss: Any = None

    def __call__(self, batch: Any, share: float) -> torch.Tensor:
        """The loss before the update, at a share of the initial learning rates."""
        self.set_rates(share)
        if self._done < _EAGER:
            self._done += 1
            return self._beside(batch)
        if self._graph is None:
            self._record(batch)
        assert self._graph is not None
        mine, given = _tensors(self._batch), _tensors(batch)
        if [(x.shape, x.dtype) for x in mine] != [(x.shape, x.dtype) for x in given]:
            return self.update(batch)
        for x, y in zip(mine, given, strict=True):
            x.copy_(y)
        self._graph.replay()
        return self._loss

    def _beside(self, batch: Any) -> torch.Tensor:
        """On another stream than the default one, which a recording must not meet."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            loss = self.update(batch)
        torch.cuda.current_stream().wait_stream(stream)
        return loss

    def _record(self, batch: Any) -> None:
        self._batch = copy.deepcopy(batch)
        graph = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad(set_to_none=True)
        try:
            with torch.cuda.graph(graph):
                self._loss = self.update(self._batch)
        except RuntimeError as error:
            raise CompressError(
                f"Cannot record the training as a CUDA graph ({str(error).splitlines()[0]}): the loss or a layer waits "
                "for the device, or copies from the host. Pass capture=False."
            ) from error
        self._graph = graph


def _tensors(batch: Any) -> list[torch.Tensor]:
    """In order."""
    if isinstance(batch, Mapping):
        batch = tuple(batch.values())
    if isinstance(batch, tuple | list):
        return [x for part in batch for x in _tensors(part)]
    return [batch]
