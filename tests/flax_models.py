"""Small Flax NNX models and data that tests of whole models share."""

from __future__ import annotations

import numpy as np
import pytest

nnx = pytest.importorskip("flax.nnx")


class Net(nnx.Module):
    """A model with a convolution, running statistics, random numbers, and linear layers in a list."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(4, 8, (3, 3), strides=2, padding="SAME", rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.drop = nnx.Dropout(0.1, rngs=rngs)
        self.linears = nnx.List([nnx.Linear(32, 32, rngs=rngs), nnx.Linear(32, 3, rngs=rngs)])

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x))).reshape(x.shape[0], -1)
        return self.linears[1](nnx.relu(self.drop(self.linears[0](x))))


class Language(nnx.Module):
    """A language model with a tied embedding and attention."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.embed = nnx.Embed(32, 16, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(4, 16, decode=False, rngs=rngs)

    def __call__(self, input_ids):
        x = self.embed(input_ids)
        return self.embed.attend(x + self.attention(x))


def batches(n: int = 3):
    rng = np.random.default_rng(1)
    x = [rng.standard_normal((8, 4, 4, 4)).astype(np.float32) for _ in range(n)]
    return [(b, (b.mean((1, 2, 3)) > 0).astype(int) + (b[..., 0].mean((1, 2)) > 0)) for b in x]


def texts():
    found = np.random.default_rng(0).integers(0, 32, (2, 4, 6))
    return [{"input_ids": i, "labels": i} for i in found]


def numbers(model) -> dict[str, np.ndarray]:
    found = nnx.to_flat_state(nnx.state(model, nnx.Not(nnx.RngState)))
    return {".".join(map(str, path)): np.asarray(v[...]) for path, v in found}


def same(model, state) -> bool:
    now = numbers(model)
    return set(now) == set(state) and all(np.array_equal(now[k], v) for k, v in state.items())
