"""The null backend counts what the others compute."""

from __future__ import annotations

import adtn
import numpy as np
import pytest
from adtn.backends import get_backend
from adtn.calculus import forward
from adtn.errors import DeviceError
from adtn.topology import get_activation
from autoray import do


def test_matrix_product_by_hand() -> None:
    null = get_backend("null")
    arrays, counter = null.arrays_like({"a": np.ones((3, 4)), "b": np.ones((4, 5))})
    assert do("matmul", arrays["a"], arrays["b"]).shape == (3, 5)
    assert counter.flops == 2 * 3 * 4 * 5
    assert counter.moved_bytes == 4 * (12 + 20 + 15)
    assert counter.allocated_bytes == 4 * 15


def test_a_contraction_counts_its_flops() -> None:
    gen = adtn.Generator((64, 64), adtn.MPO(bond=4))
    arrays, counter = get_backend("null").arrays_like(gen.params)  # type: ignore[attr-defined]
    assert forward(gen.program, arrays).shape == gen.layout.dims
    assert counter.flops == gen.program.flops


def test_what_a_framework_fuses_is_one_operation() -> None:
    null, sigma = get_backend("null"), get_activation("silu")
    counts = []
    for fused in ((), ("silu",)):
        arrays, counter = null.arrays_like({"z": np.ones((8, 8))})  # type: ignore[attr-defined]
        counter.fused = frozenset(fused)
        y = null.workspace().activate(sigma, arrays["z"])
        null.workspace().activate_vjp(sigma, arrays["z"], y)
        counts.append(sum(counter.ops.values()))
    assert counts[1] == 2 < counts[0]


def test_weight_has_shape_and_dtype_but_no_values() -> None:
    weight = adtn.Generator((1000, 70), adtn.TTN(bond=4)).weight("null:cpu", "bfloat16")
    assert weight.shape == (1000, 70)
    assert weight.nbytes == 2 * 70_000
    with pytest.raises(DeviceError, match="has no values"):
        get_backend("null").to_numpy(weight)


def test_wrong_shapes_are_noticed() -> None:
    arrays, _ = get_backend("null").arrays_like({"a": np.ones((3, 4)), "b": np.ones((3, 5))})  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="matrix product"):
        do("matmul", arrays["a"], arrays["b"])
    with pytest.raises(ValueError, match="reshape"):
        do("reshape", arrays["a"], (5, 5))
