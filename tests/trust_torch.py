"""The table of PyTorch layers with which every test of trust runs; a new layer is one row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import adtn
import numpy as np
import pytest

torch = pytest.importorskip("torch")
layers = pytest.importorskip("adtn_backends.torch.layers")
nn = torch.nn

TTN = adtn.TTN(bond=2)


@dataclass(frozen=True)
class Case:
    """A generated layer with an input; with ``integers``, inputs are indices of rows."""

    build: Callable[[], Any]
    shape: tuple[int, ...]
    integers: bool = False
    largest: int = 0
    merged: bool = False

    def layer(self, dtype: Any = None) -> Any:
        """Make the layer, always with the same parameters, and with cores away from the zeros of new adapters."""
        torch.manual_seed(0)
        layer = self.build()
        for p in cores_of(layer).values():
            if not p.any():
                nn.init.normal_(p, std=0.1)
        layer = layer.to(dtype or torch.float32)
        if self.merged:
            layer.merge()
        return layer

    def x(self, dtype: Any = None) -> Any:
        generator = torch.Generator().manual_seed(1)
        if self.integers:
            return torch.randint(self.largest, self.shape, generator=generator)
        return torch.randn(self.shape, generator=generator).to(dtype or torch.float32)


class Attend(nn.Module):
    """A self-attention as a function of one tensor."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Any) -> Any:
        return self.inner(x, x, x, need_weights=False)[0]


class First(nn.Module):
    """A recurrent layer that returns its outputs only."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Any) -> Any:
        return self.inner(x)[0]


class Expert(nn.Module):
    """A module whose weights are one tensor, as in mixtures of experts."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(3, 8, 6))

    def forward(self, x: Any) -> Any:
        return torch.einsum("bi,eio->beo", x, self.up)


def gen(*shape: int, topology: adtn.Topology = TTN, **options: Any) -> adtn.Generator:
    return adtn.Generator(shape, topology, seed=1, **options)


def weight(*shape: int, **options: Any) -> Any:
    return layers.GeneratedWeight(gen(*shape, **options))


def parametrized(dense: Any, *names: str) -> Any:
    return layers.parametrized(dense, {n: weight(*getattr(dense, n).shape) for n in names or ("weight",)})


def adapted(dense: Any) -> Any:
    layer = layers.Adapted(dense)
    layer.add("a", weight(*dense.weight.shape))
    return layer


def attention() -> Any:
    return Attend(layers.ADTNMultiheadAttention.from_attention(nn.MultiheadAttention(16, 4, batch_first=True), TTN))


def recurrent(kind: Any) -> Any:
    return First(parametrized(kind(12, 8, batch_first=True), "weight_ih_l0", "weight_hh_l0"))


RULES = {
    "linear brick wall": Case(lambda: layers.ADTNLinear(gen(16, 16, topology=adtn.BrickWall(layers=2))), (5, 16)),
    "linear seeded base": Case(lambda: layers.ADTNLinear(gen(16, 24, base=adtn.SeededBase(1))), (5, 24)),
    "linear random features": Case(
        lambda: layers.ADTNLinear(gen(16, 25, topology=adtn.RandomFeatures(bond=3))), (5, 25)
    ),
    "linear scaled random": Case(lambda: layers.ADTNLinear(gen(8, 6, topology=adtn.ScaledRandom(seed=3))), (5, 6)),
    "conv seeded base": Case(lambda: layers.ADTNConv2d(gen(8, 6, 3, 3, base=adtn.SeededBase(1))), (2, 6, 5, 5)),
    "embedding seeded base": Case(lambda: layers.ADTNEmbedding(gen(30, 8, base=adtn.SeededBase(1))), (4,), True, 30),
}
"""Layers with frozen cores or bases that no state holds."""
ADAPTERS = {
    "adapted linear": Case(lambda: adapted(nn.Linear(24, 16)), (5, 24)),
    "adapted conv": Case(lambda: adapted(nn.Conv2d(6, 8, 3)), (2, 6, 5, 5)),
    "adapted embedding": Case(lambda: adapted(nn.Embedding(30, 8)), (4,), True, 30),
}
MERGED = {name.replace("adapted", "merged"): replace(case, merged=True) for name, case in ADAPTERS.items()}
EMBEDDINGS = {
    "embedding": Case(lambda: layers.ADTNEmbedding(gen(64, 8), 3), (5,), True, 64),
    "embedding, many": Case(lambda: layers.ADTNEmbedding(gen(30, 8)), (3, 10), True, 30),
}
LAYERS = {
    **{
        f"linear {mode}": Case(lambda mode=mode: layers.ADTNLinear(gen(16, 24), mode=mode), (5, 24))
        for mode in (None, "materialise", "stream", "factored")
    },
    "linear nonlinear end": Case(
        lambda: layers.ADTNLinear(gen(16, 24, topology=adtn.TTN(bond=2, where="all"))), (5, 24)
    ),
    "linear given base": Case(lambda: layers.ADTNLinear(gen(16, 24, base=np.ones((16, 24), "float32"))), (5, 24)),
    "conv1d": Case(lambda: layers.ADTNConv1d(gen(8, 6, 3), padding=1), (2, 6, 7)),
    "conv2d": Case(lambda: layers.ADTNConv2d(gen(8, 6, 3, 3), padding="same"), (2, 6, 7, 7)),
    "conv2d grouped": Case(lambda: layers.ADTNConv2d(gen(8, 3, 3, 3), groups=2, stride=2), (2, 6, 7, 7)),
    "conv2d reflected": Case(
        lambda: layers.ADTNConv2d(gen(8, 6, 3, 3), padding=1, padding_mode="reflect"), (2, 6, 7, 7)
    ),
    "conv3d": Case(lambda: layers.ADTNConv3d(gen(8, 6, 3, 3, 3)), (2, 6, 5, 5, 5)),
    "attention": Case(attention, (2, 5, 16)),
    "lstm": Case(lambda: recurrent(nn.LSTM), (2, 5, 12)),
    "gru": Case(lambda: recurrent(nn.GRU), (2, 5, 12)),
    "conv transposed": Case(lambda: parametrized(nn.ConvTranspose2d(6, 8, 3)), (2, 6, 5, 5)),
    "embedding bag": Case(lambda: parametrized(nn.EmbeddingBag(30, 8)), (2, 4), True, 30),
    "experts": Case(lambda: parametrized(Expert(), "up"), (4, 8)),
    **EMBEDDINGS,
    **RULES,
    **ADAPTERS,
    **MERGED,
}


def cores_of(layer: Any) -> dict[str, Any]:
    """Return the trained cores of all generated weights in a layer by name."""
    inside = [f"{name}." if name else "" for name, m in layer.named_modules() if isinstance(m, layers.GeneratedWeight)]
    return {name: p for name, p in layer.named_parameters() if name.startswith(tuple(inside))}
