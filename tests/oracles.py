"""Independent computations with which the library is compared: dense einsum and finite differences."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from adtn import Generator
from adtn.topology import RuleBase, Segment
from scipy.special import erf

SIGMA = {
    "identity": lambda z: z,
    "relu": lambda z: np.maximum(z, 0),
    "leaky_relu": lambda z: np.where(z > 0, z, 0.01 * z),
    "silu": lambda z: z / (1 + np.exp(-z)),
    "gelu": lambda z: 0.5 * z * (1 + erf(z / math.sqrt(2))),
    "tanh": np.tanh,
    "softplus": lambda z: np.logaddexp(z, 0),
    "sine": np.sin,
}


def dense_state(segments: tuple[Segment, ...], arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Compute the last state by one ``numpy.einsum`` per segment, in float64."""
    state: np.ndarray | None = None
    for segment in segments:
        operands: list = []
        number: dict[str, int] = {}

        def ids(inds: tuple[str, ...], number: dict[str, int] = number) -> list[int]:
            return [number.setdefault(i, len(number)) for i in inds]

        if segment.inputs:
            operands += [state, ids(segment.inputs)]
        for core in segment.cores:
            operands += [np.asarray(arrays[core.param], np.float64), ids(core.inds)]
        z = np.einsum(*operands, ids(segment.outputs), optimize="greedy")
        state = SIGMA[segment.activation](z)
    assert state is not None
    return state


def dense_weight(gen: Generator) -> np.ndarray:
    """Compute the weight from :func:`dense_state`."""
    arrays = {k: np.asarray(x, np.float64) for k, x in {**gen.params, **gen.constants()}.items()}
    weight = gen.scale * gen.layout.from_legs(dense_state(gen.segments, arrays))
    orders = gen.permutations or (None,) * weight.ndim
    weight = weight[
        np.ix_(*(np.arange(n) if p is None else p.array for n, p in zip(weight.shape, orders, strict=True)))
    ]
    if isinstance(gen.base, RuleBase):
        weight = weight + arrays["base.scale"] * arrays["base"]
    elif gen.base is not None:
        weight = weight + arrays["base"]
    return weight


def directional_derivatives(
    gen: Generator, wbar: np.ndarray, rng: np.random.Generator
) -> dict[str, tuple[float, float]]:
    """Compute a central difference of ``<W̄, W>`` in a random direction for every parameter, and the scale of it."""
    arrays = gen.arrays("numpy:cpu", "float64")
    found: dict[str, tuple[float, np.ndarray]] = {}
    for name, x in gen.params.items():
        d = rng.standard_normal(x.shape)
        h = 1e-6 * (float(np.linalg.norm(x)) or 1.0) / float(np.linalg.norm(d))
        up = np.sum(gen.function({**arrays, name: arrays[name] + h * d}) * wbar)
        down = np.sum(gen.function({**arrays, name: arrays[name] - h * d}) * wbar)
        found[name] = ((up - down) / (2 * h), d)
    return found  # type: ignore[return-value]
