"""Generators: bases, adapters, quimb networks, apply, immutability."""

from __future__ import annotations

import math
from typing import Any

import adtn
import numpy as np
import pytest
from adtn import Generator, Layout
from adtn.backends import check_device
from adtn.errors import ADTNError, GeneratorError, LayoutError, TopologyError

from oracles import dense_weight
from table import relative_error, to_numpy, tolerance

LAYOUT = Layout.of((16, 24), 4)


def make(**options) -> Generator:
    return Generator((16, 24), adtn.TTN(bond=3), layout=LAYOUT, **options)


def test_kaiming_scale() -> None:
    assert make().scale == pytest.approx((2 / 24) ** 0.5)
    assert np.std(make(dtype="float64").weight()) == pytest.approx((2 / 24) ** 0.5, rel=1e-6)
    conv = Generator((8, 4, 3, 3), adtn.TTN(bond=2))
    assert conv.scale == pytest.approx((2 / 36) ** 0.5)


def test_scale_from_a_weight() -> None:
    weight = np.random.default_rng(0).normal(3.0, 0.7, (16, 24))
    assert make(scale=weight).scale == pytest.approx(np.std(weight))
    assert make(scale=0.25).scale == 0.25


def test_seeded_base(device: str) -> None:
    base = adtn.SeededBase(11)
    gen = make(base=base, dtype="float64")
    assert gen.num_params == make().num_params + 1
    assert gen.num_active_params == make().num_active_params + 1
    plain = make(dtype="float64")
    want = plain.weight() + gen.params["base.scale"] * base.values((16, 24))
    np.testing.assert_allclose(gen.weight(), want, rtol=1e-12)
    assert relative_error(to_numpy(gen.weight(device, "float32")), want) < tolerance("float32", 16)


def test_base_scale_is_trained() -> None:
    base = adtn.SeededBase(5)
    target = 0.37 * base.values((16, 24)).astype(np.float64)
    solution = adtn.fit(make(base=base), target, steps=400, lr=0.02)
    assert solution.generator.params["base.scale"] == pytest.approx(0.37, rel=0.05)
    assert solution.relative_error < 0.1


def test_adapter_starts_at_its_base_and_can_move() -> None:
    weight = np.random.default_rng(0).standard_normal((16, 24))
    gen = make(base=weight, dtype="float64")
    assert np.array_equal(gen.weight(), weight)
    assert gen.num_params == make().num_params, "a frozen base is not counted"
    low_rank = weight + np.outer(np.sin(np.arange(16)), np.cos(np.arange(24)))
    moved = adtn.fit(gen, low_rank, steps=400, lr=0.03)
    assert moved.loss < 0.5 * float(np.sum((low_rank - weight) ** 2) / np.sum(low_rank**2))
    weight[0, 0] = 99.0
    assert gen.weight()[0, 0] != 99.0, "the base is a copy"


@pytest.mark.parametrize("base", [None, adtn.SeededBase(3), np.ones((16, 24))], ids=["none", "seeded", "given"])
def test_base_on_every_backend(base, device_dtype: tuple[str, str]) -> None:
    device, dtype = device_dtype
    gen = make(base=base, dtype="float64")
    assert relative_error(to_numpy(gen.weight(device, dtype)), dense_weight(gen)) < tolerance(dtype, 32)


def test_apply(device_dtype: tuple[str, str]) -> None:
    device, dtype = device_dtype
    gen = make(dtype="float64")
    backend, where = check_device(device, dtype)
    x = np.random.default_rng(0).standard_normal((5, 2, 24))
    y = gen.apply(backend.asarray(x, where, dtype))
    assert backend.dtype_of(y) == dtype
    assert relative_error(to_numpy(y), x @ gen.weight().T) < tolerance(dtype, 64)


def test_apply_generates_once() -> None:
    gen = make()
    x = np.ones((1, 24), np.float32)
    gen.apply(x)
    (first,) = gen._weights._values.values()
    gen.apply(x)
    (second,) = gen._weights._values.values()
    assert first is second
    assert not len(gen.with_params(gen.params)._weights)


def test_parameters_cannot_be_changed_in_place() -> None:
    gen = make()
    with pytest.raises(ValueError, match="read-only"):
        gen.params["root"][0] = 1.0
    with pytest.raises(TypeError):
        gen.params["root"] = 1.0  # type: ignore[index]


def test_with_params() -> None:
    gen = make()
    doubled = gen.with_params({**gen.params, "root": gen.params["root"] * 2})
    assert not np.allclose(doubled.weight(), gen.weight())
    with pytest.raises(GeneratorError, match="expected"):
        gen.with_params({"root": gen.params["root"]})
    with pytest.raises(GeneratorError, match=r"Got params\['root'\] of shape \(1,\)"):
        gen.with_params({**gen.params, "root": np.ones(1)})


def networks():
    import quimb.tensor as qtn

    a = qtn.TensorNetwork(
        [
            qtn.rand_tensor((3, 2, 4), ("x", "y", "bond"), tags=["A", "TRAIN"], seed=1),
            qtn.rand_tensor((4, 2), ("bond", "z"), tags=["B"], seed=2),
        ]
    )
    b = qtn.TensorNetwork(
        [
            qtn.rand_tensor((3, 5), ("x", "out"), tags=["C", "TRAIN"], seed=3),
            qtn.rand_tensor((2, 4), ("y", "in"), tags=["D", "TRAIN"], seed=4),
        ]
    )
    return a, b


def test_from_networks_trains_only_what_is_tagged(tmp_path) -> None:
    a, b = networks()
    gen = Generator.from_networks([a, b], trainable="TRAIN", activation="tanh", dtype="float64")
    assert gen.shape == (2, 5, 4), "z passes through"
    assert set(gen.params) == {"A.0_0", "C.1_0", "D.1_1"}
    assert gen.num_params == 24 + 8 + 15 + 8, "frozen tensors are stored, so they count"
    state = np.tanh(np.einsum("xyb,bz->xyz", a["A"].data, a["B"].data))
    want = np.einsum("xyz,xo,yi->zoi", state, b["C"].data, b["D"].data)
    np.testing.assert_allclose(gen.weight(), want, rtol=1e-12)
    trained = adtn.fit(gen, want * 1.1, steps=5).generator
    assert np.array_equal(trained.constants()["B.0_1"], gen.constants()["B.0_1"])
    adtn.save(tmp_path / "n.safetensors", trained)
    back = adtn.load(tmp_path / "n.safetensors")
    assert np.array_equal(back.weight(), trained.weight())
    assert back.topology == trained.topology


def test_from_networks_shape_order_and_hyper_indices() -> None:
    import quimb.tensor as qtn

    a, b = networks()
    gen = Generator.from_networks([a, b], outputs=["out", "z", "in"], shape=(10, 4), dtype="float64")
    assert gen.weight().shape == (10, 4)
    cp = qtn.TensorNetwork([qtn.rand_tensor((3, 4), ("r", f"l{k}"), seed=k) for k in range(3)])
    gen = Generator.from_networks([cp], output_inds=[["l0", "l1", "l2"]], dtype="float64")
    np.testing.assert_allclose(gen.weight(), np.einsum("ra,rb,rc->abc", *(t.data for t in cp)), rtol=1e-12)


def test_from_networks_errors() -> None:
    import quimb.tensor as qtn

    a, b = networks()
    with pytest.raises(TopologyError, match="at least one quimb"):
        Generator.from_networks([])
    with pytest.raises(TopologyError, match="Got trainable='NONE', a tag that no tensor has"):
        Generator.from_networks([a, b], trainable="NONE")
    with pytest.raises(TopologyError, match="outputs \\['nowhere'\\] for network 1, which has no such indices"):
        Generator.from_networks([a, b], outputs=["nowhere"])
    with pytest.raises(TopologyError, match="cannot be grouped"):
        Generator.from_networks([a, b], outputs=["out", "z", "in"], shape=(3, 5))
    clash = qtn.TensorNetwork([qtn.rand_tensor((7, 5), ("x", "out"))])
    with pytest.raises(TopologyError, match="dimension 7"):
        Generator.from_networks([a, clash])
    wave = qtn.TensorNetwork([qtn.rand_tensor((2, 2), ("p", "q"), dtype="complex128")])
    with pytest.raises(TopologyError, match="complex"):
        Generator.from_networks([wave])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: make(base=np.ones((2, 2))), GeneratorError, r"Got base=an array of shape \(2, 2\)"),
        (lambda: make(dtype="float16"), GeneratorError, "'float32' or 'float64'"),
        (lambda: make(scale=float("nan")), GeneratorError, "finite"),
        (lambda: Generator((8, 8), adtn.TTN(), layout=LAYOUT), LayoutError, "must be equal"),
        (lambda: make().apply(np.ones((2, 5))), LayoutError, r"expected \(\.\.\., 24\)"),
        (lambda: Generator((4, 4, 4), adtn.TTN(bond=2)).apply(np.ones(4)), LayoutError, r"\(n_out, n_in\)"),
    ],
)
def test_errors_say_what_to_do(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("shape", [(6, 8), (8, 6), (6, 4, 3, 3), (4, 6, 5), (7,)])
def test_beside_an_identity_base_a_generator_starts_at_zero(shape: tuple[int, ...]) -> None:
    gen = adtn.Generator(shape, adtn.TTN(bond=2), base=adtn.IdentityBase(), scale=0.5, dtype="float64")
    fan_in = math.prod(shape[1:])
    want = np.zeros(shape)
    middle = tuple(k // 2 for k in shape[2:])
    for n in range(min(shape[:2])):
        want[(n, n, *middle) if len(shape) > 1 else n] = 0.5 * math.sqrt(fan_in)
    np.testing.assert_allclose(gen.weight(), want, rtol=1e-6)
    plain = adtn.Generator(shape, adtn.TTN(bond=2))
    assert gen.num_params == plain.num_params + 1
    target = np.random.default_rng(0).standard_normal(shape)
    assert adtn.fit(gen, target, optimizer="lbfgs", steps=30, progress=False).relative_error < 0.99


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: adtn.Generator("16", adtn.TTN()), "Got shape='16'; expected whole numbers"),
        (lambda: adtn.Generator((16.5, 16), adtn.TTN()), "expected whole numbers"),
        (lambda: adtn.Generator(16, adtn.TTN()), "expected whole numbers"),
        (lambda: adtn.Generator((16, 16), "ttn"), r"such as adtn.TTN\(bond=4\)"),
        (lambda: adtn.Generator((16, 16), adtn.TTN), r"such as adtn.TTN\(bond=4\)"),
        (lambda: adtn.Generator((16, 16), adtn.TTN(), seed=-1), "seed=-1"),
        (lambda: adtn.Generator((16, 16), adtn.TTN(), base="identity"), r"adtn.IdentityBase\(\)"),
        (lambda: adtn.Generator((16, 16), adtn.TTN(), params={"core": np.ones(3)}), r"\['core'\]; expected some of"),
    ],
)
def test_arguments_of_another_kind_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ADTNError, match=message):
        make()
