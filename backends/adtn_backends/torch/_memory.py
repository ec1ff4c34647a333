"""What a piece of work allocates: counted tensor by tensor, so that small models show something, too."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):
    """Count the most bytes of tensors that were made inside this block and live at the same time.

    What operators use inside themselves is not seen, and neither is what existed before.

    Examples
    --------
    >>> import torch
    >>> with PeakMemory() as memory:
    ...     x = torch.zeros(1000)
    ...     x = (x + 1.0).sum()
    >>> memory.peak_bytes
    8004
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak_bytes = 0
        self._live: dict[int, tuple[weakref.ref[Any], int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        made = func(*args, **(kwargs or {}))
        for x in tree_leaves(made):
            if not isinstance(x, torch.Tensor):
                continue
            storage = x.untyped_storage()
            key = storage._cdata
            if key not in given and key not in self._live:
                self._live[key] = (weakref.ref(storage, lambda _, key=key: self._live.pop(key, None)), storage.nbytes())
        self.peak_bytes = max(self.peak_bytes, sum(size for _, size in self._live.values()))
        return made
