"""The overhead of the library over plain arithmetic: small networks compared with a hand-written einsum chain.

Both generate the same 256x256 weight of a TTN (bond 2, legs of 4) in the same framework; the chain contracts one level
after the other with plain ``einsum``.
"""

from __future__ import annotations

from typing import Any

import adtn
import numpy as np
import pytest
from adtn.backends import check_device

LAYOUT = adtn.Layout.of((256, 256), 4, "interleaved")
GENERATOR = adtn.Generator((256, 256), adtn.TTN(bond=2, activation="silu"), layout=LAYOUT, seed=0)


def chain(device: str) -> Any:
    """Make a function with one einsum per segment, with operands in the network's order."""
    backend, _ = check_device(device, "float32")
    arrays = GENERATOR.arrays(device, "float32")
    letters: dict[str, str] = {}

    def word(inds: tuple[str, ...]) -> str:
        return "".join(letters.setdefault(i, chr(ord("a") + len(letters))) for i in inds)

    steps: list[tuple[str, tuple[str, ...], bool, bool]] = []
    for segment in GENERATOR.segments:
        letters.clear()
        inputs = ([word(segment.inputs)] if segment.inputs else []) + [word(core.inds) for core in segment.cores]
        equation = ",".join(inputs) + "->" + word(segment.outputs)
        names = tuple(core.param for core in segment.cores)
        steps.append((equation, names, bool(segment.inputs), segment.activation != "identity"))
    if device.startswith("torch"):
        import torch

        einsum: Any = torch.einsum
        silu: Any = torch.nn.functional.silu
    elif device.startswith("jax"):
        import jax
        import jax.numpy as jnp

        einsum, silu = jnp.einsum, jax.nn.silu
    else:
        paths: dict[str, Any] = {}

        def einsum(equation: str, *operands: Any) -> Any:
            if equation not in paths:
                paths[equation] = np.einsum_path(equation, *operands, optimize="greedy")[0]
            return np.einsum(equation, *operands, optimize=paths[equation])

        def silu(z: Any) -> Any:
            return z / (1.0 + np.exp(-z))

    def run(arrays: Any) -> Any:
        state: Any = None
        for equation, names, has_state, activates in steps:
            operands = [state] if has_state else []
            state = einsum(equation, *operands, *(arrays[n] for n in names))
            state = silu(state) if activates else state
        return LAYOUT.from_legs(state) * GENERATOR.scale

    run = backend.compile(run)
    return lambda: run(arrays)


def ours(device: str) -> Any:
    """Make the library's function."""
    backend, _ = check_device(device, "float32")
    make = adtn.plan(GENERATOR, "generate", device=device).generator(backend)
    arrays = GENERATOR.arrays(device, "float32")
    return lambda: make(arrays)


@pytest.mark.parametrize("who", ["adtn", "einsum chain"])
def test_generate(benchmark, device: str, who: str) -> None:
    backend, where = check_device(device, "float32")
    run = ours(device) if who == "adtn" else chain(device)
    np.testing.assert_allclose(backend.to_numpy(run()), GENERATOR.weight(), rtol=1e-3, atol=1e-5)
    benchmark.group = f"generate 256x256 on {device}"

    def timed() -> None:
        backend.synchronize(where, run())

    benchmark(timed)
