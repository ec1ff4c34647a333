"""Rounding of closed forms in the metric of the inputs: never worse than to the nearest values, and on their grid."""

from __future__ import annotations

import math
from functools import cache

import adtn
import numpy as np
import pytest
from adtn import Generator, Layout, Precision
from adtn.compression._rounding import rounded_in_metric
from adtn.topology import Topology

INT8, INT4, INT3, INT2 = Precision("int8"), Precision("int4", 32), Precision("int3"), Precision("int2", 32)
LINEAR, CONV = (48, 40), (16, 12, 3, 3)
CASES: dict[str, tuple[tuple[int, ...], Topology, Layout | None]] = {
    "pair": (LINEAR, adtn.LowRank(bond=12), None),
    "mpo": (LINEAR, adtn.MPO(bond=8), Layout.of(LINEAR, 8)),
    "ttn": (LINEAR, adtn.TTN(bond=8, activation="identity"), Layout.of(LINEAR, 8)),
    "ring": (LINEAR, adtn.TensorRing(bond=4), Layout.of(LINEAR, 8)),
    "cp": (LINEAR, adtn.CP(bond=12), Layout.of(LINEAR, 8)),
    "spatial": (CONV, adtn.LowRank(bond=10, split="spatial"), None),
    "tucker2": (CONV, adtn.Tucker(bond=(8, 8, None, None)), None),
    "conv pair": (CONV, adtn.LowRank(bond=8), None),
    "tt": (CONV, adtn.TT(bond=8), Layout.whole(CONV)),
}


@cache
def data(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Make a weight with a decaying spectrum, and the moment of correlated inputs."""
    rng = np.random.default_rng(len(shape))
    n_in = math.prod(shape[1:])
    left, right = rng.standard_normal((shape[0], shape[0])), rng.standard_normal((shape[0], n_in))
    weight = (left * np.exp(-0.15 * np.arange(shape[0]))) @ right / n_in
    x = rng.standard_normal((4 * n_in, n_in)) * np.exp(-4.0 * np.arange(n_in) / n_in)
    x = x @ np.linalg.qr(rng.standard_normal((n_in, n_in)))[0]
    return weight.reshape(shape), x.T @ x / len(x)


@cache
def closed_form(name: str) -> Generator:
    shape, topology, layout = CASES[name]
    weight, moment = data(shape)
    gen = Generator(shape, topology, layout=layout, scale=1.0)
    return adtn.decompose(gen, weight, moment=moment, sweeps=10)


def error(gen: Generator, weight: np.ndarray, moment: np.ndarray | None) -> float:
    """Compute the relative error of the outputs."""
    rows = weight.reshape(len(weight), -1)
    away = gen.weight().astype(np.float64).reshape(rows.shape) - rows
    second = np.eye(rows.shape[1]) if moment is None else moment
    return float(np.sqrt(np.vdot(away @ second, away) / np.vdot(rows @ second, rows)))


@pytest.fixture(params=CASES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("precision", [INT8, INT4, INT3, INT2], ids=str)
@pytest.mark.parametrize("known", [True, False], ids=["moment", "no moment"])
def test_never_worse_than_nearest_values(name: str, precision: Precision, known: bool) -> None:
    gen, (weight, moment) = closed_form(name), data(CASES[name][0])
    second = moment if known else None
    rounded, nearest = rounded_in_metric(gen, precision, weight, second), gen.rounded(precision)
    assert rounded.precision == precision and rounded.nbytes == nearest.nbytes
    assert error(rounded, weight, second) <= error(nearest, weight, second) * (1.0 + 1e-6)


@pytest.mark.parametrize("precision", [INT4, INT3], ids=str)
def test_several_passes_are_better_than_one(name: str, precision: Precision) -> None:
    gen, (weight, moment) = closed_form(name), data(CASES[name][0])
    errors = [error(rounded_in_metric(gen, precision, weight, moment, n), weight, moment) for n in (0, 1, 12)]
    assert errors[2] <= errors[1] * (1.0 + 1e-6) and errors[1] <= errors[0] * (1.0 + 1e-6)
    if precision == INT3:
        assert errors[2] < 0.9 * errors[0]


def test_parameters_are_on_the_grid(name: str) -> None:
    gen, (weight, moment) = closed_form(name), data(CASES[name][0])
    rounded = rounded_in_metric(gen, INT4, weight, moment)
    for key, codes in rounded.codes.items():
        assert codes.precision == INT4.of(codes.shape)
        assert np.array_equal(codes.decode(), rounded.params[key])
        if codes.precision.is_integer:
            assert codes.integers.max() < 16


@pytest.mark.parametrize("name", [name for name in CASES if name != "ring"])  # large terms cancel in the ring
def test_8_bits_cost_little(name: str) -> None:
    gen, (weight, moment) = closed_form(name), data(CASES[name][0])
    assert error(rounded_in_metric(gen, INT8, weight, moment), weight, moment) < 1.01 * error(gen, weight, moment)


@pytest.mark.parametrize("format", ["float32", "float16", "bfloat16"])
def test_floats_are_rounded_to_the_nearest(name: str, format: str) -> None:
    gen, (weight, moment) = closed_form(name), data(CASES[name][0])
    precision = Precision(format)  # type: ignore[arg-type]
    rounded = rounded_in_metric(gen, precision, weight, moment)
    assert all(np.array_equal(x, gen.rounded(precision).params[key]) for key, x in rounded.params.items())


def test_padding_and_permutations() -> None:
    shape = (46, 39)
    rng = np.random.default_rng(5)
    weight, moment = data(LINEAR)[0][:46, :39], data(LINEAR)[1][:39, :39]
    layout = Layout.from_factors(shape, ((8, 6), (8, 5)))
    assert layout.padded_shape == (48, 40)
    permutations = [rng.permutation(46).tolist(), rng.permutation(39).tolist()]
    for topology in (adtn.MPO(bond=8), adtn.LowRank(bond=10), adtn.Tucker(bond=6)):
        gen = Generator(shape, topology, layout=layout, permutations=permutations, scale=1.0)
        gen = adtn.decompose(gen, weight, moment=moment, sweeps=10)
        rounded = rounded_in_metric(gen, INT3, weight, moment)
        assert error(rounded, weight, moment) < 0.97 * error(gen.rounded(INT3), weight, moment)


def test_dense_weights_have_the_moment_in_their_own_order() -> None:
    weight, moment = data(LINEAR)
    permutations = [None, np.random.default_rng(6).permutation(LINEAR[1]).tolist()]
    gen = Generator(LINEAR, adtn.Dense(), layout=Layout.whole(LINEAR), permutations=permutations, scale=1.0)
    gen = gen.with_params({"weight": np.asarray(gen.weighting.to_state(weight))})
    assert error(gen, weight, moment) < 1e-6
    assert error(rounded_in_metric(gen, INT3, weight, moment), weight, moment) < 0.7 * error(
        gen.rounded(INT3), weight, moment
    )


def test_singular_moments() -> None:
    weight, moment = data(LINEAR)
    values, vectors = np.linalg.eigh(moment)
    low = (vectors[:, -6:] * values[-6:]) @ vectors[:, -6:].T
    gen = closed_form("pair")
    rounded = rounded_in_metric(gen, INT3, weight, low)
    assert np.isfinite(rounded.weight()).all()
    assert error(rounded, weight, low) <= error(gen.rounded(INT3), weight, low)


def test_others_fall_back() -> None:
    weight, moment = data(LINEAR)
    for gen in (
        Generator(LINEAR, adtn.TTN(bond=4, activation="silu"), layout=Layout.of(LINEAR, 8)),
        Generator(LINEAR, adtn.MPO(bond=4), layout=Layout.of(LINEAR, 8), base=adtn.SeededBase(1)),
        Generator(LINEAR, adtn.Dense(), layout=Layout.of(LINEAR, 8)),
    ):
        rounded, nearest = rounded_in_metric(gen, INT4, weight, moment), gen.rounded(INT4)
        assert rounded.weight().tobytes() == nearest.weight().tobytes()
