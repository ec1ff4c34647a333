"""The least-squares problem of one core of a linear network, with all others fixed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .._typing import Float, Inds
from ..calculus import forward
from ..program import Program, cached_program
from ..topology import Core, Segment
from ._metric import along

_RIDGE = 1e-11  # of the mean eigenvalue of a Gram matrix, as gauges make it singular
_LARGEST = 2100  # unknowns for each output up to which a Gram matrix is made and factored
_STEPS = 16  # of conjugate gradients, where it is not

MOMENT, PULLED, UNKNOWN = "moment", "pulled", "unknown"


@dataclass(frozen=True)
class Group:
    """Indices of a core between which and the others its Gram matrix is a Kronecker product.

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
    """

    def __init__(self, cores: Sequence[Core], core: Core, outer: Inds, inner: Inds, legs: Mapping[str, int]) -> None:
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
        self.is_direct = self.unknowns <= _LARGEST
        self.own: Group | None = None  # the moment on the input legs of the core alone
        if self.is_direct:
            self.gram = _program((moment, *behind, *copies), (*self.mixed, *map(_copy, self.mixed)))
        else:
            own = tuple(i for i in core.inds if i in inner)
            traced = tuple(_copy(i) if i in own else i for i in inner)
            alone = replace(moment, inds=(*inner, *traced))
            self.own = Group(own, _program((alone,), (*own, *map(_copy, own)))) if len(own) > 1 else None
            rest = tuple(i for i in self.order if i not in self.mixed)
            unknown = _given(UNKNOWN, self.order, self.shape)
            out = (*rest, *map(_copy, self.mixed))
            self.gram = _program((unknown, moment, *behind, *copies), out)

    def solve(
        self, params: dict[str, Float[np.ndarray, "..."]], pulled: Float[np.ndarray, "*legs"], moment: Any
    ) -> tuple[Float[np.ndarray, "..."], float]:
        """Find the best core.

        Parameters
        ----------
        params : dict of str to numpy.ndarray
            The parameters of all cores.
        pulled : numpy.ndarray
            The target, times the moment.
        moment : numpy.ndarray
            The moment, of shape ``(*inner, *inner)``.

        Returns
        -------
        tuple of numpy.ndarray and float
            The core, and the decrease of the squared error below that of zero.
        """
        arrays = {**params, PULLED: pulled, MOMENT: moment}
        right = np.asarray(forward(self.right, arrays)).reshape(self.shape)
        factors = [_factored(forward(group.gram, arrays)) if group.gram else None for group in self.groups]
        kept = [math.prod(self._dim(i) for i in group.inds) for group in self.groups]
        if self.is_direct:
            factors.append(_factored(forward(self.gram, arrays)))
            solution = _divided(right.reshape(*kept, -1), factors).reshape(self.shape)
            decrease = float(np.vdot(right, solution))
        else:
            start = np.transpose(params[self.core.param], [self.core.inds.index(i) for i in self.order])
            solution, decrease = self._iterated(arrays, right, start, factors, kept)
        back = np.transpose(solution, [self.order.index(i) for i in self.core.inds])
        return np.ascontiguousarray(back), decrease

    def _dim(self, ind: str) -> int:
        return self.shape[self.order.index(ind)]

    def _iterated(
        self,
        arrays: dict[str, Float[np.ndarray, "..."]],
        right: Float[np.ndarray, "..."],
        x: Float[np.ndarray, "..."],
        factors: list[Any],
        kept: list[int],
    ) -> tuple[Float[np.ndarray, "..."], float]:
        """Improve the core by conjugate gradients, with the Gram matrix for inputs without correlations to start."""
        near = [_factored(forward(group.gram, arrays)) for group in self.nearly if group.gram]
        sides = [math.prod(self._dim(i) for i in group.inds) for group in self.nearly]
        # the mixed indices are in this order: own legs, then the groups
        shape = (*kept, self.unknowns // math.prod(sides), *sides)
        own = _factored(forward(self.own.gram, arrays)) if self.own and self.own.gram else None
        grams = [
            forward(group.gram, arrays).reshape(n, n) if group.gram else None
            for group, n in zip(self.groups, kept, strict=True)
        ]

        def times(v: np.ndarray) -> np.ndarray:
            product = np.asarray(forward(self.gram, {**arrays, UNKNOWN: v})).reshape(*kept, -1)
            for axis, gram in enumerate(grams):
                product = product if gram is None else along(gram, product, axis)
            return product.reshape(self.shape)

        def divide(v: np.ndarray) -> np.ndarray:
            return _divided(v.reshape(shape), [*factors, own, *near]).reshape(self.shape)

        x = np.ascontiguousarray(x)
        bent = times(x)
        residual = right - bent
        z = divide(residual)
        p, rz = z, float(np.vdot(residual, z))
        first = rz
        for _ in range(_STEPS):
            if not rz > 1e-6 * first or rz <= 0.0:
                break
            image = times(p)
            step = rz / float(np.vdot(p, image))
            x, bent = x + step * p, bent + step * image
            residual = residual - step * image
            z = divide(residual)
            rz, old = float(np.vdot(residual, z)), rz
            p = z + (rz / old) * p
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
    return cached_program((Segment((), cores, outputs),))


def _factored(gram: Float[np.ndarray, "..."]) -> Any:
    from scipy.linalg import cho_factor

    n = math.isqrt(gram.size)
    matrix = np.array(gram, dtype=np.float64).reshape(n, n)
    matrix.flat[:: n + 1] += _RIDGE * np.trace(matrix) / n + 1e-300
    return cho_factor(matrix.T, overwrite_a=True, check_finite=False)  # LAPACK stores columns


def _divided(x: Float[np.ndarray, "..."], factors: Sequence[Any]) -> Float[np.ndarray, "..."]:
    """Divide every axis by the matrix of that factorisation."""
    from scipy.linalg import cho_solve

    for axis, factor in enumerate(factors):
        if factor is not None:
            first = np.moveaxis(x, axis, 0)
            solved = cho_solve(factor, first.reshape(len(first), -1), check_finite=False)
            x = np.moveaxis(solved.reshape(first.shape), 0, axis)
    return x
