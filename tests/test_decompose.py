"""Decompositions in the metric of the inputs, ranks for a number of parameters, and equal norms."""

from __future__ import annotations

import math
from typing import Any

import adtn
import numpy as np
import pytest
from adtn import Generator, Layout
from adtn.errors import TopologyError
from adtn.optim import balanced, best_within, has_decomposition, is_linear
from adtn.optim._decompose import _changed
from adtn.optim._disentangle import procrustes

from oracles import dense_state
from table import TOPOLOGIES, relative_error


def problem(shape: tuple[int, ...], seed: int = 0, singular: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Make a weight with a decaying spectrum, and the moment of correlated inputs that are not centred."""
    rng = np.random.default_rng(seed)
    n_out, n_in = shape[0], math.prod(shape[1:])
    inputs = rng.standard_normal((4 * n_in, n_in)) * np.arange(1, n_in + 1) ** -0.6
    inputs = inputs @ np.linalg.qr(rng.standard_normal((n_in, n_in)))[0] + 0.3 * rng.standard_normal(n_in)
    if singular:
        inputs[:, :: max(2, n_in // 5)] = 0.0  # channels that are never active
        inputs = inputs[: n_in // 2]
    n = min(n_out, n_in)
    u, v = (np.linalg.qr(rng.standard_normal((m, n)))[0] for m in (n_out, n_in))
    return ((u * np.arange(1, n + 1) ** -0.7) @ v.T).reshape(shape), inputs.T @ inputs / len(inputs)


def error(gen: Generator, weight: np.ndarray, moment: np.ndarray) -> float:
    """Compute the relative error of the outputs."""
    rows = weight.reshape(len(weight), -1)
    away = gen.weight().reshape(rows.shape).astype(np.float64) - rows
    return float(np.sqrt(np.vdot(away @ moment, away) / np.vdot(rows @ moment, rows)))


def best_pair(weight: np.ndarray, moment: np.ndarray, rank: int) -> np.ndarray:
    """Truncate the SVD of the whitened weight: the closed formula, with a pseudo-inverse."""
    values, vectors = np.linalg.eigh(moment)
    root = np.sqrt(np.where(values > 1e-12 * values[-1], values, 0.0))
    inverse = np.where(root > 0.0, 1.0 / np.where(root > 0.0, root, 1.0), 0.0)
    u, s, vt = np.linalg.svd(weight @ (vectors * root), full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank] @ (vectors * inverse).T


@pytest.mark.parametrize("shape", [(13, 20), (29, 17), (16, 16), (8, 3, 3, 3)], ids=str)
@pytest.mark.parametrize("singular", [False, True])
@pytest.mark.parametrize("rank", [1, 5, 99])
def test_a_pair_of_factors_is_the_whitened_svd(shape: tuple[int, ...], singular: bool, rank: int) -> None:
    weight, moment = problem(shape, singular=singular)
    gen = adtn.decompose(Generator(shape, adtn.LowRank(bond=rank), dtype="float64"), weight, moment=moment)
    want = best_pair(weight.reshape(shape[0], -1), moment, rank)
    rows = weight.reshape(shape[0], -1)
    values, vectors = np.linalg.eigh(moment)
    occurring = vectors * np.sqrt(np.where(values > 1e-12 * values[-1], values, 0.0))
    away = gen.weight().reshape(rows.shape) - want
    assert np.linalg.norm(away @ occurring) <= 1e-10 * np.linalg.norm(rows @ occurring)
    left, right = gen.params["left"].reshape(shape[0], -1), gen.params["right"].reshape(len(gen.params["right"]), -1)
    np.testing.assert_allclose(np.linalg.norm(left, axis=0), np.linalg.norm(right, axis=1), atol=1e-9)


KRONECKER = adtn.KroneckerSum()
CASES = {
    "mpo": (adtn.MPO(bond=(5,)), Layout.of((24, 30), 6, "interleaved"), 1.02),
    "mpo-three-sites": (adtn.MPO(bond=(4, 7)), Layout.of((24, 30), 3, "interleaved"), 1.03),
    "tt": (adtn.TT(bond=6), Layout.of((24, 30), 5), 1.02),
    "tt-conv": (adtn.TT(bond=(9, 3, 3)), Layout.whole((16, 12, 3, 3)), 1.03),
    "kronecker": (adtn.KroneckerSum(terms=6), KRONECKER.default_layout((24, 30)), 1.02),
    "kronecker-conv": (adtn.KroneckerSum(terms=3), KRONECKER.default_layout((16, 12, 3, 3)), 1.02),
    "tucker-matrix": (adtn.Tucker(bond=(7, 9)), Layout.whole((23, 29)), 1.001),
    "tucker": (adtn.Tucker(bond=3), Layout.of((24, 30), 5), 1.02),
    "tucker-2": (adtn.Tucker(bond=(6, 5, None, None)), Layout.whole((16, 12, 3, 3)), 1.02),
    "spatial": (adtn.LowRank(bond=8, split="spatial"), Layout.whole((16, 12, 3, 3)), 1.02),
    "spatial-prime": (adtn.LowRank(bond=11, split="spatial"), Layout.whole((17, 13, 3, 5)), 1.03),
    "ttn": (adtn.TTN(bond=4, activation=None), Layout.of((24, 32), 4, "interleaved"), 1.02),
    # local minima differ where cores do not form a tree
    "ring": (adtn.TensorRing(bond=3), Layout.of((24, 30), 5), 1.05),
    "cp": (adtn.CP(bond=12), Layout.of((24, 30), 5), 1.15),
    "attn": (adtn.ATTN(bond=3, activation=None), Layout.of((24, 32), 3, "interleaved"), 1.03),
    "mera": (adtn.MERA(bond=2, activation=None), Layout.of((16, 16), 2, "interleaved"), 1.05),
}


@pytest.mark.parametrize("name", CASES)
def test_the_metric_is_used_as_well_as_by_many_steps_of_lbfgs(name: str) -> None:
    topology, layout, within = CASES[name]
    weight, moment = problem(layout.shape, seed=3)
    start = adtn.decompose(Generator(layout.shape, topology, layout=layout, dtype="float64"), weight)
    gen = adtn.decompose(start, weight, moment=moment)
    objective = adtn.DataAwareReconstruction(weight, moment)
    there = adtn.decompose(start, weight, moment=moment, sweeps=0)
    oracle = adtn.fit(there, objective, optimizer="lbfgs", steps=2000, dtype="float64", progress=False)
    assert error(gen, weight, moment) <= within * oracle.relative_error
    assert error(gen, weight, moment) < 0.8 * error(start, weight, moment)


@pytest.mark.parametrize("name", CASES)
def test_singular_moments_are_harmless(name: str) -> None:
    topology, layout, _ = CASES[name]
    weight, moment = problem(layout.shape, seed=4, singular=True)
    start = adtn.decompose(Generator(layout.shape, topology, layout=layout, dtype="float64"), weight)
    gen = adtn.decompose(start, weight, moment=moment)
    assert error(gen, weight, moment) < 0.7 * error(start, weight, moment)
    assert np.abs(gen.weight()).max() < 1e4 * np.abs(weight).max()


DISENTANGLED = {
    "attn": (adtn.ATTN(bond=4, activation=None), Layout.of((24, 16), 4)),
    "attn-pairs": (adtn.ATTN(bond=3, pairs=((0, 3), (1, 2)), leaves=False, activation=None), Layout.of((9, 27), 3)),
    "mera": (adtn.MERA(bond=3, activation=None), Layout.of((16, 16), 2)),
    "mera-periodic-odd": (adtn.MERA(bond=3, activation=None, periodic=True, leaves=False), Layout.of((27, 9), 3)),
}


@pytest.mark.parametrize("name", DISENTANGLED)
@pytest.mark.parametrize("with_moment", [False, True])
def test_disentanglers_are_never_worse_than_the_tree_alone(name: str, with_moment: bool) -> None:
    topology, layout = DISENTANGLED[name]
    weight, moment = problem(layout.shape, seed=6)
    metric = moment if with_moment else np.eye(len(moment))
    tree = adtn.TTN(bond=topology.bond, leaves=topology.leaves, activation=None)
    for sweeps in (0, 1, 9):
        errors = [
            error(
                adtn.decompose(
                    Generator(layout.shape, one, layout=layout, dtype="float64"),
                    weight,
                    moment=moment if with_moment else None,
                    sweeps=sweeps,
                ),
                weight,
                metric,
            )
            for one in (topology, tree)
        ]
        assert errors[0] <= errors[1] * (1 + 1e-9)
    assert errors[0] < 0.97 * errors[1]


@pytest.mark.parametrize("name", DISENTANGLED)
def test_procrustes_problems_lower_the_error_with_orthogonal_cores(name: str) -> None:
    topology, layout = DISENTANGLED[name]
    state = layout.to_legs(problem(layout.shape, seed=6)[0])
    gen = Generator(layout.shape, topology, layout=layout, dtype="float64")
    before = topology.decompose(layout, state, gen.params)
    after = procrustes(gen.segments[0], state, before)
    away = [float(np.linalg.norm(dense_state(gen.segments, params) - state)) for params in (before, after)]
    assert away[1] < 0.99 * away[0]
    for core in gen.segments[0].cores:
        if core.kind != "root":
            rows = math.prod(core.shape[:2]) if core.kind == "disentangler" else core.shape[0]
            matrix = after[core.param].reshape(rows, -1)
            np.testing.assert_allclose(matrix @ matrix.T, np.eye(rows), atol=1e-12)
    # so what is missing is what the root does not hold
    root = np.linalg.norm(after["root"])
    assert away[1] ** 2 == pytest.approx(np.linalg.norm(state) ** 2 - root**2)


@pytest.mark.parametrize(
    "factors", [((2, 9), (8, 3, 3)), ((18,), (2, 2, 2, 3, 3)), ((18,), (4, 18)), ((3, 2, 3), (72,))]
)
def test_trees_with_a_leg_that_no_other_joins_are_exact(factors: Any) -> None:
    layout = Layout.from_factors((18, 72), factors)
    weight, moment = problem(layout.shape, seed=3)
    gen = Generator(layout.shape, adtn.TTN(bond=99, activation=None), layout=layout, dtype="float64")
    for metric in (None, moment):
        assert np.allclose(adtn.decompose(gen, weight, moment=metric).weight(), weight, atol=1e-7)


@pytest.mark.parametrize("key", TOPOLOGIES)
def test_what_can_be_represented_is_found(key: str) -> None:
    row = TOPOLOGIES[key]
    gen = row.generator()
    if not has_decomposition(gen) or key == "cp":
        pytest.skip("no decomposition, or one that depends on the start")
    rng = np.random.default_rng(0)
    twin = gen if is_linear(gen) else _changed(gen, activation="identity")
    target = twin.with_params({name: rng.standard_normal(x.shape) for name, x in gen.params.items()}).weight()
    _, moment = problem(row.shape)
    for more in ({}, {"moment": moment}, {"moment": moment.astype(np.float32)}):
        found = adtn.decompose(gen, target, **more).weight()
        if is_linear(gen):
            assert relative_error(found, target) < 1e-4
        else:  # an activation is only nearly linear
            assert relative_error(found, adtn.decompose(twin, target, **more).weight()) < 1.01e-2


@pytest.mark.parametrize("activation", ["tanh", "silu", "gelu", "sine"])
def test_activations_cost_little_and_can_be_trained(activation: str) -> None:
    weight, moment = problem((12, 18))
    layout = Layout.of((12, 18), 4)
    options: dict[str, Any] = {"layout": layout, "dtype": "float64", "scale": 3.0}
    linear = adtn.decompose(
        Generator((12, 18), adtn.TTN(bond=3, activation="identity"), **options), weight, moment=moment
    )
    rng = np.random.default_rng(0)
    gen = Generator((12, 18), adtn.TTN(bond=3, activation=activation), **options)
    assert not is_linear(gen)
    near = adtn.decompose(gen, weight, moment=moment)
    assert relative_error(near.weight(), linear.weight()) < 1.01e-2
    permuted = [rng.permutation(12), rng.permutation(18)]
    own = adtn.decompose(Generator((12, 18), gen.topology, **options, permutations=permuted), weight)
    wanted = adtn.decompose(Generator((12, 18), linear.topology, **options, permutations=permuted), weight)
    assert relative_error(own.weight(), wanted.weight()) < 1.01e-2
    # the first derivative at zero is there, so that training goes on from it
    found = adtn.fit(near, weight, optimizer="lbfgs", steps=30, progress=False)
    assert found.relative_error < relative_error(near.weight(), weight)


def test_an_activation_without_cores_behind_it_has_no_decomposition() -> None:
    weight = np.random.default_rng(0).standard_normal((12, 18))
    bare = Generator((12, 18), adtn.Tucker(bond=(None, None), activation="tanh"))  # the entries of a core
    assert not has_decomposition(bare)
    with pytest.raises(TopologyError, match="trained cores before and behind"):
        adtn.decompose(bare, weight)
    half = Generator((12, 18), adtn.Tucker(bond=(12, None), activation="tanh"), scale=1.0, dtype="float64")
    assert relative_error(adtn.decompose(half, weight).weight(), weight) < 0.02


@pytest.mark.parametrize("activation", ["relu", "softplus", "leaky_relu"])
def test_activations_with_a_bend_have_no_decomposition(activation: str) -> None:
    gen = Generator((12, 18), adtn.TTN(bond=3, activation=activation))
    assert not has_decomposition(gen)
    with pytest.raises(TopologyError, match="nearly linear around zero"):
        adtn.decompose(gen, np.ones((12, 18)))


def test_permutations_padding_and_scale_are_respected() -> None:
    shape = (13, 22)
    weight, moment = problem(shape)
    rng = np.random.default_rng(1)
    options: dict[str, Any] = {"dtype": "float64", "scale": 7.0, "permutations": [rng.permutation(n) for n in shape]}
    for topology, layout in (
        (adtn.LowRank(bond=3), Layout.of(shape, 4)),
        (adtn.MPO(bond=1000), Layout.of(shape, 4, "interleaved")),
        (adtn.MPO(bond=4), Layout.of(shape, 4, "interleaved")),
    ):
        gen = Generator(shape, topology, layout=layout, **options)
        found = adtn.decompose(gen, weight, moment=moment)
        plain = adtn.decompose(gen, weight)
        assert error(found, weight, moment) <= error(plain, weight, moment) + 1e-9
    # a permuted problem is the same problem
    direct = Generator(shape, adtn.LowRank(bond=3), dtype="float64")
    pair = adtn.decompose(Generator(shape, adtn.LowRank(bond=3), **options), weight, moment=moment)
    np.testing.assert_allclose(pair.weight(), adtn.decompose(direct, weight, moment=moment).weight(), atol=1e-9)


def test_fewer_sweeps_are_a_worse_but_valid_result() -> None:
    topology, layout, _ = CASES["mpo"]
    weight, moment = problem(layout.shape)
    gen = Generator(layout.shape, topology, layout=layout, dtype="float64")
    errors = [error(adtn.decompose(gen, weight, moment=moment, sweeps=n), weight, moment) for n in (0, 1, 3, 40)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < error(adtn.decompose(gen, weight), weight, moment)


@pytest.mark.parametrize(
    ("moment", "message"),
    [
        (np.eye(7), r"shape \(7, 7\) .* expected \(8, 8\)"),
        (np.zeros((8, 8)), "all zero"),
        (np.triu(np.ones((8, 8))), "not symmetric"),
        (np.full((8, 8), np.nan), "moment"),
    ],
)
def test_invalid_moments_are_refused(moment: np.ndarray, message: str) -> None:
    with pytest.raises(TopologyError, match=message):
        adtn.decompose(Generator((8, 8), adtn.MPO(bond=2)), np.ones((8, 8)), moment=moment)


@pytest.mark.parametrize("name", CASES)
def test_weights_without_outputs_are_decomposed_as_well(name: str) -> None:
    topology, layout, _ = CASES[name]
    weight, moment = problem(layout.shape)
    gen = Generator(layout.shape, topology, layout=layout, dtype="float64")
    zero = adtn.decompose(gen, np.zeros(layout.shape), moment=moment).weight()
    assert np.isfinite(zero).all() and np.abs(zero).max() < 1e-3
    unseen = np.zeros_like(moment)
    unseen[0, 0] = 1.0
    rows = weight.reshape(len(weight), -1).copy()
    rows[:, 0] = 0.0
    found = adtn.decompose(gen, rows.reshape(weight.shape), moment=unseen)
    assert np.isfinite(found.weight()).all()


def test_fits_start_in_the_metric_of_their_objective() -> None:
    topology, layout, _ = CASES["mpo"]
    weight, moment = problem(layout.shape)
    gen = Generator(layout.shape, topology, layout=layout, dtype="float64")
    objective = adtn.DataAwareReconstruction(weight, moment)
    solution = adtn.fit(gen, objective, start="decomposition", steps=1, lr=1e-9, dtype="float64")
    assert solution.relative_error <= error(adtn.decompose(gen, weight, moment=moment), weight, moment) * (1 + 1e-6)


def test_cores_have_equal_norms() -> None:
    topology, layout, _ = CASES["mpo"]
    weight, moment = problem(layout.shape)
    gen = Generator(layout.shape, topology, layout=layout, dtype="float64")
    norms = [np.linalg.norm(x) for x in adtn.decompose(gen, weight, moment=moment).params.values()]
    np.testing.assert_allclose(norms, norms[0], rtol=1e-9)


def test_vectors_have_no_metric() -> None:
    gen = Generator((12,), adtn.TT(bond=2), layout=Layout.of((12,), 3), dtype="float64")
    target = np.arange(12.0)
    want = adtn.decompose(gen, target).weight()
    np.testing.assert_array_equal(adtn.decompose(gen, target, moment=[[2.0]]).weight(), want)


# ranks for a number of parameters

WITHIN = {
    "low-rank": (adtn.LowRank(), Layout.whole((24, 30))),
    "low-rank-spatial": (adtn.LowRank(split="spatial"), Layout.whole((16, 12, 3, 3))),
    "tucker-2": (adtn.Tucker(bond=(1, 1, None, None)), Layout.whole((16, 12, 3, 3))),
    "tucker": (adtn.Tucker(), Layout.of((24, 30), 5)),
    "tucker-tall": (adtn.Tucker(), Layout.whole((40, 6))),
    "mpo": (adtn.MPO(), Layout.of((24, 30), 3, "interleaved")),
    "tt": (adtn.TT(), Layout.of((24, 30), 5)),
    "tt-conv": (adtn.TT(), Layout.whole((16, 12, 3, 3))),
}


def params_of(topology: adtn.Topology, layout: Layout) -> int:
    return sum(core.size for segment in topology.segments(layout) for core in segment.cores)


@pytest.mark.parametrize("name", WITHIN)
@pytest.mark.parametrize("part", [0.15, 0.4])
def test_unequal_ranks_are_at_least_as_good_as_equal_ones(name: str, part: float) -> None:
    topology, layout = WITHIN[name]
    weight, moment = problem(layout.shape, seed=5)
    most = int(part * weight.size)
    chosen = best_within(topology, layout, weight, moment, most)
    equal = [topology.grown(n) for n in range(1, 30)]
    equal = [one for one in equal if params_of(one, layout) <= most]
    if chosen is None:
        assert not equal
        return
    assert params_of(chosen, layout) <= most
    errors = []
    for one in (chosen, *equal[-1:]):
        gen = Generator(layout.shape, one, layout=layout, dtype="float64")
        errors.append(error(adtn.decompose(gen, weight, moment=moment), weight, moment))
    assert errors[0] <= 1.02 * errors[-1]
    # with the room of the dense weight and its factors, nothing is cut
    full = best_within(topology, layout, weight, moment, 10 * weight.size)
    assert full is not None
    gen = Generator(layout.shape, full, layout=layout, dtype="float64")
    assert relative_error(adtn.decompose(gen, weight).weight(), weight) < 1e-9


@pytest.mark.parametrize("name", WITHIN)
def test_nothing_fits_into_no_parameters(name: str) -> None:
    topology, layout = WITHIN[name]
    assert best_within(topology, layout, np.ones(layout.shape), None, 3) is None


def test_ranks_follow_the_spectra() -> None:
    rng = np.random.default_rng(0)
    core = rng.standard_normal((2, 5, 3, 3))
    weight = np.einsum("abij,oa,cb->ocij", core, rng.standard_normal((16, 2)), rng.standard_normal((12, 5)))
    most = core.size + 2 * 16 + 5 * 12
    layout = Layout.whole(weight.shape)
    assert best_within(adtn.Tucker(bond=(9, 9, None, None)), layout, weight, None, most) == adtn.Tucker(
        bond=(2, 5, None, None)
    )
    gen = Generator((27, 18), adtn.MPO(bond=(4, 2)), layout=Layout.of((27, 18), 3, "interleaved"), dtype="float64")
    target = gen.with_params({name: rng.standard_normal(x.shape) for name, x in gen.params.items()}).weight()
    assert best_within(adtn.MPO(), gen.layout, target, None, gen.num_params) == gen.topology


def test_topologies_without_ranks_are_refused() -> None:
    with pytest.raises(TopologyError, match="LowRank, Tucker, TT or MPO"):
        best_within(adtn.CP(), Layout.whole((8, 8)), np.ones((8, 8)), None, 100)
    with pytest.raises(TopologyError, match="expected that"):
        best_within(adtn.MPO(), Layout.whole((8, 8)), np.ones((8, 9)), None, 100)


# equal norms


@pytest.mark.parametrize("key", TOPOLOGIES)
def test_balanced_cores_make_the_same_weight(key: str) -> None:
    gen = TOPOLOGIES[key].generator()
    rng = np.random.default_rng(0)
    gen = gen.with_params({name: x * rng.uniform(0.1, 9.0) for name, x in gen.params.items()})
    even = balanced(gen)
    np.testing.assert_allclose(even.weight(), gen.weight(), rtol=1e-9, atol=1e-12 * np.abs(gen.weight()).max())
    if len(gen.segments) == 1 and gen.segments[0].activation == "identity":
        norms = [np.linalg.norm(even.params[core.param]) for core in gen.segments[0].cores if core.trainable]
        np.testing.assert_allclose(norms, norms[0], rtol=1e-9)


def test_a_core_of_zeros_is_left_alone() -> None:
    gen = TOPOLOGIES["mpo"].generator()
    silent = gen.with_params({**gen.params, "site0": np.zeros_like(gen.params["site0"])})
    for name, x in balanced(silent).params.items():
        np.testing.assert_array_equal(x, silent.params[name])
