"""The structure of topologies: counts, shapes, tags, errors."""

from __future__ import annotations

import math

import adtn
import numpy as np
import pytest
from adtn import Layout
from adtn.errors import TopologyError
from adtn.topology import topology_from_json, topology_to_json

from table import TOPOLOGIES


def count(topology: adtn.Topology, shape: tuple[int, ...], **layout) -> int:
    return adtn.Generator(shape, topology, layout=Layout.of(shape, **layout)).num_params


def test_ttn_counts_by_hand() -> None:
    # root 4x4, two isometries 4x4x4, four leaves 4x32
    assert count(adtn.TTN(bond=4), (1024, 1024), leg=32) == 16 + 2 * 64 + 4 * 128 == 656
    # eight legs of 8: root, 2 and 4 isometries, eight leaves
    assert count(adtn.TTN(bond=4), (4096, 4096), leg=8) == 16 + 6 * 64 + 8 * 32
    # the literature's tree without leaves: (Q/2) chi d^2 + (Q/2 - 2) chi^3 + chi^2
    q, chi, d = 8, 3, 8
    assert (
        count(adtn.TTN(bond=chi, leaves=False), (4096, 4096), leg=8)
        == q // 2 * chi * d**2 + (q // 2 - 2) * chi**3 + chi**2
    )


def test_mera_counts_by_hand() -> None:
    chi, d = 2, 8  # ranks of 2, 4 and 8 bonds, then leaves
    isometries, leaves = 6 * chi**3, 8 * chi * d
    assert count(adtn.MERA(bond=chi), (4096, 4096), leg=8) == chi**2 + isometries + leaves + (1 + 3) * chi**4
    assert (
        count(adtn.MERA(bond=chi, periodic=True), (4096, 4096), leg=8)
        == chi**2 + isometries + leaves + (2 + 4) * chi**4
    )


def test_attn_adds_disentanglers_of_physical_legs() -> None:
    plain = count(adtn.TTN(bond=2), (64, 64), leg=4)
    assert count(adtn.ATTN(bond=2), (64, 64), leg=4) == plain + 2 * 4**4
    assert count(adtn.ATTN(bond=2, pairs=((0, 5),)), (64, 64), leg=4) == plain + 4**4


def test_linear_counts_by_hand() -> None:
    # six legs of 4, or three pairs of them
    def of(topology: adtn.Topology) -> int:
        return count(topology, (64, 64), leg=4, order=topology.order)

    assert of(adtn.TT(bond=3)) == 2 * 4 * 3 + 4 * 3 * 4 * 3
    assert of(adtn.TT(bond=100)) == 2 * (4 * 4 + 4 * 4 * 16 + 16 * 4 * 64), "no more than what is left and right"
    assert of(adtn.MPO(bond=3)) == 2 * 16 * 3 + 3 * 16 * 3
    assert of(adtn.TensorRing(bond=3)) == 6 * 3 * 4 * 3
    assert of(adtn.MPO(bond=(2, 5))) == 16 * 2 + 2 * 16 * 5 + 5 * 16
    assert of(adtn.TT(bond=(100, 2, 3, 3, 3))) == 4 * 4 + 4 * 4 * 2 + (2 + 3 + 3) * 4 * 3 + 3 * 4
    assert of(adtn.TensorRing(bond=(1, 2, 3, 4, 5, 6))) == 4 * (6 * 1 + 1 * 2 + 2 * 3 + 3 * 4 + 4 * 5 + 5 * 6)
    assert of(adtn.CP(bond=5)) == 6 * 5 * 4
    assert of(adtn.Tucker(bond=3)) == 3**6 + 6 * 3 * 4
    assert of(adtn.Tucker(bond=9)) == 4**6 + 6 * 4 * 4, "no more than the leg"


def test_pairs_of_factors_have_whole_axes() -> None:
    gen = adtn.Generator((1536, 1009), adtn.LowRank(bond=8))
    assert gen.layout.dims == (1536, 1009)
    assert {name: x.shape for name, x in gen.params.items()} == {"left": (1536, 8), "right": (8, 1009)}
    assert Layout.of((1536, 1009), (1536, 1009)) == gen.layout
    conv = adtn.Generator((10, 6, 3, 5), adtn.LowRank(bond=7, split="spatial"))
    assert {name: x.shape for name, x in conv.params.items()} == {"left": (10, 3, 7), "right": (7, 6, 5)}
    assert adtn.Generator((10, 6, 1, 1), adtn.LowRank(bond=99, split="spatial")).params["left"].shape == (10, 6)


def test_sums_of_kronecker_products() -> None:
    gen = adtn.Generator((24, 30), adtn.KroneckerSum(terms=3), scale=1.0, dtype="float64", seed=1)
    left, right = gen.params["left"], gen.params["right"]
    assert (left.shape, right.shape) == ((3, 6, 6), (3, 4, 5))
    np.testing.assert_allclose(gen.weight(), sum(map(np.kron, left, right)))
    site = adtn.Generator((24, 30), adtn.MPO(bond=3), layout=gen.layout, dtype="float64")
    same = site.with_params({"site0": left, "site1": right})
    np.testing.assert_allclose(same.weight() / same.scale, gen.weight(), err_msg="an MPO of two sites")
    conv = adtn.Generator((8, 6, 3, 1), adtn.KroneckerSum(terms=2))
    assert {name: x.shape for name, x in conv.params.items()} == {"left": (2, 4, 3, 3), "right": (2, 2, 2)}
    padded = adtn.Generator((13, 1009), adtn.KroneckerSum(terms=99))
    assert {name: x.shape for name, x in padded.params.items()} == {"left": (93, 5, 33), "right": (93, 3, 31)}
    assert padded.weight().shape == (13, 1009)
    assert adtn.Generator((3, 2), adtn.KroneckerSum(terms=4)).params["right"].shape == (1,), "a matrix and a number"


def test_a_sum_of_kronecker_products_is_the_best_one() -> None:
    weight = np.random.default_rng(0).standard_normal((12, 20))
    gen = adtn.Generator((12, 20), adtn.KroneckerSum(terms=4), dtype="float64")
    found = adtn.decompose(gen, weight).weight()
    rearranged = weight.reshape(4, 3, 5, 4).transpose(0, 2, 1, 3).reshape(20, 12)
    want = math.sqrt(float((np.linalg.svd(rearranged, compute_uv=False)[4:] ** 2).sum()))
    assert np.linalg.norm(found - weight) == pytest.approx(want)
    # where the second moment of the inputs is a product as well, so is the best one in its metric
    rng = np.random.default_rng(1)
    a, b = (x @ x.T for x in (rng.standard_normal((5, 9)), rng.standard_normal((4, 9))))
    white = np.kron(np.linalg.cholesky(a), np.linalg.cholesky(b))
    rearranged = (weight @ white).reshape(4, 3, 5, 4).transpose(0, 2, 1, 3).reshape(20, 12)
    want = math.sqrt(float((np.linalg.svd(rearranged, compute_uv=False)[4:] ** 2).sum()))
    found = adtn.decompose(gen, weight, moment=np.kron(a, b), sweeps=0).weight()
    assert np.linalg.norm((found - weight) @ white) == pytest.approx(want)


def test_a_sum_of_kronecker_products_multiplies_twice() -> None:
    gen = adtn.Generator((1024, 1024), adtn.KroneckerSum(terms=2))
    plan = adtn.plan(gen, task="apply", batch=64)
    assert plan.mode == "factored"
    assert len(list(plan.executable.steps())) == 2
    x = np.random.default_rng(0).standard_normal((64, 1024)).astype(np.float32)
    want = x @ np.asarray(gen.weight()).T
    assert np.linalg.norm(gen.apply(x) - want) <= 1e-5 * np.linalg.norm(want)


def test_ranks_of_chosen_legs() -> None:
    gen = adtn.Generator((8, 6, 3, 3), adtn.Tucker(bond=(4, 99, None, None)))
    assert {k: x.shape for k, x in gen.params.items()} == {"core": (4, 6, 3, 3), "factor0": (4, 8), "factor1": (6, 6)}
    pointwise = adtn.Generator((8, 6, 1, 1), adtn.Tucker(bond=(4, 3, None, None)))
    assert {k: x.shape for k, x in pointwise.params.items()} == {"core": (4, 3), "factor0": (4, 8), "factor1": (3, 6)}


def test_given_bonds_grow_in_proportion() -> None:
    assert adtn.Tucker(bond=(64, 32, None, None)).grown(16) == adtn.Tucker(bond=(16, 8, None, None))
    assert adtn.MPO(bond=(3, 9)).grown(1) == adtn.MPO(bond=(1, 1))
    assert adtn.TT(bond=3).grown(5) == adtn.TT(bond=5)


@pytest.mark.parametrize(("shape", "legs"), [((4096, 4096), 24), ((512, 4096), 21)])
def test_brick_wall_nominal_count(shape: tuple[int, int], legs: int) -> None:
    for layers in (1, 2):
        gen = adtn.Generator(shape, adtn.BrickWall(layers=layers))
        assert gen.layout.ndim_legs == legs
        assert gen.num_params == 16 * (legs - 1) * layers


def test_brick_wall_active_count_by_rank() -> None:
    # 12 gates of the first column see zeros except in one slice (4 entries), and 11 gates of the second see no zeros
    assert adtn.Generator((4096, 4096), adtn.BrickWall()).num_active_params == 12 * 4 + 11 * 16 == 224


def test_brick_wall_active_count_for_an_odd_number_of_legs() -> None:
    """Compare with the formula 4 floor(Q/2) + 16 floor((Q-1)/2), which gives 200 for Q = 21; by rank it is 192.

    The last leg is untouched by the first column, so the last gate of the second column still meets the
    boundary vector [1, 0] there and 8 of its 16 entries see only zeros.
    """
    gen = adtn.Generator((512, 4096), adtn.BrickWall())
    assert gen.num_active_params == 10 * 4 + 9 * 16 + 8 == 192
    last = gen.segments[0].cores[-1]
    assert last.name == "gate1_19"
    wbar = np.random.default_rng(0).standard_normal(gen.shape)
    grad = gen.function.vjp(gen.arrays("numpy:cpu", "float64"), wbar)[1][last.param]
    assert np.count_nonzero(grad) == 8
    assert not grad[..., 1].any()


@pytest.mark.parametrize("n", [4, 5, 6, 7, 8])
@pytest.mark.parametrize("layers", [1, 2])
def test_brick_wall_active_count_is_the_rank_of_the_full_jacobian_per_core(n: int, layers: int) -> None:
    layout = Layout.from_factors((2**n,), [(2,) * n])
    gen = adtn.Generator((2**n,), adtn.BrickWall(layers=layers, activation="tanh"), layout=layout, dtype="float64")
    arrays = gen.arrays("numpy:cpu", "float64")
    rows: dict[str, list[np.ndarray]] = {}
    for i in range(2**n):
        for name, grad in gen.function.vjp(arrays, np.eye(2**n)[i])[1].items():
            rows.setdefault(name, []).append(grad.ravel())
    rank = {name: np.linalg.matrix_rank(np.stack(found), tol=1e-9) for name, found in rows.items()}
    # a gate between legs at the boundary of a small wall can lose more, so the full matrix decides
    assert gen.num_active_params == sum(rank.values())


def test_gauge_freedom_is_not_a_degree_of_freedom() -> None:
    gen = adtn.Generator((8, 8), adtn.MPO(bond=1), layout=Layout.of((8, 8), 2, "interleaved"))
    # a chain of three 2x2 matrices up to their scales: 12 parameters, two of them gauge
    assert gen.num_params == 12
    assert gen.num_active_params == 12
    assert gen.degrees_of_freedom == 10


def test_shared_cores_are_one_parameter() -> None:
    layout = Layout.of((64, 64), 8)
    gen = adtn.Generator((64, 64), adtn.TTN(bond=2, share=True), layout=layout)
    assert set(gen.params) == {"root", "iso1_0", "leaf2_0"}
    assert gen.num_params == 4 + 8 + 16
    first, second = (core for core in gen.segments[1].cores)
    assert first.param == second.param and first.name != second.name


def test_one_generator_for_several_layers() -> None:
    gen = adtn.Generator((3, 16, 16), adtn.TTN(bond=3), layout=Layout.of((3, 16, 16), 4))
    layers = gen.weight()
    assert layers.shape == (3, 16, 16)
    target = np.stack([np.outer(np.arange(16.0), np.ones(16)) * k for k in (1, 2, 3)])
    assert (
        adtn.fit(
            adtn.Generator(gen.shape, gen.topology, layout=gen.layout, scale=target),
            target,
            steps=300,
            lr=0.05,
        ).relative_error
        < 0.1
    )


def test_bonds_per_level_and_clipping() -> None:
    layout = Layout.of((64, 64), 8)
    gen = adtn.Generator((64, 64), adtn.TTN(bond=(2, 5)), layout=layout)
    assert gen.params["root"].shape == (2, 2)
    assert gen.params["iso1_0"].shape == (2, 5, 5)
    assert gen.params["leaf2_0"].shape == (5, 8)
    assert adtn.Generator((64, 64), adtn.TTN(bond=100), layout=layout).params["leaf2_0"].shape == (8, 8)
    with pytest.raises(TopologyError, match=r"Got 3 bonds.*needs 2, one per level"):
        adtn.Generator((64, 64), adtn.TTN(bond=(2, 2, 2)), layout=layout)


@pytest.mark.parametrize("legs", range(1, 14))
@pytest.mark.parametrize("periodic", [False, True])
def test_mera_takes_any_number_of_legs(legs: int, periodic: bool) -> None:
    shape = (2**legs,)
    layout = Layout.from_factors(shape, [(2,) * legs])
    for leaves in (True, False):
        topology = adtn.MERA(bond=2, periodic=periodic, leaves=leaves, noise=0.1)
        gen = adtn.Generator(shape, topology, layout=layout, dtype="float64")
        assert gen.weight().shape == shape
        pairs = [core.inds[:2] for segment in gen.segments for core in segment.cores if core.kind == "disentangler"]
        assert len({i for pair in pairs for i in pair}) == 2 * len(pairs), "each leg at most once"


def test_disentanglers_start_as_the_identity() -> None:
    layout = Layout.of((16, 16), 4)
    a = adtn.Generator((16, 16), adtn.ATTN(bond=2), layout=layout, seed=3, dtype="float64")
    assert np.array_equal(a.params["dis2_0"], np.eye(16).reshape(4, 4, 4, 4))
    b = adtn.Generator((16, 16), adtn.TTN(bond=2), layout=layout, seed=3, dtype="float64")
    np.testing.assert_allclose(a.weight(), b.weight(), rtol=1e-12)


def test_near_identity_gates() -> None:
    gen = adtn.Generator((16, 16), adtn.BrickWall(near_identity=True, noise=0.0, boundary="trainable"), dtype="float64")
    gate = gen.params["gate1_0"].reshape(4, 4)
    np.testing.assert_allclose(gate / gate[0, 0], np.eye(4), atol=1e-12)


def test_networks_have_names_a_physicist_recognises() -> None:
    gen = adtn.Generator((16, 16), adtn.MERA(bond=2), layout=Layout.of((16, 16), 2))
    last = gen.networks()[-1]
    assert set(last.outer_inds()) == set(gen.layout.leg_names)
    assert {"STATE", "LEAF"} <= set(last.tags)
    levels = [network for network in gen.networks() if "DISENTANGLER" in network.tags]
    assert levels and all("ISOMETRY" in network.tags for network in levels)


def test_drawing(row) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure = row.generator().networks()[-1].draw(color=["STATE"], return_fig=True)
    assert figure.axes
    plt.close("all")


@pytest.mark.parametrize("key", TOPOLOGIES)
def test_json_round_trip(key: str) -> None:
    topology = TOPOLOGIES[key].topology
    back = topology_from_json(topology_to_json(topology))
    assert back == topology
    assert hash(back) == hash(topology)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: adtn.TTN(bond=0), "at least 1"),
        (lambda: adtn.TTN(arity=1), "arity=1; expected a whole number of at least 2"),
        (lambda: adtn.ATTN(pairs=((0, 1), (1, 2))), "at most one disentangler"),
        (lambda: adtn.ATTN(pairs="some"), "'all' or pairs"),
        (lambda: adtn.BrickWall(layers=0), "1 to 1024"),
        (lambda: adtn.BrickWall(boundary="open"), "'fixed', 'trainable' or 'random'"),  # type: ignore[arg-type]
        (lambda: adtn.Tucker(bond=-1), "from 1 to"),
        (lambda: adtn.CP(bond=2.5), "from 1 to"),  # type: ignore[arg-type]
        (lambda: adtn.Generator((8, 8), adtn.TT(bond=(2, 2))), "Got 2 bonds .* needs 1"),
        (lambda: adtn.Generator((8, 8), adtn.Tucker(bond=(2, 2, 2))), "Got 3 ranks .* Layout.whole"),
        (lambda: adtn.Generator((8, 8), adtn.LowRank(split="spatial")), "expected a convolution"),
        (lambda: adtn.LowRank(split="kernel"), "'axes' or 'spatial'"),  # type: ignore[arg-type]
        (lambda: adtn.Generator((2,), adtn.BrickWall(), layout=Layout.of((2,), 2)), "at least 2 legs"),
        (
            lambda: adtn.Generator((4, 4), adtn.ATTN(pairs=((0, 9),)), layout=Layout.of((4, 4), 2)),
            r"legs 0\.\.3",
        ),
        (lambda: topology_from_json({"name": "PEPS"}), "expected one of .*ttn, attn, mera"),
        (lambda: topology_from_json({"name": "TTN", "bnod": 3}), "not valid for TTN"),
        (lambda: adtn.register_topology(adtn.TTN), "already registered"),
    ],
)
def test_errors_say_what_to_do(make, message: str) -> None:
    with pytest.raises(TopologyError, match=message):
        make()


@pytest.mark.parametrize("bonds", [(1, 5, 1), (4, 20, 9), (3, 2, 20)])
def test_bonds_of_a_chain_are_clipped_to_what_their_neighbours_can_use(bonds: tuple[int, ...]) -> None:
    weight = np.random.default_rng(0).standard_normal((16, 3, 3, 3))
    generator = adtn.Generator(weight.shape, adtn.TT(bond=bonds), layout=adtn.Layout.whole(weight.shape))
    ends = [1, *(generator.params[f"site{k}"].shape[min(k, 1)] for k in range(3)), 1]
    assert all(b <= a * d and a <= b * d for a, b, d in zip(ends, ends[1:], weight.shape, strict=False))
    found = adtn.decompose(generator, weight)  # the cores of the decomposition have these shapes
    assert np.linalg.norm(found.weight() - weight) < np.linalg.norm(weight)
