"""The memory that code allocates, counted tensor by tensor, so that small models can be measured as well."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):
    """A context that measures the peak memory of the tensors that are made inside it.

    Memory that operators use internally, and tensors that existed before, do not count.

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
        inputs = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}  # pyright: ignore[reportPrivateUsage]
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if not isinstance(x, torch.Tensor):
                continue
            storage = x.untyped_storage()
            key = storage._cdata  # pyright: ignore[reportPrivateUsage]
            if key not in inputs and key not in self._live:
                self._live[key] = (weakref.ref(storage, lambda _, key=key: self._live.pop(key, None)), storage.nbytes())
        self.peak_bytes = max(self.peak_bytes, sum(size for _, size in self._live.values()))
        return result
