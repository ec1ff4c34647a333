"""Spectra of bonds against dense singular value decompositions, on trees, on loops and behind activations."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import adtn
import numpy as np
import pytest
from adtn import Generator, Layout
from adtn.bondspace import Bond
from adtn.bondspace._messages import triangular
from adtn.cli import main
from adtn.errors import TopologyError
from adtn.topology import sizes_of

from oracles import dense_state
from table import TOPOLOGIES


def dense_segment(gen: Generator, t: int) -> tuple[np.ndarray, list[str]]:
    """Contract one segment with one ``numpy.einsum``, with its incoming legs open, and name its legs."""
    segment, sizes = gen.segments[t], sizes_of(gen.segments)
    arrays = {**gen.params, **gen.constants()}
    number: dict[str, int] = {}
    operands: list = []
    for core in segment.cores:
        operands += [np.asarray(arrays[core.param], np.float64), [number.setdefault(i, len(number)) for i in core.inds]]
    legs = list(segment.outputs)
    for i in segment.inputs:
        name = f"{i}:in" if i in segment.outputs else i
        legs.append(name)
        inner, outer = number.setdefault(i, len(number)), number.setdefault(f"{i}:in", len(number))
        operands += [np.eye(sizes[i]), [inner, outer]]
    out = [number[i] for i in segment.outputs] + [number[f"{i}:in"] for i in segment.inputs]
    return np.einsum(*operands, out, optimize="greedy"), legs


def unfolding(tensor: np.ndarray, legs: list[str], side: tuple[str, ...]) -> np.ndarray:
    """Make the legs of one side the rows."""
    first = [legs.index(i) for i in side]
    rest = [k for k in range(len(legs)) if k not in first]
    return np.transpose(tensor, first + rest).reshape(math.prod(tensor.shape[k] for k in first), -1)


def singular_values(matrix: np.ndarray) -> np.ndarray:
    return np.linalg.svd(matrix, compute_uv=False)


def difference(got: np.ndarray, want: np.ndarray) -> float:
    """Compute the largest difference of two spectra of any length, relative to the largest value."""
    n = max(len(got), len(want))
    padded = [np.pad(x, (0, n - len(x))) for x in (got, want)]
    return float(np.abs(padded[0] - padded[1]).max() / want[0])


def is_linear(gen: Generator) -> bool:
    return len(gen.segments) == 1 and gen.segments[0].activation == "identity"


@pytest.mark.parametrize("key", TOPOLOGIES)
def test_spectra_that_are_marked_exact_are_those_of_dense_unfoldings(key: str) -> None:
    gen = TOPOLOGIES[key].generator(scale=0.7)
    dense = {t: dense_segment(gen, t) for t in range(len(gen.segments))}
    for bond in adtn.bonds(gen):
        if bond.kind == "state" or not bond.exact:
            continue
        tensor, legs = dense[bond.segment]
        want = singular_values(unfolding(tensor, legs, bond.legs)) * (0.7 if is_linear(gen) else 1.0)
        got = bond.spectrum()
        assert difference(got, want) < 1e-13, bond
        assert len(got) <= bond.dim


def exact_bonds(key: str) -> dict[str, bool]:
    return {bond.name: bond.exact for bond in adtn.bonds(TOPOLOGIES[key].generator()) if bond.kind != "state"}


def test_trees_are_exact_and_loops_are_not() -> None:
    for key in ("tt", "mpo", "ttn-linear", "low-rank", "kronecker", "tucker", "tucker-2", "cp"):
        assert exact_bonds(key) and all(exact_bonds(key).values()), key
    wall = adtn.bonds(Generator((16, 16), adtn.BrickWall(layers=1)))
    assert len(wall) == 8 + 6 and all(bond.exact for bond in wall)  # one vector per leg, and those between the columns
    for key in ("ring", "ring-bonds"):
        assert not any(exact_bonds(key).values()), key
    assert set(exact_bonds("mera-periodic").values()) == {True, False}


@pytest.mark.parametrize("key", ["tt", "mpo", "ttn-linear", "tucker", "cp", "ring", "mera", "ttn", "low-rank-legs"])
@pytest.mark.parametrize("seed", range(3))
def test_any_cut_of_the_weight_is_that_of_the_dense_weight(key: str, seed: int) -> None:
    gen = TOPOLOGIES[key].generator(scale=0.7)
    state = 0.7 * dense_state(gen.segments, gen.params)
    rng = np.random.default_rng(seed)
    names = list(gen.layout.leg_names)
    b = adtn.bonds(gen)
    for side in (tuple(i for i in names if i.startswith("a0")), tuple(i for i in names if rng.random() < 0.5)):
        want = singular_values(unfolding(state, names, side))
        got = b.cut(side)
        assert difference(got, want) < 1e-13
        assert difference(b.cut([i for i in names if i not in side]), want) < 1e-13


def test_bonds_of_a_dense_weight_are_those_of_its_decomposition() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((12, 20)) * 3.0
    layout = Layout.of((12, 20), 4)
    for topology in (adtn.TT(bond=99), adtn.MPO(bond=99), adtn.TTN(bond=99), adtn.Tucker(bond=99)):
        b = adtn.bonds(weight, layout=layout, topology=topology)
        legs, names = layout.to_legs(weight), list(layout.leg_names)
        for bond in b:
            assert bond.exact
            assert difference(bond.spectrum(), singular_values(unfolding(legs, names, bond.legs))) < 1e-12
    padded = adtn.bonds(
        rng.standard_normal((7, 5)), layout=Layout.of((7, 5), 2, max_padding=2), topology=adtn.TT(bond=9)
    )
    assert all(bond.exact for bond in padded)


def test_networks_of_quimb_have_its_schmidt_values() -> None:
    qtn = pytest.importorskip("quimb.tensor")
    state = qtn.MPS_rand_state(6, bond_dim=4, phys_dim=3, dtype="float64", seed=1)
    gen = Generator.from_networks([state], layout=Layout.from_factors((729,), ((3,) * 6,)), dtype="float64")
    found = {bond.legs: bond.spectrum() for bond in adtn.bonds(gen)}
    for site in range(1, 6):
        legs = tuple(f"a0_{k}" for k in range(site, 6))
        assert difference(found[legs], state.schmidt_values(site, method="svd") ** 0.5) < 1e-12
    tree = qtn.TN_rand_tree(8, 3, seed=2, phys_dim=2)
    gen = Generator.from_networks([tree], dtype="float64", layout=Layout.from_factors((256,), ((2,) * 8,)))
    assert len(adtn.bonds(gen)) == 7 and all(bond.exact for bond in adtn.bonds(gen))


def test_equal_names_of_bonds_get_the_number_of_their_segment() -> None:
    qtn = pytest.importorskip("quimb.tensor")
    first = qtn.TensorNetwork(
        [qtn.rand_tensor((3, 4), ("b", "x"), seed=1), qtn.rand_tensor((3, 4), ("b", "y"), seed=2)]
    )
    second = qtn.TensorNetwork(
        [qtn.rand_tensor((4, 3, 5), ("x", "b", "out"), seed=3), qtn.rand_tensor((4, 3, 5), ("y", "b", "in"), seed=4)]
    )
    gen = Generator.from_networks([first, second], activation="tanh", dtype="float64")
    assert [bond.name for bond in adtn.bonds(gen)] == ["b#1", "x", "y", "b#2"]
    small = gen.with_bond("b#2", (np.eye(3)[:, :2], np.eye(3)[:2]))
    assert [bond.dim for bond in adtn.bonds(small)] == [3, 4, 4, 2]
    cleared = gen.with_bond("b#2", np.array([1.0, 1.0, 0.0]))
    np.testing.assert_allclose(small.weight(), cleared.weight(), rtol=1e-12)


def test_permutations_and_bases_do_not_change_spectra() -> None:
    row = TOPOLOGIES["mpo"]
    gen = row.generator(scale=1.0)
    rng = np.random.default_rng(0)
    other = gen.with_permutations([rng.permutation(n) for n in gen.shape])
    based = row.generator(base=adtn.SeededBase(1), scale=1.0, params=dict(gen.params))
    for bond, a, c in zip(adtn.bonds(gen), adtn.bonds(other), adtn.bonds(based), strict=True):
        np.testing.assert_array_equal(bond.spectrum(), a.spectrum())
        np.testing.assert_array_equal(bond.spectrum(), c.spectrum())


@pytest.mark.parametrize("shape", [(3, 5), (5000, 3), (4097, 7), (9000, 300)], ids=str)
def test_triangular_factors_of_blocks_have_the_same_singular_values(shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(0).standard_normal(shape) * np.logspace(0, -8, shape[1])
    factor = triangular(matrix)
    assert len(factor) <= shape[1]
    assert difference(singular_values(factor), singular_values(matrix)) < 1e-14


def test_measures_of_a_spectrum() -> None:
    weight = np.diag([2.0, 2.0, 0.0, 0.0])
    bond: Bond = adtn.bonds(weight, layout=Layout.whole((4, 4)), topology=adtn.TT(bond=3))["b0"]
    assert bond.entropy == pytest.approx(math.log(2.0))
    assert bond.effective_rank == pytest.approx(2.0)
    assert bond.participation == pytest.approx(2.0)
    assert (bond.kind, bond.dim, bond.ends, bond.legs, bond.gauge) == ("linear", 3, ("site0", "site1"), ("a1_0",), "GL")
    zero = adtn.bonds(np.zeros((4, 4)), layout=Layout.whole((4, 4)), topology=adtn.TT(bond=3))["b0"]
    assert (zero.entropy, zero.participation, zero.span) == (0.0, 0.0, 0)


@pytest.mark.parametrize("key", ["mpo", "mera", "ttn-some"])
def test_cores_that_are_not_finite_are_named(key: str) -> None:
    gen = TOPOLOGIES[key].generator()
    params = {name: np.array(x) for name, x in gen.params.items()}
    name = sorted(params)[0]
    params[name].flat[0] = np.nan
    for question in (lambda g: adtn.bonds(g)[0].spectrum(), lambda g: adtn.truncate(g, error=0.5)):
        with pytest.raises(TopologyError, match=f"whose core '{name}' has entries that are NaN"):
            question(gen.with_params(params))


def test_wrong_questions_are_refused() -> None:
    b = adtn.bonds(TOPOLOGIES["ttn"].generator())
    with pytest.raises(TopologyError, match=r"Got the bond 'b9'; expected one of these 6: b1_0"):
        b["b9"]
    with pytest.raises(TopologyError, match=r"'b1_0', a leg of a state.*state_spectrum"):
        b["b1_0"].spectrum()
    with pytest.raises(TopologyError, match="Got legs=.*expected some of"):
        b.cut(["nothing"])
    with pytest.raises(TopologyError, match="not a leg of a state"):
        adtn.bonds(TOPOLOGIES["tt"].generator())["b0"].state_spectrum()
    with pytest.raises(TopologyError, match="without a topology"):
        adtn.bonds(np.eye(4))
    with pytest.raises(TopologyError, match="has no decomposition"):
        adtn.bonds(np.eye(4), topology=adtn.BrickWall())
    with pytest.raises(TopologyError, match="which has its own"):
        adtn.bonds(TOPOLOGIES["tt"].generator(), topology=adtn.TT())


def frustrated_ring(c: float = 0.9) -> Generator:
    """Make a ring of four sites in which two components nearly cancel around the loop."""
    layout = Layout.of((16, 16), 4)
    gen = Generator((16, 16), adtn.TensorRing(bond=2), layout=layout, dtype="float64", scale=1.0)
    rng = np.random.default_rng(0)
    params: dict[str, np.ndarray] = {}
    for k, (name, x) in enumerate(gen.params.items()):
        inner = np.diag([1.0, -c if k == 0 else c])
        params[name] = np.einsum("lr,i->lri", inner, rng.standard_normal(4)) + 0.1 * rng.standard_normal(x.shape)
    return gen.with_params(params)


def least_error(gen: Generator, name: str, dim: int, rank: int) -> float:
    """Find the best matrix of a rank on a bond by alternating least squares on the dense network."""
    weight = np.asarray(gen.weight()).ravel()
    units = [np.outer(np.eye(dim)[k], np.eye(dim)[n]) for k in range(dim) for n in range(dim)]
    parts = np.stack([np.asarray(gen.with_bond(name, unit).weight()).ravel() for unit in units], axis=1)
    parts = parts.reshape(-1, dim, dim)
    found: list[float] = []
    for seed in range(3):
        right = np.random.default_rng(seed).standard_normal((rank, dim))
        for _ in range(300):
            a = np.einsum("xkl,rl->xkr", parts, right).reshape(len(weight), -1)
            left = np.linalg.lstsq(a, weight, rcond=None)[0].reshape(dim, rank)
            a = np.einsum("xkl,kr->xrl", parts, left).reshape(len(weight), -1)
            right = np.linalg.lstsq(a, weight, rcond=None)[0].reshape(rank, dim)
        away = np.einsum("xkl,kl->x", parts, left @ right) - weight
        found.append(float(np.linalg.norm(away) / np.linalg.norm(weight)))
    return min(found)


def test_on_a_loop_the_spectrum_may_be_wrong_and_is_marked() -> None:
    gen = frustrated_ring()
    bond = adtn.bonds(gen)["b0"]
    values = bond.spectrum()
    predicted = float(values[1] / np.linalg.norm(values))
    weight = np.asarray(gen.weight())
    cut = np.asarray(gen.with_bond("b0", bond.without(1)).weight())
    assert not bond.exact and not bond.is_exact()
    assert predicted < 0.06  # 0.05, where removing that component costs 0.72, and the best truncation 0.25
    assert np.linalg.norm(cut - weight) / np.linalg.norm(weight) > 0.6
    assert least_error(gen, "b0", 2, 1) > 4 * predicted
    assert "does not predict" in str(adtn.bonds(gen))


def test_belief_propagation_is_exact_on_trees() -> None:
    for key in ("tt", "ttn-linear", "tucker", "cp"):
        view = adtn.bonds(TOPOLOGIES[key].generator())._source.view(0)
        assert view.messages is not None and view.beliefs.converged
        for edge in view.graph.edges:
            assert difference(view.beliefs.spectrum(edge), view.messages.spectrum(edge)) < 1e-10


def test_a_loop_that_repeats_what_a_bond_carries_shows_in_its_span() -> None:
    layout = Layout.of((16, 16), 4)
    gen = Generator((16, 16), adtn.TensorRing(bond=4), layout=layout, dtype="float64", scale=1.0)
    rng = np.random.default_rng(0)
    assert adtn.bonds(gen)["b0"].span == 16
    # a loop that no leg sees, beside the bonds of a ring of dimension 2
    cores = {
        name: np.einsum("ab,pqi->apbqi", np.eye(2), rng.standard_normal((2, 2, 4))).reshape(4, 4, 4)
        for name in gen.params
    }
    assert adtn.bonds(gen.with_params(cores))["b0"].span == 4
    tree = adtn.bonds(TOPOLOGIES["tt"].generator())["b0"]
    assert tree.span == tree.dim**2
    wide = Generator((64, 64), adtn.TensorRing(bond=8), layout=Layout.of((64, 64), 8))
    assert adtn.bonds(wide)["b0"].span == 64
    assert adtn.bonds(Generator((4096, 4096), adtn.TensorRing(bond=8)))["b0"].span is None


NONLINEAR = ["ttn", "ttn-ternary", "ttn-conv", "ttn-all", "ttn-some", "attn", "mera", "brickwall", "tucker-uncut"]


@pytest.mark.parametrize("key", NONLINEAR)
def test_the_spectra_of_a_nonlinear_network_are_different_things(key: str) -> None:
    gen = TOPOLOGIES[key].generator(scale=0.7)
    arrays = {**gen.params, **gen.constants()}
    weight, names = 0.7 * dense_state(gen.segments, arrays), list(gen.layout.leg_names)
    for bond in adtn.bonds(gen):
        if bond.kind != "state":
            continue
        segments, legs = gen.segments[: bond.segment + 1], list(gen.segments[bond.segment].outputs)
        index = bond.index.partition("#")[0]
        want = singular_values(unfolding(dense_state(segments, arrays), legs, (index,)))
        assert difference(bond.state_spectrum(), want) < 1e-13
        before = (*segments[:-1], type(segments[-1])(segments[-1].inputs, segments[-1].cores, segments[-1].outputs))
        want = singular_values(unfolding(dense_state(before, arrays), legs, (index,)))
        assert difference(bond.state_spectrum("before"), want) < 1e-13
        want = singular_values(unfolding(weight, names, bond.weight_legs))
        assert difference(bond.weight_spectrum(), want) < 1e-12
        assert bond.weight_legs == bond.legs
        assert bond.entropy == pytest.approx(adtn.bondspace.entropy(bond.state_spectrum()))


def test_the_weight_has_more_values_than_the_bond_behind_an_activation() -> None:
    gen = Generator((64, 64), adtn.TTN(bond=3), layout=Layout.of((64, 64), 4), dtype="float64")
    bond = adtn.bonds(gen)["b1_0"]
    assert bond.dim == 3 and len(bond.state_spectrum()) == 3
    values = bond.weight_spectrum()
    assert (values > 1e-6 * values[0]).sum() > bond.dim
    linear = adtn.bonds(Generator((64, 64), adtn.TTN(bond=3, activation=None), layout=gen.layout, dtype="float64"))
    assert difference(linear["b1_0"].weight_spectrum(), linear["b1_0"].spectrum()) < 1e-13


def test_components_are_removed_one_by_one() -> None:
    rng = np.random.default_rng(0)
    for key in ("tt", "ttn-linear", "tucker", "low-rank"):
        gen = TOPOLOGIES[key].generator()
        for bond in adtn.bonds(gen):
            values = bond.spectrum()  # without a Schmidt component, the weight loses its value
            want = values / np.linalg.norm(values)
            np.testing.assert_allclose(bond.ablation()[: len(want)], want, rtol=0, atol=1e-12)
    gen = TOPOLOGIES["ttn"].generator()
    x, bond = rng.standard_normal((7, 20)), adtn.bonds(gen)["b2_1"]
    weight, wants = np.asarray(gen.weight()), []
    for k in range(3):
        leaf = np.array(gen.params["leaf2_1"])
        leaf[k] = 0.0
        wants.append(np.asarray(gen.with_params({**gen.params, "leaf2_1": leaf}).weight()))
    got = bond.ablation(inputs=x)
    np.testing.assert_allclose(
        got, [np.linalg.norm((w - weight) @ x.T) / np.linalg.norm(weight @ x.T) for w in wants], rtol=1e-10
    )
    loss = bond.ablation(loss=lambda w: float(np.sum(w**3)))
    np.testing.assert_allclose(loss, [np.sum(w**3) - np.sum(weight**3) for w in wants], rtol=1e-8)
    assert len(adtn.bonds(TOPOLOGIES["cp"].generator())["r@factor1"].ablation()) == 3
    with pytest.raises(TopologyError, match=r"Got inputs=.*expected \(n, 20\)"):
        bond.ablation(inputs=np.ones((3, 7)))
    shared = adtn.bonds(TOPOLOGIES["ttn-five-axes"].generator())["b3_0"]
    assert (shared.ablation(place="before") > 0).all()
    with pytest.raises(TopologyError, match="Got component=9"):
        bond.without(9)


@pytest.mark.parametrize("key", ["tt", "mpo", "ttn-linear", "low-rank"])
def test_leading_components_are_the_best_truncation_of_a_tree(key: str) -> None:
    gen = TOPOLOGIES[key].generator()
    weight = np.asarray(gen.weight())
    for bond in adtn.bonds(gen):
        values = bond.spectrum()
        for rank in range(1, len(values) + 1):
            small = gen.with_bond(bond.index, bond.leading(rank))
            found = next(b for b in adtn.bonds(small) if b.name == bond.name)
            assert found.dim == rank and difference(found.spectrum(), values[:rank]) < 1e-13
            away = float(np.linalg.norm(small.function(small.arrays("numpy:cpu", "float64")) - weight))
            assert away == pytest.approx(float(np.linalg.norm(values[rank:])), abs=1e-12 * values[0])
    with pytest.raises(TopologyError, match="Got rank=0"):
        bond.leading(0)
    with pytest.raises(TopologyError, match="a hyper bond; expected a linear one"):
        adtn.bonds(TOPOLOGIES["cp"].generator())["r@factor0"].leading(1)


def moments(gen: Generator, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    n_out, n_in = gen.shape[0], math.prod(gen.shape[1:])
    x = rng.standard_normal((3 * n_in, n_in)) @ rng.standard_normal((n_in, n_in))
    g = rng.standard_normal((3 * n_out, n_out)) @ rng.standard_normal((n_out, n_out))
    return x.T @ x / len(x), g.T @ g / len(g)


def root(moment: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(moment)
    return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T


@pytest.mark.parametrize("key", ["low-rank", "low-rank-spatial", "tt", "ttn-linear", "tucker-2"])
def test_in_a_metric_a_bond_between_outputs_and_inputs_has_singular_values(key: str) -> None:
    row = TOPOLOGIES[key]
    rng = np.random.default_rng(0)
    gen = row.generator(scale=0.7, permutations=[rng.permutation(n) for n in row.shape])
    c, g = moments(gen, rng)
    rows = np.asarray(gen.weight()).reshape(len(g), -1)
    for metric, want in (
        (adtn.bondspace.Metric(inputs=c), rows @ root(c)),
        (adtn.bondspace.Metric(outputs=g), root(g) @ rows),
        (adtn.bondspace.Metric(inputs=c, outputs=g), root(g) @ rows @ root(c)),
    ):
        tested = 0
        for bond in adtn.bonds(gen):
            norm = float(np.linalg.norm(bond.spectrum(metric)))
            assert norm == pytest.approx(float(np.linalg.norm(want)), rel=1e-10), bond  # whatever the values are
            if (
                {leg[:2] for leg in bond.legs} == {"a1"}
                and sum(leg[:2] == "a1" for leg in bond.legs) == sum(name[:2] == "a1" for name in gen.layout.leg_names)
                and len(gen.shape) == 2
            ):
                assert bond.is_exact(metric)
                assert difference(bond.spectrum(metric), singular_values(want)) < 1e-9
                tested += 1
        assert tested or len(gen.shape) > 2 or key == "ttn-linear"


@pytest.mark.parametrize("key", ["mpo", "tt", "ttn-linear", "cp"])
def test_environments_are_those_of_the_dense_network(key: str) -> None:
    gen = TOPOLOGIES[key].generator(scale=0.7)
    rng = np.random.default_rng(0)
    c, g = moments(gen, rng)
    b = adtn.bonds(gen)
    for metric, (left, right) in {
        None: (np.eye(len(g)), np.eye(len(c))),
        adtn.bondspace.Metric(inputs=c): (np.eye(len(g)), root(c)),
        adtn.bondspace.Metric(outputs=g): (root(g), np.eye(len(c))),
        adtn.bondspace.Metric(inputs=c, outputs=g): (root(g), root(c)),
    }.items():
        for bond in b:
            if bond.kind == "hyper":
                continue
            d = bond.dim
            units = [np.outer(np.eye(d)[k], np.eye(d)[n]) for k in range(d) for n in range(d)]
            parts = [left @ np.asarray(gen.with_bond(bond.index, u).weight()) @ right for u in units]
            want = np.array([[np.vdot(p, q) for q in parts] for p in parts]).reshape(d, d, d, d)
            got = bond.environment(metric)
            assert np.abs(got - want).max() < 1e-11 * np.abs(want).max(), (bond, metric)


def test_generalised_values_are_singular_values_where_the_metric_is_a_product() -> None:
    row = TOPOLOGIES["mpo"]
    gen = row.generator(scale=0.7)
    rng = np.random.default_rng(0)
    layout = gen.layout
    by_leg = []
    for d in layout.factors[1]:
        x = rng.standard_normal((3 * d, d))
        by_leg.append(x.T @ x / len(x))
    c = by_leg[0]
    for leg in by_leg[1:]:
        c = np.kron(c, leg)
    metric = adtn.bondspace.Metric(inputs=c)
    white = layout.to_legs(np.asarray(gen.weight()) @ root(c))
    for bond in adtn.bonds(gen):
        want = singular_values(unfolding(white, list(layout.leg_names), bond.legs))
        assert not bond.is_exact(metric)  # as far as can be told from the legs
        assert difference(bond.spectrum(metric), want) < 1e-7


def test_wrong_metrics_are_refused() -> None:
    bond = adtn.bonds(TOPOLOGIES["tt"].generator())["b0"]
    with pytest.raises(TopologyError, match=r"Got metric of the type ndarray; expected an adtn.bondspace.Metric"):
        bond.spectrum(np.eye(15))
    with pytest.raises(TopologyError, match=r"Got a moment of shape \(3, 3\)"):
        bond.spectrum(adtn.bondspace.Metric(inputs=np.eye(3)))
    indefinite = np.diag([-1.0, *[1.0] * 14])
    with pytest.raises(TopologyError, match="Got inputs with the eigenvalue -1 beside 1"):
        bond.spectrum(adtn.bondspace.Metric(inputs=indefinite))
    wrong = adtn.bondspace.Metric(outputs=indefinite)
    with pytest.raises(TopologyError, match="Got outputs with the eigenvalue"):
        adtn.truncate(adtn.Generator((15, 15), adtn.LowRank(bond=4)), params=60, metric=wrong)
    nonlinear = adtn.bonds(TOPOLOGIES["ttn-some"].generator())["b1_0"]
    with pytest.raises(TopologyError, match="with activations"):
        nonlinear.spectrum(adtn.bondspace.Metric(inputs=np.eye(16)))
    with pytest.raises(TopologyError, match="on a loop"):
        adtn.bonds(frustrated_ring())["b0"].spectrum(adtn.bondspace.Metric(inputs=np.eye(16)))


def test_tables_pages_and_json_show_every_bond(tmp_path: Path) -> None:
    for key in ("ttn-some", "ring", "cp", "dense"):
        b = adtn.bonds(TOPOLOGIES[key].generator())
        text = str(b)
        assert all(bond.name in text for bond in b)
        b.save(tmp_path / "b.html")
        page = (tmp_path / "b.html").read_text()
        assert page.count("<svg") == len(b) and "<script" not in page and "http" not in page
        ElementTree.fromstring("<svg>" + "".join(re.findall(r"<svg.*?</svg>", page)) + "</svg>")
        b.save(tmp_path / "b.json")
        rows = json.loads((tmp_path / "b.json").read_text())["bonds"]
        assert [row["name"] for row in rows] == [bond.name for bond in b]
        for row, bond in zip(rows, b, strict=True):
            values = bond.state_spectrum() if bond.kind == "state" else bond.spectrum()
            assert row["spectrum"] == values.tolist() and row["exact"] == bond.exact
    assert "no bonds" in text


def test_inspect_shows_bonds(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    gen = TOPOLOGIES["ttn-some"].generator()
    adtn.save(tmp_path / "g.safetensors", gen)
    monkeypatch.setattr("sys.argv", ["adtn", "inspect", str(tmp_path / "g.safetensors"), "--bonds"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code in (0, None)
    assert capsys.readouterr().out.endswith(f"{adtn.bonds(gen)}\n")
