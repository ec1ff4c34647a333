"""Permutations of axes: exact relations to the weight without them, in every mode, on every backend."""

from __future__ import annotations

import json
import math
import pickle
from typing import Any

import adtn
import numpy as np
import pytest
from adtn import Generator, Permutation, _files
from adtn.backends import check_device, get_backend
from adtn.compression import structure_from_json, structure_to_json
from adtn.errors import LayoutError, ScheduleError
from adtn.layout import decode_permutation, encode_permutation
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save as save_file

from oracles import dense_weight
from table import Row, relative_error, to_numpy, tolerance, usable


def permuted(row: Row, seed: int = 0, **options: Any) -> tuple[Generator, Generator, tuple[np.ndarray, ...]]:
    """Make a generator, the same one with every axis permuted, and the index arrays."""
    orders = tuple(np.random.default_rng([seed, axis]).permutation(n) for axis, n in enumerate(row.shape))
    plain = row.generator(seed, **options)
    return plain, row.generator(seed, permutations=orders, **options), orders


def entries(weight: Any, orders: tuple[np.ndarray, ...]) -> np.ndarray:
    return np.asarray(weight)[np.ix_(*orders)]


# the value


@given(st.integers(0, 40), st.integers(0, 2**31))
def test_restore_inverts_permute(n: int, seed: int) -> None:
    p, x = Permutation.random(n, seed), np.random.default_rng(seed).standard_normal((3, n))
    assert np.array_equal(p.permute(x, 1), x[:, p.array])
    assert np.array_equal(p.restore(p.permute(x, 1), 1), x)
    y = np.random.default_rng(seed + 1).standard_normal((3, n))
    assert np.isclose(np.sum(p.permute(x, 1) * y), np.sum(x * p.restore(y, 1)))  # the adjoint


def test_equal_entries_are_equal_keys() -> None:
    a, b, c = Permutation([1, 2, 0]), Permutation(np.array([1, 2, 0], np.int32)), Permutation([2, 1, 0])
    assert a == b and hash(a) == hash(b) and a != c
    assert pickle.loads(pickle.dumps(a)) == a
    with pytest.raises(ValueError, match="read-only"):
        a.array[0] = 5


def test_hashing_does_not_read_the_entries() -> None:
    class Forbidden(np.ndarray):
        def __array_finalize__(self, obj: Any) -> None: ...

        def tobytes(self, *args: Any) -> bytes:  # type: ignore[override]
            raise AssertionError("the entries were hashed again")

    p = Permutation.random(4096)
    p._forward = p.array.view(Forbidden)
    assert isinstance(hash(p), int)
    assert p == Permutation.random(4096)


@pytest.mark.parametrize("wrong", [[0, 0, 1], [1, 2, 3], [-1, 0, 1], [0.0, 1.0], [[0, 1]], [True, False]], ids=str)
def test_invalid_permutations_are_refused(wrong: Any) -> None:
    with pytest.raises(LayoutError, match="expected"):
        Permutation(wrong)


def test_permutations_that_do_not_fit_are_refused() -> None:
    with pytest.raises(LayoutError, match="2 axes"):
        Generator((8, 8), adtn.TTN(bond=2), permutations=[None])
    with pytest.raises(LayoutError, match="axis 1, which has 8"):
        Generator((8, 8), adtn.TTN(bond=2), permutations=[None, range(7)])
    assert Generator((8, 8), adtn.TTN(bond=2), permutations=[None, range(8)]).permutations == ()


def test_other_permutations_make_another_weight() -> None:
    plain, gen, orders = permuted(LAYERS["mpo"], dtype="float32")
    want = np.array(gen.weight())
    x = np.random.default_rng(0).standard_normal((3, 20)).astype("float32")
    product = gen.apply(x)
    again = plain.with_permutations(orders)
    assert plain.weight() is not None and np.array_equal(again.weight(), want)  # not what the other one has compiled
    np.testing.assert_allclose(again.apply(x), product, rtol=1e-5)
    assert np.array_equal(gen.with_permutations([None, None]).weight(), plain.weight())
    coded = plain.rounded(adtn.Precision("int8")).with_permutations(orders)
    assert coded.precision == adtn.Precision("int8")
    with pytest.raises(LayoutError, match="axis 1, which has 20"):
        plain.with_permutations([None, range(7)])


# all topologies and backends


def test_the_weight_is_the_permuted_one(row: Row, device: str) -> None:
    dtype = "float32"
    plain, gen, orders = permuted(row)
    want, got = to_numpy(plain.weight(device, dtype)), to_numpy(gen.weight(device, dtype))
    assert np.array_equal(got, entries(want, orders))
    assert np.array_equal(dense_weight(gen), entries(dense_weight(plain), orders))


def test_the_adjoint_is_that_of_the_permuted_weight(row: Row, device: str) -> None:
    dtype = "float32"
    plain, gen, orders = permuted(row)
    backend, where = check_device(device, dtype)
    wbar = np.random.default_rng(1).standard_normal(row.shape)
    arrays = plain.arrays(device, dtype)
    with backend.scope(dtype):
        want = backend.compile(plain.function.vjp)(arrays, backend.asarray(wbar, where, dtype))[1]
        there = backend.asarray(entries(wbar, orders), where, dtype)
        got = backend.compile(gen.function.vjp)(gen.arrays(device, dtype), there)[1]
    for name in plain.params:
        assert relative_error(to_numpy(got[name]), to_numpy(want[name])) < tolerance(dtype, 64), name


BASES = {
    "none": None,
    "seeded": adtn.SeededBase(seed=3),
    "identity": adtn.IdentityBase(),
    "given": np.random.default_rng(5).standard_normal((16, 20)),
}
LAYERS = {
    "mpo": Row(adtn.MPO(bond=3), (16, 20), order="interleaved"),
    "padded": Row(adtn.TTN(bond=3, activation="identity"), (15, 19), 4),
    "nonlinear": Row(adtn.TTN(bond=3, leaves=False), (16, 20), 4),
}
MODES = ("materialise", "stream", "factored")


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("device", ["numpy", "torch", "jax"])
def test_a_layer_permutes_input_and_output(device: str, name: str, mode: str, base: str) -> None:
    row, device = LAYERS[name], usable(device)
    value = BASES[base]
    if isinstance(value, np.ndarray):
        value = value[: row.shape[0], : row.shape[1]]
    gen = permuted(row, base=value)[1]
    gen = gen.with_params({k: x + 0.1 for k, x in gen.params.items()})  # an adapter starts at zero
    backend, where = check_device(device, "float64")
    x, ybar = np.random.default_rng(0).standard_normal((5, row.shape[1])), np.ones((5, row.shape[0]))
    weight = dense_weight(gen)
    try:
        plan = adtn.plan(gen, "train", device=device, dtype="float64", batch=5, mode=mode)  # type: ignore[arg-type]
    except ScheduleError:
        assert (mode, name) == ("factored", "nonlinear")
        return
    assert plan.mode == mode
    layer, arrays = plan.layer.on(backend), gen.arrays(device, "float64")
    with backend.scope("float64"):
        there = backend.asarray(x, where, "float64")
        assert relative_error(to_numpy(gen.apply(there, mode=mode)), x @ weight.T) < 1e-12  # type: ignore[arg-type]
        y, tape = layer.with_tape(arrays, there)
        grads, xbar = layer.pullback(tape, arrays, there, backend.asarray(ybar, where, "float64"))
    assert relative_error(to_numpy(y), x @ weight.T) < 1e-12
    assert relative_error(to_numpy(xbar), ybar @ weight) < 1e-12
    want = gen.function.vjp(gen.arrays("numpy:cpu", "float64"), ybar.T @ x)[1]
    for key, grad in want.items():
        assert relative_error(to_numpy(grads[key]), grad) < 1e-10, key


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("device", ["numpy", "torch", "jax"])
@pytest.mark.parametrize("aware", [False, True])
def test_a_fit_is_that_of_the_unpermuted_target(device: str, mode: str, aware: bool) -> None:
    device, row = usable(device), LAYERS["mpo"]
    plain, gen, orders = permuted(row)
    target = np.random.default_rng(0).standard_normal(row.shape)
    moment = np.cov(np.random.default_rng(1).standard_normal((row.shape[1], 60)) * np.arange(1, 21)[:, None])
    objective: Any = entries(target, orders)
    unpermuted: Any = target
    if aware:
        objective = adtn.DataAwareReconstruction(objective, moment[np.ix_(orders[1], orders[1])])
        unpermuted = adtn.DataAwareReconstruction(target, moment)
    options: Any = {"device": device, "dtype": "float64", "steps": 8, "mode": mode}
    want, got = adtn.fit(plain, unpermuted, **options), adtn.fit(gen, objective, **options)
    np.testing.assert_allclose(got.history, want.history, rtol=1e-10)
    for name, x in want.generator.params.items():
        np.testing.assert_allclose(got.generator.params[name], x, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("aware", [False, True])
def test_gauss_newton_of_a_permuted_weight(aware: bool) -> None:
    """Check that a permuted target is the same problem for a permuted identity base, as the base keeps its order."""
    row = Row(adtn.TTN(bond=2, activation="tanh"), (12, 10), 3)
    rng = np.random.default_rng(0)
    target, inputs = rng.standard_normal(row.shape), rng.standard_normal((60, 10)) * np.arange(1, 11)
    base = rng.standard_normal(row.shape)
    plain, gen, (p, q) = permuted(row, base=base)
    gen = row.generator(permutations=(p, q), base=entries(base, (p, q)), params=plain.params)
    moment = inputs.T @ inputs / 60
    objectives: list[Any] = [target, entries(target, (p, q))]
    if aware:
        objectives = [
            adtn.DataAwareReconstruction(objectives[0], moment),
            adtn.DataAwareReconstruction(objectives[1], moment[np.ix_(q, q)]),
        ]
    want, got = (
        adtn.fit(g, o, dtype="float64", optimizer="lm", steps=6) for g, o in zip((plain, gen), objectives, strict=True)
    )
    np.testing.assert_allclose(got.history, want.history, rtol=1e-6)


def test_a_decomposition_is_of_the_unpermuted_weight() -> None:
    row = LAYERS["mpo"]
    _, gen, orders = permuted(Row(adtn.MPO(bond=64), (16, 20), order="interleaved"))
    target = np.random.default_rng(0).standard_normal(row.shape)
    assert relative_error(adtn.decompose(gen, target).weight(), target) < 1e-12
    assert orders


def test_task_losses_see_the_weight_in_its_order() -> None:
    _, gen, _ = permuted(LAYERS["nonlinear"])
    seen = []
    adtn.fit(gen, lambda w: (seen.append(np.array(w)), (float(np.sum(w * w)), 2 * w))[1], steps=1)
    np.testing.assert_allclose(seen[0], gen.weight(), rtol=1e-5)


@given(st.integers(0, 200), st.integers(0, 2**31))
def test_permutations_are_few_bytes_and_exact(n: int, seed: int) -> None:
    p = Permutation.random(n, seed)
    data = encode_permutation(p)
    assert decode_permutation(data, n) == p
    assert math.lgamma(n + 1) / math.log(2) / 8 <= len(data) + 1e-9
    assert len(data) <= math.lgamma(n + 1) / math.log(2) / 8 + -(-n // 64)
    if n > 2:
        with pytest.raises(LayoutError, match="permutation of"):
            decode_permutation(data + b"0", n)
        with pytest.raises(LayoutError, match=r"not a permutation|expected"):
            decode_permutation(b"\xff" * len(data), n)


@pytest.mark.parametrize("precision", [None, adtn.Precision("int8"), adtn.Precision("int4", 8)], ids=str)
def test_files_have_the_bits_that_are_counted(tmp_path: Any, precision: Any) -> None:
    """Compare files of two sizes, as both have nearly the same header."""
    tensor = np.random.default_rng(0).standard_normal((96, 400))
    layout = adtn.Layout.of(tensor.shape, 20)
    path, sizes, headers = tmp_path / "a.safetensors", [], []
    for ordering in ("none", "norm"):
        found = adtn.einsort(tensor, ordering=ordering, topology="tt", layout=layout, bytes=9000, precision=precision)
        adtn.save(path, found.generator)
        data = path.read_bytes()
        headers.append(8 + int.from_bytes(data[:8], "little"))
        sizes.append(len(data) - headers[-1] - found.bits.total / 8)
    assert 0.0 <= sizes[0] < 8.0  # safetensors pads the end of its header only
    assert 0.0 <= sizes[1] < 8.0 + 96 / 64 + 1 + 400 / 64 + 1
    assert headers[1] - headers[0] < 250


def test_files_with_lists_of_numbers_are_still_read(tmp_path: Any) -> None:
    _, gen, orders = permuted(LAYERS["mpo"])
    header = {"format": 1, **structure_to_json(gen), "stored": "float64", "sha256": _files.NO_DIGEST}
    header["permutations"] = [p.tolist() for p in orders]
    data = save_file(dict(gen.stored), {_files.KEY: json.dumps(header, sort_keys=True)})
    (tmp_path / "old.safetensors").write_bytes(_files.sealed(data))
    back = adtn.load(tmp_path / "old.safetensors")
    assert back.permutations == gen.permutations and np.array_equal(back.weight(), gen.weight())
    description = json.loads(json.dumps(structure_to_json(gen)))
    assert structure_from_json(description).permutations == gen.permutations
    assert structure_from_json(description | {"permutations": header["permutations"]}).permutations == gen.permutations


def test_files_hold_permutations(tmp_path: Any) -> None:
    _, gen, _ = permuted(LAYERS["mpo"])
    adtn.save(tmp_path / "a.safetensors", gen)
    back = adtn.load(tmp_path / "a.safetensors")
    assert back.permutations == gen.permutations
    assert np.array_equal(back.weight(), gen.weight())


# layers of frameworks


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`:UserWarning")
@pytest.mark.parametrize("mode", [None, *MODES])
def test_a_torch_layer(mode: Any) -> None:
    torch = pytest.importorskip("torch")
    from adtn_backends.torch.layers import ADTNEmbedding, ADTNLinear

    gen = permuted(LAYERS["mpo"], base=adtn.SeededBase(seed=2))[1]
    dense = torch.tensor(dense_weight(gen))
    layer = ADTNLinear(gen, bias=False, mode=mode)
    for batch in (1, 7):
        x = torch.randn(batch, 20, dtype=torch.float64, requires_grad=True)
        y = layer(x)
        torch.testing.assert_close(y, x @ dense.T)
        (xbar,) = torch.autograd.grad(y.square().sum(), x)
        torch.testing.assert_close(xbar, 2 * (x @ dense.T) @ dense)
        with torch.no_grad():
            torch.testing.assert_close(layer(x), x @ dense.T)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), x @ dense.T)
    index = torch.tensor([3, 0, 3])
    torch.testing.assert_close(ADTNEmbedding(gen)(index), dense[index])
    torch.testing.assert_close(layer.generated.rows(index), dense[index])


@pytest.mark.parametrize("mode", [None, *MODES])
def test_a_flax_layer(mode: Any) -> None:
    jax = pytest.importorskip("jax")
    from adtn_backends.jax.layers import ADTNLinear

    _, gen, _ = permuted(LAYERS["mpo"], dtype="float32", base=adtn.IdentityBase())
    layer, dense = ADTNLinear(gen, bias=False, mode=mode), dense_weight(gen)
    x = jax.numpy.asarray(np.random.default_rng(0).standard_normal((7, 20)), "float32")
    assert relative_error(jax.jit(layer)(x), x @ dense.T) < tolerance("float32", 20)
    rows = layer.generated.rows(jax.numpy.asarray([3, 0]))
    assert relative_error(rows, dense[[3, 0]]) < tolerance("float32", 20)
    assert get_backend("jax").name == "jax"
