"""A pool of memory for arrays: touching a new page takes longer than computing the product that fills it."""

from __future__ import annotations

import math
import mmap
import os
import threading
from collections import deque
from typing import Any

import numpy as np

# below this, the framework's own allocator reuses memory without asking the system
SMALLEST = 1 << 16
IDLE_BYTES = 256 << 20
"""The most bytes that lie unused, in the whole process."""
_STEP = 1 << 16
_HUGE = 1 << 21


class Pool:
    """A thread-safe pool of memory, to which an array returns its memory when its last view is deleted.

    Measured on two cores: a thin float32 product with a result of 4 MiB takes 3.2 ms in new memory, and 0.6 ms in
    memory that was used before. The pool never holds more memory, used and idle together, than was in use at one time:
    where no idle block has the right size, others are freed to make room.

    Parameters
    ----------
    idle_bytes : int
        The most bytes that lie unused; the oldest blocks are returned to the system.
    """

    def __init__(self, idle_bytes: int = IDLE_BYTES) -> None:
        self.idle_bytes = idle_bytes
        self._lock = threading.Lock()
        self._returned: deque[mmap.mmap] = deque()  # by any thread, at any time
        self._idle: list[mmap.mmap] = []  # oldest first
        self._idle_size = self._live = self._peak = 0

    @property
    def held_bytes(self) -> int:
        """The number of bytes in use and idle."""
        with self._lock:
            self._collect()
            return self._live + self._idle_size

    @property
    def peak_bytes(self) -> int:
        """The most bytes that were in use at one time."""
        return self._peak

    def empty(self, shape: tuple[int, ...], dtype: Any, largest: float = math.inf) -> np.ndarray:
        """Make an uninitialised array; the pool provides its memory unless it takes more than ``largest`` bytes."""
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        if nbytes < SMALLEST or nbytes > largest:
            return np.empty(shape, dtype)
        memory = self._take(_size_class(nbytes))
        lease = _Lease((len(memory),), np.uint8, buffer=memory)
        lease.pool = self
        return np.ndarray(shape, dtype, buffer=lease)

    def renew_lock(self) -> None:
        """Replace the lock in a forked process: a thread that does not exist there may have held it."""
        self._lock = threading.Lock()

    def give_back(self, memory: mmap.mmap) -> None:
        """Take back the memory of an array; called when its last view is deleted."""
        self._returned.append(memory)
        if self._lock.acquire(blocking=False):  # if not, the present or the next owner of the lock collects
            try:
                self._collect()
            finally:
                self._lock.release()

    def _take(self, size: int) -> mmap.mmap:
        with self._lock:
            self._collect()
            self._live += size
            for n in reversed(range(len(self._idle))):
                if len(self._idle[n]) == size:
                    self._idle_size -= size
                    self._peak = max(self._peak, self._live)
                    return self._idle.pop(n)
            self._peak = max(self._peak, self._live)
            self._shrink(self._peak - self._live)
        return _map(size)

    def _collect(self) -> None:
        while self._returned:
            memory = self._returned.popleft()
            self._idle.append(memory)
            self._live -= len(memory)
            self._idle_size += len(memory)
        self._shrink(self.idle_bytes)

    def _shrink(self, most: int) -> None:
        while self._idle_size > most:
            self._idle_size -= len(self._idle.pop(0))


class _Lease(np.ndarray):
    """The base that all views keep alive, and whose deletion returns the memory to the pool.

    NumPy shortens chains of bases that are arrays of the same type. So the memory itself is not an array, and this
    class is a type of its own.
    """

    pool: Pool | None

    def __array_finalize__(self, obj: Any) -> None:
        self.pool = None

    def __del__(self) -> None:
        if self.pool is not None:
            self.pool.give_back(self.base)  # pyright: ignore[reportArgumentType]


def _size_class(nbytes: int) -> int:
    """Round up to one of four sizes per power of two, so that blocks are reused; pages never touched cost nothing."""
    step = max(_STEP, 1 << (nbytes.bit_length() - 3))
    return -(-nbytes // step) * step


def _map(size: int) -> mmap.mmap:
    """Allocate anonymous memory, in huge pages where the system has them."""
    if not hasattr(mmap, "MAP_ANONYMOUS"):
        return mmap.mmap(-1, size)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if size >= _HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


POOL = Pool()
"""The pool of this process, for NumPy's arrays and PyTorch's on the CPU."""


def _after_fork() -> None:
    POOL.renew_lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
