r"""Mean and variance of the output of a segment, without computing the output.

With Z = C(X; A) multilinear, and :math:`m_i \in \{0, 1\}` a mask of the entries of a padded weight that are not
padding,

.. math::
    \mu = \frac1N \sum_i m_i Z_i, \qquad s = \frac1N \sum_i m_i Z_i^2, \qquad N = \sum_i m_i .

Both are networks without open legs: the segment contracted with vectors of ones, and with its own copy. The mask of an
axis, :math:`[i < n]`, is a tensor train of bond 2 along its legs, with the states "equal to n - 1 so far" and "already
less". If the state X is not known, :math:`X \approx m + \sqrt v\, \xi` with independent :math:`\xi` gives

.. math::
    s = \frac{m^2 \lVert C 1\rVert^2 + v \lVert C\rVert^2}{N} .
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from .._typing import Float, Inds
from ..layout import Layout
from ..program import Program, compile_program
from ..topology import Core, Segment, sizes_of
from ._adjoint import forward

STATE = "moments/state"
_SAMPLE = "moments/sample"


@dataclass(frozen=True)
class Moments:
    """The mean and the mean square of the entries of a tensor."""

    mean: float
    square: float

    @property
    def spread(self) -> float:
        """The standard deviation, or the magnitude of the entries if all are equal."""
        variance = self.square - self.mean**2
        return math.sqrt(variance) if variance > 1e-12 * self.square else math.sqrt(max(self.square, 0.0))


def sampled_moments(values: Float[np.ndarray, "..."]) -> Moments:
    """Compute the moments of all entries of an array."""
    flat = values.reshape(-1)
    return Moments(float(np.mean(flat)), float(np.dot(flat, flat)) / max(flat.size, 1))


def segment_moments(
    segment: Segment,
    sizes: Mapping[str, int],
    arrays: Mapping[str, Float[np.ndarray, "..."]],
    state: Float[np.ndarray, "*inputs"] | Moments | None,
    layout: Layout | None = None,
) -> Moments:
    """Compute the moments of ``Z``.

    Parameters
    ----------
    segment : Segment
        The segment.
    sizes : mapping of str to int
        Dimension of each index of the program.
    arrays : mapping of str to array
        Values of the cores.
    state : array, Moments or None
        The incoming state with the legs of ``segment.inputs``, or its moments; ``None`` for a first segment.
    layout : Layout, optional
        The layout of the weight, for a last segment; padding does not count.
    """
    masks = _masks(segment.outputs, layout) if layout is not None else {}
    masked = {i for core, _ in masks.values() for i in core.inds}
    ones = {
        f"moments/one{q}": (_vector(f"moments/one{q}", i, sizes[i]), np.ones(sizes[i]))
        for q, i in enumerate(segment.outputs)
        if i not in masked
    }
    n = layout.size if layout is not None else math.prod(sizes[i] for i in segment.outputs)
    around = {name: core for name, (core, _) in {**masks, **ones}.items()}
    values = {**arrays, **{name: x for name, (_, x) in {**masks, **ones}.items()}}
    only_masks = tuple(around[name] for name in masks)
    if not isinstance(state, Moments):
        cores = segment.cores
        if state is not None:
            cores = (
                *cores,
                Core(name=STATE, inds=segment.inputs, shape=state.shape, param=STATE, kind="state", trainable=False),
            )
            values[STATE] = state
        copy = _copied(cores, set(segment.outputs))
        return Moments(_value((*cores, *around.values()), values) / n, _value((*cores, *copy, *only_masks), values) / n)
    probes = tuple(_vector(f"moments/in{q}", i, sizes[i]) for q, i in enumerate(segment.inputs))
    values |= {core.param: np.ones(core.shape) for core in probes}
    closed = (*segment.cores, *probes)
    sums = _value((*closed, *around.values()), values)
    squares = _value((*closed, *_copied(closed, set(segment.outputs)), *only_masks), values)
    shared = set(segment.outputs) | set(segment.inputs)
    through = tuple(  # legs that are on no core
        around[f"moments/one{q}"]
        for q, i in enumerate(segment.outputs)
        if f"moments/one{q}" in around and not any(i in core.inds for core in segment.cores)
    )
    norm = _value((*segment.cores, *_copied(segment.cores, shared), *only_masks, *through), values)
    variance = max(state.square - state.mean**2, 0.0)
    return Moments(state.mean * sums / n, (state.mean**2 * squares + variance * norm) / n)


def entries_at_random(
    segment: Segment, arrays: Mapping[str, Float[np.ndarray, "..."]], n: int, seed: int
) -> Float[np.ndarray, " n"]:
    """Compute ``n`` entries of ``Z`` of a first segment, selected by a seed, without the others."""
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, n], dtype=np.uint64)))
    sizes = sizes_of([segment])
    probes = tuple(
        Core(
            name=f"moments/at{q}",
            inds=(_SAMPLE, i),
            shape=(n, sizes[i]),
            param=f"moments/at{q}",
            kind="probe",
            trainable=False,
        )
        for q, i in enumerate(segment.outputs)
    )
    one_hot = {core.param: np.eye(core.shape[1])[rng.integers(core.shape[1], size=n)] for core in probes}
    program = compile_program((replace(segment, cores=(*segment.cores, *probes), outputs=(_SAMPLE,)),))
    return np.asarray(forward(program, {**arrays, **one_hot}))


def _value(cores: tuple[Core, ...], arrays: Mapping[str, Float[np.ndarray, "..."]]) -> float:
    return float(forward(_program(cores), arrays))


def _program(cores: tuple[Core, ...]) -> Program:
    return compile_program((Segment((), tuple(replace(core, trainable=False) for core in cores), ()),))


def _vector(name: str, ind: str, d: int) -> Core:
    return Core(name=name, inds=(ind,), shape=(d,), param=name, kind="probe", trainable=False)


def _copied(cores: tuple[Core, ...], shared: set[str]) -> tuple[Core, ...]:
    """Copy cores, sharing some indices with the originals."""

    def inds(old: Inds) -> Inds:
        return tuple(i if i in shared else f"{i}/copy" for i in old)

    return tuple(replace(core, name=f"{core.name}/copy", inds=inds(core.inds)) for core in cores)


def _masks(outputs: Inds, layout: Layout) -> dict[str, tuple[Core, Float[np.ndarray, "..."]]]:
    """Build for every padded axis the tensor train that is 1 on the entries that are not padding."""
    masks: dict[str, tuple[Core, Float[np.ndarray, "..."]]] = {}
    at = {leg: name for name, leg in zip(outputs, layout.leg_axes, strict=True)}
    for axis, (n, padded, factors) in enumerate(zip(layout.shape, layout.padded_shape, layout.factors, strict=True)):
        if n == padded:
            continue
        last, stride = n - 1, padded
        for k, d in enumerate(factors):
            stride //= d
            digit = last // stride % d
            train = np.zeros((2, d, 2))  # before, digit, after: 0 is "equal so far", 1 is "already less"
            train[0, digit, 0] = 1.0
            train[0, :digit, 1] = 1.0
            train[1, :, 1] = 1.0
            inds = [f"moments/mask{axis}_{k}", at[axis, k], f"moments/mask{axis}_{k + 1}"]
            if k + 1 == len(factors):
                train, inds = train.sum(2), inds[:2]
            if k == 0:
                train, inds = train[0], inds[1:]
            name = f"moments/mask{axis}_{k}/core"
            masks[name] = (
                Core(name=name, inds=tuple(inds), shape=train.shape, param=name, kind="probe", trainable=False),
                train,
            )
    return masks
