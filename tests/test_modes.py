"""The modes materialise, stream and factored give the same results and gradients on every backend."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import adtn
import numpy as np
import pytest
from adtn.backends import check_device, get_backend
from adtn.errors import FitError, ScheduleError

from table import BACKENDS, TOPOLOGIES, Row, relative_error, to_numpy, tolerance, usable

MODES = ("materialise", "stream", "factored")
DOUBLE = [key for key, (_, dtypes) in BACKENDS.items() if "float64" in dtypes]


def modes_of(row: Row) -> tuple[str, ...]:
    linear = row.generator().segments[-1].activation == "identity"
    return MODES if linear else MODES[:2]


@pytest.mark.parametrize("base", [None, "seeded", "identity", "array"])
def test_apply_and_its_adjoint_in_every_mode(row: Row, base: str | None) -> None:
    if len(row.shape) != 2:
        pytest.skip("apply is for matrices")
    rng = np.random.default_rng(0)
    array = rng.standard_normal(row.shape)
    given = {"seeded": adtn.SeededBase(2), "identity": adtn.IdentityBase(), "array": array, None: None}[base]
    gen = row.generator(seed=1, base=given)
    if base == "identity":  # so that the generated part is zero
        gen = gen.with_params({**gen.params, **row.generator(seed=1).params})
    arrays = gen.arrays("numpy:cpu", "float64")
    weight = gen.function(arrays)
    x, ybar = rng.standard_normal((5, row.shape[1])), rng.standard_normal((5, row.shape[0]))
    want = gen.function.vjp(arrays, ybar.T @ x)[1]
    for mode in modes_of(row):
        assert relative_error(gen.apply(x, mode=mode), x @ weight.T) < 1e-12, mode
        layer = adtn.plan(gen, "train", batch=5, mode=mode).layer.on(get_backend("numpy"))
        y, tape = layer.with_tape(arrays, x)
        assert relative_error(y, x @ weight.T) < 1e-12, mode
        grads, xbar = layer.pullback(tape, arrays, x, ybar)
        assert relative_error(xbar, ybar @ weight) < 1e-12, mode
        for name, grad in want.items():
            scale = max(float(np.abs(grad).max()), 1e-9)
            assert float(np.abs(grads[name] - grad).max()) < 1e-9 * scale, (mode, name)
        alone, nothing = layer.pullback(tape, arrays, x, ybar, need_x=False)
        assert nothing is None
        for name, grad in grads.items():
            assert relative_error(alone[name], grad) < 1e-12, (mode, name)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("key", BACKENDS)
def test_apply_on_every_backend(key: str, mode: str) -> None:
    device = usable(key)
    for dtype in BACKENDS[key][1]:
        gen = TOPOLOGIES["attn"].generator(seed=3)
        backend, where = check_device(device, dtype)
        batch = np.random.default_rng(0).standard_normal((3, 4, 16))
        for x in (batch, batch[0, 0], batch[0, :1]):  # many rows, and a single row
            y = gen.apply(backend.asarray(x, where, dtype), mode=mode)
            assert tuple(y.shape) == (*x.shape[:-1], 16)
            assert backend.dtype_of(y) == dtype
            assert relative_error(to_numpy(y), x @ gen.weight(dtype="float64").T) < tolerance(dtype, 128)


@pytest.mark.parametrize("mode", MODES)
def test_torch_autograd_goes_through_every_mode(mode: str) -> None:
    torch = pytest.importorskip("torch")
    gen = TOPOLOGIES["mera"].generator(seed=4)
    function = adtn.plan(gen, "train", device="torch:cpu", batch=3, mode=mode).function(get_backend("torch"))
    arrays = {k: v.requires_grad_() for k, v in gen.arrays("torch:cpu", "float64").items()}
    x = torch.randn(3, gen.shape[1], dtype=torch.float64, requires_grad=True)
    loss = (function(arrays, x) ** 2).sum()
    got = torch.autograd.grad(loss, [x, *arrays.values()])
    reference = ((x @ gen.function(arrays).T) ** 2).sum()
    want = torch.autograd.grad(reference, [x, *arrays.values()])
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
    y = gen.apply(x, mode=mode)
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.ones_like(y) @ torch.tensor(gen.weight()))


@pytest.mark.parametrize("mode", MODES)
def test_jax_gradients_go_through_every_mode(mode: str) -> None:
    jax = pytest.importorskip("jax")
    gen = TOPOLOGIES["mera"].generator(seed=4)
    function = adtn.plan(gen, "train", device="jax:cpu", batch=3, mode=mode).function(get_backend("jax"))
    arrays = gen.arrays("jax:cpu", "float64")
    with jax.enable_x64(True):
        x = get_backend("jax").asarray(np.random.default_rng(0).standard_normal((3, gen.shape[1])), "cpu", "float64")
        got = jax.grad(lambda a, x: (function(a, x) ** 2).sum(), argnums=(0, 1))(arrays, x)
        want = jax.grad(lambda a, x: ((x @ gen.function(a).T) ** 2).sum(), argnums=(0, 1))(arrays, x)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("key", DOUBLE)
@pytest.mark.parametrize("kind", ["plain", "data-aware"])
def test_a_fit_in_tiles_is_the_fit_of_the_whole(key: str, kind: str) -> None:
    device = usable(key)
    rng = np.random.default_rng(0)
    target = rng.standard_normal((64, 48))
    moment = np.cov(rng.standard_normal((48, 200)))
    goal = adtn.Reconstruction(target) if kind == "plain" else adtn.DataAwareReconstruction(target, moment)
    gen = adtn.Generator((64, 48), adtn.MERA(bond=2), scale=target, dtype="float64")
    options = {"device": device, "steps": 12, "lr": 0.02}
    whole = adtn.fit(gen, goal, mode="materialise", **options)
    tiles = adtn.fit(gen, goal, mode="stream", **options)
    np.testing.assert_allclose(tiles.history, whole.history, rtol=1e-10)
    weight = tiles.generator.weight()
    assert tiles.loss == pytest.approx(
        np.sum((weight - target) ** 2) / np.sum(target**2)
        if kind == "plain"
        else np.trace((weight - target) @ moment @ (weight - target).T) / np.trace(target @ moment @ target.T)
    )


@pytest.mark.parametrize("key", DOUBLE)
@pytest.mark.parametrize("base", [False, True])
def test_a_projected_fit_is_the_fit_of_the_whole(key: str, base: bool) -> None:
    device = usable(key)
    rng = np.random.default_rng(0)
    target = rng.standard_normal((64, 48))
    given = target + 0.3 * rng.standard_normal(target.shape) if base else None
    layout = adtn.Layout.from_factors((64, 48), ((8, 8), (8, 6)), "interleaved")
    gen = adtn.Generator((64, 48), adtn.TTN(bond=3), layout=layout, base=given, scale=0.3, dtype="float64")
    options = {"device": device, "steps": 12, "lr": 0.02}
    whole = adtn.fit(gen, target, mode="materialise", **options)
    without = adtn.fit(gen, target, mode="factored", **options)
    np.testing.assert_allclose(without.history, whole.history, rtol=1e-9)
    assert without.relative_error == pytest.approx(
        np.linalg.norm(without.generator.weight() - target) / np.linalg.norm(target), rel=1e-9
    )


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
@pytest.mark.parametrize("key", DOUBLE)
def test_a_projected_fit_continues_with_the_residual_when_digits_cancel(key: str, optimizer: str) -> None:
    device = usable(key)
    layout = adtn.Layout.of((64, 64), 8, "interleaved")
    made = adtn.Generator((64, 64), adtn.MPO(bond=2), layout=layout, seed=1, scale=1.0)
    noise = {k: np.random.default_rng(0).standard_normal(x.shape) for k, x in made.params.items()}
    start = made.with_params({k: x + 0.1 * noise[k] for k, x in made.params.items()})
    target = made.weight(dtype="float64")
    found = adtn.fit(start, target, device=device, mode="factored", steps=400, lr=0.01, optimizer=optimizer)
    # in single precision, sums that cancel lose all digits at 1e-7, but the residual does not
    assert found.history[0] > 1.3e-3
    assert found.loss < 1e-8
    weight = found.generator.weight(dtype="float64")
    assert found.loss == pytest.approx(np.sum((weight - target) ** 2) / np.sum(target**2), rel=0.05)
    assert np.all(np.asarray(found.history) > 0)


def test_a_fit_is_continued_where_it_had_left_the_projections(tmp_path: Path) -> None:
    layout = adtn.Layout.of((64, 64), 8, "interleaved")
    made = adtn.Generator((64, 64), adtn.MPO(bond=2), layout=layout, seed=1, scale=1.0)
    start = made.with_params({k: 1.1 * x for k, x in made.params.items()})
    options = {"steps": 150, "lr": 0.01, "mode": "factored", "checkpoint_every": 10}
    target = made.weight()
    whole = adtn.fit(start, target, checkpoint=tmp_path / "whole", **options)
    for stop_at in (20, 100):
        file = tmp_path / f"cut{stop_at}"
        first = adtn.fit(start, target, checkpoint=file, callbacks=[lambda step, _, n=stop_at: step == n], **options)
        assert first.steps < whole.steps
        again = adtn.fit(start, target, checkpoint=file, **options)
        np.testing.assert_array_equal(again.generator.params["site0"], whole.generator.params["site0"])


def test_large_results_in_pooled_memory_are_right() -> None:
    # every product is larger than the size from which memory is reused
    for device in ("numpy:cpu", "torch:cpu"):
        pytest.importorskip(device.partition(":")[0])
        gen = adtn.Generator((1024, 512), adtn.TTN(bond=4), layout=adtn.Layout.of((1024, 512), 8, "interleaved"))
        target = np.random.default_rng(0).standard_normal(gen.shape).astype("float32")
        want = np.sum((gen.weight(dtype="float64") - target) ** 2) / np.sum(target.astype("float64") ** 2)
        for mode in MODES:
            solution = adtn.fit(gen, target, device=device, steps=2, lr=1e-9, mode=mode)
            assert solution.history[0] == pytest.approx(want, rel=1e-5)
            assert solution.history[1] == pytest.approx(want, rel=1e-5)


def test_a_task_needs_the_whole_weight() -> None:
    gen = adtn.Generator((16, 16), adtn.TTN(bond=2))
    with pytest.raises(FitError, match="takes the weight as a whole"):
        adtn.fit(gen, lambda w: ((w * w).sum(), 2 * w), steps=1, mode="stream")
    with pytest.raises(ScheduleError, match="smallest that works"):
        adtn.fit(gen, np.eye(16), steps=1, memory=10)


def test_a_large_target_is_not_copied() -> None:
    target = np.random.default_rng(0).standard_normal((256, 256)).astype("float32")
    assert adtn.Reconstruction(target).target is target


PROGRAM = """
import sys
import numpy as np
import adtn
from adtn.bench import peak_bytes

device, limit = sys.argv[1], int(sys.argv[2])
n = 4096
layout = adtn.Layout.of((n, n), 8, "interleaved")
target = np.random.default_rng(0).standard_normal((n, n), dtype=np.float32)
gen = adtn.Generator((n, n), adtn.TTN(bond=2), layout=layout, scale=0.1)
small = adtn.Generator((256, 256), adtn.TTN(bond=2), layout=adtn.Layout.of((256, 256), 8, "interleaved"), scale=0.1)
adtn.fit(small, target[:256, :256], device=device, steps=2, mode="stream")  # the framework and its threads
print(peak_bytes(lambda: adtn.fit(gen, target, device=device, steps=2, memory=limit)))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("device", "mebibytes"),
    [("numpy:cpu", 16), ("torch:cpu", 24), ("torch:cpu", 64), ("jax:cpu", 128)],
)
def test_a_process_stays_within_its_memory_limit(device: str, mebibytes: int) -> None:
    pytest.importorskip(device.partition(":")[0])
    limit, peaks = mebibytes << 20, list[int]()
    # XLA's memory for compiling depends on other work of the machine, which only adds: 102 to 148 MB for the same plan
    while not peaks or (min(peaks) > 1.1 * limit and len(peaks) < 3):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, device, str(limit)], capture_output=True, text=True, timeout=300, check=True
        )
        if done.stdout.strip() == "None":
            pytest.skip("this system does not report the peak memory of a process")
        peaks.append(int(done.stdout))
    assert min(peaks) <= 1.1 * limit
