"""Weights that are written into an array of the caller."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import adtn
import numpy as np
import pytest
from adtn import Permutation
from adtn.backends import get_backend
from adtn.errors import DeviceError, LayoutError

from table import TOPOLOGIES, usable

MEMORY = """
import adtn, numpy as np
def peak():  # that of getrusage begins with the parent's
    return 1024 * int(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])
small, large = (adtn.Generator((n, n), adtn.TTN(bond=4)) for n in (64, 4096))
small.weight(out=np.empty(small.shape, "float32"))
out = np.ones(large.shape, "float32")
before = peak()
large.weight(out=out)
print((peak() - before) / out.nbytes)
"""


def check(gen: adtn.Generator, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare a weight that is written with one that is made at once."""
    want = gen.weight()
    out = get_backend(device.split(":")[0]).asarray(np.full(gen.shape, np.nan), "cpu", "float64")
    assert gen.weight(device, out=out) is out
    np.testing.assert_allclose(np.asarray(out), want, rtol=1e-11, atol=1e-12)
    with monkeypatch.context() as patched:  # as large weights are made
        patched.setattr("adtn.generator._written._LARGE", 1)
        np.testing.assert_allclose(np.asarray(gen.weight(device)), want, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_a_weight_is_written_as_it_is_returned(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check(TOPOLOGIES[name].generator(), "numpy:cpu", monkeypatch)


@pytest.mark.parametrize("device", ["numpy:cpu", "torch:cpu"])
@pytest.mark.parametrize("name", ["ttn-ternary", "mpo", "kronecker-conv"])
def test_permuted_weights_and_those_with_a_base_are_written(
    name: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usable(device.split(":")[0])
    row = TOPOLOGIES[name]
    orders = tuple(map(Permutation.random, row.shape))
    bases = (adtn.SeededBase(1), adtn.IdentityBase()) if len(row.shape) == 2 else (adtn.SeededBase(1),)
    choices: tuple[dict[str, Any], ...] = (
        {"permutations": orders},
        *({"base": base, "permutations": orders} for base in bases),
    )
    for options in choices:
        check(row.generator(**options), device, monkeypatch)


def test_an_array_that_does_not_fit_is_refused_and_not_written_to() -> None:
    gen = TOPOLOGIES["mpo"].generator()
    for out in (np.zeros((16, 11)), np.zeros(16), 3.0, [[0.0]]):
        with pytest.raises(LayoutError, match=r"\(16, 12\)"):
            gen.weight(out=out)
    out = np.zeros((16, 12), np.float32)
    with pytest.raises(DeviceError, match="float32"):
        gen.weight(out=out)
    assert not out.any()
    assert gen.weight(dtype="float32", out=out).any()


def test_arrays_of_jax_are_refused() -> None:
    usable("jax")
    import jax.numpy as jnp

    gen = TOPOLOGIES["mpo"].generator(dtype="float32")
    with pytest.raises(DeviceError, match="cannot be written"):
        gen.weight("jax:cpu", out=jnp.zeros((16, 12)))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the memory of a process of Linux")
def test_memory_beside_the_array_is_a_part_of_the_weight() -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY], stdout=subprocess.PIPE, text=True, check=True)
    assert 0.0 < float(done.stdout) < 0.5  # about .1; 1.3 if the weight is made and copied
