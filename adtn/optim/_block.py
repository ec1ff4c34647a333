"""The least-squares problem of one core of a linear network, with all others fixed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .._typing import Float, Inds
from ..calculus import forward
from ..program import Program, compile_program
from ..topology import Core, Segment
from ._conjugate import conjugate_gradients
from ._metric import along

_RIDGE = 1e-11  # of the mean eigenvalue of a Gram matrix, as gauges make it singular
_LARGEST = 4096  # unknowns for each output up to which a Gram matrix may be made and factored
_STEPS = 8  # of conjugate gradients, where it is not
# how many products with the moment the factorisation may cost: an exact solution is worth more than as many steps
_WORTH = 30

MOMENT, PULLED, UNKNOWN = "moment", "pulled", "unknown"


@dataclass(frozen=True)
class Group:
    """A group of indices of a core that is one factor of the Kronecker product that is its Gram matrix.

    Parameters
    ----------
    inds : tuple of str
        The indices.
    gram : Program or None
        The Gram matrix of what is behind them, of shape ``(*inds, *inds)``; ``None`` where it is the identity.
    """

    inds: Inds
    gram: Program | None


class Block:
    """The least-squares problem of one core: its Gram matrix is a Kronecker product of those of groups of its indices.

    An output leg is a group for itself, with the identity; so is a bond to cores that have output legs only. All other
    bonds and the input legs are one group, as the moment of the inputs mixes them.

    Parameters
    ----------
    cores : sequence of Core
        All cores of the network.
    core : Core
        The one that is solved for.
    outer, inner : tuple of str
        Output legs and input legs.
    legs : dict of str to int
        The dimensions of all legs, in the order of the state.
    exact : int
        The number of unknowns up to which the Gram matrix is made whatever it costs.
    """

    def __init__(
        self, cores: Sequence[Core], core: Core, outer: Inds, inner: Inds, legs: Mapping[str, int], *, exact: int = 0
    ) -> None:
        self.core = core
        others = [one for one in cores if one is not core]
        clusters = _connected(others)
        mixed = [i for i in core.inds if i in inner]
        behind: list[Core] = []
        groups = [Group((i,), None) for i in core.inds if i in outer]
        nearly: list[Group] = []  # groups that would be separate if the moment were the identity
        for cluster in clusters:
            has = {i for one in cluster for i in one.inds}
            touching = tuple(i for i in core.inds if i in has)
            closed = Group(touching, _gram(cluster, touching, legs))
            if has & set(inner):
                behind += cluster
                mixed += touching
                nearly.append(closed)
            else:
                groups.append(closed)
        self.groups = groups
        self.mixed = tuple(mixed)
        self.nearly = nearly
        self.order = (*(i for group in groups for i in group.inds), *self.mixed)
        size = dict(zip(core.inds, core.shape, strict=True))
        self.shape = tuple(size[i] for i in self.order)
        self.unknowns = math.prod(size[i] for i in self.mixed)
        moment = _given(MOMENT, (*inner, *map(_copy, inner)), tuple(legs[i] for i in inner) * 2)
        copies = [_copied(one, {*outer}) for one in behind]
        pulled = _given(PULLED, tuple(legs), tuple(legs.values()))
        self.right = _program((pulled, *others), self.order)
        rest = tuple(i for i in self.order if i not in self.mixed)
        unknown = _given(UNKNOWN, self.order, self.shape)
        product = _program((unknown, moment, *behind, *copies), (*rest, *map(_copy, self.mixed)))
        gram = _program((moment, *behind, *copies), (*self.mixed, *map(_copy, self.mixed)))
        dense = gram.flops + self.unknowns**3 / 3
        affordable = self.unknowns <= _LARGEST and dense <= _WORTH * product.flops
        self.is_direct = affordable or self.unknowns <= exact
        self.gram = gram if self.is_direct else product
        own = tuple(i for i in core.inds if i in inner)
        traced = tuple(_copy(i) if i in own else i for i in inner)
        alone = replace(moment, inds=(*inner, *traced))
        # the moment on the input legs of the core alone
        self.own = _program((alone,), (*own, *map(_copy, own))) if own else None

    def solve(self, arrays: Mapping[str, Float[np.ndarray, "..."]]) -> tuple[Float[np.ndarray, "..."], float]:
        """Find the best core, or a better one where the Gram matrix is too large.

        Parameters
        ----------
        arrays : mapping of str to numpy.ndarray
            The parameters of all cores, ``"moment"`` of shape ``(*inner, *inner)`` and ``"pulled"``, the target times
            the moment.

        Returns
        -------
        tuple of numpy.ndarray and float
            The core, and the decrease of the squared error below that of zero.
        """
        right = np.asarray(forward(self.right, arrays)).reshape(self.shape)
        divide = self._inverse(arrays)
        if self.is_direct:
            solution = divide(right)
            return self._to_core(solution), float(np.vdot(right, solution))
        solution, decrease = self._iterated(arrays, right, self._from_core(arrays[self.core.param]), divide)
        return self._to_core(solution), decrease

    def gram_factors(
        self, arrays: Mapping[str, Float[np.ndarray, "..."]]
    ) -> list[tuple[Inds, Float[np.ndarray, "n n"] | None]]:
        """Return the factors of the Gram matrix, or of an estimate where it is too large, with the indices of each.

        ``None`` stands for the identity.
        """
        grams = [(group.inds, group.gram) for group in self.groups]
        if self.is_direct:
            grams.append((self.mixed, self.gram))
        else:  # the mixed indices are in this order: own legs, then those of each cluster
            behind = [(group.inds, group.gram) for group in self.nearly]
            own = self.mixed[: len(self.mixed) - sum(len(inds) for inds, _ in behind)]
            grams += [(own, self.own), *behind]
        return [
            (inds, None if gram is None else np.asarray(forward(gram, arrays)).reshape(self._size(inds), -1))
            for inds, gram in grams
        ]

    def divided(
        self,
        gradient: Float[np.ndarray, "..."],
        factors: Sequence[tuple[Inds, Float[np.ndarray, "n n"] | None]],
        damping: float,
    ) -> Float[np.ndarray, "..."]:
        """Divide a core by the damped product of the factors."""
        shape = tuple(self._size(inds) for inds, _ in factors)
        ready = [None if gram is None else _factored(gram, damping) for _, gram in factors]
        return self._to_core(_divided(self._from_core(gradient).reshape(shape), ready).reshape(self.shape))

    def gradient(self, arrays: Mapping[str, Float[np.ndarray, "..."]]) -> Float[np.ndarray, "..."]:
        """Contract ``"pulled"`` with all other cores."""
        return self._to_core(np.asarray(forward(self.right, arrays)).reshape(self.shape))

    def _from_core(self, x: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        return np.ascontiguousarray(np.transpose(x, [self.core.inds.index(i) for i in self.order]))

    def _to_core(self, x: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        return np.ascontiguousarray(np.transpose(x, [self.order.index(i) for i in self.core.inds]))

    def _size(self, inds: Inds) -> int:
        return math.prod(self.shape[self.order.index(i)] for i in inds)

    def _inverse(
        self, arrays: Mapping[str, Float[np.ndarray, "..."]]
    ) -> Callable[[Float[np.ndarray, "..."]], Float[np.ndarray, "..."]]:
        """Factor the Gram matrix, or what it would be if inputs were not correlated between cores."""
        factors = self.gram_factors(arrays)
        shape = tuple(self._size(inds) for inds, _ in factors)
        ready = [None if gram is None else _factored(gram) for _, gram in factors]
        return lambda x: _divided(x.reshape(shape), ready).reshape(self.shape)

    def _iterated(
        self,
        arrays: Mapping[str, Float[np.ndarray, "..."]],
        right: Float[np.ndarray, "..."],
        x: Float[np.ndarray, "..."],
        divide: Callable[[Float[np.ndarray, "..."]], Float[np.ndarray, "..."]],
    ) -> tuple[Float[np.ndarray, "..."], float]:
        kept = [self._size(group.inds) for group in self.groups]
        grams = [
            None if group.gram is None else np.asarray(forward(group.gram, arrays)).reshape(n, n)
            for group, n in zip(self.groups, kept, strict=True)
        ]

        def times(v: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
            product = np.asarray(forward(self.gram, {**arrays, UNKNOWN: v})).reshape(*kept, -1)
            for axis, gram in enumerate(grams):
                product = product if gram is None else along(gram, product, axis)
            return product.reshape(self.shape)

        bent = times(x)
        change, image = conjugate_gradients(times, divide, right - bent, _STEPS)
        x, bent = x + change, bent + image
        return x, 2.0 * float(np.vdot(right, x)) - float(np.vdot(x, bent))


def _connected(cores: Sequence[Core]) -> list[list[Core]]:
    """Divide cores into those that are connected with each other by indices."""
    clusters: list[tuple[set[str], list[Core]]] = []
    for core in cores:
        joined, inds, apart = [core], set(core.inds), []
        for has, members in clusters:
            if has & inds:
                joined, inds = [*members, *joined], inds | has
            else:
                apart.append((has, members))
        clusters = [*apart, (inds, joined)]
    return [members for _, members in clusters]


def _gram(cluster: Sequence[Core], inds: Inds, legs: Mapping[str, int]) -> Program:
    """Plan the Gram matrix of a cluster over some of its indices, without a metric on its legs."""
    return _program((*cluster, *(_copied(one, set(legs)) for one in cluster)), (*inds, *map(_copy, inds)))


def _copy(ind: str) -> str:
    return f"{ind}'"


def _copied(core: Core, same: set[str]) -> Core:
    inds = tuple(i if i in same else _copy(i) for i in core.inds)
    return replace(core, name=_copy(core.name), inds=inds)


def _given(name: str, inds: Inds, shape: tuple[int, ...]) -> Core:
    return Core(name=name, inds=inds, shape=shape, param=name, kind="core", trainable=False, init="given")


def _program(cores: tuple[Core, ...], outputs: Inds) -> Program:
    return compile_program((Segment((), cores, outputs),))


def _factored(gram: Float[np.ndarray, "..."], ridge: float = _RIDGE) -> Any:
    from scipy.linalg import LinAlgError, cho_factor

    n = math.isqrt(gram.size)
    while True:
        matrix = np.array(gram, dtype=np.float64).reshape(n, n)
        matrix.flat[:: n + 1] += ridge * np.trace(matrix) / n + 1e-300
        try:
            return cho_factor(matrix.T, overwrite_a=True, check_finite=False)  # LAPACK stores columns
        except LinAlgError:  # rounding in a large matrix with few large eigenvalues exceeds the ridge
            ridge *= 100.0
            if ridge > 1.0:
                raise


def _divided(x: Float[np.ndarray, "..."], factors: Sequence[Any]) -> Float[np.ndarray, "..."]:
    """Divide every axis by the matrix of that factorisation."""
    from scipy.linalg import cho_solve

    for axis, factor in enumerate(factors):
        if factor is not None:
            first = np.moveaxis(x, axis, 0)
            solved = cho_solve(factor, first.reshape(len(first), -1), check_finite=False)
            x = np.moveaxis(solved.reshape(first.shape), 0, axis)
    return x
