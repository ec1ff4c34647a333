"""A listener to the calls of one module of a model."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

_calls = itertools.count(1)


class Listener:
    """A listener to a module, from its creation until it is closed or deleted.

    Other threads that call the module are not heard, so one model can serve several caches at once.

    Parameters
    ----------
    module : Module
    read : callable
        Takes what the module was called with, positional and by name, and returns what is of interest, if anything.
    """

    def __init__(
        self, module: nn.Module, read: Callable[[tuple[Any, ...], dict[str, Any]], torch.Tensor | None]
    ) -> None:
        self._last = threading.local()
        own = weakref.ref(self)

        def listen(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], result: Any) -> None:
            listener = own()
            found = None if listener is None else read(arguments, named)
            if listener is not None and found is not None:
                listener._last.call, listener._last.heard = next(_calls), found.detach()

        handle = module.register_forward_hook(listen, with_kwargs=True)
        self._stop = weakref.finalize(self, handle.remove)
        self._stop.atexit = False

    @property
    def last_call(self) -> int:
        """The number of the last call in this thread; 0 before the first."""
        return getattr(self._last, "call", 0)

    @property
    def heard(self) -> torch.Tensor:
        """The value that was read at the last call in this thread."""
        return self._last.heard

    @property
    def is_open(self) -> bool:
        """Whether it still listens."""
        return self._stop.alive

    def close(self) -> None:
        """Stop listening."""
        self._stop()
