"""Passes of a PyTorch model that begin where nothing changes any more, or that are differentiated."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from ..shared._model import ReplacedModel
from ._chain import Chain, chain_of
from ._gradients import frozen, output_moments
from ._loss import exact, loss_of, outputs_of
from .layers._kind import no_rows
from .layers._kinds import kind_of

_MOST = 0.8  # of the layers, for which passes are short; in a residual network of several stages they are not


class ModelWithPasses(ReplacedModel):
    """A part of :class:`TorchModel`: its passes for closed forms and for the choice among them."""

    model: nn.Module
    _chain: Chain | None = None  # while weights change in turn

    @abstractmethod
    def _to_device(self, batch: Any) -> Any:
        """Move a batch to the device of the model."""

    @abstractmethod
    def _owner(self, name: str) -> tuple[Any, str]:
        """Return the dense module of a weight, and which of its weights it is; empty for its only one."""

    @contextmanager
    def in_turn(self, batch: Any) -> Generator[bool, None, None]:
        """Let passes inside this block skip the blocks of a chain in which nothing changes any more."""
        with self._evaluating(), frozen(self._dense.eval()):
            self._chain = chain_of(self._dense, lambda: outputs_of(self._dense, self._to_device(batch)))
        try:
            inside = self._chain is not None and sum(map(self._chain.holds, self._originals))
            yield inside > _MOST * len(self._originals)
        finally:
            self._chain = None

    def _resumed(self, model: nn.Module, key: Any, names: Sequence[str]) -> AbstractContextManager[None]:
        return nullcontext() if self._chain is None else self._chain.resumed(model, key, names)

    def _gradients(
        self, names: Sequence[str], data: Iterable[Any], loss: Callable[..., Any] | None
    ) -> dict[str, np.ndarray]:
        with self._evaluating(), frozen(self.model), torch.enable_grad():
            cores = {name: next(iter(self._weights[name].parameters())).requires_grad_() for name in names}
            count = 0
            for batch in map(self._to_device, data):
                count += 1
                loss_of(self.model, batch, loss, None, 0.0).backward()
        found = {name: p.grad for name, p in cores.items() if p.grad is not None}
        return {name: exact(g).cpu().numpy().reshape(self._weights[name].shape) / count for name, g in found.items()}

    def output_moments(self, names: Sequence[str], data: Iterable[Any], *, classes: bool) -> dict[str, np.ndarray]:
        """Compute the second moments of gradients of the outputs of layers whose weights are applied to rows."""
        watched: dict[str, tuple[nn.Module, int]] = {}
        for name in names:
            dense, part = self._owner(name)
            if not part and kind_of(dense).rows is not no_rows:
                watched[name] = self.model.get_submodule(name), kind_of(dense).outputs
        batches = map(self._to_device, data)
        with self._evaluating(), frozen(self.model):
            return output_moments(partial(outputs_of, self.model), watched, batches, classes=classes)
