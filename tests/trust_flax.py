"""The table of Flax layers with which every test of trust runs; a new layer is one row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import adtn
import numpy as np
import pytest

jax = pytest.importorskip("jax")
nnx = pytest.importorskip("flax.nnx")
layers = pytest.importorskip("adtn_backends.jax.layers")
jnp = jax.numpy

TTN = adtn.TTN(bond=2)


@dataclass(frozen=True)
class Case:
    """A generated layer with an input; ``rows`` is the number of rows of a table if inputs are indices of rows."""

    build: Callable[[], Any]
    shape: tuple[int, ...]
    rows: int = 0

    def layer(self) -> Any:
        return self.build()

    def x(self) -> Any:
        rng = np.random.default_rng(1)
        if self.rows:
            return jnp.asarray(rng.integers(self.rows, size=self.shape))
        return jnp.asarray(rng.standard_normal(self.shape), jnp.float32)


class Attend(nnx.Module):
    """A self-attention as a function of one array."""

    def __init__(self) -> None:
        self.inner = layers.ADTNMultiheadAttention(gen(48, 16), gen(16, 16), 4)

    def __call__(self, x: Any) -> Any:
        return self.inner(x, x, x)


def gen(*shape: int, topology: adtn.Topology = TTN, **options: Any) -> adtn.Generator:
    return adtn.Generator(shape, topology, seed=1, **options)


def adapted(dense: Any, *shape: int, merged: bool = False) -> Any:
    layer = layers.Adapted(dense)
    layer.add("a", layers.GeneratedWeight(gen(*shape)))
    if merged:
        layer.merge()
    return layer


def rngs() -> Any:
    return nnx.Rngs(0)


BASES = {
    "linear": (lambda: nnx.Linear(24, 16, rngs=rngs()), (16, 24), (5, 24), 0),
    "linear general": (lambda: nnx.LinearGeneral((4, 6), 16, axis=(-2, -1), rngs=rngs()), (16, 24), (5, 4, 6), 0),
    "conv": (lambda: nnx.Conv(6, 8, (3, 3), rngs=rngs()), (8, 6, 3, 3), (2, 5, 5, 6), 0),
    "embedding": (lambda: nnx.Embed(30, 8, rngs=rngs()), (30, 8), (4,), 30),
}
ADAPTERS = {
    f"adapted {name}": Case(lambda make=make, own=own: adapted(make(), *own), shape, rows)
    for name, (make, own, shape, rows) in BASES.items()
}
MERGED = {
    f"merged {name}": Case(lambda make=make, own=own: adapted(make(), *own, merged=True), shape, rows)
    for name, (make, own, shape, rows) in BASES.items()
}
EMBEDDINGS = {
    "embedding": Case(lambda: layers.ADTNEmbedding(gen(64, 8)), (5,), 64),
    "embedding, many": Case(lambda: layers.ADTNEmbedding(gen(30, 8)), (3, 10), 30),
}
LAYERS = {
    **{
        f"linear {mode}": Case(lambda mode=mode: layers.ADTNLinear(gen(16, 24), mode=mode), (5, 24))
        for mode in (None, "materialise", "stream", "factored")
    },
    "linear nonlinear end": Case(
        lambda: layers.ADTNLinear(gen(16, 24, topology=adtn.TTN(bond=2, where="all"))), (5, 24)
    ),
    "linear brick wall": Case(lambda: layers.ADTNLinear(gen(16, 16, topology=adtn.BrickWall(layers=2))), (5, 16)),
    "linear seeded base": Case(lambda: layers.ADTNLinear(gen(16, 24, base=adtn.SeededBase(1))), (5, 24)),
    "linear general": Case(lambda: layers.ADTNLinearGeneral(gen(32, 24), outputs=(4, 8)), (5, 24)),
    "conv1d": Case(lambda: layers.ADTNConv1d(gen(8, 6, 3), padding=1), (2, 7, 6)),
    "conv2d": Case(lambda: layers.ADTNConv2d(gen(8, 6, 3, 3), padding="SAME"), (2, 7, 7, 6)),
    "conv3d": Case(lambda: layers.ADTNConv3d(gen(8, 6, 3, 3, 3)), (2, 5, 5, 5, 6)),
    "attention": Case(Attend, (2, 5, 16)),
    **EMBEDDINGS,
    **ADAPTERS,
    **MERGED,
}
