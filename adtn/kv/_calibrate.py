"""Calibration: from texts to bases, weights and expected magnitudes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from autoray import do

from .._typing import Float, Int
from ..errors import KVCacheError
from ._basis import Basis, components_of, weights_of, with_columns
from ._coefficients import Magnitudes, Sums, earlier_means
from ._decoder import Decoder
from ._nearness import BUCKETS, buckets_of, shifts_of
from ._order import Order
from ._pair import Pair
from ._tables import FIRST, PER_OCTAVE, grid_index, grid_value

Precision = Literal["int4", "int8", "float16"]
"""How components are stored: small ones in int8, those and the smallest in 8 and 4 bits, or all in float16."""
_LARGE = 3 * PER_OCTAVE  # coefficients of at least so many steps have components in float16
_SMALL = -PER_OCTAVE // 2  # those of fewer finest steps may have them in 4 bits
Weighting = Literal["full", "scalar", "none"]
"""How errors of states count: by the second moments of gradients, by their traces, or all alike."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A way to read texts for a calibration; see :meth:`adtn.KVCodec.calibrate`."""

    continuation: int
    samples: int
    weighting: Weighting
    sinks: int
    seed: int
    precision: Precision
    least: int
    say: Callable[[str], None]


@dataclass(kw_only=True)
class Moments:
    """The sums over tokens of the states and gradients of keys, or of values.

    Parameters
    ----------
    fisher : array, (layers, heads, channels, channels)
        Second moments of gradients.
    mean : array, (layers, heads, channels)
    covariances : list of array, (n, n)
        Second moments of the states of every group of layers; after :meth:`finished`, without the mean.
    nearness : array, (layers, heads, buckets)
        Squared norms of gradients, by how far tokens are from the end of their prefix; see :func:`buckets_of`.
    near : array, (buckets,)
        The number of tokens in these sums.
    gradients, tokens : int
        The number of tokens in both kinds of other sums.
    """

    fisher: Float[np.ndarray, "layers heads channels channels"]
    mean: Float[np.ndarray, "layers heads channels"]
    covariances: list[Float[np.ndarray, "n n"]]
    nearness: Float[np.ndarray, "layers heads buckets"]
    near: Int[np.ndarray, " buckets"]
    gradients: int = 0
    tokens: int = 0

    @classmethod
    def zeros(cls, shape: tuple[int, int, int], groups: Sequence[Sequence[int]]) -> Moments:
        """Make empty sums."""
        _, heads, d = shape
        sizes = [len(group) * heads * d for group in groups]
        return cls(
            fisher=np.zeros((*shape, d)),
            mean=np.zeros(shape),
            covariances=[np.zeros((n, n), np.float32) for n in sizes],
            nearness=np.zeros((*shape[:2], BUCKETS)),
            near=np.zeros(BUCKETS, np.int64),
        )

    def add_states(self, x: Float[np.ndarray, "tokens layers heads channels"], groups: Sequence[Sequence[int]]) -> None:
        """Add the states of tokens."""
        self.mean += x.sum(0)
        self.tokens += len(x)
        for covariance, group in zip(self.covariances, groups, strict=True):
            own = x[:, list(group)].reshape(len(x), -1)
            covariance += own.T @ own

    def add_gradients(self, g: Float[np.ndarray, "tokens layers heads channels"]) -> None:
        """Add the gradients of tokens."""
        self.fisher += np.einsum("tlhc,tlhd->lhcd", g, g, optimize=True)
        self.gradients += len(g)
        buckets = buckets_of(len(g))
        self.near += np.bincount(buckets, minlength=BUCKETS)
        norms = np.einsum("tlhc,tlhc->tlh", g, g)
        for bucket in np.unique(buckets):
            self.nearness[..., bucket] += norms[buckets == bucket].sum(0)

    def regrouped(self, groups: Sequence[Sequence[int]]) -> Moments:
        """Return the moments of other groups of layers, for those of one group of all layers."""
        (whole,), size = self.covariances, self.mean[0].size
        at = [np.concatenate([np.arange(k * size, (k + 1) * size) for k in group]) for group in groups]
        return replace(self, covariances=[whole[np.ix_(own, own)] for own in at])

    def finished(self, groups: Sequence[Sequence[int]]) -> Moments:
        """Return means instead of sums."""
        mean = self.mean / self.tokens
        covariances: list[np.ndarray] = []
        for covariance, group in zip(self.covariances, groups, strict=True):
            own = mean[list(group)].reshape(-1)
            covariances.append(covariance / self.tokens - np.outer(own, own))
        return Moments(
            fisher=self.fisher / max(self.gradients, 1),
            mean=mean,
            covariances=covariances,
            nearness=self.nearness / np.maximum(self.near, 1),
            near=self.near,
            gradients=self.gradients,
            tokens=self.tokens,
        )


def checked_texts(token_ids: Any, continuation: int, sinks: int) -> list[Int[np.ndarray, " n"]]:
    """Return texts as arrays.

    Raises
    ------
    KVCacheError
        If there are none, or they are too short.
    """
    texts = [np.asarray(ids) for ids in token_ids]
    least = continuation + sinks + 2
    if not texts or any(ids.ndim != 1 or len(ids) < least for ids in texts):
        shapes = sorted({ids.shape for ids in texts})[:3]
        raise KVCacheError(
            f"Got {len(texts)} texts of shapes {', '.join(map(str, shapes)) or 'none'}; expected at least one, each of "
            f"at least {least} token ids: the prefix, and {continuation} tokens that read it."
        )
    if any(not np.issubdtype(ids.dtype, np.integer) for ids in texts):
        raise KVCacheError(f"Got texts of dtype {texts[0].dtype}; expected token ids.")
    return texts


def groups_of(layers: int, size: int | None) -> tuple[tuple[int, ...], ...]:
    """Return groups of neighbouring layers, of about equal sizes.

    Examples
    --------
    >>> groups_of(5, 2)
    ((0, 1), (2, 3), (4,))
    """
    parts = np.array_split(np.arange(layers), -(-layers // (size or layers)))
    return tuple(tuple(int(k) for k in part) for part in parts)


def prefixes(
    decoder: Decoder, texts: Iterable[Int[np.ndarray, " n"]], continuation: int, sinks: int
) -> Iterator[tuple[Pair[np.ndarray], Int[np.ndarray, " tokens"]]]:
    """Return the states of the coded tokens of texts, with their ids."""
    for ids in texts:
        first = ids[:-continuation]
        states = decoder.states(decoder.prefill(first)).map(lambda x: to_host(x)[sinks:])
        yield states, first[sinks:]


def moments_of(
    decoder: Decoder, texts: Sequence[Int[np.ndarray, " n"]], groups: Sequence[Sequence[int]], recipe: Recipe
) -> Pair[Moments]:
    """Return the moments of the states and gradients of texts."""
    sums: Pair[Moments] | None = None
    for n, ids in enumerate(texts):
        recipe.say(f"text {n + 1} of {len(texts)}")
        cache = decoder.prefill(ids[: -recipe.continuation])
        states = decoder.states(cache).map(lambda x: to_host(x)[recipe.sinks :])
        if sums is None:
            sums = states.map(lambda x: Moments.zeros((x.shape[1], x.shape[2], x.shape[3]), groups))
        for own, x in zip(sums, states, strict=True):
            own.add_states(x, groups)
        if recipe.weighting == "none":
            continue
        for gradients in decoder.gradients(cache, ids[-recipe.continuation :], recipe.samples, recipe.seed + n):
            for own, g in zip(sums, gradients, strict=True):
                own.add_gradients(to_host(g)[recipe.sinks :])
    assert sums is not None
    return sums.map(lambda own: own.finished(groups))


def to_host(x: Any) -> np.ndarray:
    """Copy an array of any framework to the host, in float32."""
    return np.asarray(do("to_numpy", x), np.float32)


def bases_of(
    moments: Pair[Moments], groups: Sequence[Sequence[int]], weighting: Weighting
) -> tuple[Pair[list[Basis]], int]:
    """Return the complete bases of all groups, and the unit of their weights, a point of the grid of steps.

    Weights are divided by their typical size, so that their inverses can be stored in float16.
    """
    if weighting == "none":
        roots = moments.map(lambda m: np.broadcast_to(np.eye(m.mean.shape[-1]), m.fisher.shape).copy())
    else:
        roots = moments.map(lambda m: weights_of(m.fisher, full=weighting == "full"))
    diagonals = np.concatenate([np.einsum("lhcc->lhc", root).ravel() for root in roots])
    unit = int(grid_index(np.exp(np.log(np.maximum(diagonals, 1e-30)).mean())))

    def of(m: Moments, root: np.ndarray) -> list[Basis]:
        found: list[Basis] = []
        for group, covariance in zip(groups, m.covariances, strict=True):
            own = list(group)
            inverse = _storable(np.linalg.inv(root[own] / grid_value(unit)))
            none = np.zeros((0, 0))
            basis = Basis(
                mean=_storable(m.mean[own]),
                inverse=inverse,
                components=none.astype(np.float16),
                codes=none.astype(np.int8),
                scales=np.zeros(0, np.float16),
            )
            _, vectors = components_of(basis.weight.astype(np.float64), covariance)
            found.append(with_columns(basis, vectors))
        return found

    return Pair(k=of(moments.k, roots.k), v=of(moments.v, roots.v)), unit


def _storable(x: np.ndarray) -> np.ndarray:
    """Round to float16, or to float32 where that cannot hold the values."""
    return x.astype(np.float16 if np.abs(x).max(initial=0.0) < 6e4 else np.float32)


def magnitudes_of(
    bases: Pair[list[Basis]],
    groups: Sequence[Sequence[int]],
    texts: Iterable[tuple[Pair[Any], Int[np.ndarray, " tokens"]]],
    moments: Pair[Moments],
    least: int,
) -> Pair[list[Magnitudes]]:
    """Return what is expected of the coefficients of texts, given as states and token ids, and their steps."""
    held: list[tuple[Pair[list[np.ndarray]], Order]] = []
    for states, ids in texts:
        held.append(
            (
                Pair(k=_coefficients(bases.k, groups, states.k), v=_coefficients(bases.v, groups, states.v)),
                Order.by_id(ids),
            )
        )

    def of(kind: Literal["k", "v"], g: int, basis: Basis) -> Magnitudes:
        sums = Sums(basis.columns.shape[1])
        own = [(getattr(c, kind)[g], order) for c, order in held]
        means = [earlier_means(c, order) for c, order in own]
        for (c, order), mean in zip(own, means, strict=True):
            sums.add_predictions(c, mean, order)
        parts = sums.parts.astype(np.float32) / 127.0
        for (c, order), mean in zip(own, means, strict=True):
            sums.add_magnitudes(c - parts[order.classes] * mean, order)
        whole = getattr(moments, kind)
        shifts = shifts_of(whole.nearness[list(groups[g])], whole.near)
        return Magnitudes(indices=sums.indices, parts=sums.parts, shifts=shifts, least=least)

    return Pair(
        k=[of("k", g, basis) for g, basis in enumerate(bases.k)],
        v=[of("v", g, basis) for g, basis in enumerate(bases.v)],
    )


def _coefficients(bases: Sequence[Basis], groups: Sequence[Sequence[int]], x: Any) -> list[np.ndarray]:
    return [
        np.asarray(basis.coefficients(np.asarray(x)[:, list(group)]))
        for basis, group in zip(bases, groups, strict=True)
    ]


def active(basis: Basis, magnitudes: Magnitudes, finest: int, precision: Precision) -> tuple[Basis, Magnitudes]:
    """Return a basis without the coefficients that have no symbols at the finest step, in a precision."""
    tables = magnitudes.tables_of_classes(finest).max(0)
    large = tables >= (FIRST if precision == "float16" else _LARGE)
    small = (tables < _SMALL) & (precision == "int4")
    kept = tables >= FIRST
    order = np.concatenate([np.flatnonzero(kept & own) for own in (large, ~large & ~small, small)])
    return (
        with_columns(basis, basis.columns[:, order], large[order], small[order]),
        replace(
            magnitudes,
            indices=np.ascontiguousarray(magnitudes.indices[:, order]),
            parts=np.ascontiguousarray(magnitudes.parts[:, order]),
        ),
    )
