"""The table of backends, devices, dtypes and topologies that every contract test runs through.

A new topology is one row of ``TOPOLOGIES``, a new backend one row of ``BACKENDS``. ``ADTN_TEST_BACKENDS`` lists
backends that must be there: a missing one then fails instead of being skipped.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import adtn
import numpy as np
import pytest
from adtn import Generator, Layout
from adtn.backends import backend_of, get_backend
from adtn.errors import MissingDependencyError

REQUIRED = [name for name in os.environ.get("ADTN_TEST_BACKENDS", "").split(",") if name]

BACKENDS = {
    "numpy": ("numpy:cpu", ("float64", "float32", "float16")),
    "torch": ("torch:cpu", ("float64", "float32", "bfloat16", "float16")),
    "jax": ("jax:cpu", ("float64", "float32", "bfloat16", "float16")),
    "cuda": ("torch:cuda:0", ("float64", "float32", "bfloat16", "float16")),
    "jax-gpu": ("jax:gpu:0", ("float64", "float32", "bfloat16", "float16")),
    "mps": ("torch:mps", ("float32", "float16")),
}


@dataclass(frozen=True)
class Row:
    """A topology with a weight that exercises it."""

    topology: adtn.Topology
    shape: tuple[int, ...]
    leg: int | tuple[int, ...] = 4
    order: str = "axis"

    @property
    def layout(self) -> Layout:
        return Layout.of(self.shape, self.leg, self.order, max_padding=3)  # type: ignore[arg-type]

    def generator(self, seed: int = 0, dtype: str = "float64", **options: Any) -> Generator:
        return Generator(self.shape, self.topology, layout=self.layout, seed=seed, dtype=dtype, **options)


TOPOLOGIES = {
    "ttn": Row(adtn.TTN(bond=3), (16, 20)),
    "ttn-ternary": Row(adtn.TTN(bond=(2, 3), arity=3, activation="tanh"), (12, 18), 3),
    "ttn-no-leaves": Row(adtn.TTN(bond=3, leaves=False, activation="gelu"), (10, 21), 3),
    "ttn-conv": Row(adtn.TTN(bond=2, activation="sine"), (8, 6, 3, 3)),
    "ttn-vector": Row(adtn.TTN(bond=2), (30,), 3),
    "ttn-five-axes": Row(adtn.TTN(bond=2, share=True), (4, 3, 2, 2, 2)),
    "ttn-all": Row(adtn.TTN(bond=3, activation="softplus", where="all"), (16, 8)),
    "ttn-some": Row(adtn.TTN(bond=3, activation="tanh", where=(1,)), (16, 16)),
    "ttn-linear": Row(adtn.TTN(bond=3, activation="identity"), (16, 16)),
    "attn": Row(adtn.ATTN(bond=2, noise=0.1), (16, 16), order="interleaved"),
    "attn-pairs": Row(adtn.ATTN(bond=3, pairs=((1, 2),), noise=0.1, leaves=False), (9, 27), 3),
    "mera": Row(adtn.MERA(bond=2, noise=0.1), (16, 32), 2),
    "mera-periodic": Row(adtn.MERA(bond=2, noise=0.1, periodic=True), (16, 8), 2),
    "mera-odd": Row(adtn.MERA(bond=3, noise=0.1, leaves=False, activation="leaky_relu"), (27, 30), 3),
    "mera-shared": Row(adtn.MERA(bond=2, noise=0.1, share=True), (16, 16), 2),
    "brickwall": Row(adtn.BrickWall(layers=2), (16, 16), 2),
    "brickwall-odd": Row(adtn.BrickWall(layers=3, boundary="trainable", activation="relu"), (4, 8), 2),
    "brickwall-mixed": Row(adtn.BrickWall(layers=2, boundary="random", activation="tanh"), (6, 10), 3),
    "brickwall-near": Row(adtn.BrickWall(layers=2, near_identity=True, boundary="trainable"), (9, 9), 3),
    "tt": Row(adtn.TT(bond=3), (12, 15), 3),
    "tt-bonds": Row(adtn.TT(bond=(2, 5, 3)), (12, 15), 3),
    "mpo": Row(adtn.MPO(bond=3), (16, 12), order="interleaved"),
    "mpo-bonds": Row(adtn.MPO(bond=(4, 2)), (27, 18), 3, order="interleaved"),
    "ring": Row(adtn.TensorRing(bond=2), (16, 16)),
    "ring-bonds": Row(adtn.TensorRing(bond=(2, 4, 1, 3)), (16, 16)),
    "low-rank": Row(adtn.LowRank(bond=3), (13, 20), (13, 20)),
    "low-rank-legs": Row(adtn.LowRank(bond=2), (12, 16), order="interleaved"),
    "low-rank-spatial": Row(adtn.LowRank(bond=4, split="spatial"), (8, 6, 3, 3), (8, 6, 3, 3)),
    "kronecker": Row(adtn.KroneckerSum(terms=3), (12, 20), (4, 5), order="interleaved"),
    "kronecker-conv": Row(adtn.KroneckerSum(terms=2), (8, 6, 3, 3), (4, 3, 3, 3)),
    "tucker": Row(adtn.Tucker(bond=2), (16, 15)),
    "tucker-2": Row(adtn.Tucker(bond=(4, 3, None, None)), (8, 6, 3, 3), (8, 6, 3, 3)),
    "tucker-uncut": Row(adtn.Tucker(bond=(2, None, 3, 2), activation="tanh"), (16, 15)),
    "tucker-nonlinear": Row(adtn.Tucker(bond=2, activation="silu"), (16, 16)),
    "cp": Row(adtn.CP(bond=3), (16, 16)),
    "random-features": Row(adtn.RandomFeatures(bond=3), (16, 25), 5),
    "random-features-tanh": Row(adtn.RandomFeatures(bond=3, activation="tanh", share=False), (16, 25), 5),
    "dense": Row(adtn.Dense(), (6, 10), order="interleaved"),
    "scaled-identity": Row(adtn.ScaledIdentity(), (8, 6), order="interleaved"),
    "scaled-identity-square": Row(adtn.ScaledIdentity(), (12, 12)),
    "scaled-random": Row(adtn.ScaledRandom(seed=3), (8, 6)),
}


def tolerance(dtype: str, size: int = 1) -> float:
    """Bound the relative error that rounding may cause in a chain of sums of ``size`` terms."""
    eps = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}[dtype]
    return 8.0 * eps * max(size, 1) ** 0.5


def relative_error(got: Any, want: np.ndarray) -> float:
    """Compute the Frobenius norm of the difference over that of the reference."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    return float(np.linalg.norm(got - want) / max(float(np.linalg.norm(want)), 1e-300))


def usable(key: str) -> str:
    """Return the device of a backend row, or skip the test with the reason."""
    device, _ = BACKENDS[key]
    name = device.partition(":")[0]
    try:
        infos = {info.name: info for info in get_backend(name).devices()}
    except MissingDependencyError as error:
        if key in REQUIRED:
            pytest.fail(f"{key} is required: {error}")
        pytest.skip(str(error))
    info = infos[device]
    if not info.usable:
        if key in REQUIRED:
            pytest.fail(f"{key} is required: {info.reason}")
        pytest.skip(f"{device}: {info.reason}")
    return device


def to_numpy(x: Any) -> np.ndarray:
    """Copy an array of any backend to NumPy."""
    return backend_of(x).to_numpy(x)
