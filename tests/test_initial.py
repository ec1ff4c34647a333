"""Initial values: unit variance through deep nonlinear generators, and gradients that reach every core."""

from __future__ import annotations

import adtn
import numpy as np
import pytest
from adtn import Layout
from adtn.calculus import _initial, forward, initial_values
from adtn.calculus._adjoint import forward_stage
from adtn.calculus._initial import core_values
from adtn.calculus._moments import Moments, segment_moments
from adtn.program import Stage
from adtn.topology import Core, sizes_of

from table import Row

ACTIVATIONS = ["silu", "tanh", "relu", "gelu", "sine", "leaky_relu"]


def deep(activation: str) -> adtn.Generator:
    """Make a generator of twelve levels of nonlinear gates on ten legs."""
    layout = Layout.from_factors((32, 32), [(2,) * 5] * 2)
    topology = adtn.BrickWall(layers=12, activation=activation, boundary="trainable")
    return adtn.Generator((32, 32), topology, layout=layout, dtype="float64", seed=1)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_twelve_levels(activation: str) -> None:
    gen = deep(activation)
    assert len(gen.segments) == 12
    state = None
    for stage in gen.program.stages:
        z, _ = forward_stage(stage, state, gen.params, keep=False, activate=False)
        assert np.std(z) == pytest.approx(1.0, rel=1e-9)
        state = stage.activation.value(z)
        assert 0.2 < np.sqrt(np.mean(state**2)) < 1.5
    wbar = np.random.default_rng(0).standard_normal(gen.shape)
    grads = gen.function.vjp(gen.arrays("numpy:cpu", "float64"), wbar)[1]
    relative = {k: np.linalg.norm(g) * np.linalg.norm(gen.params[k]) for k, g in grads.items()}
    assert all(np.isfinite(list(relative.values())))
    # "non-vanishing": the smallest gradient of a core is within four decades of the largest
    assert min(relative.values()) > 1e-4 * max(relative.values())
    # a step along the gradient has an effect: the loss is not flat in any core
    assert all(v > 1e-3 * np.linalg.norm(wbar) * gen.scale for v in relative.values())


def test_a_state_of_just_the_largest_size_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Require that no state is sampled where the standard deviation is called exact."""
    gen = deep("silu")
    largest = max(map(_initial._largest, gen.program.stages[:-1]))
    monkeypatch.setattr(_initial, "_STATE", largest)
    values, exact = initial_values(gen.program, gen.layout, 1, {}, gen.topology)
    assert exact and np.std(forward(gen.program, values)) == pytest.approx(1.0, rel=1e-9)
    monkeypatch.setattr(_initial, "_STATE", largest - 1)
    assert not initial_values(gen.program, gen.layout, 1, {}, gen.topology)[1]


def test_moments_are_those_of_the_entries(row: Row) -> None:
    """Compare moments, for a known state and one of independent entries; columns give the map of a segment."""
    gen = row.generator(seed=1)
    arrays, sizes = gen.arrays("numpy:cpu", "float64"), sizes_of(gen.segments)
    state, mean, variance = None, 0.3, 0.7
    for stage in gen.program.stages:
        layout = gen.layout if stage is gen.program.stages[-1] else None

        def output(x: np.ndarray | None, stage: Stage = stage, layout: Layout | None = layout) -> np.ndarray:
            z = forward_stage(stage, x, arrays, keep=False, activate=False)[0]
            return np.ravel(layout.from_legs(z) if layout else z)

        z = output(state)
        found = segment_moments(stage.segment, sizes, arrays, state, layout)
        assert [found.mean, found.square] == pytest.approx([z.mean(), np.square(z).mean()], rel=1e-9, abs=1e-12)
        if state is not None:
            matrix = np.array([output(x.reshape(state.shape)) for x in np.eye(state.size)]).T
            sums = mean * matrix.sum(1)
            square = np.square(sums).mean() + variance * np.square(matrix).sum(1).mean()
            found = segment_moments(stage.segment, sizes, arrays, Moments(mean, mean**2 + variance), layout)
            assert [found.mean, found.square] == pytest.approx([sums.mean(), square], rel=1e-9, abs=1e-12)
        state = forward_stage(stage, state, arrays, keep=False)[0]


def test_without_rescaling_the_same_network_does_not_start() -> None:
    gen = deep("silu")
    wild = gen.with_params({k: x * 0.2 for k, x in gen.params.items()})
    assert np.std(wild.weight()) < 1e-6 * np.std(gen.weight())


def test_equal_seeds_are_equal_on_every_backend(device: str) -> None:
    from table import to_numpy

    gen = adtn.Generator((16, 16), adtn.MERA(bond=2), seed=7)
    for name, x in gen.arrays(device, "float32").items():
        assert np.array_equal(to_numpy(x), gen.params[name])


@pytest.mark.parametrize("shape", [(), (5,), (3, 4, 5), (6, 2, 2), (4, 4)])
def test_isometric_cores_are_isometries_of_the_right_size(shape: tuple[int, ...]) -> None:
    fan_in = shape[0] if len(shape) > 1 else 1
    inds = tuple("abc"[: len(shape)])
    core = Core(name="c", inds=inds, shape=shape, param="c", kind="isometry", fan_in=fan_in, init="isometric")
    values = core_values(core, 3)
    matrix = values.reshape(shape[0] if shape else 1, -1)
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    assert np.allclose(gram, gram[0, 0] * np.eye(len(gram)))
    assert values.flags.c_contiguous and np.mean(values**2) == pytest.approx(1.0 / fan_in)
    assert not np.allclose(values, core_values(core, 4)) or not shape


@pytest.mark.parametrize("topology", [adtn.TTN(bond=6, activation=None), adtn.MERA(bond=4, activation=None)])
def test_trees_begin_with_full_bonds(topology: adtn.Topology) -> None:
    layout = adtn.Layout.of((256, 256), 4, "interleaved")
    bonds = adtn.bonds(adtn.Generator((256, 256), topology, layout=layout))
    ranks = [b.effective_rank / b.dim for b in bonds if b.exact]
    assert ranks and min(ranks) > 0.75
