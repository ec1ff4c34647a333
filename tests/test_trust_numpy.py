"""Layers for inference with NumPy accept the same ids and batches as those of PyTorch."""

from __future__ import annotations

import adtn
import numpy as np
import pytest
from adtn.errors import LayoutError

from adtn_backends.numpy import layers as layers

TTN = adtn.TTN(bond=2)


def gen(*shape: int) -> adtn.Generator:
    return adtn.Generator(shape, TTN, seed=1)


def test_ids_out_of_range_are_refused() -> None:
    layer = layers.ADTNEmbedding(gen(30, 8))
    table = layer.generator.weight()
    for bad in ([-1], [30], [0, 33], [[1, -30]]):
        with pytest.raises(IndexError, match="expected 0 to 29"):
            layer(np.array(bad))
    for ids in ([], [0, 29, 0], [[3]]):
        for dtype in ("int8", "uint16", "int64"):
            index = np.array(ids, dtype)
            np.testing.assert_array_equal(layer(index), table[index])
    with pytest.raises(LayoutError, match="expected integers"):
        layer(np.array([1.0]))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (layers.ADTNLinear(gen(16, 24)), (24,)),
        (layers.ADTNConv1d(gen(8, 6, 3)), (6, 7)),
        (layers.ADTNConv2d(gen(8, 6, 3, 3), padding=1), (6, 5, 5)),
        (layers.ADTNConv3d(gen(8, 6, 3, 3, 3)), (6, 4, 4, 4)),
    ],
)
def test_empty_batches(layer: object, shape: tuple[int, ...]) -> None:
    y = layer(np.zeros((0, *shape), "float32"))  # type: ignore[operator]
    assert y.shape == (0, *layer(np.zeros((2, *shape), "float32")).shape[1:])  # type: ignore[operator]
