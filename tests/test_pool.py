"""Pooled memory: never shared by two live arrays, and reused when no array refers to it."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from adtn.backends import get_backend
from hypothesis import given
from hypothesis import strategies as st

from adtn_backends.shared._pool import Pool
from table import to_numpy


@pytest.mark.parametrize("name", ["numpy", "torch"])
@given(data=st.data())
def test_living_results_keep_their_values(name: str, data: st.DataObject) -> None:
    pytest.importorskip(name)
    backend = get_backend(name)
    space = backend.workspace()
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    alive: list[tuple] = []
    compute = backend.compile(lambda f: f())
    for _ in range(data.draw(st.integers(1, 12))):
        x = rng.standard_normal((256, 192))  # results above the size from which memory is pooled
        y = backend.asarray(x, "cpu", "float64")
        if data.draw(st.booleans()):
            got, want = compute(lambda y=y: space.matmul(y, y.T)), x @ x.T
        else:
            got, want = compute(lambda y=y: space.packed(y.T, (96, 512))), x.T.reshape(96, 512)
        if data.draw(st.booleans()):  # a view alone must keep the memory alive as well
            got, want = got[3:, ::2], want[3:, ::2]
        alive.append((got, want))
        del got
        if alive and data.draw(st.booleans()):
            alive.pop(data.draw(st.integers(0, len(alive) - 1)))
        for got, want in alive:
            np.testing.assert_allclose(to_numpy(got), want, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("name", ["numpy", "torch"])
@pytest.mark.parametrize("stack", [(), (3,), (2, 3)], ids=str)
def test_stacks_of_products(name: str, stack: tuple[int, ...]) -> None:
    pytest.importorskip(name)
    backend = get_backend(name)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((*stack, 128, 80)), rng.standard_normal((*stack, 80, 96))
    got = backend.workspace().matmul(*(backend.asarray(a, "cpu", "float64") for a in (x, y)))
    np.testing.assert_allclose(to_numpy(got), x @ y, rtol=1e-12, atol=1e-10)


def test_nobody_waits_to_give_memory_back() -> None:
    """Free memory while the lock is held, as the garbage collector may do in the thread that allocates."""
    pool = Pool()
    alive = [pool.empty((1 << 18,), np.uint8)]
    thread = threading.Thread(target=alive.clear, daemon=True)
    with pool._lock:
        thread.start()
        thread.join(10.0)
        waits = thread.is_alive()
    assert not waits and pool.held_bytes == 1 << 18


def test_memory_comes_back() -> None:
    space = get_backend("numpy").workspace()
    x = np.ones((300, 300))
    first = space.matmul(x, x)
    place = first.ctypes.data
    second = space.matmul(x, x)
    assert second.ctypes.data != place
    del first
    assert space.matmul(x, x).ctypes.data == place


def test_large_arrays_are_not_pooled() -> None:
    pool = Pool()
    assert pool.empty((1 << 18,), np.uint8, 1 << 18).base is not None
    assert pool.empty(((1 << 18) + 1,), np.uint8, 1 << 18).base is None


def test_unused_memory_is_bounded() -> None:
    pool = Pool(idle_bytes=1 << 22)
    alive = [pool.empty((1 << 20,), np.uint8) for _ in range(10)]
    assert pool.held_bytes == 10 << 20
    alive.clear()
    assert pool.held_bytes == 1 << 22
    for n in range(1 << 16, 1 << 21, 70_001):  # arrays of all sizes, one after the other
        assert pool.empty((n,), np.uint8).nbytes == n
    assert pool.held_bytes <= 1 << 22


@given(st.lists(st.tuples(st.integers(1 << 16, 1 << 21), st.integers(0, 4)), max_size=30))
def test_no_more_is_held_than_was_in_use_at_once(steps: list[tuple[int, int]]) -> None:
    pool, alive, most = Pool(), [], 0
    for n, let_go in steps:
        alive = alive[let_go:]
        alive.append(pool.empty((n,), np.uint8))
        most = max(most, sum(1.25 * x.nbytes + (1 << 16) for x in alive))
        assert pool.held_bytes <= most


def test_threads_share_it() -> None:
    pool, wrong = Pool(idle_bytes=1 << 21), []

    def work(n: int) -> None:
        for k in range(300):
            x = pool.empty(((1 << 16) + 1000 * (k % 37),), np.uint8)
            x[:] = n
            if (x != n).any():
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert pool.held_bytes <= 1 << 21
