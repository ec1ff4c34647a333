"""The usual ways to store a cache: integers in groups, rotated codes, low rank, a window of tokens.

Each maps states, ``(tokens, layers, heads, channels)`` in float32, to what comes back, with the bits it takes. Scales,
zero points and norms have 16 bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .._typing import Float
from ._pair import Pair

_WINDOW = 256

Kind = Float[np.ndarray, "tokens layers heads channels"]
Recode = Callable[[Pair[Kind]], tuple[Pair[Kind], float]]


@dataclass(frozen=True, kw_only=True)
class CacheBaseline:
    """A way to store a cache.

    Parameters
    ----------
    name : str
    recode : callable
        Returns what comes back, and its bits.
    rotated : bool
        Whether it stores keys after their rotation, as they are in the cache.
    window : int
        The number of last tokens that stay; 0 for all.
    """

    name: str
    recode: Recode
    rotated: bool = True
    window: int = 0


def baselines(sinks: int = 4) -> list[CacheBaseline]:
    """Return the usual ways; the first ``sinks`` tokens are stored in 16 bits by all of them."""

    def both(keys: Callable[[Kind], tuple[Kind, float]], values: Callable[[Kind], tuple[Kind, float]]) -> Recode:
        def recode(states: Pair[Kind]) -> tuple[Pair[Kind], float]:
            (k, k_bits), (v, v_bits) = keys(states.k[sinks:]), values(states.v[sinks:])
            first = 16.0 * (states.k[:sinks].size + states.v[:sinks].size)
            again = Pair(k=np.concatenate((states.k[:sinks], k)), v=np.concatenate((states.v[:sinks], v)))
            return again, k_bits + v_bits + first

        return recode

    def alike(one: Callable[[Kind], tuple[Kind, float]]) -> Recode:
        return both(one, one)

    return [
        CacheBaseline(name="bfloat16", recode=alike(lambda x: (_bfloat16(x), 16.0 * x.size))),
        *(
            CacheBaseline(name=f"int{b}, groups of 64", recode=alike(lambda x, b=b: integers(x, b, 64, -1)))
            for b in (8, 4, 3)
        ),
        *(
            CacheBaseline(
                name=f"KIVI int{b}, groups of 32" + ("" if rotated else ", before rotation"),
                recode=both(lambda x, b=b: integers(x, b, 32, 0), lambda x, b=b: integers(x, b, 32, -1)),
                rotated=rotated,
            )
            for b in (4, 2)
            for rotated in (True, False)
        ),
        *(CacheBaseline(name=f"rotated {b}-bit code", recode=alike(lambda x, b=b: rotated_code(x, b))) for b in (4, 3)),
        CacheBaseline(name="rank of a quarter per head", recode=alike(lambda x: low_rank(x, x.shape[-1] // 4))),
        CacheBaseline(
            name="window of 256 tokens", recode=alike(lambda x: (x[-256:], 16.0 * x[-256:].size)), window=256
        ),
    ]


def _bfloat16(x: Kind) -> Kind:
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def integers(x: Kind, bits: int, group: int, axis: int) -> tuple[Kind, float]:
    """Round to integers, with a scale and a zero point per group of neighbours on an axis."""
    moved = np.moveaxis(x, axis, -1)
    n = moved.shape[-1]
    size = min(group, n)
    padded = np.concatenate((moved, np.repeat(moved[..., -1:], -n % size, -1)), -1)
    blocks = padded.reshape(*padded.shape[:-1], -1, size)
    low, high = blocks.min(-1, keepdims=True), blocks.max(-1, keepdims=True)
    scale = np.maximum(((high - low) / (2**bits - 1)).astype(np.float16).astype(np.float32), 1e-8)
    low = low.astype(np.float16).astype(np.float32)
    rounded = np.clip(np.rint((blocks - low) / scale), 0, 2**bits - 1) * scale + low
    again = rounded.reshape(padded.shape)[..., :n]
    return np.moveaxis(again, -1, axis).astype(np.float32), bits * x.size + 32.0 * blocks[..., 0].size


def rotated_code(x: Kind, bits: int) -> tuple[Kind, float]:
    """Rotate channels at random, and round to the levels that are best for normal values of the same norm.

    References
    ----------
    Zandieh et al. (2025), TurboQuant, arXiv:2504.19874.
    """
    d = x.shape[-1]
    q = np.linalg.qr(np.random.default_rng(0).normal(size=(d, d)))[0].astype(np.float32)
    norm = np.linalg.norm(x, axis=-1, keepdims=True).astype(np.float16).astype(np.float32)
    unit = (x / np.maximum(norm, 1e-8)) @ q * np.sqrt(d)
    levels = normal_levels(bits)
    rounded = levels[np.searchsorted(0.5 * (levels[1:] + levels[:-1]), unit)]
    return (rounded @ q.T / np.sqrt(d) * norm).astype(np.float32), bits * x.size + 16.0 * norm.size


def normal_levels(bits: int) -> Float[np.ndarray, " levels"]:
    """Return the levels with the least squared error for standard normal values (Lloyd, 1982)."""
    from scipy.stats import norm

    levels = norm.ppf((np.arange(2**bits) + 0.5) / 2**bits)
    for _ in range(200):
        edges = np.concatenate(([-np.inf], 0.5 * (levels[1:] + levels[:-1]), [np.inf]))
        levels = -np.diff(norm.pdf(edges)) / np.diff(norm.cdf(edges))
    return levels.astype(np.float32)


def low_rank(x: Kind, rank: int) -> tuple[Kind, float]:
    """Store the principal components of every head of this cache, and the coefficients, in 16 bits."""
    tokens, layers, heads, d = x.shape
    flat = x.transpose(1, 2, 0, 3)
    u, s, vt = np.linalg.svd(flat, full_matrices=False)
    again = (u[..., :rank] * s[..., None, :rank]) @ vt[..., :rank, :]
    return again.transpose(2, 0, 1, 3).astype(np.float32), 16.0 * layers * heads * rank * (tokens + d)
