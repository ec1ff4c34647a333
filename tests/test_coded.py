"""Entropy-coded precision: exact bytes, small errors, damage, and the same values in files and on every framework."""

from __future__ import annotations

import copy
import math
import pickle

import adtn
import numpy as np
import pytest
from adtn import Precision
from adtn.errors import ADTNError, PrecisionError
from adtn.precision import Codes, round_to, stored_bytes
from adtn.precision._coded import LARGEST, Stepped, coded_bytes, decode, encode, length_of
from adtn.precision._logistic import FIRST, LAST, lengths, probabilities
from hypothesis import given
from hypothesis import strategies as st

from arrays import moment, weights


def error_in(moment: np.ndarray, away: np.ndarray) -> float:
    return math.sqrt(float(np.einsum("rc,cd,rd->", away, moment, away, optimize=True)))


@given(
    st.integers(1, 9),
    st.integers(1, 40),
    st.sampled_from([0.0, 0.3, 5.0, 200.0, 20000.0]),
    st.integers(0, 255),
    st.integers(-128, 127),
    st.integers(0, 2**32 - 1),
)
def test_every_matrix_of_integers_is_coded_exactly(rows, columns, size, shift, unit, seed) -> None:
    rng = np.random.default_rng(seed)
    scales = np.exp(rng.standard_normal((rows, 1)) + rng.standard_normal(columns))
    integers = np.clip(np.rint(size * scales * rng.standard_normal((rows, columns))), -LARGEST, LARGEST).astype(
        np.int64
    )
    given = Stepped(
        integers=integers,
        step=float(np.float32(0.37)),
        exponents=rng.integers(-40, 41, columns),
        shift=shift,
        unit=unit,
    )
    nbytes = coded_bytes(integers.size, 60.0)
    data = encode(given, nbytes)
    assert data is not None and data.shape == (nbytes,)
    found = decode(data, rows, columns)
    assert np.array_equal(found.integers, integers) and np.array_equal(found.exponents, given.exponents)
    assert (found.step, found.shift, found.unit) == (given.step, shift, unit)
    assert encode(given, 12) is None


def test_the_length_is_nearly_the_entropy() -> None:
    integers = np.rint(np.random.default_rng(0).logistic(0, 2.0, (200, 300))).astype(np.int64)
    given = Stepped(integers=integers, step=1.0, exponents=np.zeros(300, int))
    _, counts = np.unique(integers, return_counts=True)
    entropy = -float((counts * np.log2(counts / integers.size)).sum())
    assert entropy < length_of(given) < 1.01 * entropy
    data = encode(given, coded_bytes(integers.size, 8.0))
    assert data is not None and 8 * len(np.trim_zeros(data, "b")) < length_of(given) + 64


def test_rows_and_columns_of_different_sizes_have_scales_of_their_own() -> None:
    rng = np.random.default_rng(0)
    sizes = 2.0 ** rng.integers(-3, 4, (120, 1)) * 2.0 ** rng.integers(-2, 3, 120)
    even, uneven = (np.rint(4 * s * rng.logistic(size=(120, 120))).astype(np.int64) for s in (1.0, sizes))
    entropies = [np.log2(np.e**2 * 4 * s) for s in (1.0, sizes)]  # of a logistic density
    for integers, want in zip((even, uneven), entropies, strict=True):
        own = length_of(Stepped(integers=integers, step=1.0, exponents=np.zeros(120, int)))
        assert own < integers.size * float(np.maximum(want, 0.2).mean()) * 1.04


def test_probabilities_are_those_of_the_density() -> None:
    for i in (FIRST, -4, 0, 7, LAST):
        s = 2.0 ** (i / 4)
        edges = np.concatenate(([-np.inf], np.arange(-126.5, 127.0), [np.inf]))
        with np.errstate(over="ignore"):
            narrow, wide = (np.diff(1 / (1 + np.exp(-edges / (k * s)))) for k in (1, 3))
        want = 0.98 * narrow + 0.02 * wide
        assert np.allclose(probabilities(i)[:255], want, rtol=1e-3, atol=2e-6)
        assert probabilities(i).dtype == np.float32 and np.isfinite(lengths()).all()


@pytest.mark.parametrize("shape", [(64,), (1, 300), (300, 1), (16, 27), (16, 8, 3, 3), (5,)])
@pytest.mark.parametrize("rate", [0.5, 1.0, 3.0, 8.0])
def test_arrays_have_the_size_that_was_asked_for(shape: tuple[int, ...], rate: float) -> None:
    x, precision = weights(shape), Precision("coded", rate=rate)
    codes = round_to(x, precision)
    assert codes.nbytes == stored_bytes(shape, precision) == 12 + 4 * max(math.ceil(rate * x.size / 32), 6)
    assert codes.decode().shape == shape and codes.decode().dtype == np.float32
    far = {0.5: 0.9, 1.0: 0.8, 3.0: 0.35, 8.0: 0.01}[rate]
    assert np.linalg.norm(codes.decode() - x) < far * np.linalg.norm(x)


@pytest.mark.parametrize("rate", [1.0, 2.0, 3.0, 4.0])
def test_errors_of_normal_weights(rate: float) -> None:
    x = weights((256, 256))
    found = round_to(x, Precision("coded", rate=rate)).decode()
    # a quarter of a bit above the rate distortion function, and a twentieth for the density and the header
    assert np.linalg.norm(found - x) < 2.0 ** (0.3 - rate) * np.linalg.norm(x)


@pytest.mark.parametrize(("format", "group"), [("int4", 64), ("int3", 32)])
@pytest.mark.parametrize("columns", [96, 320])
def test_entropy_codes_beat_integers_of_the_same_size(format, group, columns: int) -> None:
    x, hessian = weights((220, columns)), moment(columns)
    fixed = round_to(x, Precision(format, group), hessian)
    coded = round_to(x, Precision("coded", rate=8 * fixed.nbytes / x.size - 0.02), hessian)
    assert coded.nbytes <= fixed.nbytes
    assert error_in(hessian, coded.decode() - x) < 0.75 * error_in(hessian, fixed.decode() - x)
    plain = round_to(x, coded.precision)
    assert error_in(hessian, coded.decode() - x) < 0.8 * error_in(hessian, plain.decode() - x)


def test_rows_are_fed_back_where_their_moment_is_given() -> None:
    x, rows, precision = weights((48, 300)), moment(48), Precision("coded", rate=2.5)
    fed, plain = round_to(x, precision, row_hessian=rows).decode(), round_to(x, precision).decode()
    assert error_in(rows, (fed - x).T) < 0.9 * error_in(rows, (plain - x).T)


@pytest.mark.parametrize("size", [1e-42, 1e-30, 1.0, 1e30, 3e38])
def test_sizes_do_not_matter(size: float) -> None:
    x = (np.clip(weights((40, 40)), -1, 1) * np.float64(size)).astype(np.float32)
    found = round_to(x, Precision("coded", rate=5.0)).decode()
    assert np.isfinite(found).all()
    most = 0.5 if size < 1e-38 else 0.06
    assert np.abs(found / size - x / size).max() < most


def test_odd_arrays() -> None:
    precision = Precision("coded", rate=1.0)
    assert not round_to(np.zeros((64, 64)), precision).decode().any()
    assert not Codes.blank((64, 64), precision).decode().any()
    x = np.zeros((64, 64), np.float32)
    x[3, 4], x[7] = 1.0, 1e-5
    found = round_to(x, precision)
    assert np.abs(found.decode() - x).max() < 1e-4, "a single large entry among small ones"
    unused = np.diag(np.r_[np.zeros(32), np.ones(32)])
    found = round_to(weights((64, 64)), Precision("coded", rate=2.0), unused)
    away = np.linalg.norm(found.decode() - weights((64, 64)), axis=0)
    assert away[:32].min() > 3 * away[32:].max(), "no bits for inputs that are never used"
    with pytest.raises(PrecisionError, match="NaN"):
        round_to(np.full((8, 8), np.nan), precision)


def test_damaged_bytes_are_found_or_decode_to_something() -> None:
    codes = round_to(weights((32, 32)), Precision("coded", rate=3.0))
    for at in range(0, codes.nbytes - 4, 7):
        data = codes.data.copy()
        data[at] ^= 0x55
        try:
            found = Codes(codes.shape, codes.precision, data).decode()
        except PrecisionError:
            continue
        assert found.shape == (32, 32)
    with pytest.raises(PrecisionError, match="step"):
        data = codes.data.copy()
        data[:4] = np.array([np.nan], "<f4").view(np.uint8)
        Codes(codes.shape, codes.precision, data).decode()
    with pytest.raises(PrecisionError, match="end with the last"):
        data = codes.data.copy()
        data[-12:] = 0
        Codes(codes.shape, codes.precision, data).decode()


def test_precisions() -> None:
    precision = Precision("coded", rate=2.5)
    assert Precision.from_json(precision.to_json()) == precision
    assert str(precision) == "coded/2.5" and precision.bits == 2.5
    assert precision.of((3, 4)) == Precision("float16") and precision.of((16, 16)) == precision
    for wrong in ({"format": "coded"}, {"format": "int4", "rate": 2.0}, {"format": "coded", "group": 4, "rate": 2.0}):
        with pytest.raises(PrecisionError):
            Precision(**wrong)  # type: ignore[arg-type]
    with pytest.raises(PrecisionError):
        Precision("coded", rate=0.1)


def test_precisions_have_names(tmp_path) -> None:
    for precision in adtn.Config().precisions:
        assert Precision.named(str(precision)) == precision
    for wrong in ("int4/", "int4/x", "coded", "coded/", "coded/x", "int9", "", "coded/1/2"):
        with pytest.raises(PrecisionError):
            Precision.named(wrong)
    (tmp_path / "c.toml").write_text('precisions = ["int8", "coded/2.5"]')
    config = adtn.Config.load(tmp_path / "c.toml")
    assert config.precisions == (Precision("int8"), Precision("coded", rate=2.5))


@pytest.mark.parametrize(
    "topology", [adtn.Dense(), adtn.LowRank(bond=12), adtn.TTN(bond=4, activation="silu")], ids=str
)
def test_generators_and_files(topology, tmp_path, device: str) -> None:
    gen = adtn.Generator((96, 64), topology, seed=1).rounded(Precision("coded", rate=4.0))
    adtn.save(tmp_path / "x.safetensors", gen)
    loaded = adtn.load(tmp_path / "x.safetensors")
    assert loaded.precision == gen.precision and loaded.nbytes == gen.nbytes
    assert (loaded.weight() == gen.weight()).all()
    for other in (pickle.loads(pickle.dumps(gen)), copy.deepcopy(gen)):
        assert (other.weight() == gen.weight()).all()
    weight = np.asarray(gen.weight(device=device, dtype="float32"))
    assert np.allclose(weight, gen.weight(), rtol=1e-4, atol=1e-5 * float(np.abs(weight).max()))
    x = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    y = np.asarray(gen.apply(x))
    assert np.allclose(y, x @ gen.weight().T, rtol=1e-3, atol=1e-4)
    data = (tmp_path / "x.safetensors").read_bytes()
    (tmp_path / "x.safetensors").write_bytes(data[:-5] + b"\x01" + data[-4:])
    with pytest.raises(ADTNError):
        adtn.load(tmp_path / "x.safetensors")
