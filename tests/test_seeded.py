"""Seeded random numbers: the same bits everywhere."""

from __future__ import annotations

import hashlib

import adtn
import numpy as np
import pytest
from adtn.errors import TopologyError

from table import to_numpy


def philox4x64_10(counter: list[int], key: list[int]) -> list[int]:
    """Compute Philox4x64-10 in plain integers, from the definition of Salmon et al. (2011)."""
    mask = 2**64 - 1
    c, k = list(counter), list(key)
    for _ in range(10):
        a, b = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
        c = [(b >> 64) ^ c[1] ^ k[0], b & mask, (a >> 64) ^ c[3] ^ k[1], a & mask]
        k = [(k[0] + 0x9E3779B97F4A7C15) & mask, (k[1] + 0xBB67AE8584CAA73B) & mask]
    return c


def words(seed: int, n: int) -> list[int]:
    """Yield the stream of NumPy's Philox: four words for each counter 1, 2, ..."""
    return [w for block in range(1, n // 4 + 2) for w in philox4x64_10([block, 0, 0, 0], [seed, 0])][:n]


def test_known_answer_of_the_generator() -> None:
    # the vector that Random123 published for counter 0 and key 0
    assert philox4x64_10([0] * 4, [0] * 2) == [
        0x16554D9ECA36314C,
        0xDB20FE9D672D0FDC,
        0xD7E772CEE186176B,
        0x7E68B68AEC7BA23B,
    ]


@pytest.mark.parametrize("seed", [0, 1, 12345, 2**63 + 7])
def test_values_bit_for_bit_from_integers(seed: int) -> None:
    want = [np.float32(((w >> 40) - 8388607.5) * (3.0**0.5 * 2.0**-23)) for w in words(seed, 40)]
    got = adtn.SeededBase(seed).values((8, 5)).ravel()
    assert got.tobytes() == np.array(want, np.float32).tobytes()
    signs = adtn.SeededBase(seed, "sign").values((40,))
    assert signs.tolist() == [1.0 if w >> 63 else -1.0 for w in words(seed, 40)]


def test_digest_is_pinned() -> None:
    # a change of these digests would change every file with a seeded base
    assert hashlib.sha256(adtn.SeededBase(2026).values((64, 64)).astype("<f4").tobytes()).hexdigest() == DIGEST


DIGEST = "09f34dd29feba066dcf544b489f6f2f1bdcfde7409dc26d81f96557be3d0a659"


def test_bits_are_equal_on_every_backend(device: str) -> None:
    base = adtn.SeededBase(99)
    gen = adtn.Generator((8, 8), adtn.TTN(bond=2), base=base)
    assert to_numpy(gen.arrays(device, "float32")["base"]).tobytes() == base.values((8, 8)).tobytes()


def test_moments() -> None:
    x = adtn.SeededBase(4).values((1000, 1000))
    assert abs(x.mean()) < 4e-3
    assert x.std() == pytest.approx(1.0, abs=3e-3)
    assert np.abs(x).max() <= np.float32(3**0.5)


def test_errors() -> None:
    with pytest.raises(TopologyError, match=r"0 to 2\*\*64"):
        adtn.SeededBase(-1)
    with pytest.raises(TopologyError, match="'uniform' or 'sign'"):
        adtn.SeededBase(1, "normal")  # type: ignore[arg-type]
