"""The coordinates in which states of a group of layers are coded.

States of a token, of layer l and head h, are centred and weighted by the root A of the second moment F of gradients:
errors count as much as the model's outputs depend on them. The weighted states of all layers and heads of a group are
one vector z, and the basis U are the eigenvectors of E[z z^T]: with it no two coefficients c = U^T z are correlated.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from autoray import do

from .._typing import Array, Bool, Float, Int

_ZERO = np.int8(8)  # of entries in 4 bits
_SHRINKAGE = 0.02  # of second moments of gradients towards their mean eigenvalue


@dataclass(frozen=True, kw_only=True)
class Basis:
    """The means, weights and components of the states of a group of layers.

    Parameters
    ----------
    mean : array, (layers, heads, channels)
    inverse : array, (layers, heads, channels, channels)
        Inverses of the symmetric weights A.
    components : array, (layers * heads * channels, leading), float16
        The first orthonormal columns.
    codes : array, (layers * heads * channels, others), int8
        The other columns, divided by their scales. Their coefficients are small, and so are the errors of rounding.
    scales : array, (others,), float16
    nibbles : array, (layers * heads * channels / 2, last), uint8
        The last columns, in 4 bits, two rows in a byte. Their coefficients are smaller still.
    nibble_scales : array, (last,), float16
    """

    mean: Float[np.ndarray, "layers heads channels"]
    inverse: Float[np.ndarray, "layers heads channels channels"]
    components: Float[np.ndarray, "n leading"]
    codes: Int[np.ndarray, "n others"]
    scales: Float[np.ndarray, " others"]
    nibbles: Int[np.ndarray, "half last"] = field(default_factory=lambda: np.zeros((0, 0), np.uint8))
    nibble_scales: Float[np.ndarray, " last"] = field(default_factory=lambda: np.zeros(0, np.float16))

    @cached_property
    def weight(self) -> Float[np.ndarray, "layers heads channels channels"]:
        """The weights A, in float32."""
        return np.linalg.inv(self.inverse.astype(np.float64)).astype(np.float32)

    @cached_property
    def columns(self) -> Float[np.ndarray, "n coefficients"]:
        """All columns, in float32."""
        others = self.codes.astype(np.float32) * self.scales.astype(np.float32)
        leading = np.concatenate((self.components.astype(np.float32), others), axis=1)
        if not self.nibbles.size:
            return leading
        pairs = np.stack((self.nibbles & 15, self.nibbles >> 4), axis=1).reshape(-1, self.nibbles.shape[1])
        last = (pairs[: len(leading)].astype(np.float32) - _ZERO) * self.nibble_scales.astype(np.float32)
        return np.concatenate((leading, last), axis=1)

    def coefficients(self, x: Float[Array, "tokens layers heads channels"]) -> Float[Array, "tokens coefficients"]:
        """Return the coefficients of states."""
        mean, weight, columns = (_like(a, x) for a in (self.mean, self.weight, self.columns))
        z = do("einsum", "tlhd,lhde->tlhe", x - mean, weight)
        return do("reshape", z, (x.shape[0], columns.shape[0])) @ columns

    def states(self, c: Float[Array, "tokens coefficients"]) -> Float[Array, "tokens layers heads channels"]:
        """Return the states of coefficients."""
        mean, inverse, columns = (_like(a, c) for a in (self.mean, self.inverse, self.columns))
        z = do("reshape", c @ do("transpose", columns), (c.shape[0], *self.mean.shape))
        return do("einsum", "tlhe,lhed->tlhd", z, inverse) + mean


def with_columns(
    basis: Basis,
    columns: Float[np.ndarray, "n coefficients"],
    large: Bool[np.ndarray, " coefficients"] | None = None,
    small: Bool[np.ndarray, " coefficients"] | None = None,
) -> Basis:
    """Return a basis with other columns: ``large`` ones in float16, ``small`` ones in 4 bits, others in int8.

    They are in this order. All of them are in float16 if that is not said.
    """
    first = np.ones(columns.shape[1], bool) if large is None else np.asarray(large)
    last = np.zeros(columns.shape[1], bool) if small is None else np.asarray(small)
    codes, scales = _rounded(columns[:, ~first & ~last], 127, np.ones(1))
    nibbles, nibble_scales = _rounded(columns[:, last], 7, np.linspace(0.5, 1.0, 9))
    pairs = np.concatenate((nibbles, np.zeros((len(nibbles) % 2, nibbles.shape[1]), np.int8))) + _ZERO
    return replace(
        basis,
        components=np.ascontiguousarray(columns[:, first]).astype(np.float16),
        codes=codes,
        scales=scales,
        nibbles=(pairs[::2] | pairs[1::2] << 4).astype(np.uint8),
        nibble_scales=nibble_scales,
    )


def _rounded(
    columns: Float[np.ndarray, "n m"], most: int, clips: Float[np.ndarray, " tried"]
) -> tuple[Int[np.ndarray, "n m"], Float[np.ndarray, " m"]]:
    """Return integers and scales; those parts of the largest entry that have the least error."""
    x = columns.astype(np.float32)
    codes, scales = np.zeros(x.shape, np.int8), np.zeros(x.shape[1], np.float16)
    least = np.full(x.shape[1], np.inf)
    for clip in clips:
        tried = (clip * np.abs(x).max(0, initial=0.0) / most).astype(np.float16)
        divisors = np.maximum(tried.astype(np.float32), np.finfo(np.float16).smallest_subnormal)
        found = np.clip(np.rint(x / divisors), -most, most)
        errors = ((found * tried.astype(np.float32) - x) ** 2).sum(0)
        better = errors < least
        codes[:, better], scales[better], least[better] = found[:, better], tried[better], errors[better]
    return codes, scales


def _like(a: np.ndarray, x: Array) -> Array:
    return do("asarray", a.astype(np.float32), like=x)


def weights_of(
    fisher: Float[np.ndarray, "layers heads channels channels"], *, full: bool = True
) -> Float[np.ndarray, "layers heads channels channels"]:
    """Return the roots of second moments of gradients; scaled identities if they are not ``full``."""
    d = fisher.shape[-1]
    level = np.trace(fisher, axis1=-2, axis2=-1)[..., None, None] / d
    if not full:
        return np.sqrt(level) * np.eye(d)
    values, vectors = np.linalg.eigh(fisher + _SHRINKAGE * level * np.eye(d))
    return (vectors * np.sqrt(np.maximum(values, 0.0))[..., None, :]) @ np.swapaxes(vectors, -1, -2)


def components_of(
    weight: Float[np.ndarray, "layers heads channels channels"], covariance: Float[np.ndarray, "n n"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, "n n"]]:
    """Return the eigenvalues, largest first, and eigenvectors of the covariance of weighted states."""
    n, d = covariance.shape[0], weight.shape[-1]
    blocks = weight.reshape(-1, d, d)
    left = np.einsum("bde,bdn->ben", blocks, covariance.reshape(-1, d, n).astype(np.float64)).reshape(n, n)
    both = np.einsum("nbd,bde->nbe", left.reshape(n, -1, d), blocks).reshape(n, n)
    values, vectors = np.linalg.eigh(0.5 * (both + both.T))
    return values[::-1], vectors[:, ::-1]
