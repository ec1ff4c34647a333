"""Gauss-Newton: the matrix compared with finite differences, and the convergence of steps."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import adtn
import numpy as np
import pytest
from adtn.backends import get_backend
from adtn.calculus import sampled_jacobian
from adtn.errors import FitError
from adtn.optim.solvers import _gauss_newton
from adtn.optim.solvers._gauss_newton import plan_curvature

TOPOLOGIES = (
    adtn.TTN(bond=2),
    adtn.TTN(bond=2, share=True),
    adtn.ATTN(bond=2),
    adtn.MERA(bond=2),
    adtn.BrickWall(layers=2),
    adtn.MPO(bond=2),
    adtn.CP(bond=2),
    adtn.RandomFeatures(bond=2),
    adtn.TTN(bond=2, where="all", activation="tanh"),
)


def slopes(generator: adtn.Generator, names: list[str]) -> np.ndarray:
    """Compute the Jacobian ``(parameters, *shape)`` by central differences."""
    rows: list[np.ndarray] = []
    for name in names:
        x = generator.params[name]
        for j in range(x.size):
            step = np.zeros(x.size)
            step[j] = 1e-6
            ends = [generator.with_params({**generator.params, name: x + s * step.reshape(x.shape)}) for s in (1, -1)]
            rows.append((ends[0].weight() - ends[1].weight()) / 2e-6)
    return np.array(rows)


def curvature_of(generator: adtn.Generator, objective: Any, device: str = "numpy:cpu") -> Any:
    backend, _, where = device.partition(":")
    return plan_curvature(generator, objective, get_backend(backend), where, "float64", 0)


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=repr)
@pytest.mark.parametrize(
    ("shape", "base", "aware"), [((12, 20), None, True), ((6, 4, 3, 3), adtn.SeededBase(1), False)], ids=str
)
def test_the_matrix_is_that_of_finite_differences(
    topology: adtn.Topology, shape: tuple[int, ...], base: Any, aware: bool
) -> None:
    rng = np.random.default_rng(0)
    target, n_in = rng.standard_normal(shape), math.prod(shape[1:])
    generator = adtn.Generator(shape, topology, scale=target, base=base, dtype="float64")
    objective: Any = adtn.Reconstruction(target)
    moment = np.eye(n_in)
    if aware:
        inputs = rng.standard_normal((50, n_in))
        moment = inputs.T @ inputs / 50
        objective = adtn.DataAwareReconstruction(target, moment)
    curvature = curvature_of(generator, objective)
    found = curvature(dict(generator.params), 0)
    rows = slopes(generator, curvature.names).reshape(len(found), shape[0], n_in)
    flat = target.reshape(shape[0], n_in)
    norm = np.einsum("rc,cd,rd->", flat, moment, flat)
    want = 2.0 * np.einsum("arc,cd,brd->ab", rows, moment, rows) / norm
    np.testing.assert_allclose(found, want, rtol=1e-6, atol=1e-7 * np.abs(want).max())


def test_every_backend_makes_the_same_matrix(device: str) -> None:
    target = np.random.default_rng(0).standard_normal((16, 16))
    generator = adtn.Generator((16, 16), adtn.MERA(bond=2), scale=target, dtype="float64")
    backend, _, where = device.partition(":")
    if where == "mps":
        pytest.skip("Apple's GPU has no float64")
    with get_backend(backend).scope("float64"):
        curvature = curvature_of(generator, adtn.Reconstruction(target), device)
        params = {k: get_backend(backend).asarray(x, where, "float64") for k, x in generator.params.items()}
        found = curvature(params, 0)
    want = curvature_of(generator, adtn.Reconstruction(target))(dict(generator.params), 0)
    np.testing.assert_allclose(found, want, rtol=1e-9, atol=1e-12)


def test_samples_are_entries_of_the_jacobian() -> None:
    generator = adtn.Generator((12, 4, 3), adtn.TTN(bond=2), dtype="float64")
    jacobian = sampled_jacobian(generator.segments, generator.layout, 5, 7)
    rows, columns = np.array([0, 3, 4, 9, 11]), np.array([0, 1, 5, 6, 7, 10, 11])
    arrays = {**generator.params, **jacobian.probes(rows, columns)}
    arrays |= {f"unit/{k}": np.eye(x.size).reshape(-1, *x.shape) for k, x in generator.params.items()}
    found = jacobian(arrays)
    for name in generator.params:
        want = slopes(generator, [name]).reshape(-1, 12, 12)[:, rows][:, :, columns]
        np.testing.assert_allclose(found[name] * generator.scale, want, rtol=1e-6, atol=1e-9)


def test_sampled_matrices_are_right_on_average(monkeypatch: pytest.MonkeyPatch) -> None:
    target = np.random.default_rng(0).standard_normal((16, 16))
    generator = adtn.Generator((16, 16), adtn.TTN(bond=2), scale=target, dtype="float64")
    whole = curvature_of(generator, adtn.Reconstruction(target))
    for name in ("_FEWEST", "_LARGEST", "_PER_PARAMETER"):
        monkeypatch.setattr(_gauss_newton, name, 1)
    sampled = curvature_of(generator, adtn.Reconstruction(target))
    assert math.prod(sampled.jacobian.counts) < 256
    mean = np.mean([sampled(dict(generator.params), step) for step in range(400)], axis=0)
    want = whole(dict(generator.params), 0)
    assert np.linalg.norm(mean - want) < 0.1 * np.linalg.norm(want)
    again = replace(sampled, seed=1)
    assert not np.allclose(sampled(dict(generator.params), 0), again(dict(generator.params), 0))


def test_few_steps_reach_a_target_that_can_be_reached() -> None:
    topology = adtn.TTN(bond=2, activation="identity")
    layout = adtn.Layout.of((32, 32), 8)
    target = adtn.Generator((32, 32), topology, layout=layout, seed=5, scale=1.0).weight()
    start = adtn.Generator((32, 32), topology, layout=layout, seed=0, scale=target, dtype="float64")
    found = adtn.fit(start, target, optimizer="lm", steps=60)
    assert found.relative_error < 1e-4
    assert np.all(np.diff(found.history) <= 0.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: (adtn.Generator((8, 8), adtn.TTN(bond=2)), lambda w: (w.sum(), np.ones_like(w))), "sum of squares"),
        (lambda: (adtn.Generator((64, 64), adtn.Dense()), np.eye(64)), "at most 2048"),
    ],
)
def test_unsuitable_problems_are_refused(make: Any, message: str) -> None:
    generator, target = make()
    with pytest.raises(FitError, match=message):
        adtn.fit(generator, target, optimizer="lm", steps=3)
    with pytest.raises(FitError, match="Got clip with 'lm'"):
        adtn.fit(adtn.Generator((8, 8), adtn.TTN(bond=2)), np.eye(8), optimizer="lm", clip=1.0)
