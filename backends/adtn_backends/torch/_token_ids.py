"""The ids of the tokens that a model is reading, which its caches are not told."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import torch
from torch import nn

from ._listener import Listener


class TokenIds:
    """A listener to the embedding of a model; ids serve compression only, so what is not heard is unknown.

    Parameters
    ----------
    embedding : Module, optional
        Without it, all ids are unknown.
    """

    def __init__(self, embedding: nn.Module | None) -> None:
        self.embedding = embedding
        self._listener = None if embedding is None else Listener(embedding, _ids_of)
        self._shared: weakref.WeakValueDictionary[bytes, np.ndarray] = weakref.WeakValueDictionary()

    @property
    def last_call(self) -> int:
        """The number of the last call in this thread; 0 before the first."""
        return 0 if self._listener is None else self._listener.last_call

    def of(self, keys: torch.Tensor, used: int) -> torch.Tensor:
        """Return the ids of new keys, ``(batch, heads, length, channels)``, as int32 ``(batch, length)``.

        They are -1 where the model was called with vectors in place of ids.

        Parameters
        ----------
        keys : tensor
        used : int
            The last call of which the keys are known.
        """
        shape = keys.shape[0], keys.shape[-2]
        if self._listener is not None and self.last_call > used:
            found = self._listener.heard
            if found.ndim == 2 and found.shape[0] in (1, shape[0]) and found.shape[1] == shape[1]:
                return found.to(keys.device, torch.int32).expand(shape)
        return torch.full(shape, -1, dtype=torch.int32, device=keys.device)

    def shared(self, ids: np.ndarray) -> np.ndarray:
        """Return ids in the smallest dtype; all layers get the same array."""
        small = ids.astype(np.uint16 if ids.size and ids.min() >= 0 and ids.max() < 2**16 else np.int32)
        return self._shared.setdefault(small.dtype.char.encode() + small.tobytes(), small)

    def close(self) -> None:
        """Stop listening."""
        if self._listener is not None:
            self._listener.close()

    def __deepcopy__(self, memo: dict[int, Any]) -> TokenIds:
        """Return another listener to the same model."""
        found = memo[id(self)] = TokenIds(self.embedding)
        return found


def _ids_of(arguments: tuple[Any, ...], named: dict[str, Any]) -> torch.Tensor | None:
    found = arguments[0] if arguments else named.get("input")
    is_ids = isinstance(found, torch.Tensor) and not found.is_floating_point()
    return found if is_ids else None
