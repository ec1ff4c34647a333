"""Fits to the outputs of a layer: the distance without the weight is that of the weight, with its gradient."""

from __future__ import annotations

from typing import Any

import adtn
import numpy as np
import pytest
from adtn.backends import check_device
from adtn.errors import ScheduleError
from adtn.optim._loss import plan_loss
from adtn.optim._options import FitOptions
from adtn.weight import why_not_factored

from table import TOPOLOGIES, Row, relative_error, to_numpy, tolerance, usable

PADDED = {
    "padded inputs": Row(adtn.MPO(bond=3), (16, 13), order="interleaved"),
    "padded kernel": Row(adtn.TTN(bond=2, activation="tanh"), (8, 5, 3, 3)),
}
ROWS = {**TOPOLOGIES, **PADDED}


def problem(row: Row, base: bool = False) -> tuple[adtn.Generator, np.ndarray, np.ndarray]:
    """Make a generator, a target, and a second moment of inputs of very different sizes."""
    rng = np.random.default_rng(0)
    n_in = int(np.prod(row.shape[1:]))
    x = rng.standard_normal((3 * n_in, n_in)) * np.geomspace(1.0, 0.05, n_in)
    target = rng.standard_normal(row.shape)
    given: dict[str, Any] = {"base": target + 0.3 * rng.standard_normal(row.shape)} if base else {}
    return row.generator(seed=1, scale=0.4, **given), target, x.T @ x / len(x)


def loss_and_gradients(
    gen: adtn.Generator, objective: adtn.Objective, device: str, mode: Any
) -> tuple[float, dict[str, np.ndarray], bool]:
    """Evaluate a loss as a fit does, and say whether it formed residuals."""
    options = FitOptions(device=device, dtype="float64", mode=mode)
    backend, where = check_device(device, "float64")
    loss = plan_loss(gen, objective, backend, where, options)
    params = {k: backend.asarray(x, where, "float64") for k, x in gen.params.items()}
    value, grads = loss(params, ())
    return float(value), {k: to_numpy(g) for k, g in grads.items()}, loss.exact


def is_possible(row: Row) -> bool:
    gen = row.generator()
    return len(gen.shape) > 1 and not why_not_factored(gen.segments, gen.weighting, "float64", weighted=True)


@pytest.mark.parametrize("base", [False, True], ids=["", "base"])
@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if is_possible(row)])
def test_without_the_weight_it_is_the_formula(name: str, base: bool) -> None:
    torch = pytest.importorskip("torch")
    gen, target, moment = problem(ROWS[name], base)
    objective = adtn.DataAwareReconstruction(target, moment)
    try:
        got, grads, exact = loss_and_gradients(gen, objective, "numpy:cpu", "factored")
    except ScheduleError as error:
        assert "a state as large as the weight" in str(error)
        pytest.skip(str(error))
    assert not exact
    arrays = gen.arrays("torch:cpu", "float64")
    trained = {k: arrays[k].requires_grad_() for k in gen.params}
    away = gen.function(arrays).flatten(1) - torch.tensor(target).flatten(1)
    c, rows = torch.tensor(moment), target.reshape(len(target), -1)
    want = (away @ c * away).sum() / float(np.sum(rows @ moment * rows))
    want.backward()
    assert got == pytest.approx(want.item(), rel=1e-12)
    for k, x in trained.items():
        np.testing.assert_allclose(grads[k], to_numpy(x.grad), rtol=1e-9, atol=1e-12, err_msg=k)


@pytest.mark.parametrize("name", ["mpo", "ring", "tucker-2", "cp", "padded inputs"])
@pytest.mark.parametrize("key", ["torch", "jax", "cuda", "jax-gpu"])
def test_all_backends_agree(key: str, name: str) -> None:
    device = usable(key)
    gen, target, moment = problem(ROWS[name])
    objective = adtn.DataAwareReconstruction(target, moment)
    want, grads, _ = loss_and_gradients(gen, objective, "numpy:cpu", "materialise")
    got, others, exact = loss_and_gradients(gen, objective, device, "factored")
    assert not exact
    assert got == pytest.approx(want, rel=1e-12)
    assert all(relative_error(others[k], grads[k]) < tolerance("float64", gen.layout.size) for k in grads)


def test_a_target_of_another_scale_is_divided_by_it() -> None:
    gen, target, moment = problem(ROWS["mpo"])
    objective = adtn.DataAwareReconstruction(1e-30 * target, 1e40 * moment)
    fits = [
        adtn.fit(gen, objective, dtype="float64", steps=6, mode=mode, progress=False)
        for mode in ("materialise", "factored")
    ]
    np.testing.assert_allclose(fits[1].history, fits[0].history, rtol=1e-9)


def test_padded_outputs_need_the_weight() -> None:
    layout = adtn.Layout.from_factors((13, 16), ((2, 7), (4, 4)), "interleaved")
    gen = adtn.Generator((13, 16), adtn.MPO(bond=3), layout=layout)
    _, target, moment = problem(Row(adtn.MPO(bond=3), (13, 16)))
    objective = adtn.DataAwareReconstruction(target, moment)
    with pytest.raises(ScheduleError, match="padding"):
        loss_and_gradients(gen, objective, "numpy:cpu", "factored")


def test_it_is_chosen_where_the_moment_is_large() -> None:
    rng = np.random.default_rng(0)
    target, x = rng.standard_normal((512, 512)), rng.standard_normal((600, 512))
    gen = adtn.Generator((512, 512), adtn.MPO(bond=4))
    objective = adtn.DataAwareReconstruction(target, x.T @ x / 600)
    backend, where = check_device("numpy:cpu", "float32")
    options = FitOptions(device="numpy:cpu", dtype="float32")
    assert not plan_loss(gen, objective, backend, where, options).exact
    # the product of every residual with the moment costs more than anything else
    plan = adtn.schedule.decide(gen, "fit", device="numpy:cpu", loss="output distance")
    whole = next(one for one in plan.alternatives if one.mode == "materialise")
    assert plan.mode == "factored"
    assert whole.seconds > 2 * plan.predicted_seconds
    assert sum(c.flops * c.times for c in plan.contractions) < 512**3


def test_small_errors_are_measured_by_residuals() -> None:
    """A fit that becomes exact leaves the difference of large sums, which loses digits."""
    rng = np.random.default_rng(0)
    gen = adtn.Generator((64, 64), adtn.MPO(bond=2), seed=1, scale=1.0)
    start = gen.with_params({k: 1.1 * x for k, x in gen.params.items()})
    x = rng.standard_normal((200, 64)) * np.geomspace(1.0, 0.1, 64)
    target, moment = gen.weight(dtype="float64"), x.T @ x / 200
    objective = adtn.DataAwareReconstruction(target, moment)
    found = adtn.fit(start, objective, mode="factored", steps=300, lr=0.01, progress=False)
    away = found.generator.weight(dtype="float64") - target
    assert 0.0 < found.loss < 1e-7
    assert found.loss == pytest.approx(np.sum(away @ moment * away) / np.sum(target @ moment * target), rel=0.05)


def test_only_the_symmetric_part_of_a_moment_counts() -> None:
    """A moment that rounding made slightly asymmetric gives the gradients of the loss, in every mode."""
    gen, target, moment = problem(ROWS["mpo"])
    tilt = np.triu(np.full_like(moment, 5e-7 * np.abs(moment).max()), 1)
    wanted = loss_and_gradients(gen, adtn.DataAwareReconstruction(target, moment), "numpy:cpu", "materialise")
    for mode in ("materialise", "factored"):
        objective = adtn.DataAwareReconstruction(target, moment + tilt - tilt.T)
        loss, grads, _ = loss_and_gradients(gen, objective, "numpy:cpu", mode)
        assert loss == pytest.approx(wanted[0], rel=1e-12)
        assert all(relative_error(grads[k], g) < 1e-10 for k, g in wanted[1].items())
