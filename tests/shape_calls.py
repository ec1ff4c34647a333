"""Call every function with annotated arrays on every backend: ``python tests/shape_calls.py OUT.json``.

Shapes are checked at every call (see ``shapes.py``); the counts of calls by function and framework are written to a
file. This runs in a separate process, as functions are wrapped when their modules are imported.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import shapes  # before adtn is imported  # isort: skip

import adtn
from adtn.backends import get_backend
from adtn.calculus import vjp
from adtn.calculus._moments import entries_at_random
from adtn.errors import ScheduleError
from adtn.generator import generated_rows
from adtn.layout import Permutation
from adtn.optim import best_within
from adtn.weight import MODES, Sweep

from table import TOPOLOGIES, Row

ROWS = (TOPOLOGIES["mpo"], Row(adtn.TTN(bond=2, activation="tanh"), (23, 22)))
"""A multilinear network, and a nonlinear one with padding and with states between segments."""


def generators(row: Row) -> Iterator[adtn.Generator]:
    """Make generators with and without bases and permutations."""
    permutations = tuple(map(Permutation.random, row.shape))
    yield row.generator(base=adtn.SeededBase(1))
    yield row.generator()
    yield row.generator(base=adtn.IdentityBase(), permutations=permutations)


def use(gen: adtn.Generator, device: str) -> None:
    """Use a generator in every mode."""
    name, _, where = device.partition(":")
    backend, dtype = get_backend(name), "float64"
    rng = np.random.default_rng(0)
    n_out, n_in = gen.shape
    with backend.scope(dtype):
        x, ybar, target = (
            backend.asarray(rng.standard_normal(shape), where, dtype) for shape in ((5, n_in), (5, n_out), gen.shape)
        )
        arrays, index = gen.arrays(device, dtype), backend.asarray(np.array([0, 3]), where, None)
        gen.weight(device, dtype), gen.apply(x), gen.function.vjp(arrays, target), gen.function(arrays)
        generated_rows(gen, arrays, index, lambda digits, d: backend.asarray(np.eye(d), where, dtype)[digits])
        vjp(gen.program, arrays, gen.layout.to_legs(target))
        if gen.segments[-1].activation == "identity":
            Sweep(gen.segments, gen.weighting, backend)(arrays, x, lambda bond, value: value)
            Sweep(gen.segments, gen.weighting, backend, "rows")(arrays, ybar, lambda bond, value: value)
        Sweep(gen.segments, gen.weighting, backend, "lookup").lookup(
            arrays, index, lambda digits, d: backend.asarray(np.eye(d), where, dtype)[digits], lambda bond, value: value
        )
        for mode in MODES:
            try:
                layer = adtn.plan(gen, "train", batch=5, mode=mode).layer.on(backend)
            except ScheduleError:
                continue
            y, tape = layer.with_tape(arrays, x)
            layer(arrays, x), layer.pullback(tape, arrays, x, ybar)
            fixed = layer.fixed(lambda: arrays, lambda: gen.weight(device, dtype), 5)
            assert fixed(x).shape == y.shape
            try:
                plan = adtn.plan(gen, "fit", mode=mode)
            except ScheduleError:
                continue
            executable = plan.fit.on(backend)
            given = {**arrays, "base": executable.arrange(arrays["base"])} if "base" in arrays else arrays
            plan.step(backend)(given, executable.arrange(target))
        made = adtn.plan(gen, "generate").materialised.on(backend)
        made.weight_adjoint(arrays, target)
        made.weight(arrays)
        if not backend.compiles:  # arrays of JAX cannot be written to
            gen.weight(device, dtype, out=backend.asarray(np.empty(gen.shape), where, dtype))


def fit(gen: adtn.Generator, device: str) -> None:
    """Fit with every kind of objective and optimizer."""
    rng = np.random.default_rng(1)
    target, inputs = rng.standard_normal(gen.shape), rng.standard_normal((50, gen.shape[1]))
    moment = inputs.T @ inputs / 50

    def loss(w: Any) -> Any:
        return ((w - w * 0.5) ** 2).sum()

    def loss_and_slope(w: np.ndarray) -> tuple[float, np.ndarray]:
        return float(np.sum(w * w)), 2 * w

    task = adtn.Task(loss_and_slope if device.startswith("numpy") else loss)
    reconstruction = adtn.Reconstruction(target)
    for objective, optimizer in (
        (reconstruction, "lm"),
        (reconstruction, "lbfgs"),
        (adtn.DataAwareReconstruction(target, moment), "lm"),
        (task, "adam"),
    ):
        adtn.fit(gen, objective, steps=2, optimizer=optimizer, device=device, dtype="float64")
    matrix = adtn.Generator((16, 15), adtn.MPO(bond=2), layout=adtn.Layout.of((16, 15), 4, max_padding=2))
    inputs = rng.standard_normal((50, 15))
    outputs = adtn.DataAwareReconstruction(rng.standard_normal((16, 15)), inputs.T @ inputs / 50)
    adtn.fit(matrix, outputs, steps=1, device=device, mode="factored")


def layers() -> None:
    """Call layers of every framework."""
    import jax.numpy as jnp
    import torch
    from flax import nnx

    from adtn_backends import jax as jax_layers
    from adtn_backends import numpy as numpy_layers
    from adtn_backends import torch as torch_layers

    matrix = TOPOLOGIES["ttn-ternary"].generator(dtype="float32", base=adtn.IdentityBase())
    table = adtn.Generator((200, 6), adtn.TTN(bond=2), dtype="float32", base=adtn.SeededBase(1))
    kernel = adtn.Generator((4, 6, 3, 3), adtn.TTN(bond=2), dtype="float32")
    x, index, image = np.ones((2, 5, 18), np.float32), np.array([[3, 150]]), np.ones((2, 6, 8, 8), np.float32)
    numpy_layers.ADTNLinear(matrix)(x)
    numpy_layers.ADTNEmbedding(table)(index)
    numpy_layers.ADTNConv2d(kernel)(image), numpy_layers.ADTNConv2d(kernel, mode="factored")(image)
    torch_layers.ADTNLinear(matrix)(torch.from_numpy(x)).sum().backward()
    torch_layers.ADTNEmbedding(table)(torch.from_numpy(index)).sum().backward()
    torch_layers.ADTNConv2d(kernel)(torch.from_numpy(image)).sum().backward()
    torch_layers.ADTNConv2d(kernel, mode="factored")(torch.from_numpy(image))
    jax_layers.ADTNLinear(matrix)(jnp.asarray(x))
    embedding = jax_layers.ADTNEmbedding(table)
    embedding.attend(embedding(jnp.asarray(index)))
    nnx.grad(lambda layer: layer(jnp.asarray(x)).sum())(jax_layers.ADTNLinear(matrix))
    jax_layers.ADTNConv2d(kernel)(jnp.moveaxis(jnp.asarray(image), 1, -1))
    jax_layers.ADTNConv2d(kernel, mode="factored")(jnp.moveaxis(jnp.asarray(image), 1, -1))


def main(out: Path) -> None:
    """Call everything, and write the counts."""
    for device in ("numpy:cpu", "torch:cpu", "jax:cpu"):
        for row in ROWS:
            for gen in generators(row):
                use(gen, device)
            fit(next(generators(row)), device)
        isometric = adtn.Generator((16, 16), adtn.TTN(bond=2, activation=None, isometric=True))
        adtn.fit(isometric, np.eye(16), device=device, optimizer="lm" if device == "numpy:cpu" else "adam", steps=1)
    isometric.networks(), adtn.decompose(isometric, np.eye(16))
    for name in ("tt", "mpo", "ring", "tucker", "cp", "ttn-linear", "low-rank", "low-rank-spatial", "kronecker"):
        row = TOPOLOGIES[name]
        weight = np.random.default_rng(0).standard_normal(row.shape)
        inputs = np.random.default_rng(1).standard_normal((50, weight.size // len(weight)))
        adtn.decompose(row.generator(), weight)
        adtn.decompose(row.generator(), weight, moment=inputs.T @ inputs, sweeps=2)
        if name in ("tt", "tucker"):
            best_within(row.topology, row.layout, weight, inputs.T @ inputs, 100)
    # weights and states that are too large to be looked at
    adtn.Generator((513, 700), adtn.MPO(bond=2))
    adtn.Generator((2048, 2048), adtn.BrickWall(layers=2), layout=adtn.Layout.of((2048, 2048), 2))
    adtn.Generator((64, 64), adtn.RandomFeatures(bond=2))
    wide = adtn.Generator((64, 64), adtn.Dense())
    assert wide.num_active_params == 64 * 64
    assert entries_at_random(wide.segments[0], wide.params, 5, seed=0).shape == (5,)
    gen = TOPOLOGIES["brickwall-near"].generator()
    assert gen.degrees_of_freedom <= gen.num_active_params
    layers()
    out.write_text(json.dumps(shapes.CALLS, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
