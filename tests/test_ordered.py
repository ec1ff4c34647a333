"""Columns of similar entries share scales: the same values everywhere, counted bytes, and orders that have to pay."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import adtn
import numpy as np
import pytest
from adtn import Config, Layout, Precision
from adtn.compression import order_gains, run_folder, to_bytes
from adtn.compression._choice import families
from adtn.compression._errors import rounding_errors
from adtn.compression._ladder import Curve, Ladder
from adtn.compression._orders import Orders, with_orders
from adtn.compression._samples import halved
from adtn.errors import PrecisionError
from adtn.precision import Codes, order_of, round_to, stored_bytes
from adtn.precision._order import column_order
from adtn.topology import Dense
from hypothesis import given
from hypothesis import strategies as st

from arrays import moment, weights
from table import BACKENDS, to_numpy

FRAMEWORKS = [name for name in ("torch", "jax") if name in BACKENDS]
INT4 = Precision("int4", 16)
ORDERED = Precision("int4", 16, ordered=True)


def sized(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Make a matrix in which every second column is small."""
    return weights((rows, columns), seed) * np.where(np.arange(columns) % 2, 0.1, 1.0).astype(np.float32)


def error_in(metric: np.ndarray, away: np.ndarray) -> float:
    return float(np.vdot(away @ metric, away))


# codes


@pytest.mark.parametrize(("format", "group"), [("int8", 7), ("int4", 16), ("int3", 20), ("int2", 10)])
@pytest.mark.parametrize("shape", [(6, 50), (5, 4, 9), (40, 8), (77,)])
def test_codes_decode_to_their_integers(format, group: int, shape: tuple[int, ...]) -> None:
    codes = round_to(weights(shape), Precision(format, group, ordered=True))
    integers, order, groups = codes.integers.astype(np.float64), codes.order, codes.groups
    rows, columns = integers.shape
    want = np.empty((rows, columns))
    for place, column in enumerate(order):
        g = place // group
        assert groups[column] == g
        want[:, column] = (integers[:, place] - codes.zeros[:, g]) * codes.scales[:, g].astype(np.float64)
    turned = math.prod(shape[1:]) < group and len(shape) > 1
    want = (want.T if turned else want).reshape(shape)
    assert np.array_equal(codes.decode(), want), "the product is exact in float32"
    plain = stored_bytes(shape, Precision(format, group))
    planes = (-(-columns // group) - 1).bit_length()
    assert codes.nbytes == stored_bytes(shape, codes.precision) == plain + planes * -(-columns // 8)


def test_a_given_order_is_that_of_the_matrix() -> None:
    x, metric, given = weights((24, 40)), moment(40), np.random.default_rng(1).permutation(40)
    order = np.concatenate([np.sort(given[:16]), np.sort(given[16:32]), np.sort(given[32:])])
    for known in (None, metric):
        found = round_to(x, ORDERED, known, order=given).decode()
        permuted = None if known is None else known[np.ix_(order, order)]
        want = round_to(np.ascontiguousarray(x[:, order]), INT4, permuted).decode()
        assert np.array_equal(found[:, order], want)
    rows = moment(24)
    found = round_to(x, ORDERED, row_hessian=rows, order=order).decode()
    assert np.array_equal(found[:, order], round_to(x[:, order], INT4, row_hessian=rows).decode())


def test_orders_are_those_that_are_found() -> None:
    x, metric = sized(24, 40), moment(40)
    for known in (None, metric):
        order = order_of(x, INT4, known)
        assert np.array_equal(round_to(x, ORDERED, known).order, order)
        assert np.array_equal(round_to(1e-20 * x, ORDERED, known).order, order)
    assert np.array_equal(round_to(x, INT4).order, np.arange(40))


@given(st.integers(1, 6), st.integers(1, 40), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_an_order_of_equal_columns_changes_nothing(rows: int, columns: int, group: int, seed: int) -> None:
    x = np.repeat(weights((rows, 1), seed), columns, 1)
    precision = Precision("int4", group, along="rows")
    found = round_to(x, replace(precision, ordered=True))
    assert np.array_equal(found.decode(), round_to(x, precision).decode())


def test_small_columns_have_finer_steps() -> None:
    x = sized(32, 64)
    plain, ordered = (np.linalg.norm((round_to(x, p).decode() - x)[:, 1::2]) for p in (INT4, ORDERED))
    assert ordered < 0.3 * plain
    assert set(order_of(x, INT4)[:32]) == set(range(0, 64, 2)), "large ones come first"


@pytest.mark.parametrize("seed", range(5))
def test_exchanges_find_the_best_division(seed: int) -> None:
    x, importance = weights((5, 4), seed), np.random.default_rng(seed).uniform(0.2, 1.0, 4)

    def cost(first: tuple[int, ...]) -> float:
        total = 0.0
        for own in (list(first), [c for c in range(4) if c not in first]):
            width = np.maximum(x[:, own].max(1), 0) - np.minimum(x[:, own].min(1), 0)
            total += importance[own].sum() * (width**2).sum()
        return total

    order = column_order(x, importance, 2)
    assert np.isclose(cost(tuple(order[:2])), min(map(cost, combinations(range(4), 2))))


@pytest.mark.parametrize("columns", [1, 5, 16, 17, 33])
def test_every_number_of_columns_has_an_order(columns: int) -> None:
    order = column_order(weights((3, columns)), None, 16)
    assert sorted(order) == list(range(columns))
    codes = round_to(weights((3, columns)), replace(ORDERED, along="rows"))
    assert np.linalg.norm(codes.decode() - weights((3, columns))) < 0.2 * np.linalg.norm(weights((3, columns)))


def test_damaged_orders_decode_to_something() -> None:
    codes = round_to(weights((8, 40)), ORDERED)
    for at in range(codes.nbytes - 12, codes.nbytes - 1):
        data = codes.data.copy()
        data[at] ^= 0x5A
        found = Codes(codes.shape, codes.precision, data)
        assert sorted(found.order) == list(range(40)) and np.isfinite(found.decode()).all()


def test_precisions() -> None:
    assert str(ORDERED) == "int4/16 ordered" and Precision.named(str(ORDERED)) == ORDERED
    assert Precision.from_json(ORDERED.to_json()) == ORDERED and "ordered" not in INT4.to_json()
    for wrong in ({"format": "int4"}, {"format": "float16"}, {"format": "coded", "rate": 3.0}):
        with pytest.raises(PrecisionError, match="ordered"):
            Precision(**wrong, ordered=True)  # type: ignore[arg-type]
    with pytest.raises(PrecisionError, match="ordered=True"):
        round_to(weights((4, 40)), INT4, order=np.arange(40))
    with pytest.raises(PrecisionError, match="exactly once"):
        round_to(weights((4, 40)), ORDERED, order=np.zeros(40, int))
    with pytest.raises(PrecisionError, match="no groups of columns"):
        order_of(weights((40, 4)), INT4)


# generators


@pytest.mark.parametrize("topology", [Dense(), adtn.LowRank(bond=20)], ids=str)
def test_generators_and_files(topology: Any, tmp_path: Path) -> None:
    gen = adtn.Generator((40, 50), topology, layout=Layout.whole((40, 50)), seed=1).rounded(ORDERED)
    adtn.save(tmp_path / "x.safetensors", gen)
    loaded = adtn.load(tmp_path / "x.safetensors")
    assert loaded.precision == ORDERED and np.array_equal(loaded.weight(), gen.weight())
    assert np.array_equal(pickle.loads(pickle.dumps(gen)).weight(), gen.weight())
    plain = to_bytes(gen.rounded(INT4))
    added = len(to_bytes(gen)) - len(plain) - (gen.nbytes - gen.rounded(INT4).nbytes)
    assert abs(added) < 40, "the header says that columns are ordered, and nothing else"


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_frameworks_decode_to_the_same_bits(framework: str) -> None:
    if framework == "torch":
        from adtn_backends.torch import GeneratedWeight
    else:
        from adtn_backends.jax import GeneratedWeight
    x = sized(24, 70)
    for precision in (ORDERED, Precision("int3", 20, ordered=True)):
        gen = adtn.Generator(x.shape, Dense(), layout=Layout.whole(x.shape), params={"weight": x}, scale=1.0)
        gen = gen.rounded(precision, {"weight": moment(70)})
        weight = GeneratedWeight(gen)
        for once in (False, True):
            weight.decode_once(once)
            assert np.array_equal(to_numpy(weight()), gen.weight())


def ordered_generator(shape: tuple[int, int], seed: int = 0) -> adtn.Generator:
    x = sized(*shape, seed)
    gen = adtn.Generator(x.shape, Dense(), layout=Layout.whole(x.shape), params={"weight": x}, scale=1.0)
    return gen.rounded(ORDERED)


@pytest.mark.parametrize("rows", [1, 3, 100])  # fewer rows than outputs are permuted, otherwise the weight
def test_products_are_those_with_the_weight(rows: int) -> None:
    gen, x = ordered_generator((24, 70)), weights((rows, 70))
    want = x.astype(np.float64) @ gen.weight().astype(np.float64).T
    found = {"numpy": gen.apply(x)}
    bar = weights((rows, 24), seed=1)
    wanted_bar = bar.astype(np.float64) @ gen.weight().astype(np.float64)
    gradients: dict[str, np.ndarray] = {}
    if "torch" in FRAMEWORKS:
        import torch

        from adtn_backends.torch import ADTNLinear

        layer, given = ADTNLinear(gen, False), torch.tensor(x, requires_grad=True)
        y = layer(given)
        (gradient,) = torch.autograd.grad(y, given, torch.tensor(bar))
        gradients["torch"] = gradient.numpy()
        found["torch"] = y.detach().numpy()
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(given).dtype == torch.bfloat16
    if "jax" in FRAMEWORKS:
        import jax

        from adtn_backends.jax import ADTNLinear as Linear

        made = Linear(gen, False)
        y, pull = jax.vjp(lambda x: made(x), jax.numpy.asarray(x))
        found["jax"], gradients["jax"] = np.asarray(y), np.asarray(pull(jax.numpy.asarray(bar))[0])
    for name, y in found.items():
        assert np.abs(y - want).max() <= 1e-5 * np.abs(want).max(), name
    for name, y in gradients.items():
        assert np.abs(y - wanted_bar).max() <= 1e-5 * np.abs(wanted_bar).max(), name


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`:UserWarning")
def test_other_codes_have_another_order() -> None:
    torch = pytest.importorskip("torch")
    from adtn_backends.torch import ADTNLinear

    one, other = (ordered_generator((24, 70), seed).codes["weight"] for seed in (0, 1))
    assert not np.array_equal(one.order, other.order)
    layer, x = ADTNLinear(ordered_generator((24, 70)), False), torch.tensor(weights((2, 70)))
    with torch.inference_mode():
        layer(x)  # reads the order
    layer.load_state_dict(ADTNLinear(ordered_generator((24, 70), seed=1), False).state_dict())
    want = x.double() @ torch.tensor(other.decode()).double().T
    assert (layer(x) - want).abs().max() <= 1e-5 * want.abs().max()
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), layer(x))
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    assert (compiled(x) - want).abs().max() <= 1e-5 * want.abs().max()


# acceptance


def test_an_order_is_refused_where_the_other_half_disagrees() -> None:
    # eight large columns, beside which eight small ones have coarse steps: those that are used less
    large, first = np.arange(32) < 8, np.arange(32) < 16
    x = weights((48, 32)) * np.where(large, 1.0, 0.1).astype(np.float32)
    one, other = (np.diag(np.where(~large & used, 1.0, 1e-3)) for used in (first, ~first))
    assert INT4 in order_gains(x, (one, one), [INT4])
    assert not order_gains(x, (one, other), [INT4])


def test_gains_are_those_of_the_half_that_judges() -> None:
    x, metric = sized(40, 64), moment(64)
    gains = order_gains(x, (metric, metric), [INT4, ORDERED, Precision("int8"), Precision("float16")])
    plain, ordered = (error_in(metric, round_to(x, p, metric).decode() - x) for p in (INT4, ORDERED))
    assert gains == {INT4: pytest.approx(ordered / plain, rel=1e-4)}
    estimated = rounding_errors(x, metric, [ORDERED])[0]
    assert estimated == pytest.approx(ordered / error_in(metric, x), rel=1e-4)
    assert not order_gains(weights((40, 8)), None, [INT4]), "groups run along rows, which have no order"


def test_few_rows_are_estimated_in_the_order_of_all() -> None:
    x, metric = weights((400, 64), 6), moment(64, 6)
    plain, ordered = (error_in(metric, round_to(x, p, metric).decode() - x) for p in (INT4, ORDERED))
    few_plain, few_ordered = rounding_errors(x, metric, [INT4, ORDERED])
    assert few_ordered / few_plain == pytest.approx(ordered / plain, rel=0.03)


def ladder_of(x: np.ndarray, name: str = "a") -> Ladder:
    own = [f for f in families(x.shape, (), (Precision("int3", 16), INT4, Precision("int8")), 4) if f.precision]
    curves = [Curve(family=f, errors={x.size: 0.01}) for f in own]
    return Ladder(name=name, layer=name, entries=x.size, curves=curves)


class Task:
    def __init__(self, weight: np.ndarray) -> None:
        self.name, self.weight, self.moment = "a", weight, None


def test_ladders_have_orders_where_these_pay() -> None:
    orders = Orders(moments=lambda: ({}, {}))

    def precisions(x: np.ndarray, others: list[Ladder] | None = None) -> list[str]:
        task: Any = Task(x)
        found = with_orders(ladder_of(x), task, orders, others or [])
        return [str(c.family.precision) for c in found.curves if c.family.precision and c.family.precision.ordered]

    x, task = sized(40, 64), Task(sized(40, 64))
    equal = np.repeat(weights((40, 1)), 64, 1)
    assert precisions(x) == ["int3/16 ordered", "int4/16 ordered"] and not precisions(equal)
    probed = with_orders(ladder_of(x), task, orders)  # type: ignore[arg-type]
    assert precisions(x, [probed]) == ["int3/16 ordered", "int4/16 ordered"] and not precisions(equal, [probed])
    assert not precisions(x, [ladder_of(x)]), "those that are probed have none"
    with_inputs: Any = Task(x)
    with_inputs.moment = np.eye(64)
    assert with_orders(ladder_of(x), with_inputs, orders).curves == ladder_of(x).curves, "nothing judges"


def test_cores_are_not_ordered() -> None:
    own = families((64, 48), (adtn.LowRank(),), (ORDERED,), 4)
    assert {(type(f.topology), f.precision) for f in own} == {
        (adtn.LowRank, None),
        (adtn.LowRank, INT4),
        (Dense, ORDERED),
    }


def test_halves() -> None:
    first, second = halved([(np.arange(6), [np.arange(6), 1.0])])
    assert np.array_equal(first[0][0], [0, 1, 2]) and np.array_equal(second[0][1][0], [3, 4, 5])
    assert halved([np.zeros((1, 3))])[1] == [] and halved([]) == ([], [])
    assert halved(list("abcde")) == (list("ace"), list("bd"))


# models


def model(framework: str) -> Any:
    if framework == "torch":
        import torch
        from torch import nn

        made = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 5))
        with torch.no_grad():
            made[0].weight.copy_(torch.from_numpy(sized(48, 64)))
        return made
    from flax import nnx

    made = nnx.Sequential(nnx.Linear(64, 48, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(48, 5, rngs=nnx.Rngs(0)))
    made.layers[0].kernel[...] = sized(48, 64).T
    return made


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.filterwarnings("ignore::adtn.errors.QualityWarning")
def test_whole_models(framework: str, tmp_path: Path) -> None:
    def config(**options: Any) -> Config:
        targets = ["0"] if framework == "torch" else ["layers.0"]
        return Config(targets=targets, precisions=(INT4,), recipe="closed-form", rest="same", **options)

    data = [(weights((16, 64), k), np.zeros(16, np.int64)) for k in range(4)]
    small: dict[Any, adtn.CompressReport] = {}
    for orders in (None, False):
        folder, made = tmp_path / str(orders), model(framework)
        small[orders] = run_folder(lambda made=made: made, config(orders=orders), folder, data=data)
        assert (folder / "state.safetensors").stat().st_size == small[orders].file_bytes
        loaded = adtn.load_model(model(framework), folder)
        x = data[0][0]
        if framework == "torch":
            import torch

            assert torch.equal(loaded(torch.from_numpy(x)), made(torch.from_numpy(x)))
        else:
            assert np.array_equal(loaded(x), made(x))
    (ordered,), (plain,) = small[None].layers, small[False].layers
    assert (ordered.topology, plain.topology) == ("int4/16 ordered", "int4/16")
    assert ordered.local_errors[0] < 0.9 * plain.local_errors[0]


def test_orders_are_compared_without_entropy_codes() -> None:
    assert not Config().compares_orders and Config(orders=True).compares_orders
    assert Config(allow_slower=True).compares_orders and not Config(allow_slower=True, orders=False).compares_orders
    assert Config(precisions=(INT4,)).compares_orders
