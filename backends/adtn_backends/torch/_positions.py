"""The positions of the tokens that a model is reading, which its caches are not told."""

from __future__ import annotations

from typing import Any

import torch
from adtn.errors import KVCacheError

from ._listener import Listener
from ._rotary import Rotary


class Positions:
    """A listener to the rotary module of a model, from the first call after its creation until it is closed or deleted.

    A forward pass computes its angles before the first layer and in the thread in which it runs, so the last call of
    this thread is the one by which new keys were rotated, whatever else uses the model.

    Parameters
    ----------
    rotary : Rotary, optional
        Without it, tokens are counted.

    Raises
    ------
    KVCacheError
        If angles depend on more than positions.
    """

    def __init__(self, rotary: Rotary | None) -> None:
        self.rotary = rotary
        self._listener: Listener | None = None
        if rotary is None:
            return
        if rotary.depends_on_length:
            raise KVCacheError(
                f"Got a model with a {type(rotary.module).__name__} whose angles change with the number of tokens. "
                "Keys of one sequence then have angles of several kinds; expected one kind, such as rope_type "
                "'default', 'linear', 'yarn' or 'llama3'."
            )
        self._listener = Listener(rotary.module, rotary.positions_of)

    @property
    def last_call(self) -> int:
        """The number of the last call in this thread; 0 before the first."""
        return 0 if self._listener is None else self._listener.last_call

    def of(self, keys: torch.Tensor, seen: int, used: int) -> torch.Tensor:
        """Return the positions of new keys, ``(batch, heads, length, channels)``, as int32 ``(batch, length)``.

        Parameters
        ----------
        keys : tensor
        seen : int
            The number of tokens before them.
        used : int
            The last call of which the keys are known.

        Raises
        ------
        KVCacheError
            If the model was not heard since then, or what was heard has another shape.
        """
        batch, length = keys.shape[0], keys.shape[-2]
        if self._listener is None:
            return torch.arange(seen, seen + length, dtype=torch.int32, device=keys.device).expand(batch, -1)
        if not self._listener.is_open:
            raise KVCacheError("This cache was closed, so it is not told positions any more. Make another one.")
        if self.last_call <= used:
            raise KVCacheError(
                "Got keys without their positions: the rotary module of the model was not called since the last ones. "
                "Expected a call of the model that the codec is bound to, in the thread of the update; compiled models "
                "call no hooks that were added later."
            )
        found = self._listener.heard
        if found.ndim != 2 or found.shape[0] not in (1, batch) or found.shape[1] != length:
            raise KVCacheError(
                f"Got keys of {batch} sequences of {length} tokens, and positions of shape {tuple(found.shape)}; "
                f"expected ({batch}, {length}). Was the cache given to another model than that of its codec?"
            )
        return found.to(keys.device, torch.int32).expand(batch, -1)

    def close(self) -> None:
        """Stop listening."""
        if self._listener is not None:
            self._listener.close()

    def __deepcopy__(self, memo: dict[int, Any]) -> Positions:
        """Return another listener to the same model."""
        found = memo[id(self)] = Positions(self.rotary)
        return found
