"""Straight-line code of programs: what it computes, what it looks like, and who shares it."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import adtn
import numpy as np
import pytest
from adtn.backends import Workspace, get_backend
from adtn.calculus import FlatProgram, _flat, forward, forward_tape, pullback
from adtn.errors import ScheduleError
from adtn.program import compile_program
from adtn.topology import Core, Segment
from adtn.weight import Factored

from table import TOPOLOGIES, relative_error, to_numpy, tolerance

MATRICES = [key for key, row in TOPOLOGIES.items() if len(row.shape) > 1]


def planned(key: str, backend: str, batch: int = 5) -> tuple[Any, Any, dict[str, Any]]:
    pytest.importorskip(backend)
    gen = TOPOLOGIES[key].generator()
    try:
        plan = adtn.plan(gen, "train", device=f"{backend}:cpu", dtype="float64", batch=batch, mode="factored")
    except ScheduleError as error:
        pytest.skip(str(error))
    own = get_backend(backend)
    return plan.layer.on(own), own, gen.arrays(f"{backend}:cpu", "float64")


@pytest.mark.parametrize("least", [None, 0], ids=["", "stacks"])
@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("key", MATRICES)
def test_code_computes_what_steps_compute(
    key: str, backend: str, least: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, own, arrays = planned(key, backend)
    assert isinstance(layer, Factored)
    rng = np.random.default_rng(0)
    n_out, n_in = layer.weighting.layout.shape[0], int(np.prod(layer.weighting.layout.shape[1:]))
    x, ybar = (own.asarray(rng.standard_normal((5, n)), "cpu", "float64") for n in (n_in, n_out))
    found = layer._flat(5, True)
    assert found is not None and own.dialect is not None
    if least is not None:
        monkeypatch.setattr(_flat, "_LEAST_PRODUCT", least)
        found = FlatProgram(found.program, own.dialect)
    given = layer._with_input(arrays, x)
    state, tape = forward_tape(found.program, given)
    cotangent = rng.standard_normal(state.shape)
    cotangent = own.asarray(cotangent, "cpu", "float64")
    grads = pullback(found.program, tape, cotangent)
    flat_state, flat_tape = found.forward_tape(given, own.workspace())
    flat_grads = found.pullback(flat_tape, cotangent, own.workspace())
    limit = tolerance("float64", 1000)
    assert relative_error(to_numpy(flat_state), to_numpy(state)) < limit
    assert relative_error(to_numpy(found.forward(given, own.workspace())), to_numpy(state)) < limit
    assert flat_grads.keys() == grads.keys()
    for name, g in grads.items():
        assert relative_error(to_numpy(flat_grads[name]).ravel(), to_numpy(g).ravel()) < limit, name
    y, own_tape = layer.with_tape(arrays, x)
    without, xbar = layer.pullback(own_tape, arrays, x, ybar, need_x=False)
    every, _ = layer.pullback(own_tape, arrays, x, ybar)
    assert xbar is None and without.keys() == every.keys()
    assert relative_error(to_numpy(layer(arrays, x)), to_numpy(y)) < limit


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("outputs", ["fmn", "mfn"])
@pytest.mark.parametrize("stack", ["fkn", "fk", "fnk", "kfn"])
@pytest.mark.parametrize("first", [False, True])
def test_stacks_of_products_are_those_of_einsum(
    backend: str, outputs: str, stack: str, first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Contract a matrix with a tensor, on either side, in orders that are one product and in those that are many."""
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(_flat, "_LEAST_PRODUCT", 0)
    own, sizes = get_backend(backend), {"f": 6, "k": 3, "m": 4, "n": 5}
    outputs = "".join(i for i in outputs if i in stack or i == "m")
    terms = [stack, "mk"] if first else ["mk", stack]
    cores = [
        Core(name=t, inds=tuple(t), shape=tuple(sizes[i] for i in t), param=t, kind="core", init="given") for t in terms
    ]
    program = compile_program((Segment((), tuple(cores), tuple(outputs)),))
    assert own.dialect is not None
    flat, rng = FlatProgram(program, own.dialect), np.random.default_rng(0)
    values = {t: rng.standard_normal([sizes[i] for i in t]) for t in terms}
    arrays = {t: own.asarray(x, "cpu", "float64") for t, x in values.items()}
    state, tape = flat.forward_tape(arrays, own.workspace())
    leaves = {t: torch.tensor(x, requires_grad=True) for t, x in values.items()}
    want = torch.einsum(f"{terms[0]},{terms[1]}->{outputs}", *leaves.values())
    np.testing.assert_allclose(to_numpy(state), to_numpy(want.detach()), rtol=1e-12)
    cotangent = rng.standard_normal(state.shape)
    want.backward(torch.tensor(cotangent))
    grads = flat.pullback(tape, own.asarray(cotangent, "cpu", "float64"), own.workspace())
    for t, leaf in leaves.items():
        np.testing.assert_allclose(to_numpy(grads[t]), to_numpy(leaf.grad), rtol=1e-12)
    is_stack = (outputs, stack) == ("fmn", "fkn")
    assert (".sum(0)" in flat.code()) == is_stack


def test_code_is_text_without_decisions() -> None:
    gen = adtn.Generator((64, 64), adtn.TTN(bond=3))
    plan = adtn.plan(gen, "train", batch=4, device="numpy:cpu", mode="factored")
    text = plan.code()
    assert [line for line in text.splitlines() if line.startswith("def ")] == [
        "def forward(arrays, space):",
        "def forward_tape(arrays, space):",
        "def pullback(tape, cotangent, space):",
    ]
    assert not any(word in text for word in (" if ", " for ", "do(", "None"))
    assert text.count("space.activate(sigma") == 2 * text.count("space.activate_vjp(sigma") > 0
    with pytest.raises(ScheduleError, match="mode 'materialise'"):
        adtn.plan(gen, "apply", batch=4, mode="materialise").code()
    pytest.importorskip("jax")
    with pytest.raises(ScheduleError, match="without a compiler"):
        adtn.plan(
            adtn.Generator((64, 64), adtn.TTN(bond=3)), "apply", batch=4, device="jax:cpu", mode="factored"
        ).code()


def test_summed_indices_and_shared_parameters() -> None:
    """Compare with a dense einsum: an index that only one core has is summed, and two cores share a parameter."""
    core = {"kind": "core", "init": "given"}
    cores = (
        Core(name="a", inds=("x", "b", "s"), shape=(3, 2, 4), param="p", **core),
        Core(name="b", inds=("y", "b", "t"), shape=(3, 2, 4), param="p", **core),
    )
    program = compile_program((Segment((), cores, ("x", "y")),))
    dialect = get_backend("numpy").dialect
    assert dialect is not None
    flat, p = FlatProgram(program, dialect), np.random.default_rng(0).standard_normal((3, 2, 4))
    want = np.einsum("xbs,ybt->xy", p, p)
    space = get_backend("numpy").workspace()
    state, tape = flat.forward_tape({"p": p}, space)
    assert np.allclose(state, want) and np.allclose(forward(program, {"p": p}), want)
    g = np.random.default_rng(1).standard_normal((3, 3))
    summed = np.einsum("xy,yb->xb", g + g.T, p.sum(2))
    assert np.allclose(flat.pullback(tape, g, space)["p"], np.broadcast_to(summed[..., None], p.shape))


def test_equal_layers_share_their_code() -> None:
    layers = []
    for seed in (1, 2):
        gen = adtn.Generator((32, 32), adtn.MPO(bond=3), seed=seed)
        layer = adtn.plan(gen, "apply", batch=3, device="numpy:cpu", mode="factored").layer
        layers.append(layer.on(get_backend("numpy")))
    first, second = (layer._flat(7, True) for layer in layers)
    assert first is second and first is not layers[0]._flat(8, True)


def test_code_takes_no_more_memory_than_steps() -> None:
    """Compare peaks without a pool: large arrays end where nothing reads them any more."""
    layout = adtn.Layout.of((1024, 1024), 4, "interleaved")
    gen = adtn.Generator((1024, 1024), adtn.TTN(bond=8, activation=None), layout=layout)
    layer = adtn.plan(gen, "train", batch=64, device="numpy:cpu", mode="factored").layer.on(get_backend("numpy"))
    assert isinstance(layer, Factored)
    flat, x = layer._flat(64, True), np.ones((64, 1024), np.float32)
    assert flat is not None
    given = layer._with_input(gen.arrays("numpy:cpu", "float32"), x)

    def peak(run: Callable[[], object]) -> int:
        run()
        tracemalloc.start()
        run()
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    steps = peak(lambda: forward(flat.program, given, Workspace()))
    code = peak(lambda: flat.forward(given, Workspace()))
    assert code < 1.02 * steps + 1e5
