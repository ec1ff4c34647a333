"""One BLAS thread for small products: handing them out and waiting for each other costs more than it saves."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

WORTH_THREADS = 1 << 24
"""Operations of a product from which several threads pay. Measured on two cores, fits with two threads over one: 1.2
(TTN, 512x512, products of 2^23), 1.0 and 0.8 (TTN and MPO, 1024x1024, products of 2^24 and 2^25)."""

_lock = threading.Lock()
_users = 0
_limit: Any = None


@contextmanager
def blas_threads(flops: float) -> Generator[None]:
    """Give BLAS one thread inside this block, where the largest product has fewer operations than threads are worth.

    The number of threads belongs to the process: it is set when the first block begins and restored when the last one
    ends, whichever threads they are in.
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
