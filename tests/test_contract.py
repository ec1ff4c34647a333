"""What every topology must do on every backend in every dtype; a new topology is one row in conftest.py."""

from __future__ import annotations

from dataclasses import replace

import adtn
import numpy as np
import pytest
from adtn.backends import check_device, get_backend
from adtn.calculus import forward, vjp

from oracles import dense_weight, directional_derivatives
from table import Row, relative_error, to_numpy, tolerance


def test_weight_is_the_dense_einsum(row: Row, device_dtype: tuple[str, str]) -> None:
    device, dtype = device_dtype
    gen = row.generator()
    weight = gen.weight(device, dtype)
    assert tuple(weight.shape) == row.shape
    backend, _ = check_device(device, dtype)
    assert backend.dtype_of(weight) == dtype
    depth = 8 * len(gen.program.stages)
    assert relative_error(to_numpy(weight), dense_weight(gen)) < tolerance(dtype, depth)


def test_adjoint_is_the_same_everywhere(row: Row, device_dtype: tuple[str, str]) -> None:
    device, dtype = device_dtype
    gen = row.generator()
    wbar = np.random.default_rng(1).standard_normal(row.shape)
    want = gen.function.vjp(gen.arrays("numpy:cpu", "float64"), wbar)[1]
    backend, where = check_device(device, dtype)
    got = backend.compile(gen.function.vjp)(gen.arrays(device, dtype), backend.asarray(wbar, where, dtype))[1]
    assert set(got) == set(want) == set(gen.params)
    for name, grad in want.items():
        assert tuple(got[name].shape) == gen.params[name].shape
        # a gradient sums over the weight: measure against the sum of absolute terms, not against a cancelled sum
        scale = max(float(np.linalg.norm(grad)), 1e-3 * float(np.linalg.norm(wbar)) * gen.scale)
        error = float(np.linalg.norm(to_numpy(got[name]) - grad)) / scale
        assert error < tolerance(dtype, 64 * len(gen.program.stages)), name


def test_adjoint_is_the_finite_difference(row: Row) -> None:
    gen = row.generator(seed=2)
    rng = np.random.default_rng(0)
    wbar = rng.standard_normal(row.shape)
    grads = gen.function.vjp(gen.arrays("numpy:cpu", "float64"), wbar)[1]
    floor = 1e-4 * float(np.linalg.norm(wbar)) * gen.scale
    for name, (slope, direction) in directional_derivatives(gen, wbar, rng).items():
        got = float(np.sum(grads[name] * direction))
        assert abs(got - slope) < 1e-6 * max(abs(slope), floor), name


def test_adjoint_is_torch_autograd(row: Row) -> None:
    torch = pytest.importorskip("torch")
    gen = row.generator(seed=3)
    arrays = gen.arrays("torch:cpu", "float64")
    leaves = {name: arrays[name].requires_grad_() for name in gen.params}
    wbar = torch.randn(*row.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight = gen.function(arrays)
    want = torch.autograd.grad(weight, list(leaves.values()), wbar)
    with torch.no_grad():
        got = gen.function.vjp(arrays, wbar)[1]
    for (name, _), grad in zip(leaves.items(), want, strict=True):
        torch.testing.assert_close(got[name], grad, rtol=1e-9, atol=1e-11 * float(grad.abs().max()) + 1e-14)


def test_adjoint_is_jax_grad(row: Row) -> None:
    jax = pytest.importorskip("jax")
    gen = row.generator(seed=4)
    arrays = gen.arrays("jax:cpu", "float64")
    params = {name: arrays.pop(name) for name in gen.params}
    wbar = get_backend("jax").asarray(np.random.default_rng(0).standard_normal(row.shape), "cpu", "float64")
    with jax.enable_x64(True):
        want = jax.jit(jax.grad(lambda p: (gen.function({**arrays, **p}) * wbar).sum()))(params)
        got = jax.jit(gen.function.vjp)({**arrays, **params}, wbar)[1]
        for name, grad in want.items():
            atol = 1e-11 * float(np.max(np.abs(grad), initial=0.0)) + 1e-14
            np.testing.assert_allclose(np.asarray(got[name]), np.asarray(grad), rtol=1e-9, atol=atol, err_msg=name)


def test_vjp_costs_at_most_three_forwards(row: Row) -> None:
    gen = row.generator()
    null = get_backend("null")
    arrays, counter = null.arrays_like({**gen.params, **gen.constants()})  # type: ignore[attr-defined]
    state = forward(gen.program, arrays)
    one = counter.flops
    arrays, counter = null.arrays_like({**gen.params, **gen.constants()})  # type: ignore[attr-defined]
    vjp(gen.program, arrays, state)
    # gradients of cores that share a parameter are added, which no forward does
    added = sum(core.size for core in gen.program.cores) if gen.topology.share else 0
    assert one >= gen.program.flops
    assert counter.flops - added <= 3 * one


def test_quimb_contracts_to_the_same_states(row: Row) -> None:
    gen = row.generator()
    networks = gen.networks()
    assert len(networks) == len(gen.segments)
    for t, (network, segment) in enumerate(zip(networks, gen.segments, strict=True)):
        z = network.contract(..., output_inds=segment.outputs, optimize="greedy")
        z = z.transpose(*segment.outputs).data
        state = gen.program.stages[t].activation.value(np.asarray(z))
        if t + 1 < len(networks):
            np.testing.assert_allclose(networks[t + 1]["STATE"].data, state, rtol=1e-10, atol=1e-12)
        else:
            np.testing.assert_allclose(gen.scale * gen.layout.from_legs(state), gen.weight(), rtol=1e-10, atol=1e-12)
        names = {tag for tensor in network for tag in tensor.tags}
        assert {core.kind.upper() for core in segment.cores} <= names


def test_states_start_with_unit_variance(row: Row) -> None:
    gen = row.generator(seed=5)
    state = None
    arrays = {**gen.params, **gen.constants()}
    from adtn.calculus._adjoint import forward_stage

    for stage in gen.program.stages:
        z, _ = forward_stage(stage, state, arrays, keep=False, activate=False)
        assert np.std(z) == pytest.approx(1.0, rel=1e-6)
        state = stage.activation.value(z)


def test_counts(row: Row) -> None:
    gen = row.generator()
    nominal = sum(x.size for x in gen.params.values())
    assert gen.num_params == nominal
    assert 0 < gen.degrees_of_freedom <= gen.num_active_params <= nominal
    assert gen.compression_ratio == pytest.approx(np.prod(row.shape) / nominal)


def test_first_values_follow_from_the_seed(row: Row) -> None:
    a, b, c = row.generator(seed=1), row.generator(seed=1), row.generator(seed=2)
    assert all(np.array_equal(a.params[k], b.params[k]) for k in a.params)
    fixed = isinstance(row.topology, adtn.RandomFeatures | adtn.ScaledIdentity | adtn.ScaledRandom)
    assert fixed or any(not np.array_equal(a.params[k], c.params[k]) for k in a.params)


def test_first_values_do_not_depend_on_the_order_of_cores(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    want = row.generator(seed=1)
    reordered = tuple(replace(segment, cores=segment.cores[::-1]) for segment in want.segments)
    monkeypatch.setattr(type(row.topology), "segments", lambda self, layout: reordered)
    found = row.generator(seed=1)
    assert found.segments == reordered
    assert set(found.params) == set(want.params)
    for name, x in want.params.items():
        # spreads are measured by sums in another order
        np.testing.assert_allclose(found.params[name], x, rtol=tolerance("float64", want.layout.size), atol=0.0)
    for name, x in want.constants().items():
        assert np.array_equal(found.constants()[name], x), name


def test_survives_a_file(row: Row, tmp_path) -> None:
    gen = row.generator(dtype="float32")
    adtn.save(tmp_path / "x.safetensors", gen)
    back = adtn.load(tmp_path / "x.safetensors")
    assert back.topology == gen.topology
    assert back.layout == gen.layout
    assert all(np.array_equal(back.params[k], gen.params[k]) for k in gen.params)
    assert np.array_equal(back.weight(), gen.weight())


def test_numpy_trains_it(row: Row) -> None:
    gen = row.generator(seed=6)
    target = np.random.default_rng(0).standard_normal(row.shape) * gen.scale
    solution = adtn.fit(gen, target, steps=30, lr=1e-2, schedule="constant")
    assert solution.status is adtn.Status.FINISHED
    assert solution.loss < solution.history[0]
