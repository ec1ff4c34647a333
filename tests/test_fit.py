"""Fits: agreement of backends, optimizers, schedules, objectives, stops."""

from __future__ import annotations

import dataclasses
import inspect
import math
from typing import Any

import adtn
import numpy as np
import pytest
from adtn import Layout, Status
from adtn.backends import get_backend
from adtn.errors import DeviceError, FitError, TopologyError
from adtn.optim import make_schedule
from adtn.optim._loss import _clipped, _LossFunction
from adtn.optim._options import FitOptions
from adtn.weight import Weighting

from table import BACKENDS, usable

LAYOUT = Layout.of((32, 32), 8)
X = np.linspace(-1, 1, 32)
TARGET = np.sin(3 * np.add.outer(X, X**2)) + 0.3 * np.outer(X, X)


def make(topology: adtn.Topology | None = None, dtype: str = "float64") -> adtn.Generator:
    return adtn.Generator((32, 32), topology or adtn.TTN(bond=3), layout=LAYOUT, scale=TARGET, dtype=dtype)


def others() -> list[str]:
    return [key for key in BACKENDS if key not in ("numpy", "mps")]


@pytest.mark.parametrize("key", others())
@pytest.mark.parametrize(
    "topology", [adtn.TTN(bond=3), adtn.MERA(bond=2), adtn.MPO(bond=3)], ids=lambda t: type(t).__name__
)
def test_adam_takes_the_same_100_steps_on_every_backend(key: str, topology: adtn.Topology) -> None:
    want = adtn.fit(make(topology), TARGET, steps=100, optimizer="adam")
    got = adtn.fit(make(topology), TARGET, steps=100, optimizer="adam", device=usable(key))
    np.testing.assert_allclose(got.history, want.history, rtol=1e-6)
    assert len(got.history) == 100


@pytest.mark.parametrize("key", others())
@pytest.mark.parametrize(
    "options",
    [{"optimizer": "adamw", "weight_decay": 0.1}, {"optimizer": "sgd", "momentum": 0.8}, {"clip": 0.01}],
)
@pytest.mark.parametrize("schedule", ["constant", "cosine", "onecycle"])
def test_other_optimizers_agree_too(key: str, options: dict, schedule: str) -> None:
    want = adtn.fit(make(), TARGET, steps=30, schedule=schedule, **options)
    got = adtn.fit(make(), TARGET, steps=30, schedule=schedule, device=usable(key), **options)
    np.testing.assert_allclose(got.history, want.history, rtol=1e-7)


def test_adam_is_torch_adam() -> None:
    torch = pytest.importorskip("torch")
    gen = make()
    arrays = {k: torch.tensor(x, requires_grad=True) for k, x in gen.params.items()}
    optimizer = torch.optim.Adam(list(arrays.values()), lr=0.01)
    target, losses = torch.tensor(TARGET), []
    for _ in range(20):
        optimizer.zero_grad()
        loss = ((gen.function(arrays) - target) ** 2).sum() / (target**2).sum()
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    got = adtn.fit(gen, TARGET, steps=20, lr=0.01, schedule="constant")
    np.testing.assert_allclose(got.history, losses, rtol=1e-10)


def test_half_precisions_train(device_dtype: tuple[str, str]) -> None:
    device, dtype = device_dtype
    solution = adtn.fit(make(dtype="float32"), TARGET, device=device, dtype=dtype, steps=40, lr=0.02)
    assert solution.loss < solution.history[0]


def test_lbfgs_reaches_the_error_of_the_decomposition() -> None:
    exact = adtn.decompose(make(adtn.MPO(bond=4)), TARGET)
    best = np.linalg.norm(exact.weight() - TARGET) / np.linalg.norm(TARGET)
    found = adtn.fit(make(adtn.MPO(bond=4)), TARGET, optimizer="lbfgs", steps=500)
    assert found.relative_error == pytest.approx(best, rel=0.05)


def test_schedules_by_hand() -> None:
    one = make_schedule("onecycle", 1.0, 100)
    assert one(0) == pytest.approx(1 / 25)
    assert one(15) == pytest.approx((1 + 1 / 25) / 2)
    assert one(30) == pytest.approx(1.0)
    assert one(65) == pytest.approx((1 + 1e-4) / 2)
    assert one(100) == pytest.approx(1e-4)
    assert max(one(s) for s in range(101)) == pytest.approx(1.0)
    cosine = make_schedule("cosine", 2.0, 10)
    assert [cosine(0), cosine(5), cosine(10)] == pytest.approx([2.0, 1.0, 0.0])
    assert make_schedule(lambda step: 0.5**step, 1.0, 10)(3) == 0.125


@pytest.mark.parametrize("clip", [1e-3, 1e6])
def test_clipping_bounds_the_gradient(clip: float) -> None:
    def norm(arrays: dict[str, np.ndarray]) -> float:
        return math.sqrt(sum(float(np.sum(g * g)) for g in arrays.values()))

    rng = np.random.default_rng(0)
    grads = {k: rng.standard_normal(x.shape) for k, x in make().params.items()}
    clipped = _clipped(grads, clip)
    assert norm(clipped) == pytest.approx(min(clip, norm(grads)))
    assert all(np.allclose(clipped[k] * norm(grads), grads[k] * norm(clipped)) for k in grads)


def test_data_aware_reconstruction_weighs_inputs() -> None:
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((500, 32)) * np.geomspace(1, 1e-2, 32)
    moment = inputs.T @ inputs / 500
    objective = adtn.DataAwareReconstruction(TARGET, moment)
    aware = adtn.fit(make(), objective, steps=400, lr=0.02)
    plain = adtn.fit(make(), TARGET, steps=400, lr=0.02)

    def output_error(solution: adtn.Solution) -> float:
        error = inputs @ (solution.generator.weight() - TARGET).T
        return float(np.linalg.norm(error) / np.linalg.norm(inputs @ TARGET.T))

    assert aware.relative_error == pytest.approx(output_error(aware), rel=1e-6)
    assert output_error(aware) < output_error(plain)


def test_data_aware_gradient_and_convolutions() -> None:
    target = np.random.default_rng(0).standard_normal((8, 4, 3, 3))
    c = np.eye(36) * np.arange(1, 37)
    objective = adtn.DataAwareReconstruction(target, c)
    tiles = objective.in_tiles(half=False)
    constants = objective.constants(Weighting(layout=adtn.Layout.of((8, 4, 3, 3)), scale=1.0))
    consume = tiles.consume(get_backend("numpy"), tiles.factor * target[None], constants)

    def fn(w):
        loss, slope = consume(tiles.factor * w, 0, 0.0)
        return tiles.loss_factor * loss, (tiles.slope_factor * tiles.factor * slope,)

    w, d = target * 0.5, np.random.default_rng(1).standard_normal(target.shape)
    loss, (grad,) = fn(w)
    h = 1e-6
    slope = (fn(w + h * d)[0] - fn(w - h * d)[0]) / (2 * h)
    assert np.sum(grad * d) == pytest.approx(slope, rel=1e-6)
    assert loss == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("mode", "dtype"),  # half precisions do not project, see test_schedule.py
    [
        ("materialise", "float32"),
        ("stream", "float32"),
        ("factored", "float32"),
        ("materialise", "bfloat16"),
        ("stream", "bfloat16"),
    ],
)
def test_fits_of_one_structure_share_what_jax_compiled(mode: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    usable("jax")
    traced = []
    plain = _LossFunction.__call__
    monkeypatch.setattr(_LossFunction, "__call__", lambda self, *a: traced.append(self) or plain(self, *a))
    for n, (seed, factor) in enumerate(((0, 1.0), (1, 3.0), (2, 0.01))):
        target = factor * (TARGET + 0.1 * seed)
        options = {"steps": 5, "mode": mode, "dtype": dtype}
        gen = adtn.Generator((32, 32), adtn.TTN(bond=3), layout=LAYOUT, scale=target, seed=seed)
        traced.clear()
        got = adtn.fit(gen, target, device="jax:cpu", **options)
        assert len(traced) <= (n == 0)
        want = adtn.fit(gen, target, device=usable("torch"), **options)
        np.testing.assert_allclose(got.history, want.history, rtol=1e-4 if dtype == "float32" else 0.05)


def regression(library: str):
    """Make the same task with the arrays of three libraries."""
    rng = np.random.default_rng(0)
    x, true = rng.standard_normal((64, 32)), TARGET
    y = x @ true.T
    if library == "numpy":

        def loss(w):
            r = x @ w.T - y
            return np.mean(r * r), 2 * r.T @ x / r.size
    elif library == "torch":
        torch = pytest.importorskip("torch")
        xt, yt = torch.tensor(x), torch.tensor(y)

        def loss(w):
            return ((xt @ w.T - yt) ** 2).mean()
    else:
        jnp = pytest.importorskip("jax.numpy")

        def loss(w):
            return jnp.mean((x @ w.T - y) ** 2)

    return loss


def test_any_function_of_the_weight_is_an_objective() -> None:
    runs = [adtn.fit(make(), regression(k), device=f"{k}:cpu", steps=50, lr=0.02) for k in ("numpy", "torch", "jax")]
    for run in runs[1:]:
        np.testing.assert_allclose(run.history, runs[0].history, rtol=1e-6)
    assert math.isnan(runs[0].relative_error)


def test_task_trains_other_parameters_and_sees_the_same_batches() -> None:
    data = np.random.default_rng(0).standard_normal((256, 32)).astype(np.float32)
    wanted = data @ TARGET.T.astype(np.float32) + np.float32(0.5)

    def batches(rng: np.random.Generator):
        i = rng.integers(0, 256, 16)
        return data[i], wanted[i]

    def numpy_loss(w, params, x, y):
        r = x @ w.T + params["bias"] - y
        return np.mean(r * r), (2 * r.T @ x / r.size, {"bias": 2 * r.sum(0) / r.size})

    def framework_loss(w, params, x, y):
        return ((x @ w.T + params["bias"] - y) ** 2).mean()

    start = {"bias": np.zeros(32, np.float32)}
    runs = [
        adtn.fit(
            make(),
            adtn.Task(fn, params=start, batches=batches),
            device=f"{key}:cpu",
            steps=200,
            lr=0.02,
            lr_factors={"task/": 2.0},
        )
        for key, fn in (("numpy", numpy_loss), ("torch", framework_loss), ("jax", framework_loss))
    ]
    for run in runs:
        assert run.params["bias"].mean() == pytest.approx(0.5, abs=0.15)
        assert np.mean(run.history[-20:]) < 0.5 * np.mean(run.history[:20])
        np.testing.assert_allclose(run.history[:20], runs[0].history[:20], rtol=1e-6)


def test_integer_labels_reach_the_task_as_integers() -> None:
    torch = pytest.importorskip("torch")
    jax = pytest.importorskip("jax")
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((128, 32)), rng.integers(0, 32, 128)

    def batches(rng: np.random.Generator):
        i = rng.integers(0, 128, 32)
        return x[i], labels[i]

    def numpy_loss(w, x, y):
        z = x @ w.T
        p = np.exp(z - z.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        zbar = (p - np.eye(32)[y]) / len(y)
        return -np.log(p[np.arange(len(y)), y]).mean(), zbar.T @ x

    def jax_loss(w, x, y):
        return -jax.numpy.take_along_axis(jax.nn.log_softmax(x @ w.T), y[:, None], 1).mean()

    losses = {
        "numpy": numpy_loss,
        "torch": lambda w, x, y: torch.nn.functional.cross_entropy(x @ w.T, y),
        "jax": jax_loss,
    }
    for dtype, rtol in (("float64", 1e-6), ("float32", 1e-2)):
        runs = [
            adtn.fit(make(dtype=dtype), adtn.Task(fn, batches=batches), device=f"{key}:cpu", steps=20)
            for key, fn in losses.items()
        ]
        for run in runs[1:]:
            np.testing.assert_allclose(run.history, runs[0].history, rtol=rtol)


def test_single_parameters_can_have_their_own_learning_rate(device: str) -> None:
    gen = make(dtype="float32")
    solution = adtn.fit(gen, TARGET, device=device, steps=20, lr_factors={"root": 1e-9, "leaf2_0": 2.0})
    assert np.allclose(solution.generator.params["root"], gen.params["root"], atol=1e-6)
    assert set(solution.generator.params) == set(gen.params)
    assert not np.allclose(solution.generator.params["leaf2_1"], gen.params["leaf2_1"], atol=1e-3)
    assert solution.loss < solution.history[0]


def test_start_from_a_decomposition() -> None:
    for topology in (adtn.TT(bond=4), adtn.MPO(bond=4), adtn.Tucker(bond=3), adtn.CP(bond=4)):
        cold = adtn.fit(make(topology), TARGET, steps=1, lr=1e-9)
        warm = adtn.fit(make(topology), TARGET, steps=1, lr=1e-9, start="decomposition")
        assert warm.loss < 0.5 * cold.loss
        assert adtn.fit(make(topology), TARGET, steps=50, lr=1e-3, start="decomposition").loss <= warm.loss + 1e-20


def test_decompositions_are_exact_at_full_rank() -> None:
    layout = Layout.of((16, 24), 4, "interleaved")
    target = np.random.default_rng(0).standard_normal((16, 24))
    for topology in (adtn.TT(bond=1000), adtn.MPO(bond=1000), adtn.Tucker(bond=1000)):
        gen = adtn.decompose(adtn.Generator((16, 24), topology, layout=layout, dtype="float64"), target)
        np.testing.assert_allclose(gen.weight(), target, atol=1e-12)


@pytest.mark.parametrize("topology", [adtn.TT(bond=2), adtn.MPO(bond=2), adtn.Tucker(bond=6), adtn.CP(bond=3)])
def test_a_single_leg_is_decomposed(topology: adtn.Topology) -> None:
    target = np.random.default_rng(0).standard_normal(6)
    gen = adtn.Generator((6,), topology, layout=Layout.from_factors((6,), [(6,)]), dtype="float64")
    np.testing.assert_allclose(adtn.decompose(gen, target).weight(), target, atol=1e-6)


def test_tt_svd_is_quasi_optimal() -> None:
    layout = Layout.of((16, 16), 4)
    target = np.random.default_rng(0).standard_normal((16, 16))
    gen = adtn.decompose(adtn.Generator((16, 16), adtn.TT(bond=3), layout=layout, dtype="float64"), target)
    legs = layout.to_legs(target)
    tails = [np.sum(np.linalg.svd(legs.reshape(4**k, -1), compute_uv=False)[3:] ** 2) for k in (1, 2, 3)]
    assert np.linalg.norm(gen.weight() - target) ** 2 <= sum(tails) + 1e-12
    assert np.linalg.norm(gen.weight() - target) ** 2 >= max(tails) - 1e-12


def test_cp_als_finds_an_exact_sum() -> None:
    rng = np.random.default_rng(1)
    gen = adtn.Generator((8, 8), adtn.CP(bond=2), layout=Layout.of((8, 8), 4), dtype="float64", seed=2)
    target = gen.with_params({k: rng.standard_normal(x.shape) for k, x in gen.params.items()}).weight()
    assert np.linalg.norm(adtn.decompose(gen, target).weight() - target) < 1e-4 * np.linalg.norm(target)


@pytest.mark.parametrize(
    "topology",
    [adtn.TTN(bond=2, activation="relu"), adtn.BrickWall(), adtn.Tucker(activation="softplus"), adtn.TT(share=True)],
)
def test_what_cannot_be_decomposed(topology: adtn.Topology) -> None:
    with pytest.raises(TopologyError, match="train it instead|Train it instead"):
        adtn.decompose(make(topology), TARGET)


def check_diverged(solution: adtn.Solution) -> None:
    assert solution.status is Status.DIVERGED
    assert "lower lr" in solution.status.value
    assert not solution.converged
    assert math.isfinite(solution.loss)
    assert solution.loss == min(solution.history)
    # the parameters belong to that loss, not to a later step
    error = np.linalg.norm(solution.generator.weight() - TARGET) / np.linalg.norm(TARGET)
    assert error == pytest.approx(solution.relative_error, rel=1e-3)
    assert np.isfinite(solution.history).all()
    assert all(np.isfinite(x).all() for x in solution.generator.params.values())


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_loss_that_blows_up_keeps_the_best_and_says_what_to_do(optimizer: str, device: str) -> None:
    rate = lambda step: 0.01 if step < 5 else 1e30
    check_diverged(adtn.fit(make(dtype="float32"), TARGET, device=device, optimizer=optimizer, schedule=rate, steps=50))


def test_the_best_parameters_are_returned_even_if_later_steps_are_worse(device: str) -> None:
    rate = lambda step: 0.02 if step < 20 else 3.0
    solution = adtn.fit(make(), TARGET, device=device, dtype="float32", schedule=rate, steps=40)
    assert solution.loss == min(solution.history)
    assert np.argmin(solution.history) < 39
    error = np.linalg.norm(solution.generator.weight() - TARGET) / np.linalg.norm(TARGET)
    assert error == pytest.approx(solution.relative_error, rel=1e-3)


def test_lbfgs_stops_at_nan_too() -> None:
    calls = 0

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal calls
        calls += 1
        return (float(np.sum((w - TARGET) ** 2)) if calls <= 5 else math.nan), 2 * (w - TARGET)

    solution = adtn.fit(make(), loss, optimizer="lbfgs", steps=50)
    assert solution.status is Status.DIVERGED
    assert math.isfinite(solution.loss)


def test_options_have_the_defaults_that_fit_documents() -> None:
    documented = inspect.signature(adtn.fit).parameters
    fields = {f.name: f.default for f in dataclasses.fields(FitOptions)}
    assert set(fields) <= set(documented)
    shared = set(fields) - {"dtype", "lr_factors"}  # that of the generator, and none
    assert {name: documented[name].default for name in shared} == {name: fields[name] for name in shared}


def test_progress_is_silent_without_a_terminal(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    adtn.fit(make(), TARGET, steps=3)
    assert capfd.readouterr() == ("", "")
    for stop, shown in ((None, "3/3"), (1, "2/3")):
        solution = adtn.fit(make(), TARGET, steps=3, progress=True, callbacks=[lambda step, _, stop=stop: step == stop])
        out, err = capfd.readouterr()
        label, _, rest = err.partition("━")
        assert not out and label.strip() == "fit TTN"
        assert rest.strip("━╸╺ ").startswith(f"{shown} loss {solution.history[-1]:.4g}")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: adtn.fit(make(), TARGET, optimizer="lion"), "expected 'adam', 'adamw', 'sgd', 'lbfgs' or 'lm'"),
        (lambda: adtn.fit(make(), TARGET, schedule="stairs"), "'constant', 'cosine', 'onecycle'"),  # type: ignore[arg-type]
        (lambda: adtn.fit(make(), TARGET, steps=0), "at least 1"),
        (lambda: adtn.fit(make(), TARGET, lr=-1.0), "above 0"),
        (lambda: adtn.fit(make(), TARGET, clip=0.0), "above 0 or None"),
        (lambda: adtn.fit(make(), TARGET, weight_decay=0.1), "only 'adamw'"),
        (lambda: adtn.fit(make(), TARGET[:5]), r"target of shape \(5, 32\)"),
        (lambda: adtn.fit(make(), TARGET * 0), "zeros"),
        (lambda: adtn.fit(make(), TARGET * np.nan), "1024 entries that are NaN"),
        (lambda: adtn.fit(make(), TARGET, start="middle"), "'generator' or 'decomposition'"),  # type: ignore[arg-type]
        (lambda: adtn.fit(make(), lambda w: (0.0, w), start="decomposition"), "needs a weight"),
        (lambda: adtn.fit(make(), TARGET, lr_factors={"nothing": 2.0}), r"\['nothing'\]; the parameters are"),
        (lambda: adtn.fit(make(), lambda w: 0.0), r"Got a float from .* expected \(loss, dL/dW\)"),
        (lambda: adtn.DataAwareReconstruction(TARGET, np.eye(3)), r"expected \(32, 32\)"),
        (lambda: adtn.DataAwareReconstruction(TARGET, np.triu(np.ones((32, 32)))), "not symmetric"),
        (lambda: adtn.DataAwareReconstruction(TARGET, np.zeros((32, 32))), "outputs are zero"),
    ],
)
def test_errors_say_what_to_do(call, message: str) -> None:
    with pytest.raises(FitError, match=message):
        call()


def test_unusable_device() -> None:
    with pytest.raises(DeviceError, match="bfloat16"):
        adtn.fit(make(), TARGET, dtype="bfloat16")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": "5"}, "Got steps='5'"),
        ({"steps": 2.5}, "whole number"),
        ({"lr": "fast"}, "Got lr='fast'"),
        ({"mode": "quick"}, "Got mode='quick'; expected 'materialise', 'stream' or 'factored'"),
    ],
)
def test_options_of_another_kind_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(FitError, match=message):
        adtn.fit(adtn.Generator((8, 8), adtn.TTN(bond=2)), np.eye(8), **options)


def test_complex_targets_are_refused() -> None:
    with pytest.raises(FitError, match="complex128; expected an array of real numbers"):
        adtn.fit(adtn.Generator((8, 8), adtn.TTN(bond=2)), np.eye(8) * 1j, steps=2)
