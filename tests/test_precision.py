"""Precisions: exact packing, small errors, error feedback against a plain loop, and arrays of odd values."""

from __future__ import annotations

import json
import math
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from adtn import Precision
from adtn.errors import PrecisionError
from adtn.precision import Codes, round_to, stored_bytes
from adtn.precision._codes import NUMPY
from adtn.precision._decode import unpacked
from adtn.precision._descent import descend
from adtn.precision._feedback import Feedback, Rounded, clipped, inverse_factor, with_feedback, with_row_feedback
from adtn.precision._packing import packed, packed_bytes
from adtn.precision._precision import parts_of
from hypothesis import given
from hypothesis import strategies as st

from arrays import moment, weights

INTEGERS = ("int8", "int4", "int3", "int2")
FLOATS = ("float32", "float16", "bfloat16")


def error_in(moment: np.ndarray, away: np.ndarray) -> np.ndarray:
    """Compute the error of every row in the metric."""
    return np.einsum("rc,cd,rd->r", away, moment, away, optimize=True)


@given(st.sampled_from([8, 4, 3, 2]), st.integers(0, 70), st.integers(0, 2**32 - 1))
def test_packing_is_exact_and_dense(bits: int, size: int, seed: int) -> None:
    integers = np.random.default_rng(seed).integers(0, 2**bits, size).astype(np.uint8)
    data = packed(integers, bits)
    assert data.dtype == np.uint8 and data.size == packed_bytes(size, bits) < size * bits / 8 + 3
    assert np.array_equal(unpacked(data, size, bits, NUMPY), integers)


def test_layout_of_bits() -> None:
    assert packed(np.array([1, 2, 15, 0]), 4).tolist() == [0x21, 0x0F]
    assert packed(np.array([1, 2, 3, 0]), 2).tolist() == [0b00111001]
    assert packed(np.array([7, 0, 0, 0, 0, 0, 0, 5]), 3).tolist() == [7, 0, 0b10100000]


@given(
    st.sampled_from(INTEGERS),
    st.one_of(st.none(), st.integers(1, 20)),
    st.lists(st.integers(1, 7), min_size=1, max_size=3),
    st.integers(0, 2**32 - 1),
)
def test_codes_decode_to_their_integers(format, group, shape: list[int], seed: int) -> None:
    precision = Precision(format, group)
    codes = round_to(weights(tuple(shape), seed), precision)
    assert codes.nbytes == stored_bytes(tuple(shape), precision) == codes.data.size
    integers, scales, zeros = codes.integers.astype(np.float64), codes.scales, codes.zeros.astype(np.float64)
    rows, columns = integers.shape
    length = shape[0] if len(shape) > 1 else 1
    turned = group is not None and len(shape) > 1 and math.prod(shape[1:]) < min(group, length)
    assert (columns if turned else rows) == length
    group = min(group or columns, columns)
    want = np.array(
        [
            [(integers[r, c] - zeros[r, c // group]) * float(scales[r, c // group]) for c in range(columns)]
            for r in range(rows)
        ]
    )
    want = want.T if turned else want
    assert np.array_equal(codes.decode(), want.reshape(shape)), "the product is exact in float32"
    assert codes.decode().dtype == np.float32


@pytest.mark.parametrize("format", INTEGERS)
@pytest.mark.parametrize("group", [None, 64, 50])
def test_entries_inside_the_range_are_within_half_a_step(format, group) -> None:
    x = weights((48, 130))
    codes = round_to(x, Precision(format, group))
    place = np.arange(130) // min(group or 130, 130)
    step = np.abs(codes.scales[:, place])
    inside = (codes.integers > 0) & (codes.integers < 2**codes.precision.bits - 1)
    away = np.abs(codes.decode() - x)
    assert (away[inside] <= 0.5001 * step[inside]).all()
    if format == "int8":  # keeps the whole range, up to the rounding of the scale
        assert (away <= 0.6 * step).all()


@pytest.mark.parametrize(("format", "most"), [("int8", 0.006), ("int4", 0.097), ("int3", 0.19), ("int2", 0.345)])
def test_errors_of_normal_weights(format, most: float) -> None:
    x = weights((256, 256))
    assert np.linalg.norm(round_to(x, Precision(format, 128)).decode() - x) < most * np.linalg.norm(x)


@pytest.mark.parametrize("format", ["int4", "int3", "int2"])
def test_the_search_beats_the_whole_range(format) -> None:
    x = weights((64, 128))
    top = 2 ** int(format[3:]) - 1
    low, high = x.min(1, keepdims=True), x.max(1, keepdims=True)
    step = (high - low) / top
    plain = np.rint((x - low) / step) * step + low
    found = round_to(x, Precision(format)).decode()
    assert np.linalg.norm(found - x) < 0.97 * np.linalg.norm(plain - x)


def test_bits_per_entry() -> None:
    for format in INTEGERS:
        bits = int(format[3:])
        stored = 8 * stored_bytes((1024, 1024), Precision(format, 64)) / 1024**2
        assert stored == pytest.approx(bits + (16 + bits) / 64, abs=1e-4)


def test_stored_bytes_makes_nothing() -> None:
    tracemalloc.start()
    assert stored_bytes((10**5, 10**5), Precision("int4")) == 5 * 10**9 + 2 * 10**5 + 5 * 10**4 + 1
    assert tracemalloc.get_traced_memory()[1] < 2**16
    tracemalloc.stop()


@pytest.mark.parametrize("format", INTEGERS)
def test_groups_run_along_the_longer_side_of_thin_cores(format) -> None:
    x, moment = weights((256, 8)), np.diag(np.arange(1.0, 9.0))
    along, rows = Precision(format, 64), Precision(format, 64, along="rows")
    assert stored_bytes((256, 8), along) == stored_bytes((8, 256), along) < stored_bytes((256, 8), rows)
    assert np.array_equal(round_to(x, along).decode(), round_to(x.T, along).decode().T)
    fed = round_to(x, along, moment).decode()
    assert np.array_equal(fed, round_to(x.T, along, row_hessian=moment).decode().T), "columns are the matrix's rows"
    correlated = moment + 3 * np.ones((8, 8))
    away, plain = round_to(x, along, correlated).decode() - x, round_to(x, along).decode() - x
    assert error_in(correlated, away).sum() < error_in(correlated, plain).sum()
    for shape in ((64, 64), (8, 256), (256, 64), (256,)):
        assert parts_of(shape, along) == replace(parts_of(shape, rows), precision=along)


def test_files_without_a_side_have_groups_along_rows() -> None:
    old = Precision.from_json({"format": "int4", "group": 64})
    assert old == Precision("int4", 64, along="rows")
    assert Precision.from_json(Precision("int4", 64).to_json()) == Precision("int4", 64)
    assert Precision.from_json({"format": "int4"}) == Precision("int4")


# error feedback


def slow_feedback(x, hessian, group: int, order, quantise: Callable[[float, int, int], float]) -> np.ndarray:
    """Round with the update of all later columns from the inverse moment itself, entry by entry."""
    left, done, open_ = x.astype(np.float64).copy(), np.zeros_like(x, np.float64), list(order)
    for c in order:
        inverse = np.linalg.inv(hessian[np.ix_(open_, open_)])
        at = open_.index(c)
        for r in range(x.shape[0]):
            done[r, c] = quantise(left[r, c], r, c // group)
            error = (left[r, c] - done[r, c]) / inverse[at, at]
            for k, d in enumerate(open_):
                left[r, d] -= error * inverse[at, k]
        open_.remove(c)
    return done


@pytest.mark.parametrize(("format", "group"), [("int4", 8), ("int3", 24), ("int2", 7)])
def test_feedback_is_that_of_a_plain_loop(format, group: int) -> None:
    bits, columns = int(format[3:]), 24
    x, hessian = weights((5, columns)) / 4, moment(columns)
    hessian /= hessian.diagonal().max()
    fast = with_feedback(x, Feedback.of(hessian), group, bits)

    def quantise(value: float, r: int, g: int) -> float:
        scale, zero = float(fast.scales[r, g]), float(fast.zeros[r, g])
        return (np.clip(np.rint(value / scale + zero), 0, 2**bits - 1) - zero) * scale

    damped = hessian + 0.01 * hessian.diagonal().mean() * np.eye(columns)
    order = np.argsort(-hessian.diagonal(), kind="stable")
    slow = slow_feedback(x, damped, group, order.tolist(), quantise)
    np.testing.assert_allclose(fast.decode(), slow, atol=1e-5)


@pytest.mark.parametrize(("format", "group"), [("int4", 8), ("int3", None)])
def test_feedback_over_rows(format, group) -> None:
    precision, hessian = Precision(format, group), moment(200)
    x = weights((200, 96))
    plain, fed = round_to(x, precision), round_to(x, precision, row_hessian=hessian)
    assert np.array_equal(plain.scales, fed.scales) and np.array_equal(plain.zeros, fed.zeros)
    before, after = (error_in(hessian, (codes.decode() - x).T) for codes in (plain, fed))
    assert (after <= before * 1.0001).all() and after.sum() < 0.3 * before.sum()
    # with one scale for everything, rows are columns
    one = np.tile(weights((1, 24)) / 4, (5, 1))
    square = moment(24) / moment(24).diagonal().max()
    wide = with_feedback(one, Feedback.of(square), 24, 4)
    tall = with_row_feedback(
        one.T,
        square,
        Rounded(
            integers=wide.integers.T,
            scales=np.full((24, 1), wide.scales[0, 0]),
            zeros=np.full((24, 1), wide.zeros[0, 0]),
            group=5,
        ),
        4,
    )
    assert np.array_equal(tall.integers.T, wide.integers)


def test_low_rank_factors_with_feedback() -> None:
    rng = np.random.default_rng(0)
    left, right, hessian = rng.standard_normal((96, 16)), rng.standard_normal((16, 120)), moment(120)
    weight, precision = left @ right, Precision("int4", 32)

    def error(a: np.ndarray, b: np.ndarray) -> float:
        return float(error_in(hessian, a @ b - weight).sum())

    plain = error(round_to(left.T, precision).decode().T, round_to(right, precision).decode())
    inner = round_to(right, precision, hessian).decode()
    outer = round_to(left.T, precision, row_hessian=inner @ hessian @ inner.T).decode()
    assert error(outer.T, inner) < 0.6 * plain


def test_the_factor_of_the_inverse() -> None:
    for n in (3, 130, 300):
        hessian = moment(n)
        damped = hessian / hessian.diagonal().mean() + 0.01 * np.eye(n)
        factor = inverse_factor(hessian)
        assert np.array_equal(factor, np.triu(factor))
        np.testing.assert_allclose(factor.T @ factor @ damped, np.eye(n), atol=1e-8)


@pytest.mark.parametrize("format", ["int4", "int3", "int2"])
@pytest.mark.parametrize("group", [None, 64, 50])
def test_feedback_halves_the_error_of_correlated_inputs(format, group) -> None:
    x, hessian = weights((96, 200)), moment(200)
    precision = Precision(format, group)
    plain = error_in(hessian, round_to(x, precision).decode() - x)
    better = error_in(hessian, round_to(x, precision, hessian).decode() - x)
    assert (better <= plain * 1.0001).all(), "no row is worse"
    assert better.sum() < 0.25 * plain.sum(), "half of the error is a quarter of its square"


@given(st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_feedback_is_never_worse(columns: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, inputs = rng.standard_normal((4, columns)), rng.standard_normal((int(rng.integers(1, 9)), columns))
    hessian = inputs.T @ inputs
    precision = Precision("int3", 5)
    plain = error_in(hessian, round_to(x, precision).decode() - x)
    better = error_in(hessian, round_to(x, precision, hessian).decode() - x)
    assert (better <= plain * 1.001 + 1e-6 * hessian.max()).all()


def test_moments_that_say_little() -> None:
    x = weights((8, 40))
    precision = Precision("int4", 16)
    nothing = round_to(x, precision, np.zeros((40, 40)))
    assert np.array_equal(nothing.data, round_to(x, precision).data)
    unused = moment(40)
    unused[7], unused[:, 7] = 0, 0
    for hessian in (unused, moment(40) * 1e30, moment(40) * 1e-30, np.ones((40, 40)), np.eye(40)):
        decoded = round_to(x, precision, hessian).decode()
        assert np.linalg.norm(decoded - x) < np.linalg.norm(x)
    scaled = round_to(x, precision, moment(40) * 2.0**60)
    assert np.array_equal(scaled.data, round_to(x, precision, moment(40)).data)


def test_a_layer_of_a_model_takes_less_than_two_seconds() -> None:
    x, hessian = weights((1536, 384)), moment(384)
    start = time.perf_counter()
    round_to(x, Precision("int4", 128), hessian)
    assert time.perf_counter() - start < 2.0


# odd values


@pytest.mark.parametrize("format", INTEGERS + FLOATS)
@pytest.mark.parametrize("size", [1e-37, 1e-20, 1e-8, 1.0, 1e8, 3e38])
def test_weights_of_every_size(format, size: float) -> None:
    x = weights((16, 32))
    x *= np.float32(size) / np.abs(x).max()
    one = round_to(weights((16, 32)), Precision(format)).decode()
    limit = np.linalg.norm(one - weights((16, 32))) / np.linalg.norm(weights((16, 32)))
    with np.errstate(all="raise"):
        decoded = round_to(x, Precision(format)).decode().astype(np.float64)
    assert np.isfinite(decoded).all()
    assert np.linalg.norm(decoded - x) <= 1.1 * max(limit, 1e-7) * np.linalg.norm(x.astype(np.float64))


@pytest.mark.parametrize("format", INTEGERS)
@pytest.mark.parametrize("value", [0.0, 3.7, -3.7, 1e-30, -1e30])
def test_constant_groups(format, value: float) -> None:
    x = np.full((3, 20), value, np.float32)
    x[1] = 0
    decoded = round_to(x, Precision(format, 6)).decode()
    np.testing.assert_allclose(decoded, x, rtol=1e-3)
    assert not decoded[1].any()


def test_small_groups_beside_large_ones() -> None:
    x = weights((4, 64))
    x[1] *= 1e-6
    x[2] *= 1e-12  # too small for a scale: stored as zeros, whose error is nothing beside the others
    decoded = round_to(x, Precision("int8")).decode()
    assert np.linalg.norm(decoded[1] - x[1]) < 0.01 * np.linalg.norm(x[1])
    assert np.abs(decoded[2] - x[2]).max() <= 1e-11


@pytest.mark.parametrize("shape", [(), (1,), (7,), (1, 1), (5, 1), (1, 5), (2, 3, 4, 5)])
@pytest.mark.parametrize("format", INTEGERS + FLOATS)
def test_shapes(shape: tuple[int, ...], format) -> None:
    x = weights(shape)
    codes = round_to(x, Precision(format))
    assert codes.decode().shape == shape and codes.nbytes == stored_bytes(shape, codes.precision)
    if x.size == 1:
        np.testing.assert_allclose(codes.decode(), x, rtol=2e-2)


def test_float_formats_round_to_nearest() -> None:
    x = weights((40, 25))
    assert np.array_equal(round_to(x, Precision("float32")).decode(), x)
    assert np.array_equal(round_to(x, Precision("float16")).decode(), x.astype(np.float16).astype(np.float32))
    torch = pytest.importorskip("torch")
    assert np.array_equal(round_to(x, Precision("bfloat16")).decode(), torch.tensor(x).bfloat16().float().numpy())


def test_other_frameworks_and_dtypes() -> None:
    x = weights((8, 8))
    for y in (x.astype(np.float64), x[:, ::-1][:, ::-1], x.T.copy().T):
        assert np.array_equal(round_to(y, Precision("int4")).data, round_to(x, Precision("int4")).data)
    assert np.array_equal(round_to(np.arange(6), Precision("float32")).decode(), np.arange(6))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Precision("int5"), "Got format='int5'; expected 'float32'"),  # type: ignore[arg-type]
        (lambda: Precision("int4", 0), "Got group=0; expected a whole number of at least 1"),
        (lambda: Precision("float16", 64), "Got group=64 for float16, which has no scales"),
        (lambda: Precision.from_json({"format": "int4", "grp": 3}), "expected a format"),
        (lambda: Precision.from_json([]), "expected a format"),  # type: ignore[arg-type]
        (lambda: round_to(np.array([1.0, np.nan]), Precision("int4")), "NaN or infinite"),
        (lambda: round_to(np.array(["a"]), Precision("int4")), "array of real numbers"),
        (lambda: round_to(np.ones((0, 3)), Precision("int4")), "has no entries"),
        (lambda: round_to(np.array([1e300]), Precision("int4")), "an entry of 1e\\+300"),
        (lambda: round_to(np.ones((2, 3)), Precision("int4"), np.eye(2)), r"shape \(2, 2\) for 3 columns"),
        (lambda: round_to(np.ones((2, 3)), Precision("int4"), row_hessian=np.eye(3)), r"shape \(3, 3\) for 2 rows"),
        (lambda: round_to(np.eye(2), Precision("int4"), np.eye(2), row_hessian=np.eye(2)), "expected one of them"),
        (lambda: round_to(np.ones((2, 2)), Precision("int4"), np.triu(np.ones((2, 2)))), "not symmetric"),
        (lambda: round_to(np.ones((2, 2)), Precision("int4"), -np.eye(2)), "negative diagonal"),
        (lambda: round_to(np.ones((2, 2)), Precision("int4"), np.full((2, 2), np.inf)), "NaN or infinite"),
        (lambda: Codes((2, 2), Precision("int4"), np.zeros(3, np.uint8)), "expected 8 bytes"),
        (lambda: round_to(np.ones(3), Precision("float16")).scales, "have no integers"),
    ],
)
def test_errors(call: Callable[[], object], message: str) -> None:
    with pytest.raises(PrecisionError, match=message):
        call()


def test_precisions_are_values() -> None:
    for precision in (Precision("int4", 64), Precision("bfloat16"), Precision("int3")):
        assert Precision.from_json(json.loads(json.dumps(precision.to_json()))) == precision
    assert len({Precision("int4", 64), Precision("int4", np.int64(64)), Precision("int4")}) == 2  # type: ignore[arg-type]


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_descent_never_loses_and_ends_where_no_single_change_gains(bits: int) -> None:
    x, hessian = weights((40, 150)) / 4, moment(150)
    hessian /= hessian.diagonal().max()
    start = with_feedback(x, Feedback.of(hessian), 32, bits)
    place = np.arange(150) // 32
    scales, zeros = start.scales[:, place].T, start.zeros[:, place].T
    errors, integers = [error_in(hessian, start.decode() - x)], start.integers.T
    for _ in range(30):
        integers = descend(x.T, hessian, integers - zeros, scales, clipped(zeros, bits), 1) + zeros
        errors.append(error_in(hessian, ((integers - zeros) * scales).T - x))
    for before, after in pairwise(errors):
        assert (after <= before * 1.0001).all()
    assert errors[2].sum() < {2: 0.97, 3: 0.98, 4: 0.99}[bits] * errors[0].sum()
    assert set(np.unique(integers)) <= set(range(2**bits))
    for change in (-1, 1):
        changed = np.clip(integers + change, 0, 2**bits - 1)
        for k in range(0, 150, 30):
            one = integers.copy()
            one[k] = changed[k]
            assert (error_in(hessian, ((one - zeros) * scales).T - x) >= errors[-1] * 0.9999).all()


def test_descent_leaves_what_is_never_used() -> None:
    x, hessian = weights((6, 20)) / 4, moment(20)
    hessian[3], hessian[:, 3] = 0.0, 0.0
    start = with_feedback(x, Feedback.of(hessian), 20, 3)
    place = np.zeros(20, int)
    zeros = start.zeros[:, place].T
    levels = start.integers.T - zeros
    found = descend(x.T, hessian, levels, start.scales[:, place].T, clipped(zeros, 3), 4)
    assert np.isfinite(found).all() and np.array_equal(found[3], levels[3])
