"""Layouts: exact inverses on entries that are not padding, sensible legs, refused padding."""

from __future__ import annotations

import math

import adtn
import numpy as np
import pytest
from adtn import Layout
from adtn.errors import LayoutError
from adtn.layout._factorise import factorise, uniform
from hypothesis import given
from hypothesis import strategies as st

shapes = st.lists(st.integers(1, 40), min_size=1, max_size=5).filter(lambda s: math.prod(s) <= 20_000)


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    shape = draw(shapes)
    legs = [draw(st.integers(2, 9)) for _ in shape]
    layout = Layout.of(shape, legs, draw(st.sampled_from(["axis", "interleaved"])))
    if draw(st.booleans()):
        order = draw(st.permutations(range(layout.ndim_legs)))
        layout = Layout(layout.shape, layout.factors, tuple(order))
    return layout


@given(layouts())
def test_from_legs_inverts_to_legs(layout: Layout) -> None:
    weight = np.random.default_rng(0).standard_normal(layout.shape)
    legs = layout.to_legs(weight)
    assert legs.shape == layout.dims
    assert np.array_equal(layout.from_legs(legs), weight)


@given(layouts())
def test_to_legs_is_the_adjoint_of_from_legs(layout: Layout) -> None:
    rng = np.random.default_rng(1)
    legs, weight = rng.standard_normal(layout.dims), rng.standard_normal(layout.shape)
    assert np.sum(layout.from_legs(legs) * weight) == pytest.approx(np.sum(legs * layout.to_legs(weight)), abs=1e-9)


@given(layouts())
def test_an_entry_sits_where_the_mixed_radix_digits_say(layout: Layout) -> None:
    rng = np.random.default_rng(2)
    where = tuple(int(rng.integers(n)) for n in layout.shape)
    weight = np.zeros(layout.shape)
    weight[where] = 1.0
    digits = {}
    for axis, (index, factors) in enumerate(zip(where, layout.factors, strict=True)):
        for k in reversed(range(len(factors))):
            index, digits[axis, k] = divmod(index, factors[k])
    assert layout.to_legs(weight)[tuple(digits[leg] for leg in layout.leg_axes)] == 1.0


@given(st.integers(1, 30_000), st.integers(2, 64))
def test_factorise_holds_the_axis_with_little_padding(n: int, leg: int) -> None:
    factors = factorise(n, leg)
    assert n <= math.prod(factors) <= max(n * 1.5, n + 2)
    assert all(2 <= f <= max(4 * leg, 16) for f in factors)
    assert list(factors) == sorted(factors, reverse=True)


@pytest.mark.parametrize(
    ("n", "leg", "padded"),
    [
        (10, 4, 10),
        (84, 4, 84),
        (120, 4, 120),
        (784, 4, 784),
        (25088, 8, 25088),
        (127, 4, 128),
        (4096, 8, 4096),
    ],
)
def test_awkward_sizes(n: int, leg: int, padded: int) -> None:
    assert math.prod(factorise(n, leg)) == padded


def test_uniform_legs() -> None:
    assert uniform(784, 2) == (2,) * 10
    assert Layout.of((4096, 4096), 2, exact=True).dims == (2,) * 24


def test_axis_of_length_one_has_no_legs() -> None:
    layout = Layout.of((8, 4, 1, 1), 4)
    assert layout.factors == ((4, 2), (4,), (), ())
    assert adtn.Generator((8, 4, 1, 1), adtn.TTN(bond=2), layout=layout).weight().shape == (8, 4, 1, 1)


def test_expensive_padding_is_refused_and_the_better_layout_named() -> None:
    with pytest.raises(
        LayoutError, match=r"generates 1\.63 entries.*Better: factors=\(\(.*or allow it with max_padding=2"
    ):
        Layout.of((120, 84), 2, exact=True)
    assert Layout.of((120, 84), 2, exact=True, max_padding=2).padding == pytest.approx(128 * 128 / (120 * 84))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Layout.of((2,) * 6), "1 to 5"),
        (lambda: Layout.of((0, 3)), "at least one entry"),
        (lambda: Layout.of((4, 4), 1), "from 2 to"),
        (lambda: Layout.of((4, 4), (2, 2, 2)), "one size per axis"),
        (lambda: Layout.of((4, 4), order="sideways"), "'axis', 'interleaved'"),  # type: ignore[arg-type]
        (lambda: Layout.of((4, 4), 2, [0, 1, 2, 2]), "permutation"),
        (
            lambda: Layout.from_factors((10,), [(2, 4)]),
            r"hold 8 entries, fewer than its 10; \(5, 2\) would be enough",
        ),
        (lambda: Layout.from_factors((10, 10), [(2, 5)]), "one tuple per axis"),
        (lambda: Layout.from_factors((2,), [(2, 1)]), "2 or more"),
        (lambda: Layout.from_factors((2,) * 5, [(2,) * 13] * 5, max_padding=1e9), "maximum of 64"),
        (lambda: Layout.from_factors((2,), [(65536,) * 4], max_padding=1e30), "2\\*\\*48"),
        (lambda: Layout.of((4, 4), 2).to_legs(np.ones((4, 5))), r"shape \(4, 5\).*\(4, 4\)"),
        (lambda: Layout.of((4, 4), 2).from_legs(np.ones((4, 4))), "has legs"),
    ],
)
def test_errors_say_what_to_do(make, message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        make()


def test_layout_runs_on_every_backend(device: str) -> None:
    from adtn.backends import check_device

    from table import to_numpy

    backend, where = check_device(device, "float32")
    layout = Layout.of((10, 21), 3, "interleaved")
    weight = np.random.default_rng(0).standard_normal((10, 21)).astype(np.float32)
    legs = layout.to_legs(backend.asarray(weight, where, "float32"))
    assert np.array_equal(to_numpy(legs), layout.to_legs(weight))
    assert np.array_equal(to_numpy(layout.from_legs(legs)), weight)
