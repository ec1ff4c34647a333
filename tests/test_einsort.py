"""Orders before decompositions: bits, permutations, invariances, controls, files and backends."""

from __future__ import annotations

import itertools
import math
import pickle
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import adtn
import numpy as np
import pytest
from adtn.errors import ADTNError, OrderingError
from adtn.ordering import (
    Assignment,
    Buckets,
    Entries,
    Leaf,
    Norm,
    Order,
    Search,
    Spectral,
    bits_of_multinomial,
    bits_of_permutation,
    ordering_names,
    register_ordering,
)
from adtn.ordering._gauge import fixed
from adtn.ordering._metric import Metric
from adtn.ordering._search import Exchanges
from hypothesis import given
from hypothesis import strategies as st

from oracles import dense_weight
from table import Row, relative_error, to_numpy, tolerance

INT8 = adtn.Precision("int8", 64)
OF_AXES = ("norm", "spectral", "leaf", "assignment", "search")
OF_ENTRIES = {"buckets": Buckets(k=3), "rows": "rows", "entries": "entries"}


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def hidden(seed: int = 0) -> np.ndarray:
    """Make a Kronecker product whose rows and columns are shuffled."""
    rng = np.random.default_rng(seed)
    tensor = np.kron(rng.standard_normal((6, 6)), rng.standard_normal((6, 6)))
    return tensor[rng.permutation(36)][:, rng.permutation(36)]


# bits


@given(st.lists(st.integers(0, 30), min_size=1, max_size=6))
def test_bits_of_orders_are_logarithms_of_their_numbers(counts: list[int]) -> None:
    ways = math.factorial(sum(counts))
    assert math.isclose(bits_of_permutation(sum(counts)), math.log2(ways), abs_tol=1e-9)
    for n in counts:
        ways //= math.factorial(n)
    assert math.isclose(bits_of_multinomial(counts), math.log2(ways), rel_tol=1e-9, abs_tol=1e-9)


COSTS = {
    "none": ("none", 0.0),
    "norm": ("norm", math.lgamma(17) + math.lgamma(13)),
    "columns": (Norm(axes=(1,)), math.lgamma(13)),
    "absorbed": (Norm(absorbed=(0,)), math.lgamma(13)),
    "rows": ("rows", 16 * math.lgamma(13)),
    "entries": ("entries", math.lgamma(193)),
    "buckets": (Buckets(k=3), math.lgamma(193) - 3 * math.lgamma(65)),
}


@pytest.mark.parametrize("name", COSTS)
@pytest.mark.parametrize("precision", [None, INT8, adtn.Precision("int4", 8)], ids=str)
def test_all_bits_are_counted_and_are_within_the_budget(name: str, precision: adtn.Precision | None) -> None:
    ordering, cost = COSTS[name]
    found = adtn.einsort(noise(16, 12), ordering=ordering, topology="tt", bytes=380, precision=precision)
    bits = found.bits
    assert bits.permutations == pytest.approx(cost / math.log(2), abs=1e-9)
    assert bits.cores + bits.scales == 8 * found.generator.nbytes
    if precision is not None:
        data = found.generator.codes
        integers = sum(x.precision.bits * math.prod(x.shape) for x in data.values())
        assert integers <= bits.cores < integers + 8 * len(data)  # whole bytes
    assert bits.total == bits.cores + bits.scales + bits.permutations + bits.signs
    assert bits.total <= 8 * 380
    assert found.bits_per_entry == bits.total / 192


def test_an_order_that_changes_nothing_costs_nothing() -> None:
    tensor = np.sign(noise(8, 8)) * np.arange(8, 0, -1)[:, None]
    found = adtn.einsort(tensor, ordering=Norm(axes=(0,)), topology="tt", bytes=200)
    assert found.permutations == () and found.bits.permutations == 0.0


# the tensor


def brute_force(found: adtn.SortedTensor) -> np.ndarray:
    """Read the network without permutations entry by entry."""
    gen = found.generator
    plain = adtn.Generator(gen.shape, gen.topology, layout=gen.layout, scale=gen.scale, params=gen.params)
    made = dense_weight(plain)
    permutations = gen.permutations or (None,) * made.ndim
    weight = np.empty_like(made)
    for place in np.ndindex(*made.shape):
        source = tuple(i if p is None else p.array[i] for i, p in zip(place, permutations, strict=True))
        weight[place] = made[source]
    return weight.reshape(found.shape)


@pytest.mark.parametrize("shape", [(24,), (12, 10), (6, 5, 4), (4, 3, 3, 2)], ids=str)
@pytest.mark.parametrize("name", ["none", *OF_AXES, *OF_ENTRIES])
def test_dense_reads_the_network_through_the_permutations(shape: tuple[int, ...], name: str) -> None:
    tensor = noise(*shape)
    nbytes = 8 * tensor.size
    found = adtn.einsort(tensor, ordering=OF_ENTRIES.get(name, name), topology="tt", bytes=nbytes)
    weight = brute_force(found)
    np.testing.assert_allclose(found.dense(), weight, rtol=1e-5, atol=1e-6)
    assert found.relative_error == pytest.approx(relative_error(weight, tensor), abs=1e-6)
    # the network makes the sorted tensor
    sorted_ = found.order.sort(tensor)
    made = adtn.Generator(
        found.generator.shape, found.generator.topology, layout=found.generator.layout, scale=1.0,
        params=found.generator.params,
    )  # fmt: skip
    assert relative_error(made.weight(), sorted_) == pytest.approx(found.relative_error, abs=1e-5)


def test_signs_apart_are_one_bit_per_entry_and_exact() -> None:
    tensor = noise(15, 13)
    tensor[3, 4] = 0.0
    found = adtn.einsort(tensor, ordering="norm", topology="tt", bytes=500, signs_apart=True)
    assert found.bits.signs == 195
    made = found.dense()
    magnitudes = found.generator.weight()
    assert np.array_equal(np.abs(made), np.abs(magnitudes))
    assert np.array_equal(made < 0, (magnitudes * np.where(tensor < 0, -1, 1)) < 0)
    rest, order = found.absorb(0)
    assert np.array_equal(rest.dense(), order.permute(made, 0))


def test_non_negative_cores() -> None:
    tensor = np.random.default_rng(0).random((12, 16))
    found = adtn.einsort(tensor, ordering="none", topology="tt", bytes=420, nonnegative=True)
    assert all((x >= 0).all() for x in found.generator.params.values())
    free = adtn.einsort(tensor, ordering="none", topology="tt", bytes=420)
    assert free.relative_error <= found.relative_error < 0.5
    exact = adtn.einsort(np.outer(np.arange(1, 9), np.arange(2, 8)), ordering="none", topology="lowrank", bytes=60,
                         nonnegative=True)  # fmt: skip
    assert exact.relative_error < 1e-6


@pytest.mark.parametrize("gauge", ["none", "cores", "bonds"])
@pytest.mark.parametrize("topology", [adtn.TT(bond=4), adtn.MPO(bond=3), adtn.Tucker(bond=3), adtn.LowRank(bond=3)])
def test_a_gauge_keeps_the_weight(gauge: Any, topology: adtn.Topology) -> None:
    gen = adtn.decompose(adtn.Generator((12, 10), topology, scale=1.0, dtype="float64"), noise(12, 10))
    changed = fixed(gen, gauge)
    assert relative_error(changed.weight(), gen.weight()) < 1e-12
    if gauge == "bonds" and isinstance(topology, adtn.LowRank):
        left, right = changed.params["left"], changed.params["right"]
        np.testing.assert_allclose(np.linalg.norm(left, axis=0), np.linalg.norm(right, axis=1), rtol=1e-9)


# what is found


@pytest.mark.parametrize(
    ("ordering", "nbytes", "least"), [("leaf", 1000, 0.1), ("assignment", 600, 0.3), ("search", 600, 0.3)]
)
def test_hidden_structure_is_found_and_is_not_there_in_noise(ordering: str, nbytes: int, least: float) -> None:
    layout = adtn.Layout.of((36, 36), 6, "interleaved")
    found = adtn.einsort(hidden(), ordering=ordering, topology="mpo", layout=layout, bytes=nbytes)
    control = found.control
    assert control.gain > least
    assert control.difference > least - 0.05 and control.difference > 5 * control.spread
    assert control.spread == pytest.approx(np.std(control.gaussian, ddof=1))
    assert control.standard_error == pytest.approx(control.spread / 3**0.5)
    assert "on noise" in str(found)


def test_a_search_gains_on_noise_what_its_control_says() -> None:
    layout = adtn.Layout.of((32, 32), 8)
    found = adtn.einsort(
        noise(32, 32, seed=9),
        ordering=Search(absorbed=(0, 1)),
        topology="tucker",
        layout=layout,
        bytes=1000,
        controls=4,
    )
    control = found.control
    assert control.gain > 0.05  # of the error, on noise
    assert len(control.gaussian) == 4 and control is found.control
    assert abs(control.difference) < 3 * control.spread * math.sqrt(1 + 1 / 4) < control.gain
    assert control.difference == pytest.approx(control.gain - np.mean(control.gaussian))


@given(st.integers(0, 2**31))
def test_orders_of_rows_and_columns_keep_singular_values(seed: int) -> None:
    tensor = noise(9, 7, seed=seed)
    for way in (Norm, Spectral, Leaf):
        sorted_ = way().order(tensor, lambda order: order.sort(tensor)).sort(tensor)
        np.testing.assert_allclose(
            np.linalg.svd(sorted_, compute_uv=False), np.linalg.svd(tensor, compute_uv=False), rtol=1e-9
        )


@given(st.integers(0, 2**31))
def test_sorted_tensors_do_not_depend_on_the_order_in_which_they_are_given(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tensor = noise(8, 6, seed=seed)
    shuffled = tensor[rng.permutation(8)][:, rng.permutation(6)]
    for way in (Norm(), Entries(), Spectral()):
        a, b = (way.order(x, lambda order, x=x: order.sort(x)).sort(x) for x in (tensor, shuffled))
        np.testing.assert_allclose(np.sort(np.abs(a).reshape(-1)), np.sort(np.abs(b).reshape(-1)))
        if not isinstance(way, Spectral):  # whose direction is arbitrary
            np.testing.assert_allclose(a, b)
        else:
            close = [np.allclose(a, b[::i, ::j]) for i in (1, -1) for j in (1, -1)]
            assert any(close)


def test_uniform_entries_in_order_have_rank_two() -> None:
    m = 128
    x = np.sort(np.random.default_rng(0).random(m * m)).reshape(m, m)
    powers = np.linalg.svd(x, compute_uv=False) ** 2
    left = [powers[r:].sum() / powers.sum() for r in (1, 2, 3)]
    assert left[1] < left[0] / 20 and left[2] > left[1] / 3  # nothing is left for a third
    grid = (np.arange(m * m) + 1.0) / (m * m + 1)
    assert np.linalg.matrix_rank(grid.reshape(m, m)) == 2


def captured(rows: np.ndarray, fitted: np.ndarray, rank: int) -> float:
    """Return the squared norm of what a free core between the directions of a network makes of rows in an order."""
    u, _, v = np.linalg.svd(fitted)
    return float(np.linalg.norm(u[:, :rank].T @ rows @ v[:rank].T) ** 2)


@given(st.integers(0, 2**31))
def test_no_exchange_is_left_that_gains(seed: int) -> None:
    rows, fitted = noise(7, 9, seed=seed), noise(7, 2, seed=seed + 1) @ noise(2, 9, seed=seed + 2)
    best = captured(rows[Search().improved(rows, fitted)], fitted, 2)
    assert best >= captured(rows, fitted, 2) - 1e-9
    order = Search().improved(rows, fitted)
    for i, j in itertools.combinations(range(7), 2):
        swapped = order.copy()
        swapped[[i, j]] = swapped[[j, i]]
        assert captured(rows[swapped], fitted, 2) <= best * (1 + 1e-8)


WAYS = pytest.mark.parametrize("way", ["one_by_one", "in_passes"])


def brought_nearer(rows: np.ndarray, fitted: np.ndarray) -> float:
    """Return the decrease of the squared error by an approximation as it is."""
    return float(np.vdot(rows, rows) - np.linalg.norm(rows - fitted) ** 2)


@WAYS
@pytest.mark.parametrize("is_free", [True, False])
@given(seed=st.integers(0, 2**31))
def test_exchanges_end_where_a_slow_evaluation_finds_no_gain(way: str, is_free: bool, seed: int) -> None:
    rows, fitted = noise(7, 9, seed=seed), noise(7, 9, seed=seed + 1)
    fitted = fitted[:, :2] @ fitted[:2] if is_free else fitted
    value = partial(captured, fitted=fitted, rank=2) if is_free else partial(brought_nearer, fitted=fitted)
    exchanges = Exchanges(rows.copy(), fitted)
    for i, j in itertools.combinations(range(7), 2):
        swapped = rows.copy()
        swapped[[i, j]] = swapped[[j, i]]
        assert exchanges.gain(i, j) == pytest.approx(value(swapped) - value(rows), abs=1e-8)
    order = getattr(exchanges, way)(100)
    best = value(rows[order])
    assert sorted(order) == list(range(7)) and best >= value(rows) - 1e-9
    for i, j in itertools.combinations(range(7), 2):
        swapped = order.copy()
        swapped[[i, j]] = swapped[[j, i]]
        assert value(rows[swapped]) <= best + 1e-8 * abs(best) + 1e-8


@WAYS
def test_the_number_of_exchanges_is_limited(way: str) -> None:
    rows, fitted = noise(40, 9), noise(40, 2, seed=1) @ noise(2, 9, seed=2)
    values = [captured(rows[getattr(Exchanges(rows.copy(), fitted), way)(most)], fitted, 2) for most in (1, 5, 80)]
    moved = getattr(Exchanges(rows.copy(), fitted), way)(1) != np.arange(40)
    assert moved.sum() == 2 and values == sorted(values) and values[0] < values[-1]
    assert np.array_equal(Search(exchanges=1).improved(rows, fitted), Exchanges(rows, fitted).one_by_one(1))
    with pytest.raises(OrderingError, match="exchanges"):
        Search(exchanges=0)


def test_passes_are_as_good_as_one_exchange_at_a_time() -> None:
    rows, fitted = noise(120, 60), noise(120, 20, seed=1) @ noise(20, 60, seed=2)
    found = {way: captured(rows[getattr(Exchanges(rows.copy(), fitted), way)(240)], fitted, 20) for way in
             ("one_by_one", "in_passes")}  # fmt: skip
    assert found["in_passes"] >= 0.98 * found["one_by_one"] > captured(rows, fitted, 20)


@given(st.integers(0, 2**31))
def test_an_assignment_is_the_best_of_all_permutations(seed: int) -> None:
    rows, fitted = noise(5, 3, seed=seed), noise(5, 3, seed=seed + 1)
    order = Assignment().improved(rows, fitted)
    least = min(np.linalg.norm(rows[list(p)] - fitted) for p in itertools.permutations(range(5)))
    assert np.linalg.norm(rows[order] - fitted) == pytest.approx(least)


def test_refined_orders_are_no_worse_than_their_starts() -> None:
    tensor, layout = hidden(3), adtn.Layout.of((36, 36), 6, "interleaved")
    options: Any = {"topology": "mpo", "layout": layout, "bytes": 1200}
    least = min(adtn.einsort(tensor, ordering=way, **options).relative_error for way in ("norm", "spectral", "leaf"))
    for way in ("assignment", "search"):
        assert adtn.einsort(tensor, ordering=way, **options).relative_error <= least * (1 + 1e-6)


# files, backends, topologies


def test_every_topology_is_ordered_saved_and_loaded(row: Row, tmp_path: Path) -> None:
    tensor = noise(*row.shape) * 0.1
    try:
        found = adtn.einsort(
            tensor, ordering="norm", topology=row.topology, layout=row.layout, bytes=4 * tensor.size + 400
        )
    except ADTNError as error:
        gen = row.generator()
        assert not adtn.optim.has_decomposition(gen), error
        return
    assert len(found.permutations) == len(row.shape) or not found.permutations
    path = tmp_path / "sorted.safetensors"
    adtn.save(path, found.generator)
    again = adtn.load(path)
    assert isinstance(again, adtn.Generator)
    assert again.permutations == found.permutations
    assert np.array_equal(again.weight(), found.generator.weight())
    assert found.relative_error == pytest.approx(relative_error(found.dense(), tensor), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("ordering", ["norm", Buckets(k=2)], ids=["axes", "entries"])
def test_every_backend_makes_the_same_tensor(device: str, ordering: Any) -> None:
    tensor = noise(12, 18)
    found = adtn.einsort(tensor, ordering=ordering, topology="tt", bytes=600, precision=INT8, signs_apart=True)
    got = to_numpy(found.dense(device, "float32"))
    assert got.shape == (12, 18)
    assert relative_error(got, found.dense(dtype="float64")) < tolerance("float32", 200)


def test_a_chunk_of_a_cache() -> None:
    chunk = noise(64, 3, 8)
    for topology in ("tt", "tucker", "auto"):
        found = adtn.einsort(chunk, ordering=Norm(axes=(0,)), topology=topology, bytes=1200, precision=INT8)
        assert found.dense().shape == (64, 3, 8) and found.bits.total <= 9600
        assert found.relative_error < 1.0


@pytest.mark.parametrize("shape", [(5,), (7, 1), (1, 1, 9, 9)], ids=str)
@pytest.mark.parametrize("name", ["norm", "rows"])
def test_odd_shapes_and_tensors_of_zeros(shape: tuple[int, ...], name: str) -> None:
    for tensor in (noise(*shape), np.zeros(shape)):
        nbytes = 8 * tensor.size + 64
        found = adtn.einsort(tensor, ordering=OF_ENTRIES.get(name, name), topology="auto", bytes=nbytes)
        assert found.dense().shape == shape and found.bits.total <= 8 * nbytes
        assert found.relative_error < 1e-5


def test_auto_is_no_worse_than_each_topology_in_float32() -> None:
    tensor = hidden(1)
    best = adtn.einsort(tensor, ordering="leaf", topology="auto", bytes=1500)
    each = [
        adtn.einsort(tensor, ordering="leaf", topology=name, bytes=1500) for name in ("lowrank", "tt", "mpo", "ttn")
    ]
    assert best.relative_error <= min(one.relative_error for one in each) + 1e-6


def test_a_nonlinear_generator_is_ordered_as_well() -> None:
    tree = adtn.TTN(bond=3, activation="tanh")
    found = adtn.einsort(noise(12, 12), ordering="norm", topology=tree, bytes=900)
    assert found.generator.topology.activation == "tanh"
    assert found.relative_error < 0.95 and len(found.permutations) == 2


def test_it_says_what_it_is() -> None:
    found = adtn.einsort(noise(16, 16), ordering="norm", topology="tt", bytes=500, precision=INT8)
    assert repr(found).startswith("SortedTensor(16x16, Norm(")
    assert "permutations" in str(found) and "control" not in str(found)  # which is not computed to print it
    copied = pickle.loads(pickle.dumps(found))
    assert np.array_equal(copied.dense(), found.dense())


# wrong calls


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"tensor": np.float64(3.0)}, "1 to 4 axes"),
        ({"tensor": np.zeros((2,) * 5)}, "1 to 4 axes"),
        ({"tensor": np.zeros((0, 3))}, "with entries"),
        ({"tensor": np.full((4, 4), np.nan)}, "NaN"),
        ({"tensor": "weights"}, "array of real numbers"),
        ({"ordering": "alphabetical"}, "'norm', .*Buckets"),
        ({"ordering": Norm(axes=(2,))}, "count its axes from 0"),
        ({"ordering": Buckets(k=500)}, "500 buckets for 256"),
        ({"ordering": "entries"}, "the order costs 1,68"),
        ({"topology": 3}, "expected 'auto'"),
        ({"topology": adtn.BrickWall(layers=1)}, "has no decomposition|in .* bytes|Got bytes"),
        ({"bytes": 3}, "Allow more bytes"),
        ({"bytes": -1}, "above 0"),
        ({"controls": 1}, "at least 2"),
        ({"gauge": "Coulomb"}, "'bonds'"),
        ({"nonnegative": True}, "signs_apart=True"),
        ({"layout": adtn.Layout.of((8, 8), 2)}, "expected equal ones"),
    ],
    ids=str,
)
def test_wrong_calls_are_refused(change: dict[str, Any], match: str) -> None:
    options: dict[str, Any] = {"ordering": "norm", "topology": "tt", "bytes": 200} | change
    with pytest.raises(OrderingError, match=match):
        adtn.einsort(options.pop("tensor", noise(16, 16)), **options)


def test_names_are_registered_once() -> None:
    register_ordering("columns by norm, in a test", Norm(axes=(1,)))
    assert "columns by norm, in a test" in ordering_names()
    with pytest.raises(OrderingError, match="already registered"):
        register_ordering("norm", Norm())
    with pytest.raises(OrderingError, match="expected a name"):
        register_ordering("other", 3)  # type: ignore[arg-type]
    with pytest.raises(OrderingError, match="k=1"):
        Buckets(k=1)


def test_an_axis_without_an_order_is_not_absorbed() -> None:
    found = adtn.einsort(noise(16, 16), ordering=Norm(axes=(0,)), topology="tt", bytes=500)
    rest, _ = found.absorb(0)
    assert rest.bits.permutations == pytest.approx(0.0, abs=1e-9)
    assert rest.bits.total == pytest.approx(found.bits.total - bits_of_permutation(16))
    assert rest.request == replace(found.request, ordering=Norm(axes=(0,), absorbed=(0,)))
    for axis in (0, 1, 2):
        with pytest.raises(OrderingError, match="no order of its own"):
            rest.absorb(axis)


# the metric of the inputs


def inputs_of(n: int, seed: int = 0) -> np.ndarray:
    """Make a second moment of correlated inputs of different sizes."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((4 * n, n)) @ rng.standard_normal((n, n)) * np.geomspace(1.0, 0.02, n)[rng.permutation(n)]
    return x.T @ x / len(x)


def of_outputs(found: adtn.SortedTensor, tensor: np.ndarray, moment: np.ndarray) -> float:
    away = (found.dense(dtype="float64") - tensor).reshape(len(tensor), -1)
    rows = tensor.reshape(len(tensor), -1)
    return math.sqrt(float(np.vdot(away @ moment, away)) / float(np.vdot(rows @ moment, rows)))


@pytest.mark.parametrize("precision", [None, INT8], ids=str)
@pytest.mark.parametrize("name", ["none", "norm", "leaf", "search"])
def test_a_moment_makes_the_error_of_outputs_small(name: str, precision: adtn.Precision | None) -> None:
    tensor, moment = noise(16, 24), inputs_of(24)
    options: Any = {"ordering": name, "topology": "mpo", "bytes": 700 if precision is None else 300}
    plain = adtn.einsort(tensor, precision=precision, **options)
    found = adtn.einsort(tensor, precision=precision, moment=moment, **options)
    assert found.weighted_error == pytest.approx(of_outputs(found, tensor, moment), rel=1e-3)
    assert found.relative_error == pytest.approx(relative_error(found.dense(dtype="float64"), tensor), rel=1e-3)
    assert found.weighted_error is not None and found.weighted_error < 0.7 * of_outputs(plain, tensor, moment)
    assert found.relative_error > plain.relative_error
    assert plain.weighted_error is None and "of outputs" in str(found) and "weighted=" in repr(found)


def test_a_moment_of_equal_inputs_changes_nothing() -> None:
    tensor = noise(12, 18)
    for name in ("norm", "spectral"):
        plain = adtn.einsort(tensor, ordering=name, topology="lowrank", bytes=500)
        found = adtn.einsort(tensor, ordering=name, topology="lowrank", bytes=500, moment=3.0 * np.eye(18))
        assert found.permutations == plain.permutations
        assert found.weighted_error == pytest.approx(found.relative_error, rel=1e-6)
        assert found.relative_error == pytest.approx(plain.relative_error, rel=1e-6)


@given(st.integers(0, 2**31))
def test_orders_in_a_metric_do_not_depend_on_the_given_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tensor, moment = noise(6, 4, 3, seed=seed), inputs_of(12, seed)
    metric = Metric.of(moment, tensor.shape)
    order = Order(axes=(rng.permutation(6), rng.permutation(4), rng.permutation(3)))
    there = metric.sorted(order, tensor.shape)
    np.testing.assert_allclose(there.whiten(order.sort(tensor)), order.sort(metric.whiten(tensor)), atol=1e-10)
    np.testing.assert_allclose(there.root @ there.root, there.moment, atol=1e-10)
    columns = np.arange(12).reshape(4, 3)[np.ix_(*order.axes[1:])].reshape(-1)
    np.testing.assert_allclose(there.moment, metric.moment[np.ix_(columns, columns)])


def test_inputs_are_ordered_by_what_they_do_to_outputs() -> None:
    tensor, sizes = noise(20, 8), np.array([3.0, 1.0, 7.0, 2.0, 9.0, 4.0, 8.0, 5.0])
    options: Any = {"ordering": Norm(axes=(1,)), "topology": "tt", "bytes": 900}
    found = adtn.einsort(tensor, moment=np.diag(sizes**4), **options)
    wanted = np.argsort(-(sizes**2) * np.linalg.norm(tensor, axis=0))
    order = found.order.axes[1]
    assert order is not None and np.array_equal(order, wanted)
    convolution = adtn.einsort(noise(8, 4, 3, 3), ordering="norm", topology="tucker", bytes=900, moment=inputs_of(36))
    assert convolution.weighted_error is not None and convolution.weighted_error < 0.9


def test_a_search_in_a_metric_finds_what_its_control_does_not_find_in_noise() -> None:
    moment = inputs_of(36)
    moment += 0.3 * np.trace(moment) / 36 * np.eye(36)
    layout = adtn.Layout.of((36, 36), 6, "interleaved")
    options: Any = {"topology": "mpo", "layout": layout, "bytes": 1000, "moment": moment}
    plain = adtn.einsort(hidden(), ordering="none", **options)
    found = adtn.einsort(hidden(), ordering="search", controls=2, **options)
    assert found.weighted_error is not None and plain.weighted_error is not None
    control = found.control
    assert control.gain == pytest.approx(1.0 - found.weighted_error / plain.weighted_error) and control.gain > 0.2
    assert control.difference > 0.1


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"moment": np.eye(15)}, r"\(16, 16\)"),
        ({"moment": np.zeros((16, 16))}, "all zero"),
        ({"moment": np.triu(np.ones((16, 16)))}, "not symmetric"),
        ({"ordering": "rows"}, "knows no inputs"),
        ({"signs_apart": True}, "signs_apart"),
        ({"nonnegative": True}, "nonnegative"),
    ],
    ids=str,
)
def test_moments_that_do_not_fit_are_refused(change: dict[str, Any], match: str) -> None:
    options: dict[str, Any] = {"ordering": "norm", "topology": "tt", "bytes": 300, "moment": np.eye(16)} | change
    with pytest.raises(OrderingError, match=match):
        adtn.einsort(noise(16, 16), **options)


def test_ranks_follow_from_the_metric() -> None:
    moment = np.kron(np.eye(4), np.diag([1.0, 1.0, 1e-8, 1e-8]))  # half of a leg has no effect
    layout = adtn.Layout.of((16, 16), 4)
    options: Any = {"ordering": "none", "topology": "tucker", "layout": layout, "bytes": 560}
    found = adtn.einsort(noise(16, 16), moment=moment, **options)
    assert found.weighted_error is not None and found.weighted_error < 1e-3
    assert isinstance(found.generator.topology, adtn.Tucker) and found.generator.topology.bond == (None, None, None, 2)


def test_a_search_of_many_inputs_sweeps_for_the_promising_starts_only(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor, moment = hidden(), inputs_of(36)
    options: Any = {"topology": "mpo", "bytes": 1200, "moment": moment}
    sweeps: list[int] = []

    def counted(*args: Any, **given: Any) -> Any:
        sweeps.append(given.get("sweeps", -1))
        return adtn.decompose(*args, **given)

    monkeypatch.setattr("adtn.ordering._solve.decompose", counted)
    monkeypatch.setattr("adtn.ordering._solve._WIDE", 8)
    plain = adtn.einsort(tensor, ordering="none", **options)
    assert 0 not in sweeps
    found = adtn.einsort(tensor, ordering="search", **options)
    assert sweeps.count(0) > 3 and found.weighted_error <= plain.weighted_error * (1 + 1e-9)
    compared = sweeps[len(sweeps) - sweeps[::-1].index(0) :]
    assert compared[:3] == [1, 1, 1], "the three best starts have a sweep before the search begins"


@pytest.mark.parametrize("ordering", ["assignment", "search"])
@pytest.mark.parametrize("with_moment", [False, True])
def test_searches_are_never_worse_than_no_order(ordering: str, with_moment: bool) -> None:
    """Compare on tensors in which an order gains less than its bits are worth in the cores."""
    rng = np.random.default_rng(0)
    tensor = np.outer(np.arange(1.0, 25.0), np.arange(1.0, 17.0)) + 0.3 * rng.standard_normal((24, 16))
    x = rng.standard_normal((60, 16)) * np.linspace(0.1, 2.0, 16)
    options: dict[str, Any] = {"topology": "tt", "layout": adtn.Layout.of((24, 16), 4), "controls": 2}
    options |= {"moment": x.T @ x / 60} if with_moment else {}
    for size in (300, 500, 800):
        plain, found = (adtn.einsort(tensor, ordering=o, bytes=size, **options) for o in ("none", ordering))
        errors = [one.relative_error if one.weighted_error is None else one.weighted_error for one in (plain, found)]
        assert errors[1] <= errors[0] * (1 + 1e-9) and found.bits.total <= 8 * size
