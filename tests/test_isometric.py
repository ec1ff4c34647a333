"""Cores that stay isometries while they are trained, on every backend and in layers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import adtn
import numpy as np
import pytest
from adtn.bondspace import grow
from adtn.calculus import isometric, isometric_rows, isometric_vjp
from adtn.errors import TopologyError
from adtn.topology import cores_of, topology_from_json, topology_to_json

from table import usable

LAYOUT = adtn.Layout.of((16, 16), 4, "interleaved")
TREE = adtn.TTN(bond=3, activation=None, isometric=True)
MERA = adtn.MERA(bond=2, activation=None, isometric=True, noise=0.3, leaves=False)


def generator(topology: adtn.Topology, seed: int = 0, dtype: str = "float64") -> adtn.Generator:
    layout = LAYOUT if topology is not MERA else adtn.Layout.of((16, 16), 2, "interleaved")
    return adtn.Generator((16, 16), topology, layout=layout, seed=seed, dtype=dtype)  # type: ignore[arg-type]


def assert_isometric(gen: adtn.Generator) -> None:
    """Require orthonormal rows to the resolution of the dtype, and the norm of the weight in the root."""
    eps = float(np.finfo(gen.dtype).eps)
    (network,) = gen.networks()
    cores = [core for core in cores_of(gen.segments) if core.kind != "root"]
    assert cores and {core.kind for core in cores} <= {"isometry", "disentangler", "leaf"}
    for core in cores:
        matrix = network[core.name.upper()].data.reshape(core.fan_in, -1).astype(np.float64)
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(core.fan_in), atol=8 * eps)
        if core.kind == "disentangler":
            assert matrix.shape == (core.fan_in, core.fan_in)
    norm = np.linalg.norm(network["ROOT"].data) * gen.scale
    assert norm == pytest.approx(np.linalg.norm(np.asarray(gen.weight())), rel=30 * eps)


@pytest.mark.parametrize(("backend", "topology"), [("numpy", TREE), ("numpy", MERA), ("torch", MERA), ("jax", MERA)])
def test_a_fit_keeps_isometries_and_reaches_a_target(backend: str, topology: adtn.Topology) -> None:
    device = usable(backend)
    target = generator(topology, seed=3).weight()
    found = adtn.fit(generator(topology, seed=4), target, device=device, optimizer="lbfgs", steps=150)
    assert found.relative_error < 1e-6
    assert_isometric(found.generator)
    if backend != "jax":  # where nothing is compiled again for another dtype
        descended = adtn.fit(generator(topology, seed=4, dtype="float32"), target, device=device, lr=0.03, steps=5)
        assert descended.history[-1] < descended.history[0]
        assert_isometric(descended.generator)


def test_levenberg_marquardt_knows_the_parameters() -> None:
    target = generator(TREE, seed=3).weight()
    assert adtn.fit(generator(TREE, seed=4), target, optimizer="lm", steps=40).relative_error < 1e-12


@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
def test_adjoints_against_finite_differences(backend: str) -> None:
    """Compare with differences in NumPy and, where there is one, with the automatic derivative of a framework."""
    usable(backend)
    rng = np.random.default_rng(0)
    raw = {
        "a": rng.standard_normal((2, 3, 2)),
        "b": rng.standard_normal((2, 2, 2, 2)),
        "c": rng.standard_normal((3, 6)),
    }
    rows, bars = {"a": 2, "b": 4, "c": 3}, {name: rng.standard_normal(x.shape) for name, x in raw.items()}

    def loss(values: Any) -> Any:
        cores = isometric(values, rows)
        return sum((cores[name] * bar).sum() for name, bar in weights.items())

    weights: dict[str, Any] = bars
    found: dict[str, Any] = isometric_vjp(raw, rows, bars)
    if backend == "torch":
        import torch

        weights = {name: torch.tensor(x) for name, x in bars.items()}
        leaves = {name: torch.tensor(x, requires_grad=True) for name, x in raw.items()}
        loss(leaves).backward()
        expected = {name: x.grad.numpy() for name, x in leaves.items()}  # type: ignore[union-attr]
    elif backend == "jax":
        import jax

        with jax.enable_x64(True):
            expected = {name: np.asarray(x) for name, x in jax.grad(loss)(raw).items()}
    else:
        expected = {name: np.zeros(x.shape) for name, x in raw.items()}
        for name, x in raw.items():
            for at in np.ndindex(x.shape):
                sides = [{**raw, name: x + step * _unit(x.shape, at)} for step in (1e-6, -1e-6)]
                expected[name][at] = (loss(sides[0]) - loss(sides[1])) / 2e-6
    for name in raw:
        tolerance = 1e-8 if backend == "numpy" else 1e-12
        np.testing.assert_allclose(found[name], expected[name], atol=tolerance)


def _unit(shape: tuple[int, ...], at: tuple[int, ...]) -> np.ndarray:
    unit = np.zeros(shape)
    unit[at] = 1.0
    return unit


def test_layers_of_torch_stay_isometric_in_any_loop() -> None:
    torch = pytest.importorskip("torch")
    from adtn_backends.torch import ADTNLinear

    layer = ADTNLinear(generator(MERA, dtype="float32"))
    before, x = layer.generated.generator(), torch.randn(7, 16)
    step = torch.optim.SGD(layer.parameters(), lr=1.0)
    for _ in range(3):
        step.zero_grad()
        layer(x).square().mean().backward()
        step.step()
    after = layer.generated.generator()
    assert any(not np.allclose(before.params[name], after.params[name], atol=1e-3) for name in before.isometric_rows)
    assert_isometric(after)
    expected = x.numpy() @ np.asarray(after.weight()).T + layer.bias.detach().numpy()
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, atol=1e-5)
    half = ADTNLinear(after).bfloat16()
    assert half(x.bfloat16()).dtype == torch.bfloat16


def test_layers_of_flax_stay_isometric_in_any_loop() -> None:
    jax = pytest.importorskip("jax")
    from flax import nnx

    from adtn_backends.jax import ADTNLinear

    layer = ADTNLinear(generator(TREE, dtype="float32"))
    before, x = layer.generated.generator(), jax.random.normal(jax.random.key(0), (7, 16))
    grads = nnx.jit(nnx.grad(lambda own, x: (own(x) ** 2).mean()))(layer, x)
    nnx.update(layer, jax.tree.map(lambda a, g: a - g, nnx.state(layer, nnx.Param), grads))
    after = layer.generated.generator()
    assert any(not np.allclose(before.params[name], after.params[name], atol=1e-3) for name in before.isometric_rows)
    assert_isometric(after)
    expected = np.asarray(x) @ np.asarray(after.weight()).T + np.asarray(layer.bias[...])
    np.testing.assert_allclose(np.asarray(layer(x)), expected, atol=1e-5)


@pytest.mark.filterwarnings("ignore::adtn.errors.QualityWarning")
@pytest.mark.parametrize("framework", ["torch", "flax"])
def test_compressed_models_stay_isometric(framework: str) -> None:
    data = [(np.ones((4, 16), np.float32), np.arange(4) % 3)]
    config = adtn.Config(topology=TREE, smallest=8, steps=2, tune_steps=2, targets=["*0"])
    if framework == "torch":
        torch = pytest.importorskip("torch")
        torch.manual_seed(0)
        model: Any = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Linear(16, 3))
    else:
        nnx = pytest.importorskip("flax.nnx")
        model = nnx.Sequential(*(nnx.Linear(16, n, rngs=nnx.Rngs(0)) for n in (16, 3)))
    report = adtn.compress(model, config, data=data)
    (found,) = report.generators.values()
    assert found.topology == TREE and len(report.losses) > 0
    assert_isometric(found)


def test_the_option_is_saved_and_older_files_have_none(tmp_path: Path) -> None:
    gen = generator(MERA, dtype="float32")
    adtn.save(tmp_path / "a.safetensors", gen)
    back = adtn.load(tmp_path / "a.safetensors")
    assert back.topology == MERA and all(np.array_equal(x, back.params[name]) for name, x in gen.params.items())
    old = json.loads(json.dumps(topology_to_json(adtn.MERA(bond=2))))
    assert old.pop("isometric") is False
    assert topology_from_json(old) == adtn.MERA(bond=2)


@pytest.mark.parametrize("topology", [TREE, MERA], ids=["tree", "mera"])
def test_what_changes_cores_gives_the_constraint_up(topology: adtn.Topology) -> None:
    gen = generator(topology)
    weight = np.asarray(gen.weight())
    bond = next(b for b in adtn.bonds(gen) if b.kind == "linear")
    for other in (gen.balanced(), gen.with_bond(bond.index, np.eye(bond.dim))):
        assert not other.isometric_rows
        np.testing.assert_allclose(other.weight(), weight, atol=1e-12)
    smaller = gen.with_bond(bond.index, (np.eye(bond.dim)[:, :1], np.eye(bond.dim)[:1]))
    assert not smaller.isometric_rows


def test_grown_bonds_change_nothing() -> None:
    gen = adtn.Generator((64, 64), replace(TREE, bond=2), layout=adtn.Layout.of((64, 64), 4), dtype="float64")
    larger = grow(gen, adtn.bonds(gen)[-1].name, 1, np.eye(64))
    np.testing.assert_allclose(larger.weight(), gen.weight(), atol=1e-12)


def test_decompositions_are_canonical() -> None:
    target = generator(adtn.TTN(bond=3, activation=None), seed=5).weight()  # every tree has this form
    found = adtn.decompose(generator(TREE), target)
    np.testing.assert_allclose(found.weight(), target, atol=1e-12)
    assert_isometric(found)
    moment = np.diag(np.linspace(1.0, 9.0, 16))
    assert_isometric(adtn.decompose(generator(TREE), np.eye(16), moment=moment))
    turned = adtn.decompose(generator(MERA), np.eye(16))
    assert_isometric(turned)
    tree = adtn.decompose(generator(TREE), np.eye(16))
    assert tree.degrees_of_freedom == generator(adtn.TTN(bond=3, activation=None)).degrees_of_freedom


def test_start_values_and_what_is_refused() -> None:
    gen = adtn.Generator((13, 11), MERA, layout=adtn.Layout.of((13, 11), 2, max_padding=3), dtype="float64")
    assert np.std(np.asarray(gen.weight())) == pytest.approx(gen.scale, rel=1e-6)
    rows = isometric_rows(cores_of(gen.segments))
    assert rows == gen.isometric_rows and "root" not in rows
    adapter = adtn.Generator((16, 16), TREE, layout=LAYOUT, base=np.eye(16))
    np.testing.assert_allclose(adapter.weight(), np.eye(16))
    assert not np.any(adapter.params["root"])
    with pytest.raises(TopologyError, match="Got isometric=True and activation='silu'.*Use activation=None"):
        adtn.TTN(isometric=True)


def test_factorisations_leave_mps() -> None:
    torch = pytest.importorskip("torch")
    from adtn_backends.torch._functions import _not_on_mps

    class OnMps:
        device = torch.device("mps")

        def __init__(self, x: Any) -> None:
            self.x = x

        def cpu(self) -> Any:
            return self.x

    moved: list[Any] = []

    class Found(torch.Tensor):
        def to(self, device: Any) -> Any:
            moved.append(device)
            return self

    x = torch.eye(2)
    assert torch.equal(_not_on_mps(lambda a: (a.as_subclass(Found), a.as_subclass(Found)))(OnMps(x))[1], x)
    assert torch.equal(_not_on_mps(lambda a, b: (a + b).as_subclass(Found))(OnMps(x), OnMps(x)), 2 * x)
    assert moved == [OnMps.device] * 3 and torch.equal(_not_on_mps(lambda a: a)(x), x)
