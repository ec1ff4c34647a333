"""Matrices on bonds, their gradients and balanced cores, against dense networks and finite differences."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import adtn
import numpy as np
import pytest
from adtn import Generator, Layout
from adtn.bondspace import bond_gradients
from adtn.errors import TopologyError
from adtn.topology import BondIndex, Core, Networks, Segment, bond_indices, cores_of

from oracles import dense_state, dense_weight
from table import TOPOLOGIES, relative_error, to_numpy, usable

MATRIX = "M"


def with_extra_core(segments: tuple[Segment, ...], bond: BondIndex, matrix: np.ndarray, place: str) -> Any:
    """Put a core with the matrix on a bond, so that a dense contraction is the oracle."""
    t = bond.segment + (bond.kind == "state" and place == "after")
    segment, i = segments[t], bond.index
    names = {"before": bond.above, "after": bond.below}[place] if bond.kind == "state" else bond.below
    other = f"{i}~"
    inds = (other, i) if bond.kind == "state" and place == "before" else (i, other)  # from the first side to the second
    if matrix.ndim == 1:
        inds, names = (i,), ()
    extra = Core(name=MATRIX, inds=inds, shape=matrix.shape, param=MATRIX, kind="core")
    cores = tuple(
        replace(c, inds=tuple(other if x == i and c.name in names else x for x in c.inds)) for c in segment.cores
    )
    new = replace(segment, cores=(*cores, extra))
    return (*segments[:t], new, *segments[t + 1 :])


def diagonal_only(gen: Generator, bond: BondIndex, place: str) -> bool:
    if bond.kind == "hyper":
        return True
    segment = gen.segments[bond.segment + (place == "after")] if bond.kind == "state" else None
    return segment is not None and bond.index in segment.inputs and bond.index in segment.outputs


def weight_of(gen: Generator) -> np.ndarray:
    return np.asarray(gen.function(gen.arrays("numpy:cpu", "float64")))


def absorbing(gen: Generator, bond: BondIndex, place: str) -> list[str]:
    """List the cores that can absorb a matrix: unshared ones on the sides that are allowed."""
    uses = Counter(core.param for core in cores_of(gen.segments))
    params = {core.name: core.param for core in cores_of(gen.segments)}
    names = {"before": bond.above, "after": bond.below}[place] if bond.kind == "state" else bond.ends
    return [name for name in names if uses[params[name]] == 1]


def cases(gen: Generator) -> list[tuple[BondIndex, str]]:
    places = {"state": ("before", "after")}
    return [(bond, place) for bond in bond_indices(gen.segments) for place in places.get(bond.kind, ("after",))]


@pytest.mark.parametrize("key", TOPOLOGIES)
def test_a_matrix_on_a_bond_is_another_core_of_the_dense_network(key: str) -> None:
    gen = TOPOLOGIES[key].generator(scale=1.0)
    rng = np.random.default_rng(0)
    values = {**gen.params, **gen.constants()}
    for bond, place in cases(gen):
        shape = (bond.dim,) if diagonal_only(gen, bond, place) else (bond.dim, bond.dim)
        matrix = rng.standard_normal(shape)
        segments = with_extra_core(gen.segments, bond, matrix, place)
        want = gen.layout.from_legs(dense_state(segments, {**values, MATRIX: matrix}))
        for core in absorbing(gen, bond, place):
            new = gen.with_bond(bond.name, matrix, into=core, place=place)
            assert relative_error(weight_of(new), want) < 1e-13, (bond, core)
        if absorbing(gen, bond, place):
            new = gen.with_bond(bond.name, matrix, place=place)
            assert relative_error(weight_of(new), want) < 1e-13, bond


@pytest.mark.parametrize("key", TOPOLOGIES)
def test_two_factors_change_the_dimension(key: str, tmp_path: Path) -> None:
    gen = TOPOLOGIES[key].generator(scale=1.0)
    rng = np.random.default_rng(0)
    values = {**gen.params, **gen.constants()}
    bonds = [b for b in bond_indices(gen.segments) if b.kind == "linear" and len(absorbing(gen, b, "after")) == 2]
    for bond in bonds[:: max(1, len(bonds) // 2)]:
        for rank in {1, bond.dim + 2}:
            factors = rng.standard_normal((bond.dim, rank)), rng.standard_normal((rank, bond.dim))
            new = gen.with_bond(bond.name, factors)
            segments = with_extra_core(gen.segments, bond, factors[0] @ factors[1], "after")
            want = gen.layout.from_legs(dense_state(segments, {**values, MATRIX: factors[0] @ factors[1]}))
            assert relative_error(weight_of(new), want) < 1e-13, bond
            found = {b.name: b.dim for b in bond_indices(new.segments)}
            assert found == {b.name: rank if b.name == bond.name else b.dim for b in bond_indices(gen.segments)}
        path = tmp_path / "small.safetensors"
        adtn.save(path, new)
        again = adtn.load(path)
        assert again.topology == new.topology
        np.testing.assert_array_equal(weight_of(again), weight_of(new))


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("tt", adtn.TT),
        ("mpo", adtn.MPO),
        ("ring", adtn.TensorRing),
        ("tucker", adtn.Tucker),
        ("low-rank", adtn.LowRank),
        ("kronecker", adtn.KroneckerSum),
    ],
)
def test_a_topology_stays_what_it_is_where_its_options_permit(key: str, kind: type) -> None:
    gen = TOPOLOGIES[key].generator()
    bond = bond_indices(gen.segments)[0]
    small = gen.with_bond(bond.name, (np.eye(bond.dim)[:, :1], np.eye(bond.dim)[:1]))
    assert type(small.topology) is kind
    tree = TOPOLOGIES["ttn-linear"].generator()
    assert isinstance(tree.with_bond("b2_0", (np.eye(3)[:, :1], np.eye(3)[:1])).topology, Networks)


def test_bases_permutations_and_scales_are_kept() -> None:
    row = TOPOLOGIES["mpo"]
    rng = np.random.default_rng(0)
    permutations = [rng.permutation(n) for n in row.shape]
    for base in (adtn.SeededBase(1), adtn.IdentityBase(), rng.standard_normal(row.shape)):
        gen = row.generator(base=base, permutations=permutations, scale=0.3)
        gen = gen.with_params({k: x + 0.1 * rng.standard_normal(x.shape) for k, x in gen.params.items()})
        matrix = np.linalg.qr(rng.standard_normal((3, 3)))[0]
        for change in (matrix @ matrix.T, (matrix, matrix.T)):
            assert relative_error(weight_of(gen.with_bond("b0", change)), dense_weight(gen)) < 1e-13
        larger = gen.with_bond("b0", (np.eye(3, 4), np.eye(4, 3)))
        assert relative_error(weight_of(larger), dense_weight(gen)) < 1e-13


def test_components_of_a_state_are_selected_behind_their_activation() -> None:
    gen = TOPOLOGIES["ttn"].generator(scale=1.0)
    keep = np.eye(3)[:, [2, 0]]
    small = gen.with_bond("b1_0", (keep, keep.T))
    cleared = gen.with_bond("b1_0", np.diag([1.0, 0.0, 1.0]))
    assert relative_error(weight_of(small), weight_of(cleared)) < 1e-13
    same = gen.with_bond("b1_0", (np.eye(3)[[1, 2, 0]], np.eye(3)[[1, 2, 0]].T))  # a gauge that silu leaves
    assert relative_error(weight_of(same), weight_of(gen)) < 1e-13


GAUGES = {"silu": "permutations", "tanh": "signed permutations", "relu": "positive monomial", "identity": "GL"}


@pytest.mark.parametrize("activation", GAUGES)
def test_gauges_are_what_activations_leave(activation: str) -> None:
    gen = Generator((16, 16), adtn.TTN(bond=3, activation=activation), scale=1.0, dtype="float64")
    bond = next(b for b in bond_indices(gen.segments) if b.name == "b1_0")
    assert bond.gauge == GAUGES[activation]
    turn = np.eye(3)[[1, 2, 0]]
    matrices = {
        "permutations": turn,
        "signed permutations": turn * np.array([1.0, -1.0, -1.0]),
        "positive monomial": turn * np.array([0.5, 2.0, 3.0]),
        "GL": np.random.default_rng(0).standard_normal((3, 3)),
    }
    allowed = {
        "permutations": ["permutations"],
        "signed permutations": ["permutations", "signed permutations"],
        "positive monomial": ["permutations", "positive monomial"],
        "GL": list(matrices),
    }[bond.gauge]
    for name, matrix in matrices.items():
        new = gen.with_bond("b1_0", (matrix, np.linalg.inv(matrix)))
        assert (relative_error(weight_of(new), weight_of(gen)) < 1e-12) == (name in allowed), name


def test_shared_cores_are_refused_or_get_a_parameter_of_their_own(tmp_path: Path) -> None:
    gen = TOPOLOGIES["ttn-five-axes"].generator(scale=1.0)
    uses = Counter(core.param for core in cores_of(gen.segments))
    bond = next(b for b in bond_indices(gen.segments) if b.name == "b3_0")
    matrix = np.array([[1.0, 0.5], [0.0, 2.0]])
    with pytest.raises(TopologyError, match=r"is shared by \d cores.*unshare=True"):
        gen.with_bond("b3_0", matrix, place="before")
    new = gen.with_bond("b3_0", matrix, place="before", unshare=True)
    segments = with_extra_core(gen.segments, bond, matrix, "before")
    want = gen.layout.from_legs(dense_state(segments, {**gen.params, MATRIX: matrix}))
    assert relative_error(weight_of(new), want) < 1e-13
    assert len(new.params) == len(gen.params) + 1 and max(uses.values()) > 1
    adtn.save(tmp_path / "g.safetensors", new)
    np.testing.assert_array_equal(adtn.load(tmp_path / "g.safetensors").weight(), new.weight())


def test_frozen_cores_change_only_if_no_other_can() -> None:
    gen = Generator((16, 16), adtn.BrickWall(layers=1), scale=1.0, dtype="float64")
    matrix = np.array([[1.0, 2.0], [3.0, 4.0]])
    new = gen.with_bond("v0", matrix)
    assert new.topology == gen.topology
    other = gen.with_bond("v0", matrix, into="boundary_0")
    assert relative_error(weight_of(other), weight_of(new)) < 1e-13
    assert isinstance(other.topology, Networks)


def test_frozen_cores_of_given_values_absorb_matrices() -> None:
    qtn = pytest.importorskip("quimb.tensor")
    first, second = qtn.rand_tensor((3, 4), ("b", "x"), tags="A", seed=1), qtn.rand_tensor((3, 4), ("b", "y"), seed=2)
    network = qtn.TensorNetwork([first, second])
    gen = Generator.from_networks([network], trainable="A", dtype="float64")
    frozen = gen.segments[0].cores[1].name
    matrix = np.random.default_rng(0).standard_normal((3, 3))
    want = np.einsum("kx,kl,ly->xy", first.data, matrix, second.data)
    for into in (None, frozen):
        assert relative_error(weight_of(gen.with_bond("b", matrix, into=into)), want) < 1e-13
    u, s, vt = np.linalg.svd(matrix)
    assert relative_error(weight_of(gen.with_bond("b", (u * s, vt))), want) < 1e-13


@pytest.mark.parametrize(
    ("key", "name", "matrix", "options", "match"),
    [
        ("tt", "b7", np.eye(3), {}, "Got name='b7'.*expected one of its 3: b0, b1, b2"),
        ("tt", "b0", np.eye(4), {}, "Got matrix=.*expected a matrix"),
        ("tt", "b0", (np.eye(3), np.eye(4)), {}, "Got matrix of shapes"),
        ("tt", "b0", np.full((3, 3), np.nan), {}, "Got matrix=.*NaN"),
        ("tt", "b0", np.eye(3), {"into": "site3"}, "Got into='site3'"),
        ("tt", "b0", (np.eye(3), np.eye(3)), {"into": "site0"}, "Got into='site0'"),
        ("cp", "r", np.ones((3, 3)), {}, "on 4 cores; expected a diagonal"),
        ("cp", "r", (2.0 * np.eye(3), np.eye(3) / 2.0), {}, "on 4 cores; expected a diagonal"),
        ("ttn-conv", "b2_2#1", np.eye(2), {"place": "after"}, "no core takes it.*place='before'"),
    ],
)
def test_wrong_matrices_are_refused(key: str, name: str, matrix: Any, options: dict[str, Any], match: str) -> None:
    gen = TOPOLOGIES[key].generator()
    with pytest.raises(TopologyError, match=match):
        gen.with_bond(name, matrix, **options)


@pytest.mark.parametrize("key", TOPOLOGIES)
def test_gradients_of_matrices_are_finite_differences(key: str) -> None:
    gen = TOPOLOGIES[key].generator(scale=1.0)
    rng = np.random.default_rng(1)
    wbar = rng.standard_normal(gen.shape)
    # steps that cross no kink
    h, tolerance = (1e-7, 1e-6) if str(gen.topology.activation).endswith("relu") else (1e-3, 1e-9)
    _, grads = gen.function.vjp(gen.arrays("numpy:cpu", "float64"), wbar)
    for place in ("before", "after"):
        found = bond_gradients(gen, grads, place=place)  # type: ignore[arg-type]
        for bond in bond_indices(gen.segments):
            if bond.name not in found:
                continue
            grad = found[bond.name]
            direction = rng.standard_normal(grad.shape)
            direction /= np.linalg.norm(direction)
            one = np.ones(bond.dim) if grad.ndim == 1 else np.eye(bond.dim)

            def loss(step: float, b: BondIndex = bond, d: np.ndarray = direction, one: np.ndarray = one) -> float:
                return float(np.sum(weight_of(gen.with_bond(b.name, one + step * d, place=place)) * wbar))  # type: ignore[arg-type] # noqa: B023

            # of fourth order, exact up to rounding for linear bonds
            difference = (8 * (loss(h) - loss(-h)) - (loss(2 * h) - loss(-2 * h))) / (12 * h)
            size = max(float(np.linalg.norm(grad)), 1.0)
            assert abs(difference - float(np.sum(grad * direction))) < tolerance * size, (bond, place)


def test_gradients_are_taken_from_arrays_of_any_framework() -> None:
    torch = pytest.importorskip("torch")
    gen = TOPOLOGIES["mpo"].generator(scale=1.0)
    _, grads = gen.function.vjp(gen.arrays("numpy:cpu", "float64"), np.ones(gen.shape))
    as_torch = {k: torch.from_numpy(np.array(x)).requires_grad_() for k, x in grads.items()}
    for name, grad in bond_gradients(gen, as_torch).items():
        np.testing.assert_array_equal(grad, bond_gradients(gen, grads)[name])
    with pytest.raises(TopologyError, match=r"Got grads\['site0'\]"):
        bond_gradients(gen, {"site0": np.ones(3)})


@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
@pytest.mark.parametrize("key", ["mpo", "ttn", "cp", "ring"])
def test_changed_generators_run_on_every_backend(backend: str, key: str) -> None:
    device = usable(backend)
    gen = TOPOLOGIES[key].generator(scale=1.0)
    bond = bond_indices(gen.segments)[0]
    rng = np.random.default_rng(0)
    changes: list[Any] = [rng.standard_normal(bond.dim)]
    if bond.kind != "hyper":
        changes.append((rng.standard_normal((bond.dim, 5)), rng.standard_normal((5, bond.dim))))
    for change in changes:
        new = gen.with_bond(bond.name, change)
        assert relative_error(to_numpy(new.weight(device, "float64")), dense_weight(new)) < 1e-12


def test_a_network_of_quimb_is_the_oracle_of_a_matrix() -> None:
    qtn = pytest.importorskip("quimb.tensor")
    gen = TOPOLOGIES["ttn-linear"].generator(scale=1.0)
    matrix = np.random.default_rng(0).standard_normal((3, 3))
    (network,) = gen.networks()
    network = network.copy()
    (leaf,) = network.select_tensors("LEAF2_1")
    leaf.reindex_({"b2_1": "other"})
    network.add_tensor(qtn.Tensor(matrix, ("b2_1", "other")))
    want = network.contract(output_inds=gen.layout.leg_names).data
    assert relative_error(weight_of(gen.with_bond("b2_1", matrix)), gen.layout.from_legs(want)) < 1e-13


def squared_norm(gen: Generator) -> float:
    return sum(float(np.sum(np.square(x))) for x in gen.params.values())


def imbalance(gen: Generator) -> float:
    """Return the largest relative difference of the Gram matrices of both sides of a bond of free cores."""
    uses = Counter(core.param for core in cores_of(gen.segments))
    cores = {core.name: core for core in cores_of(gen.segments)}
    worst = 0.0
    for bond in bond_indices(gen.segments):
        ends = [cores[name] for name in bond.ends]
        if bond.kind != "linear" or not all(core.trainable and uses[core.param] == 1 for core in ends):
            continue
        grams = []
        for core in ends:
            x = np.moveaxis(gen.params[core.param], core.inds.index(bond.index), 0).reshape(bond.dim, -1)
            grams.append(x @ x.T)
        worst = max(worst, relative_error(grams[0], grams[1]))
    return worst


@pytest.mark.parametrize("key", TOPOLOGIES)
def test_balanced_cores_have_the_least_norm(key: str) -> None:
    row = TOPOLOGIES[key]
    gen = row.generator(scale=1.0)
    # another gauge of the same weight, with very different norms
    rng = np.random.default_rng(0)
    uses = Counter(core.param for core in cores_of(gen.segments))
    shared = {core.name for core in cores_of(gen.segments) if uses[core.param] > 1 or not core.trainable}
    for bond in bond_indices(gen.segments):
        if bond.kind == "linear" and not shared & set(bond.ends):
            matrix = rng.standard_normal((bond.dim, bond.dim)) + 3.0 * np.eye(bond.dim)
            matrix *= 10.0 ** rng.uniform(-2, 2)
            gen = gen.with_bond(bond.name, (matrix, np.linalg.inv(matrix)))
    even = gen.balanced()
    assert relative_error(weight_of(even), weight_of(gen)) < 1e-12
    assert squared_norm(even) <= squared_norm(gen) * (1 + 1e-12)
    assert imbalance(even) < 1e-6
    again = even.balanced()
    assert abs(squared_norm(again) / squared_norm(even) - 1.0) < 1e-10
    # the least norm does not depend on the gauge from which it was found
    first = row.generator(scale=1.0).balanced()
    assert squared_norm(even) == pytest.approx(squared_norm(first), rel=1e-8)


def test_the_norm_of_a_balanced_pair_is_the_nuclear_norm() -> None:
    gen = TOPOLOGIES["low-rank"].generator(scale=1.0).balanced()
    values = np.linalg.svd(weight_of(gen), compute_uv=False)
    assert squared_norm(gen) == pytest.approx(2.0 * values.sum(), rel=1e-12)


def test_terms_of_a_hyper_index_are_balanced_each() -> None:
    gen = TOPOLOGIES["cp"].generator(scale=1.0).with_bond("r", np.array([1e3, 1.0, 1e-3]))
    even = gen.balanced()
    norms = np.stack([np.linalg.norm(x, axis=1) for x in even.params.values()])
    assert np.ptp(norms, axis=0).max() < 1e-8 * norms.max()
    assert relative_error(weight_of(even), weight_of(gen)) < 1e-12


def test_cores_of_zeros_stay_as_they_are() -> None:
    layout = Layout.of((16, 16), 4, "interleaved")
    gen = Generator((16, 16), adtn.MPO(bond=3), layout=layout, base=adtn.IdentityBase(), dtype="float64")
    assert sum(np.linalg.norm(x) == 0.0 for x in gen.params.values()) == 1
    even = gen.balanced()  # an adapter starts at zero, and can be trained
    assert all(np.linalg.norm(x) > 0.0 for name, x in even.params.items() if np.linalg.norm(gen.params[name]) > 0.0)


@pytest.mark.parametrize(
    "key", ["tt", "mpo", "low-rank", "kronecker", "tucker", "cp", "ring", "ttn-linear", "mera-linear"]
)
def test_decompositions_end_balanced(key: str) -> None:
    rng = np.random.default_rng(0)
    topology = adtn.MERA(bond=2, activation=None) if key == "mera-linear" else TOPOLOGIES[key].topology
    shape = (16, 16) if key == "mera-linear" else TOPOLOGIES[key].shape
    layout = Layout.of(shape, 4) if key == "mera-linear" else TOPOLOGIES[key].layout
    gen = Generator(shape, topology, layout=layout, dtype="float64")
    weight = rng.standard_normal(shape)
    n_in = weight.size // shape[0]
    for moment in (None, np.diag(1.0 + rng.random(n_in))):
        found = adtn.decompose(gen, weight, moment=moment, sweeps=2)
        assert imbalance(found) < 1e-6
        norms = [float(np.linalg.norm(x)) for x in found.params.values()]
        assert max(norms) == pytest.approx(min(norms), rel=1e-5)


def test_layouts_with_padding_keep_their_shape() -> None:
    gen = Generator((7, 5), adtn.TT(bond=2), layout=Layout.of((7, 5), 2, max_padding=2), dtype="float64", scale=1.0)
    new = gen.with_bond("b0", (np.eye(2)[:, :1], np.eye(2)[:1]))
    assert new.shape == (7, 5) and new.layout == gen.layout
