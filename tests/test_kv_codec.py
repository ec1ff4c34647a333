"""Cache codec: tables and orders against plain loops, bytes and their counts, damage, what a decoder goes on with."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from adtn.errors import FileFormatError
from adtn.kv import _ans, _rice
from adtn.kv._ans import decode_symbols, encode_symbols, ideal_bits
from adtn.kv._baselines import integers, low_rank, normal_levels, rotated_code
from adtn.kv._basis import Basis, components_of, weights_of, with_columns
from adtn.kv._coefficients import Magnitudes, earlier_means
from adtn.kv._nearness import BUCKETS, buckets_of, shifts_of
from adtn.kv._order import CLASSES, Order
from adtn.kv._step import step_for
from adtn.kv._tables import FIRST, LAST, ROUNDING, grid_index, grid_value, table
from hypothesis import given, settings
from hypothesis import strategies as st

ids_of_texts = st.lists(st.integers(0, 5), max_size=40).map(np.array)


@pytest.mark.parametrize("i", [FIRST, -8, 0, 13, 40, LAST])
def test_probabilities_are_integrals_of_the_density(i: int) -> None:
    r, found = 2.0 ** (i / 8), table(i)

    def beyond(x: float) -> float:
        return 0.97 * math.exp(-x / r) + 0.03 * math.exp(-x / (4 * r))

    assert np.isclose(found.probabilities.sum(dtype=np.float64), 1.0, atol=1e-5)
    middle = found.most
    assert np.isclose(found.probabilities[middle], 1.0 - beyond(1.0 - ROUNDING), rtol=1e-5)
    for k in (1, min(5, found.most)):
        expected = 0.5 * (beyond(k - ROUNDING) - beyond(k + 1 - ROUNDING))
        assert np.isclose(found.probabilities[middle + k], expected, rtol=1e-4)
        assert found.probabilities[middle + k] == found.probabilities[middle - k]


def test_a_grid_point_is_the_nearest() -> None:
    x = np.exp(np.linspace(-5, 5, 101))
    ratio = x / np.array([grid_value(int(i)) for i in grid_index(x)])
    assert np.all(np.abs(np.log2(ratio)) <= 1 / 16 + 1e-9)
    assert grid_index(np.zeros(1))[0] < -10_000


@given(ids=ids_of_texts)
def test_orders_count_earlier_tokens_of_the_same_id(ids: np.ndarray) -> None:
    ids = ids.astype(np.int64)
    order = Order.by_id(ids)
    for t, own in enumerate(ids):
        before = np.flatnonzero(ids[:t] == own)
        assert order.counts[t] == len(before)
        assert not len(before) or order.previous[t] == before[-1]
    assert np.array_equal(np.sort(np.concatenate([*order.rounds, np.empty(0, np.int64)])), np.arange(len(ids)))


@given(ids=ids_of_texts, seed=st.integers(0, 99))
def test_predictions_are_means_of_earlier_tokens(ids: np.ndarray, seed: int) -> None:
    ids = ids.astype(np.int64)
    c = np.random.default_rng(seed).normal(size=(len(ids), 3)).astype(np.float32)
    found = earlier_means(c, Order.by_id(ids))
    for t, own in enumerate(ids):
        before = c[:t][ids[:t] == own]
        assert np.allclose(found[t], before.mean(0) if len(before) else 0.0, atol=1e-5)


@given(ids=ids_of_texts, seed=st.integers(0, 99), step=st.integers(-20, 20))
def test_decoded_coefficients_are_those_that_the_encoder_has_seen(ids: np.ndarray, seed: int, step: int) -> None:
    ids = ids.astype(np.int64)
    random = np.random.default_rng(seed)
    magnitudes = Magnitudes(
        indices=random.integers(-30, 30, (CLASSES, 4)).astype(np.int16),
        parts=random.integers(0, 127, (CLASSES, 4)).astype(np.int8),
        shifts=random.integers(-9, 9, BUCKETS).astype(np.int8),
        least=(least := int(random.integers(FIRST, 0))),
    )
    c = random.normal(size=(len(ids), 4)).astype(np.float32)
    order = Order.by_id(ids)
    steps = magnitudes.steps(step, len(ids))
    symbols, seen = magnitudes.encode(c, order, steps)
    assert np.array_equal(magnitudes.decode(symbols, order, steps), seen)
    active = magnitudes.indices[order.classes] - steps[:, None] >= least
    assert not symbols[~active].any()
    lengths = np.array([[grid_value(int(step))] for step in steps]).reshape(-1, 1)  # of intervals
    assert np.all((np.abs(c - seen) <= lengths * 1.001 + 1e-5)[active])


@given(n=st.integers(0, 70_000))
@settings(max_examples=20)
def test_buckets_double_with_the_distance_from_the_end(n: int) -> None:
    found = buckets_of(n)
    assert len(found) == n
    for t in {0, n // 2, n - 3, n - 2, n - 1} & set(range(n)):
        assert found[t] == min((n - 1 - t).bit_length(), BUCKETS - 1)


def test_steps_follow_the_fourth_root_of_what_errors_cost() -> None:
    near = np.array([1, 1, 2, 4, 8, 16, 0, *[0] * 9])
    cost = 4.0 ** -np.arange(16.0)
    nearness = np.stack([[cost, 7.0 * cost]])
    nearness[..., near == 0] = 0.0
    shifts = shifts_of(nearness, near)
    assert shifts.dtype == np.int8
    # a factor of four is half an octave of the step: four points of the grid
    assert np.diff(shifts[:6].astype(int)).tolist() == [4, 4, 4, 4, 4]
    assert np.all(shifts[6:] == shifts[5])
    assert not shifts_of(0.0 * nearness, near).any()
    assert not shifts_of(np.ones((1, 2, 16)), np.ones(16, np.int64)).any()


def drawn(seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw tables, and symbols of about their magnitudes, of which some are far larger."""
    random = np.random.default_rng(seed)
    tables = random.integers(FIRST - 1, 40, n)
    symbols = np.rint(random.laplace(size=n) * 2.0 ** (tables / 8)).astype(np.int32)
    symbols[tables < FIRST] = 0
    symbols[(random.random(n) < 0.02) & (tables >= FIRST)] *= 10**4
    return symbols, tables


@settings(max_examples=60)
@given(seed=st.integers(0, 999), n=st.integers(0, 300))
def test_symbols_come_back_without_any_package(seed: int, n: int) -> None:
    symbols, tables = drawn(seed, n)
    coded = _rice.encode_symbols(symbols, tables)
    assert np.array_equal(_rice.decode_symbols(coded, tables), symbols)
    if len(coded.words) > 1:
        with pytest.raises(FileFormatError, match="modified"):
            _rice.decode_symbols(replace(coded, words=coded.words[:-1]), tables)
        with pytest.raises(FileFormatError, match="modified"):
            _rice.decode_symbols(replace(coded, words=np.append(coded.words, np.uint32(0))), tables)


@pytest.mark.parametrize("i", range(FIRST, 60, 7))
def test_codes_of_whole_bits_are_close_to_the_ideal_length(i: int) -> None:
    found = table(i)
    random = np.random.default_rng(0)
    p = found.probabilities.astype(np.float64)
    symbols = random.choice(len(p), size=20_000, p=p / p.sum()) - found.most
    symbols = symbols[symbols <= found.most].astype(np.int32)
    tables = np.full(symbols.shape, i)
    assert 32 * len(_rice.encode_symbols(symbols, tables).words) <= 1.3 * _ans.ideal_bits([symbols], [tables])


@settings(max_examples=30)
@given(seed=st.integers(0, 999), n=st.integers(0, 300))
def test_symbols_come_back_and_take_their_ideal_length(seed: int, n: int) -> None:
    symbols, tables = drawn(seed, n)
    coded = encode_symbols(symbols, tables)
    assert np.array_equal(decode_symbols(coded, tables), symbols)
    ideal = ideal_bits([symbols], [tables])
    assert abs(32 * len(coded.words) - ideal) <= 64 + 0.01 * ideal


def test_files_take_their_ideal_length_within_one_percent() -> None:
    random = np.random.default_rng(0)
    tables = random.integers(-16, 30, 20_000)
    symbols = np.rint(random.laplace(size=20_000) * 2.0 ** (tables / 8)).astype(np.int32)
    coded = encode_symbols(symbols, tables)
    assert 8 * coded.nbytes <= 1.01 * ideal_bits([symbols], [tables])


def test_damaged_symbols_are_found() -> None:
    tables = np.full(500, 8)
    symbols = np.random.default_rng(0).integers(-3, 4, 500).astype(np.int32)
    coded = encode_symbols(symbols, tables)
    for damaged in (replace(coded, words=coded.words[:-3]), replace(coded, beyond=np.ones(2, np.int32))):
        with pytest.raises(FileFormatError, match="modified"):
            decode_symbols(damaged, tables)


def test_components_decorrelate_weighted_states() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(500, 2, 2, 3)) @ random.normal(size=(3, 3))
    factors = random.normal(size=(2, 2, 3, 9))
    weight = weights_of(factors @ np.swapaxes(factors, -1, -2))
    flat = x.reshape(500, -1)
    values, vectors = components_of(weight, flat.T @ flat / 500)
    z = np.einsum("tlhd,lhde->tlhe", x, weight).reshape(500, -1) @ vectors
    assert np.allclose(z.T @ z / 500, np.diag(values), atol=1e-10 * values[0])
    assert np.all(np.diff(values) <= 1e-12)


def test_complete_bases_are_inverted() -> None:
    random = np.random.default_rng(0)
    factors = random.normal(size=(2, 2, 3, 9))
    root = weights_of(factors @ np.swapaxes(factors, -1, -2))
    basis = Basis(
        mean=random.normal(size=(2, 2, 3)).astype(np.float32),
        inverse=np.linalg.inv(root).astype(np.float32),
        components=np.zeros((0, 0), np.float16),
        codes=np.zeros((0, 0), np.int8),
        scales=np.zeros(0, np.float16),
    )
    columns = np.linalg.qr(random.normal(size=(12, 12)))[0]
    basis = with_columns(basis, columns, np.arange(12) < 5)
    assert np.allclose(basis.columns, columns, atol=0.5 * np.abs(columns).max() / 127 + 1e-3)
    small = np.arange(12) >= 9
    basis = with_columns(basis, columns, np.arange(12) < 5, small)
    assert basis.nibbles.nbytes == 6 * 3 and basis.codes.shape == (12, 4)
    assert np.array_equal(basis.columns[:, :9], with_columns(basis, columns[:, :9], np.arange(9) < 5).columns)
    errors = basis.columns[:, small] - columns[:, small]
    assert np.all(np.abs(errors).max(0) <= 0.5 * np.abs(columns[:, small]).max(0))
    assert np.mean(errors**2) <= (np.abs(columns).max() / 7) ** 2 / 12
    basis = with_columns(basis, columns)
    x = random.normal(size=(7, 2, 2, 3)).astype(np.float32)
    assert np.allclose(basis.states(basis.coefficients(x)), x, atol=2e-2)


@given(exponent=st.floats(1.0, 3.0), at=st.integers(-60, 60), first=st.integers(-60, 60))
def test_steps_are_the_coarsest_that_lose_no_more(exponent: float, at: int, first: int) -> None:
    def loss(index: int) -> float:
        return 0.01 * 2.0 ** (exponent * (index - at) / 8)

    found = step_for(0.01, loss, first)
    assert loss(found) <= 0.01
    assert found >= at - 2


@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_integers_are_within_half_a_step(bits: int, axis: int) -> None:
    x = np.random.default_rng(0).normal(size=(70, 2, 2, 16)).astype(np.float32)
    again, size = integers(x, bits, 32, axis)
    moved, other = np.moveaxis(x, axis, -1), np.moveaxis(again, axis, -1)
    for start in range(0, moved.shape[-1], 32):
        part, back = moved[..., start : start + 32], other[..., start : start + 32]
        step = np.ptp(part, axis=-1, keepdims=True) / (2**bits - 1)
        assert np.all(np.abs(part - back) <= 0.5 * step + 4e-3)
    groups = 2 * 2 * (16 * 3 if axis == 0 else 70)
    assert size == bits * x.size + 32 * groups


def test_levels_are_those_of_lloyd() -> None:
    assert np.allclose(normal_levels(1), [-0.7979, 0.7979], atol=1e-3)
    assert np.allclose(normal_levels(2), [-1.510, -0.4528, 0.4528, 1.510], atol=1e-3)


def test_a_rotated_code_loses_what_its_levels_lose() -> None:
    x = np.random.default_rng(0).normal(size=(300, 2, 2, 64)).astype(np.float32)
    again, size = rotated_code(x, 2)
    assert np.isclose(np.mean((x - again) ** 2), 0.1175, rtol=0.1)
    assert size == 2 * x.size + 16 * 300 * 2 * 2


def test_low_rank_is_exact_at_full_rank() -> None:
    x = np.random.default_rng(0).normal(size=(30, 2, 2, 4)).astype(np.float32)
    again, size = low_rank(x, 4)
    assert np.allclose(again, x, atol=1e-5) and size == 16 * 4 * 4 * (30 + 4)
