"""One BLAS thread for small products, where distributing work to threads costs more than it saves."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

WORTH_THREADS = 1 << 24
"""The number of operations in a product above which several threads pay off. Time of a fit with two threads relative
to one, measured on two cores: 1.2 (TTN, 512x512, products of 2^23 operations), 1.0 and 0.8 (TTN and MPO, 1024x1024,
products of 2^24 and 2^25)."""

_lock = threading.Lock()
_users = 0
_limit: Any = None


@contextmanager
def blas_threads(flops: float) -> Generator[None]:
    """Limit BLAS to one thread inside this block if the largest product is too small for several.

    The limit applies to the whole process: it is set when the first block begins and lifted when the last one ends,
    whichever threads they run in.

    Parameters
    ----------
    flops : float
        Operations of the largest product; see :data:`WORTH_THREADS`.
    """
    if flops >= WORTH_THREADS:
        yield
        return
    _begin()
    try:
        yield
    finally:
        _end()


def _begin() -> None:
    global _users, _limit
    from threadpoolctl import ThreadpoolController

    with _lock:
        _users += 1
        if _users == 1:
            _limit = ThreadpoolController().limit(limits=1, user_api="blas")


def _end() -> None:
    global _users, _limit
    with _lock:
        _users -= 1
        if _users == 0:
            _limit.restore_original_limits()
            _limit = None
