"""Costs: bounded memory, no repeated work, no unnecessary imports and threads."""

from __future__ import annotations

import subprocess
import sys
import threading
import tracemalloc
from typing import Any

import adtn
import numpy as np
import pytest
from adtn.calculus import _initial
from adtn.errors import TopologyError
from hypothesis import assume, given
from hypothesis import strategies as st

from table import TOPOLOGIES, Row

LARGE = {
    "ttn": adtn.TTN(bond=4),
    "ttn, linear": adtn.TTN(bond=4, activation="identity"),
    "ttn, activation at the end": adtn.TTN(bond=4, where="all"),
    "attn": adtn.ATTN(bond=4),
    "mera": adtn.MERA(bond=4),
    "mpo": adtn.MPO(bond=8),
    "ring": adtn.TensorRing(bond=4),
    "tucker": adtn.Tucker(bond=2),
    "cp": adtn.CP(bond=8),
    "wall of one layer": adtn.BrickWall(layers=1),
}
DEEP = {
    "two layers": adtn.BrickWall(layers=2),
    "four layers": adtn.BrickWall(layers=4),
    "tanh": adtn.BrickWall(layers=3, activation="tanh"),
    "trained boundary": adtn.BrickWall(layers=2, boundary="trainable"),
}


def peak(run: Any) -> tuple[Any, int]:
    """Run a function, and return its result and its peak of allocated bytes."""
    tracemalloc.start()
    try:
        return run(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# --- new generators ---


@pytest.mark.parametrize("name", LARGE)
def test_a_new_generator_takes_less_than_a_tenth_of_its_weight(name: str) -> None:
    for n in (8192, 65536):
        adtn.Generator((n, n), LARGE[name])  # finds and caches paths
        generator, most = peak(lambda n=n: adtn.Generator((n, n), LARGE[name], seed=1))
        assert generator.spread_is_exact
        assert most < 0.1 * 4 * n * n


@pytest.mark.parametrize("name", DEEP)
def test_a_deep_wall_is_estimated_and_says_so(name: str) -> None:
    generator, most = peak(lambda: adtn.Generator((4096, 4096), DEEP[name]))
    assert not generator.spread_is_exact
    assert "spread estimated" in repr(generator)
    assert most < 4 * 4096**2
    again = adtn.Generator((4096, 4096), DEEP[name])
    assert all(np.array_equal(again.params[k], x) for k, x in generator.params.items())
    adtn.Generator((65536, 65536), DEEP[name])
    for seed in range(3):
        small = adtn.Generator((2048, 1024), DEEP[name], seed=seed)
        assert 0.2 < float(np.std(small.weight())) / small.scale < 5.0


def spread(generator: adtn.Generator) -> float:
    """Compute the standard deviation of the last segment's output, without padding, relative to the target."""
    state, arrays = None, {**generator.params, **generator.constants()}
    from adtn.calculus._adjoint import forward_stage

    for stage in generator.program.stages:
        z, _ = forward_stage(stage, state, arrays, keep=False, activate=False)
        state = stage.activation.value(z)
    return float(np.std(generator.layout.from_legs(z)))


def test_closed_networks_measure_what_the_weight_has(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    want = row.generator(seed=3)
    monkeypatch.setattr(_initial, "_DIRECT", 0)
    got = row.generator(seed=3)
    for name, x in want.params.items():
        np.testing.assert_allclose(got.params[name], x, rtol=1e-9, atol=1e-12)
    assert spread(got) == pytest.approx(1.0, rel=1e-6)


@given(st.tuples(st.integers(2, 40), st.integers(2, 40)), st.sampled_from(["ttn", "mpo", "ring", "mera"]))
def test_padding_does_not_count(shape: tuple[int, int], name: str) -> None:
    layout = adtn.Layout.of(shape, 3, exact=True, max_padding=30.0)
    topology = TOPOLOGIES[name].topology
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_initial, "_DIRECT", 0)
        try:
            generator = adtn.Generator(shape, topology, layout=layout, seed=1, dtype="float64")
        except TopologyError:
            assume(False)  # too few legs; Hypothesis complains if this holds for nearly all examples
    assert spread(generator) == pytest.approx(1.0, rel=1e-5)


def test_counting_active_parameters_is_bounded() -> None:
    for layers in (1, 2, 4):
        q = 24
        generator = adtn.Generator((4096, 4096), adtn.BrickWall(layers=layers))
        found, most = peak(lambda generator=generator: generator.num_active_params)
        assert found == 4 * (q // 2) + 16 * ((q - 1) // 2) + 16 * (q - 1) * (layers - 1)
        assert most < 4 * 4096**2
    for topology in (adtn.TTN(bond=8), adtn.TTN(bond=4, where="all"), adtn.Tucker(bond=4, activation="silu")):
        generator = adtn.Generator((65536, 65536), topology)
        found, most = peak(lambda generator=generator: generator.num_active_params)
        assert 0 < found <= generator.num_params
        assert most < 2**28


def test_ranks_by_blocks_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    from adtn.calculus import _active

    for name in ("brickwall", "brickwall-odd", "brickwall-mixed", "brickwall-near"):
        row = TOPOLOGIES[name]
        want = row.generator().num_active_params
        with monkeypatch.context() as patch:
            patch.setattr(_active, "_BUDGET", 0.0)
            patch.setattr(_active, "_WINDOW", 1 << 6)
            _active._by_structure.cache_clear()
            got = row.generator().num_active_params
        _active._by_structure.cache_clear()
        assert abs(got - want) <= 8, name  # the last gate of an odd wall meets fewer zeros at the end of a window


# --- memory of batches ---


def test_random_batches_hold_no_more_than_the_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from adtn_backends.shared._pool import Pool
    from adtn_backends.torch import backend
    from adtn_backends.torch.layers import ADTNLinear

    pool = Pool()  # that of the process may hold what earlier tests had in use
    monkeypatch.setattr(backend, "POOL", pool)
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(ADTNLinear(adtn.Generator((512, 512), adtn.MPO(bond=4))) for _ in range(2)))
    rng = np.random.default_rng(0)

    def step(batch: int) -> None:
        model(torch.randn(batch, 512)).square().mean().backward()

    step(1024)
    most = pool.peak_bytes
    assert most
    for _ in range(40):
        step(int(rng.integers(520, 1025)))
        assert pool.held_bytes <= pool.peak_bytes <= 1.01 * most


# --- imports and threads ---


def test_importing_layers_imports_no_compiler() -> None:
    pytest.importorskip("torch")
    code = (
        "import sys, torch; before = set(sys.modules); import adtn_backends.torch.layers, adtn_backends.torch._model; "
        "new = {m for m in set(sys.modules) - before if m.startswith(('torch._dynamo', 'torch._inductor', 'sympy', "
        "'quimb', 'scipy', 'cotengra', 'jax', 'transformers'))}; assert not new, sorted(new)[:5]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def blas() -> list[int]:
    """Return the number of threads of NumPy's BLAS."""
    from threadpoolctl import threadpool_info

    return [x["num_threads"] for x in threadpool_info() if x["user_api"] == "blas" and "numpy" in x["filepath"]]


def test_small_fits_have_one_thread_and_leave_the_others_alone() -> None:
    from threadpoolctl import ThreadpoolController

    if not blas():
        pytest.skip("NumPy's BLAS has no threads on this machine")
    with ThreadpoolController().limit(limits=2, user_api="blas"):
        before = blas()
        seen: list[list[int]] = []
        small = adtn.Generator((64, 64), adtn.TTN(bond=2))
        target = np.random.default_rng(0).standard_normal((64, 64))

        def look(step: int, loss: float) -> None:
            seen.append(blas())

        adtn.fit(small, target, steps=2, callbacks=[look])
        assert seen == [[1] * len(before)] * 2
        assert blas() == before
        with pytest.raises(ZeroDivisionError):
            adtn.fit(small, target, steps=2, callbacks=[lambda step, loss: 1 / 0])
        assert blas() == before
        threads = [threading.Thread(target=lambda: adtn.fit(small, target, steps=20)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert blas() == before
        large = adtn.Generator((2048, 2048), adtn.MPO(bond=8), layout=adtn.Layout.of((2048, 2048), 8))
        seen.clear()
        adtn.fit(large, np.ones((2048, 2048), "float32"), steps=1, callbacks=[look])
        assert seen == [before]
