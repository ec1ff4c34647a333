"""Bonds that become smaller: against Schmidt tails, dense environments and other ways to make them smaller."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import adtn
import numpy as np
import pytest
from adtn.bondspace import Metric, grow, truncate_together
from adtn.bondspace._double_layer import double_layer
from adtn.bondspace._metric import metric_environment
from adtn.bondspace._projection import cost, environment_projection, schmidt_projection
from adtn.bondspace._source import Source
from adtn.errors import TopologyError
from adtn.topology import bond_indices

SHAPE = (24, 36)
TREES: dict[str, adtn.Topology] = {
    "mpo": adtn.MPO(bond=5),
    "tt": adtn.TT(bond=5),
    "ttn": adtn.TTN(bond=4, activation=None),
    "tucker": adtn.Tucker(bond=4),
    "low rank": adtn.LowRank(bond=6),
}
LOOPS: dict[str, adtn.Topology] = {
    "ring": adtn.TensorRing(bond=3),
    "mera": adtn.MERA(bond=3, activation=None, noise=0.3),
}
HYPER: dict[str, adtn.Topology] = {"cp": adtn.CP(bond=9)}
NONLINEAR: dict[str, adtn.Topology] = {
    "ttn": adtn.TTN(bond=3),
    "wall": adtn.BrickWall(layers=2, activation="tanh"),
}


def generator(topology: adtn.Topology, **options: Any) -> adtn.Generator:
    return adtn.Generator(SHAPE, topology, seed=2, dtype="float64", **options)


def moment(n: int, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((3 * n, n)) * np.exp(-np.arange(n) / 5)
    mixed = x @ np.linalg.qr(np.random.default_rng(seed + 1).standard_normal((n, n)))[0]
    return mixed.T @ mixed / len(x)


def error(found: adtn.Generator, exact: adtn.Generator, metric: Metric | None = None) -> float:
    w, change = exact.weight(), found.weight() - exact.weight()
    if metric is not None:
        root = np.linalg.cholesky(metric.inputs)
        w, change = w @ root, change @ root
    return float(np.linalg.norm(change) / np.linalg.norm(w))


def opened(source: Source, edge: str, core: str) -> np.ndarray:
    """The networks with both ends of a bond fixed, ``(dim, dim, n_out, n_in)``, by inserting single entries."""
    gen, d = source.generator, source.sizes[edge]
    found = np.zeros((d, d, *gen.shape))
    for k in range(d):
        for m in range(d):
            matrix = np.zeros((d, d))
            matrix[k, m] = 1.0
            found[k, m] = gen.with_bond(edge, matrix).weight()
    return found


@pytest.mark.parametrize("name", [*TREES, *LOOPS])
@pytest.mark.parametrize("with_metric", [False, True])
def test_environments_are_those_of_opened_weights(name: str, with_metric: bool) -> None:
    gen = generator({**TREES, **LOOPS}[name])
    source, metric = Source(gen), Metric(inputs=moment(SHAPE[1])) if with_metric else None
    root = np.linalg.cholesky(moment(SHAPE[1])) if with_metric else np.eye(SHAPE[1])
    for bond in bond_indices(gen.segments):
        w = opened(source, bond.index, bond.ends[-1]) @ root
        exact = np.einsum("kloi,mnoi->klmn", w, w)
        found = double_layer(source, bond.index, bond.ends[-1], metric)
        assert np.allclose(found, exact, rtol=0.0, atol=1e-10 * np.abs(exact).max())
        if name in TREES:
            other = metric_environment(source, bond.index, bond.ends[-1], metric)
            assert np.allclose(other, exact, rtol=0.0, atol=1e-10 * np.abs(exact).max())


def test_large_roots_are_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    gen, metric = generator(TREES["mpo"]), Metric(inputs=moment(SHAPE[1]))
    (bond,) = bond_indices(gen.segments)
    exact = double_layer(Source(gen), bond.index, bond.ends[-1], metric)
    monkeypatch.setattr("adtn.bondspace._double_layer._SAMPLES", 30)
    found = double_layer(Source(gen), bond.index, bond.ends[-1], metric)
    assert not np.allclose(found, exact, rtol=1e-3)
    assert np.linalg.norm(found - exact) < 0.6 * np.linalg.norm(exact)


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_on_trees_projections_lose_the_schmidt_tail(name: str, rank: int) -> None:
    gen = generator(TREES[name])
    source = Source(gen)
    for bond in adtn.bonds(gen):
        tail = float((bond.spectrum()[rank:] ** 2).sum())
        y = double_layer(source, bond.index, bond.ends[-1], None)
        by_environment = environment_projection(y, rank)
        by_schmidt = schmidt_projection(*source.view(0).factors(bond.index, bond.ends[-1]), rank)
        for found in (by_environment, by_schmidt):
            changed = gen.with_bond(bond.index, found.factors)
            assert np.linalg.norm(changed.weight() - gen.weight()) ** 2 == pytest.approx(tail, rel=1e-6)
        assert by_environment.loss == pytest.approx(tail, rel=1e-6)
        assert by_schmidt.loss * gen.scale**2 == pytest.approx(tail, rel=1e-6)


@pytest.mark.parametrize("name", LOOPS)
def test_on_loops_environments_are_better_than_beliefs(name: str) -> None:
    gen = generator(LOOPS[name])
    source, gains = Source(gen), []
    for bond in adtn.bonds(gen):
        if bond.exact or bond.dim < 2:
            continue
        y = double_layer(source, bond.index, bond.ends[-1], None)
        found = environment_projection(y, bond.dim - 1)
        changed = gen.with_bond(bond.index, found.factors)
        assert np.linalg.norm(changed.weight() - gen.weight()) ** 2 == pytest.approx(found.loss, rel=1e-6, abs=1e-9)
        first, second = schmidt_projection(*source.view(0).factors(bond.index, bond.ends[-1]), bond.dim - 1).factors
        gains.append(found.loss / max(cost(y, first @ second), 1e-300))
    assert gains and max(gains) <= 1.0 + 1e-6 and min(gains) < 0.99


@pytest.mark.parametrize("name", [*TREES, *LOOPS])
@pytest.mark.parametrize("with_metric", [False, True])
def test_parameters_are_saved_where_it_costs_least(name: str, with_metric: bool, tmp_path: Path) -> None:
    gen = generator({**TREES, **LOOPS}[name])
    metric = Metric(inputs=moment(SHAPE[1])) if with_metric else None
    goal = gen.num_params * 3 // 4
    found = adtn.truncate(gen, params=goal, metric=metric)
    small = found.generator
    assert small.num_params <= goal and found.params == (gen.num_params, small.num_params) and found.is_measured
    assert found.relative_error == pytest.approx(error(small, gen, metric), rel=1e-6)
    other = adtn.truncate(gen, params=goal, metric=None if with_metric else Metric(inputs=moment(SHAPE[1])))
    assert found.relative_error <= 1.05 * error(other.generator, gen, metric)
    assert np.allclose(small.weight(), small.balanced().weight())
    assert sum(float((x**2).sum()) for x in small.params.values()) == pytest.approx(
        sum(float((x**2).sum()) for x in small.balanced().params.values()), rel=1e-6
    )
    adtn.save(tmp_path / "small.safetensors", small)
    assert np.array_equal(adtn.load(tmp_path / "small.safetensors").weight(), small.weight())
    assert all(cut.after < cut.before for cut in found.cuts) and found.cuts[0].bond in str(found)


@pytest.mark.parametrize("name", [*TREES, *LOOPS, *HYPER])
def test_errors_are_kept_to(name: str) -> None:
    gen = generator({**TREES, **LOOPS, **HYPER}[name])
    sizes: list[int] = []
    for limit in (0.0, 0.05, 0.2, 0.5, 1.0):
        found = adtn.truncate(gen, error=limit)
        assert error(found.generator, gen) == pytest.approx(found.relative_error, rel=1e-6, abs=1e-12)
        assert found.relative_error <= limit + 1e-12
        sizes.append(found.generator.num_params)
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < sizes[0]


@pytest.mark.parametrize("name", NONLINEAR)
def test_nonlinear_networks_are_truncated(name: str) -> None:
    gen = generator(NONLINEAR[name], layout=adtn.Layout.of(SHAPE, leg=6) if name == "ttn" else None)
    found = adtn.truncate(gen, params=gen.num_params * 4 // 5)
    assert found.generator.num_params <= gen.num_params * 4 // 5
    assert found.relative_error == pytest.approx(error(found.generator, gen), rel=1e-6)
    assert found.relative_error < 0.9
    assert [s.activation for s in found.generator.segments] == [s.activation for s in gen.segments]
    for device in adtn.devices().usable:
        w = np.asarray(found.generator.weight(device=device.name, dtype="float32"))
        assert np.allclose(w, found.generator.weight(), atol=1e-4)


@pytest.mark.parametrize("name", ["mpo", "tt", "tucker", "ring", "low rank"])
def test_cores_are_improved_together_in_a_metric(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gen = generator({**TREES, **LOOPS}[name])
    metric = Metric(inputs=moment(SHAPE[1]), outputs=moment(SHAPE[0], 3))
    found = adtn.truncate(gen, params=gen.num_params // 2, metric=metric)
    monkeypatch.setattr("adtn.bondspace._truncate.Work.refined", lambda work, *own: own)
    before = adtn.truncate(gen, params=gen.num_params // 2, metric=metric)
    assert found.generator.topology == before.generator.topology
    assert found.relative_error <= before.relative_error * (1 + 1e-9)


def test_hidden_ranks_are_found_without_loss() -> None:
    w = np.random.default_rng(0).standard_normal((24, 3)) @ np.random.default_rng(1).standard_normal((3, 36))
    gen = adtn.decompose(generator(adtn.LowRank(bond=9)), w)
    found = adtn.truncate(gen, error=1e-9)
    assert found.generator.topology == adtn.LowRank(bond=3)
    assert np.allclose(found.generator.weight(), w)


def test_permutations_bases_and_padding_stay() -> None:
    order = np.random.default_rng(0).permutation(35).tolist()
    gen = adtn.Generator(
        (23, 35), adtn.MPO(bond=6), seed=1, dtype="float64", permutations=[None, order], base=np.eye(23, 35)
    )
    gen = gen.with_params({k: x + 0.1 for k, x in gen.params.items()})
    found = adtn.truncate(gen, params=gen.num_params - 1).generator
    without = np.linalg.norm(gen.weight() - np.eye(23, 35))
    assert 0.0 < np.linalg.norm(found.weight() - gen.weight()) < 0.7 * without
    assert np.array_equal(found.permutations[1].array, order)


def test_rounded_generators_are_truncated_and_not_rounded() -> None:
    gen = generator(TREES["mpo"]).rounded(adtn.Precision("int8", 32))
    found = adtn.truncate(gen, params=gen.num_params // 2)
    assert found.generator.precision is None and found.generator.num_params <= gen.num_params // 2


def test_wrong_goals_are_refused() -> None:
    gen = generator(TREES["mpo"])
    goals: tuple[dict[str, Any], ...] = ({}, {"params": 100, "error": 0.1})
    for options in goals:
        with pytest.raises(TopologyError, match="expected one of them"):
            adtn.truncate(gen, **options)
    with pytest.raises(TopologyError, match=r"params=3; expected at least \d+"):
        adtn.truncate(gen, params=3)
    with pytest.raises(TopologyError, match="params"):
        adtn.truncate(gen, params=0)
    with pytest.raises(TopologyError, match="error"):
        adtn.truncate(gen, error=math.nan)
    shared = generator(adtn.TTN(bond=3, share=True, activation=None), layout=adtn.Layout.of(SHAPE, leg=6))
    with pytest.raises(TopologyError, match="expected at least"):
        adtn.truncate(shared, params=2)


@pytest.mark.parametrize("name", ["mpo", "ttn", "tucker", "low rank", "silu"])
def test_grown_bonds_keep_the_weight_and_follow_the_gradient(name: str) -> None:
    """Compare first steps along the zeros with those along random directions of the same size."""
    topology = {**TREES, "silu": adtn.TTN(bond=4, leaves=False)}[name]
    gen = generator(topology, layout=adtn.Layout.of(SHAPE, leg=6) if name == "silu" else None)
    target = np.random.default_rng(5).standard_normal(SHAPE) * gen.scale
    gradient = gen.weight() - target
    for bond in adtn.bonds(gen):
        if bond.kind != "linear":
            continue
        try:
            larger = grow(gen, bond.name, 1, gradient)
        except TopologyError as error:
            assert "at most 0" in str(error)
            continue
        assert np.allclose(larger.weight(), gen.weight(), rtol=1e-10, atol=1e-12)
        assert {b.name: b.dim for b in adtn.bonds(larger)}[bond.name] == bond.dim + 1
        axis = {core.name: core for s in larger.segments for core in s.cores}[bond.ends[0]].inds.index(bond.name)
        _, grads = larger.function.vjp(larger.arrays("numpy:cpu", "float64"), gradient)
        size = np.linalg.norm(np.take(grads[bond.ends[1]], [-1], _axis(larger, bond, 1)))
        assert size > 0.0
        for seed in range(5):
            values = dict(larger.params)
            new = np.take(values[bond.ends[0]], [-1], axis)
            other = np.random.default_rng(seed).standard_normal(new.shape)
            changed = np.array(values[bond.ends[0]])
            np.moveaxis(changed, axis, 0)[-1] = np.moveaxis(
                other * np.linalg.norm(new) / np.linalg.norm(other), axis, 0
            )[0]
            rival = larger.with_params({**values, bond.ends[0]: changed})
            _, grads = rival.function.vjp(rival.arrays("numpy:cpu", "float64"), gradient)
            assert np.linalg.norm(np.take(grads[bond.ends[1]], [-1], _axis(larger, bond, 1))) <= size * (1 + 1e-9)


def _axis(gen: adtn.Generator, bond: Any, end: int) -> int:
    cores = {core.name: core for s in gen.segments for core in s.cores}
    return cores[bond.ends[end]].inds.index(bond.name)


def test_wrong_growth_is_refused() -> None:
    gen = generator(TREES["mpo"])
    with pytest.raises(TopologyError, match="expected at most"):
        grow(gen, "b0", 1000, gen.weight())
    with pytest.raises(TopologyError, match="expected the shape of the weight"):
        grow(gen, "b0", 1, np.zeros((3, 3)))
    with pytest.raises(TopologyError, match="'hyper'"):
        grow(generator(HYPER["cp"]), "r", 1, np.zeros(SHAPE))


def test_components_of_hyper_indices_are_selected() -> None:
    gen = generator(HYPER["cp"])
    kept = np.eye(9)[:, [0, 2, 5]]
    diagonal = gen.with_bond("r", np.diag(kept @ kept.T))
    small = gen.with_bond("r", (kept, kept.T))
    assert small.topology == adtn.CP(bond=3) and np.allclose(small.weight(), diagonal.weight())
    with pytest.raises(TopologyError, match="select components"):
        gen.with_bond("r", (2.0 * kept, 0.5 * kept.T))


def test_padding_does_not_count() -> None:
    """Compare with errors of the weight itself, for inputs that lie in few directions."""
    a = np.random.default_rng(0).standard_normal((41, 3))
    gen = adtn.Generator((37, 41), adtn.MPO(bond=4), seed=1, dtype="float64")
    assert gen.layout.padding > 1.0
    found = adtn.truncate(gen, params=200, metric=Metric(inputs=a @ a.T))
    change = (found.generator.weight() - gen.weight()) @ a
    assert found.relative_error == pytest.approx(np.linalg.norm(change) / np.linalg.norm(gen.weight() @ a), rel=1e-4)


def test_components_that_contribute_nothing_are_dropped() -> None:
    w = np.random.default_rng(0).standard_normal((24, 2)) @ np.random.default_rng(1).standard_normal((2, 36))
    gen = adtn.decompose(generator(adtn.LowRank(bond=8)), w)
    found = adtn.truncate(gen, params=60 * 6)
    assert found.generator.topology == adtn.LowRank(bond=2) and np.allclose(found.generator.weight(), w)


def test_what_is_not_cut_stays_as_it_is() -> None:
    gen = generator(TREES["mpo"]).rounded(adtn.Precision("int8", 32))
    goals: tuple[dict[str, Any], ...] = ({"error": 1e-9}, {"params": gen.num_params})
    for options in goals:
        found = adtn.truncate(gen, **options)
        assert found.generator is gen and found.cuts == () and found.relative_error == 0.0


def test_weights_of_zeros_are_refused() -> None:
    start = generator(TREES["mpo"], base=adtn.IdentityBase())
    with pytest.raises(TopologyError, match=r"squared norm 0.*expected a trained one"):
        adtn.truncate(start, params=10)
    with pytest.raises(TopologyError, match="does not reach"):
        grow(start, adtn.bonds(start)[0].name, 1, np.zeros(SHAPE))
    with pytest.raises(TopologyError, match="metrics of"):
        truncate_together({"a": generator(TREES["mpo"])}, params=10, metrics={"b": Metric(inputs=moment(SHAPE[1]))})
