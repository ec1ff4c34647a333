"""Flax NNX modules on a mesh of CPU devices, whose axes are explicit (JAX's default) or left to the compiler."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("flax.nnx")

# models of these tests are small and random: results are bad on purpose
pytestmark = pytest.mark.filterwarnings("ignore::adtn.errors.QualityWarning")

# in a separate process, as the number of devices is fixed at first use
PROGRAM = """
import sys

import adtn
import jax
import jax.numpy as jnp
import numpy as np
from adtn_backends.jax import layers
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

kind = AxisType[sys.argv[1]]
mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(kind, kind))
rng = np.random.default_rng(0)


def gen(*shape, topology=adtn.TTN(bond=2)):
    return adtn.Generator(shape, topology)


images, rows = rng.standard_normal((8, 5, 5, 4)), rng.standard_normal((8, 3, 32))
tokens, few = rng.integers(-64, 64, (8, 5)), rng.integers(0, 512, (8, 5))
CASES = {
    "materialise": (layers.ADTNLinear(gen(64, 32), mode="materialise"), rows),
    "stream": (layers.ADTNLinear(gen(64, 32), mode="stream"), rows),
    "factored": (layers.ADTNLinear(gen(64, 32), mode="factored"), rows),
    "odd batch": (layers.ADTNLinear(gen(64, 32), mode="factored"), rows[:6, 0]),
    "bfloat16": (layers.ADTNLinear(gen(64, 32), mode="materialise", dtype=jnp.bfloat16), rows),
    "frozen": (layers.ADTNLinear(gen(64, 32, topology=adtn.BrickWall(layers=2))), rows),
    "heads": (layers.ADTNLinearGeneral(gen(64, 32), outputs=(4, 16)), rows),
    "conv": (layers.ADTNConv2d(gen(8, 4, 3, 3), padding=1), images),
    "table": (layers.ADTNEmbedding(gen(64, 32)), tokens),
    "rows of a table": (layers.ADTNEmbedding(gen(512, 32)), few),
    "one word each": (layers.ADTNEmbedding(gen(64, 32)), tokens[:, 0]),
}


def loss(layer, x):
    y = layer(x).astype(jnp.float32)
    return jnp.square(y * jnp.arange(y.shape[-1])).mean()


@nnx.jit
def both(layer, x):
    return layer(x), nnx.grad(loss)(layer, x)


for name, (layer, x) in CASES.items():
    if kind is AxisType.Auto and name not in ("factored", "odd batch", "conv", "rows of a table", "one word each"):
        continue  # the compiler treats the others alike
    x = jnp.asarray(x, jnp.float32 if x.dtype.kind == "f" else jnp.int32)
    want, wanted = both(layer, x)
    graph, state = nnx.split(layer)
    with jax.set_mesh(mesh):
        placed = nnx.merge(graph, jax.device_put(state, NamedSharding(mesh, P())))
        spec = P("data") if name == "odd batch" else P(("data", "model"))
        x = jax.device_put(x, NamedSharding(mesh, spec))
        got, grads = both(placed, x)
        tolerance = 0.05 if got.dtype == jnp.bfloat16 else 1e-4
        assert got.dtype == want.dtype, name
        np.testing.assert_allclose(got.astype(float), want.astype(float), rtol=tolerance, atol=tolerance, err_msg=name)
        for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(wanted), strict=True):
            assert len(a.devices()) == 4, name
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max(), err_msg=name)
        compiled = both.lower(placed, x).compile().as_text()
        if kind is AxisType.Explicit or name != "odd batch":
            assert got.sharding.spec[0] == spec[0], (name, got.sharding)
        # gradients are summed over devices, batches are not gathered on them; XLA may compute a small table in parts
        own = name == "odd batch" or (name == "one word each" and kind is AxisType.Auto)
        assert own or "all-gather(" not in compiled, name
        whole = nnx.jit(lambda layer, x: layer(x, out_sharding=P()))(placed, x)
        assert not any(whole.sharding.spec), (name, whole.sharding)
        if name == "factored":  # rows and numbers that are cut over devices are put together
            cut = jax.device_put(x, NamedSharding(mesh, P(None, None, "model")))
            np.testing.assert_allclose(both(placed, cut)[0], want, rtol=1e-4, atol=1e-4)
            cores = jax.tree.map(lambda v: P("data") if v.ndim > 1 and v.shape[0] % 2 == 0 else P(), state)
            numbers = jax.tree.map(lambda v, s: jax.device_put(v, NamedSharding(mesh, s)), state, cores)
            np.testing.assert_allclose(both(nnx.merge(graph, numbers), x)[0], want, rtol=1e-4, atol=1e-4)


with jax.set_mesh(mesh):
    adapted = layers.Adapted(nnx.Linear(32, 64, rngs=nnx.Rngs(0)))
    adapted.add("a", layers.GeneratedWeight(gen(64, 32)))
    x = jnp.asarray(rows, jnp.float32)
    want, graph, state = adapted(x), *nnx.split(adapted)
    placed = nnx.merge(graph, jax.device_put(state, NamedSharding(mesh, P())))
    x = jax.device_put(x, NamedSharding(mesh, P("data")))
    whole = nnx.jit(lambda layer, x: layer(x, out_sharding=P()))(placed, x)
    assert kind is AxisType.Auto or not any(whole.sharding.spec), whole.sharding  # else Flax ignores it
    np.testing.assert_allclose(whole, want, rtol=1e-4, atol=1e-4)


class Net(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.first, self.norm = nnx.Linear(32, 64, rngs=rngs), nnx.BatchNorm(64, rngs=rngs)
        self.last = nnx.Linear(64, 4, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.relu(self.norm(self.first(x))))


def compressed(place):
    model = Net()
    nnx.update(model, jax.tree.map(lambda v: place(v, P()), nnx.state(model)))
    draw = np.random.default_rng(0)
    data = [(jnp.asarray(draw.standard_normal((16, 32)), jnp.float32), jnp.asarray(draw.integers(0, 4, 16)))] * 2
    data = [tuple(place(v, P("data")) for v in batch) for batch in data]
    config = adtn.Config(
        targets=["first"], topology=adtn.TTN(bond=4), smallest=1, steps=5, tune_steps=5, train="all", distill=0.3
    )
    return adtn.compress(model, config, data=data, test=data)


want = compressed(lambda v, spec: v)
with jax.set_mesh(mesh):
    got = compressed(lambda v, spec: jax.device_put(v, NamedSharding(mesh, spec)))
np.testing.assert_allclose(got.losses, want.losses, rtol=1e-4)
assert got.after.accuracy == want.after.accuracy
print("agrees")
"""


@pytest.mark.parametrize("kind", ["Explicit", "Auto"])
def test_batches_stay_where_they_are(kind: str) -> None:
    environment = {
        **os.environ,
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-W", "error", "-c", PROGRAM, kind]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "agrees", done.stderr[-2000:]
