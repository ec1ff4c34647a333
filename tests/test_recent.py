"""Caches are bounded, and are freed with their owner."""

from __future__ import annotations

import copy
import gc
import pickle
import subprocess
import sys
import weakref

import adtn
import numpy as np
from adtn._recent import Recent
from adtn.generator import _described


def test_the_least_recently_used_entry_is_dropped() -> None:
    made: list[int] = []
    cache: Recent[int, int] = Recent(3)
    for key in (1, 2, 3, 1, 4, 1, 2):
        assert cache.get(key, lambda key=key: made.append(key) or -key) == -key
    assert made == [1, 2, 3, 4, 2]
    assert len(cache) == 3
    assert 3 not in cache


def test_copies_start_empty() -> None:
    cache: Recent[int, object] = Recent(3)
    cache.get(1, lambda: lambda: None)  # a value that cannot be pickled
    for other in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        assert (len(other), other.size) == (0, 3)


def test_a_generator_caches_few_objects_for_any_requests() -> None:
    gen = adtn.Generator((32, 32), adtn.MPO(bond=2))
    for batch in range(1, 600, 7):
        for dtype in ("float32", "float64", "float16"):
            for mode in (None, "materialise", "stream", "factored"):
                gen.apply(np.ones((batch, 32), dtype), mode=mode)  # type: ignore[arg-type]
    assert len(gen._products) == _described._PRODUCTS
    for cache in (gen._weights, gen._placed, gen._compiled):
        assert len(cache) <= _described.PLACES


def test_caches_are_freed_with_the_generator() -> None:
    gen = adtn.Generator((32, 32), adtn.MPO(bond=2))
    gen.apply(np.ones((2, 32), np.float32), mode="materialise")
    weight = weakref.ref(next(iter(gen._weights._values.values())))
    other = gen.with_params(gen.params)
    assert not len(other._weights)
    assert weight() is not None
    del gen
    gc.collect()
    assert weight() is None


PROGRAM = """
import gc, sys
import adtn, numpy as np

def resident():
    gc.collect()
    return int(open("/proc/self/statm").read().split()[1]) * 4096

def work(n, seed):
    rng = np.random.default_rng(seed)
    for i in range(n):
        top = (adtn.TTN(bond=2), adtn.MPO(bond=3), adtn.Tucker(bond=2), adtn.BrickWall())[i % 4]
        gen = adtn.Generator((64, 48), top, seed=i)
        for mode in (None, "materialise", "stream"):
            gen.apply(rng.standard_normal((int(rng.integers(1, 65)), 48)), mode=mode)

work(200, 0)
before = resident()
work(1000, 1)
print(resident() / before)
"""


def test_a_thousand_generators_take_no_memory() -> None:
    if not sys.platform.startswith("linux"):
        import pytest

        pytest.skip("resident memory is read from /proc")
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1.02
