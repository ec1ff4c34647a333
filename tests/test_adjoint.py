"""The adjoint on random networks, paths and shapes."""

from __future__ import annotations

import numpy as np
import pytest
from adtn import Generator
from adtn.calculus import forward_tape, pullback
from adtn.program import compile_program
from adtn.topology import Core, Segment
from hypothesis import given
from hypothesis import strategies as st

from oracles import SIGMA, dense_state, directional_derivatives


@st.composite
def programs(draw: st.DrawFn) -> tuple[tuple[Segment, ...], dict[str, np.ndarray]]:
    """Draw a chain of random segments, with loops, hyper-indices, dangling sums, shared and frozen cores."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    state: tuple[str, ...] = ()
    sizes: dict[str, int] = {}
    segments: list[Segment] = []
    arrays: dict[str, np.ndarray] = {}
    for t in range(draw(st.integers(1, 3))):
        inner = [f"i{t}_{k}" for k in range(draw(st.integers(1, 4)))]
        outer = [f"o{t}_{k}" for k in range(draw(st.integers(1, 3)))]
        pool = [*state, *inner, *outer]
        for i in (*inner, *outer):
            sizes[i] = draw(st.integers(1, 4))
        cores: list[Core] = []
        for k in range(draw(st.integers(1, 4))):
            inds = tuple(draw(st.permutations(pool)))[: draw(st.integers(1, min(4, len(pool))))]
            shape = tuple(sizes[i] for i in inds)
            name = f"c{t}_{k}"
            twin = next((c for c in cores if c.shape == shape), None)
            param = twin.param if twin is not None and draw(st.booleans()) else name
            trainable = next((c.trainable for c in cores if c.param == param), draw(st.booleans()))
            cores.append(
                Core(name=name, inds=inds, shape=shape, param=param, kind="core", level=t, trainable=trainable)
            )
            arrays[param] = rng.standard_normal(shape)
        present = {i for core in cores for i in core.inds} | set(state)
        outputs = tuple(i for i in draw(st.permutations(pool)) if i in present)[: draw(st.integers(1, 4))]
        segments.append(
            Segment(state, tuple(cores), outputs, draw(st.sampled_from(["identity", "tanh", "silu", "sine"])))
        )
        state = outputs
    return tuple(segments), arrays


@given(programs())
def test_random_networks(case: tuple[tuple[Segment, ...], dict[str, np.ndarray]]) -> None:
    segments, arrays = case
    program = compile_program(segments)
    state, tape = forward_tape(program, arrays)
    want = dense_state(segments, arrays)
    scale = max(1.0, float(np.max(np.abs(want), initial=0.0)))
    np.testing.assert_allclose(state, want, rtol=1e-9, atol=1e-10 * scale)
    rng = np.random.default_rng(0)
    cotangent = rng.standard_normal(state.shape)
    grads = pullback(program, tape, cotangent)
    trained = {core.param for segment in segments for core in segment.cores if core.trainable}
    assert set(grads) <= trained
    for name in trained:
        d = rng.standard_normal(arrays[name].shape)
        h = 1e-6
        up = np.sum(dense_state(segments, {**arrays, name: arrays[name] + h * d}) * cotangent)
        down = np.sum(dense_state(segments, {**arrays, name: arrays[name] - h * d}) * cotangent)
        got = np.sum(grads.get(name, np.zeros(())) * d)
        reach = np.sum(np.abs(grads.get(name, np.zeros(())) * d)) + scale
        assert abs(got - (up - down) / (2 * h)) < 1e-5 * reach, name


@given(programs(), st.randoms(use_true_random=False))
def test_the_order_of_contraction_changes_nothing(case, random) -> None:
    segments, arrays = case
    paths = []
    for segment in segments:
        n = len(segment.cores) + bool(segment.inputs)
        path = []
        while n > 1:
            i, j = sorted(random.sample(range(n), 2))
            path.append((i, j))
            n -= 1
        paths.append(tuple(path))
    best, other = compile_program(segments), compile_program(segments, tuple(paths))
    a, tape_a = forward_tape(best, arrays)
    b, tape_b = forward_tape(other, arrays)
    scale = max(1.0, float(np.max(np.abs(a), initial=0.0)))
    np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-9 * scale)
    cotangent = np.random.default_rng(1).standard_normal(a.shape)
    grads_a, grads_b = pullback(best, tape_a, cotangent), pullback(other, tape_b, cotangent)
    for name in grads_a:
        reach = max(1.0, float(np.max(np.abs(grads_a[name]), initial=0.0)), scale)
        np.testing.assert_allclose(grads_a[name], grads_b[name], rtol=1e-7, atol=1e-8 * reach)


@st.composite
def quimb_networks(draw: st.DrawFn):
    """Draw a random regular quimb network with legs, and a network of leaves on them."""
    import quimb.tensor as qtn

    seed = draw(st.integers(0, 2**31))
    head = qtn.TN_rand_reg(4, 3, D=draw(st.integers(1, 3)), phys_dim=2, seed=seed)
    legs = head.outer_inds()
    leaves = [
        qtn.rand_tensor((2, 3), inds=(leg, f"w{k}"), tags=["TRAIN", f"LEAF{k}"], seed=seed + k)
        for k, leg in enumerate(legs)
    ]
    if draw(st.booleans()):
        leaves.pop()  # this leg passes through
    return [head, qtn.TensorNetwork(leaves)]


@given(quimb_networks(), st.sampled_from(["tanh", "silu", "identity"]))
def test_generators_from_quimb_networks(networks, activation: str) -> None:
    gen = Generator.from_networks(networks, activation=activation, dtype="float64")
    head, leaves = networks
    x = head.contract(..., output_inds=head.outer_inds())
    x.modify(data=SIGMA[activation](x.data))
    outputs = gen.topology.pieces[-1].outputs  # type: ignore[attr-defined]
    want = (leaves | x).contract(..., output_inds=outputs).transpose(*outputs).data
    np.testing.assert_allclose(gen.weight(), want, rtol=1e-9, atol=1e-10)
    rng = np.random.default_rng(0)
    wbar = rng.standard_normal(gen.shape)
    grads = gen.function.vjp(gen.arrays("numpy:cpu", "float64"), wbar)[1]
    for name, (slope, direction) in directional_derivatives(gen, wbar, rng).items():
        assert np.sum(grads[name] * direction) == pytest.approx(slope, rel=1e-5, abs=1e-4)
