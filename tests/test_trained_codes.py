"""Training of cores that are stored as codes, in every framework."""

from __future__ import annotations

from functools import cache
from typing import Any

import adtn
import numpy as np
import pytest
from adtn import Layout, Precision
from adtn.compression import Tuning, dense_generator, model_of
from adtn.errors import PrecisionError
from adtn.precision import Codes, round_to, rounded_again

from table import BACKENDS, to_numpy

FRAMEWORKS = [name for name in ("torch", "jax") if name in BACKENDS]
PRECISIONS = [
    Precision("int8"),
    Precision("int4", 16),
    Precision("int3", 20),
    Precision("int4", 16, ordered=True),
    Precision("int2"),
    Precision("coded", rate=3.0),
    Precision("bfloat16"),
    Precision("float16"),
]
GENERATORS = {
    "dense": lambda: adtn.Generator((40, 50), adtn.Dense(), layout=Layout.whole((40, 50))),
    "low-rank": lambda: adtn.Generator((40, 50), adtn.LowRank(bond=9), layout=Layout.whole((40, 50))),
    "low rank": lambda: adtn.Generator((32, 48), adtn.LowRank(bond=5)),
    "mpo": lambda: adtn.Generator((32, 48), adtn.MPO(bond=4)),
    "scaled": lambda: adtn.Generator((32, 48), adtn.MPO(bond=4), scale=1e-9),
}


@cache
def rounded(name: str, precision: Precision) -> adtn.Generator:
    return GENERATORS[name]().rounded(precision)


@pytest.fixture(params=GENERATORS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=PRECISIONS, ids=str)
def gen(request: pytest.FixtureRequest, name: str) -> adtn.Generator:
    return rounded(name, request.param)


@pytest.fixture(params=FRAMEWORKS)
def framework(request: pytest.FixtureRequest) -> str:
    return request.param


def weight_of(framework: str, gen: adtn.Generator) -> Any:
    if framework == "torch":
        from adtn_backends.torch import GeneratedWeight
    else:
        from adtn_backends.jax import GeneratedWeight
    return GeneratedWeight(gen)


def codes_of(weight: Any) -> dict[str, bytes]:
    return {name: codes.data.tobytes() for name, codes in weight.generator().codes.items()}


@pytest.mark.parametrize("name", ["low-rank", "mpo", "scaled"])  # of other networks, codes are read in the same way
def test_nothing_changes_without_a_step(framework: str, gen: adtn.Generator) -> None:
    weight = weight_of(framework, gen)
    before, values = codes_of(weight), to_numpy(weight())
    weight.open_codes()
    np.testing.assert_allclose(to_numpy(weight()), values, rtol=1e-5, atol=1e-6 * np.abs(values).max())
    weight.close_codes()
    assert codes_of(weight) == before
    assert np.array_equal(to_numpy(weight()), values)


def test_discarded(framework: str) -> None:
    weight = weight_of(framework, rounded("mpo", Precision("int4", 16)))
    before = codes_of(weight)
    weight.open_codes()
    shift(framework, weight)
    weight.close_codes(store=False)
    assert codes_of(weight) == before


def test_what_is_trained_is_what_is_stored(framework: str) -> None:
    for precision in (Precision("int4", 16), Precision("int2")):
        weight = weight_of(framework, rounded("low-rank", precision))
        before = codes_of(weight)
        weight.open_codes()
        shift(framework, weight)
        trained = to_numpy(weight())
        weight.close_codes()
        assert codes_of(weight) != before
        # scales are stored as float16
        np.testing.assert_allclose(to_numpy(weight()), trained, atol=2e-3 * np.abs(trained).max())


def shift(framework: str, weight: Any) -> None:
    """Move entries and scales a little."""
    if framework == "torch":
        import torch

        with torch.no_grad():
            for k, p in enumerate(weight.parameters()):
                p.add_(0.03 * torch.randn(p.shape, generator=torch.Generator().manual_seed(k)))
        return
    import jax
    from flax import nnx

    state = nnx.state(weight, nnx.Param)
    nnx.update(weight, jax.tree.map(lambda x: x + 0.03 * jax.random.normal(jax.random.key(x.size), x.shape), state))


def gradients(framework: str, codes: Codes, x: np.ndarray, cotangent: np.ndarray) -> list[np.ndarray]:
    """Return the value and the gradients with respect to the entries and the factors of the scales."""
    gen = adtn.Generator(x.shape, adtn.Dense(), layout=Layout.whole(x.shape), scale=1.0)
    weight = weight_of(framework, gen.with_codes(codes.precision, {"weight": codes}))
    weight.open_codes()
    if framework == "torch":
        import torch

        (coded,) = weight._trained.values()
        coded.values.data.copy_(torch.tensor(x))
        y = weight()
        (y * torch.tensor(cotangent)).sum().backward()
        return [to_numpy(y.detach()), to_numpy(coded.values.grad), to_numpy(coded.gains.grad)]
    import jax.numpy as jnp
    from flax import nnx

    (key,) = weight.codes.values()
    weight.trained[key].values[...] = jnp.asarray(x)
    grads = nnx.grad(lambda w: (w() * cotangent).sum())(weight)
    return [to_numpy(weight()), *(to_numpy(grads["trained"][key][k][...]) for k in ("values", "gains"))]


@pytest.mark.parametrize("group", [8, 12, None])
def test_gradients_are_those_of_the_straight_through_estimator(framework: str, group: int | None) -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal((6, 20)).astype(np.float32)
    x[2, :8] = 0.0
    codes = round_to(x, Precision("int3", group))
    x = x + 0.5 * random.standard_normal(x.shape).astype(np.float32) * (x != 0)  # some are beyond the range
    ybar = random.standard_normal(x.shape).astype(np.float32)
    width = group or 20
    place = np.arange(20) // width
    s, z = codes.scales[:, place], codes.zeros[:, place]
    with np.errstate(divide="ignore", invalid="ignore"):
        exact = np.where(s == 0, z, x / s + z)
    inside = (exact > 0) & (exact < 7)
    q = np.rint(np.clip(exact, 0, 7))
    value, by_x, by_gain = gradients(framework, codes, x, ybar)
    np.testing.assert_allclose(value, (q - z) * s, atol=1e-5)
    np.testing.assert_allclose(by_x[s != 0], (ybar * inside)[s != 0], atol=1e-5)
    each = ybar * s * np.where(inside, q - exact, q - z)
    expected = np.stack([each[:, place == g].sum(1) for g in range(place[-1] + 1)], 1)
    np.testing.assert_allclose(by_gain, expected, atol=2e-5)


def test_rounded_again_refuses_what_is_not_finite() -> None:
    codes = round_to(np.eye(8), Precision("int4"))
    with pytest.raises(PrecisionError, match="NaN"):
        rounded_again(codes, np.full((8, 8), np.nan), np.ones((8, 1)))
    with pytest.raises(PrecisionError, match="NaN"):
        rounded_again(codes, np.eye(8), np.full((8, 1), np.inf))


def model_and_data(framework: str) -> tuple[Any, Any]:
    """Make a dense model of two layers, and batches with the labels of another one."""
    random = np.random.default_rng(0)
    xs = (random.standard_normal((8, 32, 6)) @ random.standard_normal((6, 24))).astype(np.float32)  # correlated
    labels = (xs @ random.standard_normal((24, 5)).astype(np.float32)).argmax(-1)
    if framework == "torch":
        import torch
        from torch import nn

        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 5))
        return model, [(torch.tensor(x), torch.tensor(y)) for x, y in zip(xs, labels, strict=True)]
    import jax.numpy as jnp
    from flax import nnx

    rngs = nnx.Rngs(0)
    model = nnx.Sequential(nnx.Linear(24, 40, rngs=rngs), nnx.relu, nnx.Linear(40, 5, rngs=rngs))
    return model, [(jnp.asarray(x), jnp.asarray(y)) for x, y in zip(xs, labels, strict=True)]


def adapter_with_codes(framework: str) -> tuple[Any, Any]:
    """Round the first layer of a model to 2 bits."""
    model, data = model_and_data(framework)
    adapter = model_of(model, None)
    layer = adapter.layers()[0]
    gen = dense_generator(adapter.weight(layer.name)).rounded(Precision("int2", 8))
    adapter.install({layer.name: gen})
    return adapter, data


TUNING = Tuning(steps=200, lr=3e-3, distill=1.0, train="generated")


@pytest.mark.parametrize("stage", ["finetune", "distill-local"])
def test_training_of_a_model_trains_codes(framework: str, stage: str) -> None:
    adapter, data = adapter_with_codes(framework)
    (before,) = adapter.generators().values()
    size, distance = adapter.sizes(), adapter.distance_from_dense(data)
    if stage == "finetune":
        adapter.tune(data, None, TUNING, lambda *_: None)
    else:
        adapter.distill(data, TUNING, None, lambda _: None)
    (after,) = adapter.generators().values()
    assert after.precision == before.precision
    assert adapter.sizes() == size
    assert adapter.distance_from_dense(data) < 0.85 * distance


def test_an_error_in_training_discards_it(framework: str) -> None:
    adapter, data = adapter_with_codes(framework)
    (before,) = adapter.generators().values()

    def report(step: int, value: float) -> None:
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adapter.tune(data, None, TUNING, report)
    (after,) = adapter.generators().values()
    assert {k: c.data.tobytes() for k, c in after.codes.items()} == {
        k: c.data.tobytes() for k, c in before.codes.items()
    }


def test_codes_that_are_decoded_once_give_the_same(framework: str, gen: adtn.Generator) -> None:
    weight = weight_of(framework, gen)
    wanted, before = to_numpy(weight()), codes_of(weight)
    weight.decode_once()
    assert np.array_equal(to_numpy(weight()), wanted)
    assert codes_of(weight) == before
    weight.decode_once(False)
    assert np.array_equal(to_numpy(weight()), wanted)


def test_decoded_values_follow_the_codes(framework: str, tmp_path: Any) -> None:
    adapter, data = adapter_with_codes(framework)
    untouched, _ = adapter_with_codes(framework)
    before = adapter.state()
    outputs = adapter.outputs(data)
    adapter.tune(data, None, TUNING, lambda *_: None)
    (after,) = adapter.generators().values()
    trained = adapter.outputs(data)
    assert any(not np.array_equal(x, y) for x, y in zip(outputs, trained, strict=True))
    # what a file holds is what was decoded
    adapter.save(tmp_path / "state", {"adtn": '{"sha256": "' + "0" * 64 + '"}'})
    untouched.load(tmp_path / "state")
    assert all(np.array_equal(x, y) for x, y in zip(untouched.outputs(data), trained, strict=True))
    adapter.set_state(before)
    assert all(np.array_equal(x, y) for x, y in zip(adapter.outputs(data), outputs, strict=True))
    assert after.precision == Precision("int2", 8)


def test_decoded_values_are_in_no_file(framework: str) -> None:
    adapter, _ = adapter_with_codes(framework)
    metadata = {"adtn": '{"sha256": "' + "0" * 64 + '"}'}
    decoded = adapter.content(metadata)
    held = adapter.resident_bytes()
    adapter.decode_once(False)
    assert adapter.content(metadata) == decoded
    assert adapter.resident_bytes() < held


def test_what_is_stored_has_the_integers_of_the_training() -> None:
    random = np.random.default_rng(0)
    codes = round_to(random.standard_normal((16, 64)), Precision("int4", 32))
    gains = random.uniform(0.9, 1.1, codes.scales.shape)
    scales, zeros = (np.repeat(x, 32, axis=1) for x in (codes.scales * gains, codes.zeros))
    integers = random.integers(0, 15, (16, 64))
    near = integers + 0.5 + random.choice([-1e-4, 1e-4], integers.shape)  # as training leaves many entries
    stored = rounded_again(codes, (near - zeros) * scales, gains)
    assert np.array_equal(stored.integers, np.rint(near))
