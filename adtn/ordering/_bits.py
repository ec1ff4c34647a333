"""Bits of everything that is stored: cores, scales, permutations, signs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from .._typing import Shape
from ..generator import Generator
from ..layout import Layout
from ..precision import Precision, parts_of
from ..topology import Topology, cores_of

_WHOLE = Precision("float32")


@dataclass(frozen=True, kw_only=True)
class StoredBits:
    """The bits of a tensor that is stored as a permuted network, by part.

    Parameters
    ----------
    cores : float
        The entries of the cores in their precision.
    scales : float
        The scales, zero points and exponents of that precision.
    permutations : float
        The binary logarithm of the number of orders that the kind of order can express; 0 for absorbed axes.
    signs : float
        The signs of the entries, if they are stored apart.

    Examples
    --------
    >>> StoredBits(cores=96.0, scales=16.0, permutations=4.0).total
    116.0
    """

    cores: float
    scales: float = 0.0
    permutations: float = 0.0
    signs: float = 0.0

    @property
    def total(self) -> float:
        """The sum of all parts."""
        return self.cores + self.scales + self.permutations + self.signs

    def __str__(self) -> str:
        parts = ("cores", "scales", "permutations", "signs")
        shown = [f"{name} {getattr(self, name):,.0f}" for name in parts if getattr(self, name)]
        return f"{self.total:,.0f} bits ({', '.join(shown)})"


def bits_of_permutation(n: int) -> float:
    """Compute ``log2(n!)``, the bits that an arbitrary permutation of ``n`` things needs.

    Examples
    --------
    >>> round(bits_of_permutation(4), 3), round(bits_of_permutation(384))
    (4.585, 2748)
    """
    return math.lgamma(n + 1) / math.log(2.0)


def bits_of_multinomial(counts: Iterable[int]) -> float:
    """Compute the bits that say which of all entries are in which bucket, for buckets of given sizes.

    Examples
    --------
    >>> round(bits_of_multinomial([2, 2]), 3)  # 6 ways to choose two of four
    2.585
    """
    sizes = list(counts)
    return bits_of_permutation(sum(sizes)) - sum(map(bits_of_permutation, sizes))


def bits_of_generator(generator: Generator) -> tuple[float, float]:
    """Return the bits of the stored parameters, and those of their scales."""
    shapes = [x.shape for x in generator.stored.values()]
    return _bits(shapes, generator.precision)


def bits_of_cores(topology: Topology, layout: Layout, precision: Precision | None) -> float:
    """Return the bits of the cores with their scales, without making a generator."""
    cores = {c.param: c.shape for c in cores_of(topology.segments(layout)) if c.trainable or c.init == "given"}
    return sum(_bits(cores.values(), precision))


def _bits(shapes: Iterable[Shape], precision: Precision | None) -> tuple[float, float]:
    entries = scales = 0
    for shape in shapes:
        parts = parts_of(shape, _WHOLE if precision is None else precision.of(shape))
        own = parts.entries.stop - parts.entries.start
        entries, scales = entries + own, scales + parts.nbytes - own
    return 8.0 * entries, 8.0 * scales
