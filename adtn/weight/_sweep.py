"""The input passed through the network core by core, with a stop at every bond."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from autoray import do

from .._typing import Array, Float, Inds, Params
from ..backends import Backend
from ..calculus import forward
from ..errors import TopologyError
from ..topology import Segment, sizes_of
from ._traced import TracedApply, equation_of
from ._weighting import Weighting

Visit: TypeAlias = Callable[[str, Float[Array, "batch rest bond"]], Float[Array, "batch rest bond"]]
"""Takes a bond with what is on it, and returns what goes on."""

_BATCH = 64  # rows for which the order of the cores is chosen


@dataclass(frozen=True, kw_only=True)
class SweepStep:
    """One more core.

    Parameters
    ----------
    slot : int
        Of the core among the terms of the segment.
    equation : str
        The product of what was read so far with it.
    inds : tuple of str
        Indices of the result.
    bonds : tuple of str
        Those that the core opens.
    """

    slot: int
    equation: str
    inds: Inds
    bonds: tuple[str, ...]


class Sweep:
    """The product ``y = x Wᵀ``, one core of the last segment after the other, beginning at the input.

    After each core, what was read is a tensor with the open bonds, the inputs that were not read yet, and the outputs
    that are finished. Every bond is visited once, when its first end has been read; the framework differentiates.

    Parameters
    ----------
    segments : tuple of Segment
        The segments of the generator; the last one has no activation.
    weighting : Weighting
        The formula that converts a state to a weight.
    backend : Backend
        The backend of the arrays.

    Raises
    ------
    TopologyError
        If the weight has a single axis, its last segment has an activation, or a tensor has too many indices.
    """

    def __init__(self, segments: tuple[Segment, ...], weighting: Weighting, backend: Backend) -> None:
        if len(weighting.layout.factors) < 2 or segments[-1].activation != "identity":
            raise TopologyError(
                f"Got a weight with {len(weighting.layout.factors)} axes whose last segment ends with "
                f"{segments[-1].activation!r}; expected at least two and 'identity', as the input passes through the "
                "last segment only."
            )
        self._applied = TracedApply(segments, weighting, backend)
        self.steps = _steps(self._applied.last)
        self.bonds = tuple(bond for step in self.steps for bond in step.bonds)
        sizes = sizes_of([self._applied.last])
        self.sizes = {bond: sizes[bond] for bond in self.bonds}

    def __call__(self, arrays: Params, x: Float[Array, "batch n_in"], visit: Visit) -> Float[Array, "batch n_out"]:
        """Multiply ``(batch, n_in)`` to ``(batch, n_out)``."""
        own = self._applied
        slots = [] if own.head is None else [forward(own.head, arrays, own.space)]
        slots += [arrays[core.param] for core in own.last.cores[:-1]]
        found = do("reshape", own.weighting.pad_input(x), (x.shape[0], *own.legs))
        for step in self.steps:
            found = do("einsum", step.equation, found, slots[step.slot], like=x)
            for bond in step.bonds:
                found = _visited(found, step.inds.index(bond), bond, visit)
        return own.weighting.product_from_state(found, arrays, x)


def _visited(found: Float[Array, " batch *legs"], axis: int, bond: str, visit: Visit) -> Float[Array, " batch *legs"]:
    moved = do("moveaxis", found, axis, -1)
    seen = visit(bond, do("reshape", moved, (moved.shape[0], -1, moved.shape[-1])))
    return do("moveaxis", do("reshape", seen, tuple(moved.shape)), -1, axis)


def _steps(segment: Segment) -> tuple[SweepStep, ...]:
    """Choose the next core so that what was read is as small as possible.

    Raises
    ------
    TopologyError
        If there are not enough letters for an equation.
    """
    *terms, running = segment.terms
    sizes = {**sizes_of([segment]), running[0]: _BATCH}
    legs = {*running, *segment.outputs}
    left, steps, visited = dict(enumerate(terms)), list[SweepStep](), set[str]()

    def after(k: int) -> Inds:
        needed = {*segment.outputs, *(i for n, term in left.items() if n != k for i in term)}
        return tuple(i for i in dict.fromkeys((*running, *left[k])) if i in needed)

    def size(k: int) -> tuple[bool, int, int]:
        return not set(running) & set(left[k]), math.prod(sizes[i] for i in after(k)), k

    while left:
        k = min(left, key=size)
        inds = after(k) if len(left) > 1 else segment.outputs
        bonds = tuple(i for i in inds if i in left[k] and i not in legs | visited)
        equation = equation_of(running, left[k], inds)
        if not equation:
            raise TopologyError(
                f"Got a network with tensors of {len({*running, *left[k]})} indices; expected 52 at most."
            )
        steps.append(SweepStep(slot=k, equation=equation, inds=inds, bonds=bonds))
        visited |= set(bonds)
        running = inds
        del left[k]
    return tuple(steps)
