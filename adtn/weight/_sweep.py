"""An input that passes a network core by core, with a stop at every bond."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from autoray import do

from .._typing import Array, Float, Inds, Int, Params
from ..backends import Backend
from ..calculus import forward
from ..errors import TopologyError
from ..program import compile_program
from ..topology import Segment, get_activation, sizes_of
from ._traced import before_last, equation_of
from ._weighting import OneHot, Weighting

Enters: TypeAlias = Literal["columns", "rows", "lookup"]
"""Where an input enters the network: at the legs of the columns for ``x Wᵀ``, at those of the rows for ``x W``, or, for
a lookup of a row, as one digit on each leg of the rows."""
Visit: TypeAlias = Callable[[str, Float[Array, "batch rest bond"]], Float[Array, "batch rest bond"]]
"""Takes a bond with what is on it, and returns what goes on."""

_INPUT = "x/batch"
_BATCH = 64  # rows for which the order of the cores is chosen


@dataclass(frozen=True, kw_only=True)
class SweepStep:
    """One more core.

    Parameters
    ----------
    slot : int
        Of the core among the terms of the segment.
    equation : str
        The product of what was read so far with it, and with the digits of a lookup.
    inds : tuple of str
        Indices of the result.
    bonds : tuple of str
        Those that the core opens.
    digits : tuple of str
        Its legs that the digits of a lookup fix.
    """

    slot: int
    equation: str
    inds: Inds
    bonds: tuple[str, ...]
    digits: tuple[str, ...] = ()


class Sweep:
    """A product with a weight, one core of the last segment after the other, beginning at the input.

    After each core, what was read is a tensor with the open bonds, the inputs that were not read yet, and the outputs
    that are finished. Every bond is visited once, when its first end has been read; the framework differentiates.

    Parameters
    ----------
    segments : tuple of Segment
        The segments of the generator.
    weighting : Weighting
        The formula that converts a state to a weight.
    backend : Backend
        The backend of the arrays.
    enters : {"columns", "rows", "lookup"}
        Where the input enters.

    Raises
    ------
    TopologyError
        If the weight has a single axis, its last segment ends with an activation and this is not a lookup, or a tensor
        has too many indices.
    """

    def __init__(
        self, segments: tuple[Segment, ...], weighting: Weighting, backend: Backend, enters: Enters = "columns"
    ) -> None:
        layout, last = weighting.layout, segments[-1]
        if len(layout.factors) < 2 or (last.activation != "identity" and enters != "lookup"):
            raise TopologyError(
                f"Got a weight with {len(layout.factors)} axes whose last segment ends with {last.activation!r}; "
                "expected at least two and 'identity', as the input passes through the last segment only."
            )
        self.weighting, self.enters = weighting, enters
        self.space = backend.workspace(0)  # without memory: it is copied with the module
        before = before_last(segments)
        self.head = compile_program(before) if before else None
        self._params = tuple(core.param for core in last.cores)
        self._end = get_activation(last.activation)
        legs = sorted(zip(layout.leg_axes, last.outputs, layout.dims, strict=True))
        sides = [[(ind, d) for (axis, _), ind, d in legs if (axis > 0) == is_column] for is_column in (False, True)]
        read, made = sides[::-1] if enters == "columns" else sides
        self._legs = tuple(d for _, d in read)
        factors = layout.factors[0]
        strides = [(math.prod(factors[k + 1 :]), d) for k, d in enumerate(factors)]
        by_leg = dict(zip((ind for ind, _ in sides[0]), strides, strict=True))
        self._digits = by_leg if enters == "lookup" else {}
        running = (_INPUT, *(ind for ind, _ in read if ind not in self._digits))
        self.steps = _steps(last, running, (_INPUT, *(ind for ind, _ in made)), frozenset(self._digits))
        self.bonds = tuple(bond for step in self.steps for bond in step.bonds)
        sizes = sizes_of([last])
        self.sizes = {bond: sizes[bond] for bond in self.bonds}

    def __call__(self, arrays: Params, x: Float[Array, "batch n"], visit: Visit) -> Float[Array, "batch m"]:
        """Multiply ``(batch, n_in)`` to ``(batch, n_out)``; where rows are read, the other way round."""
        own, is_forward = self.weighting, self.enters == "columns"
        given = own.pad_input(x) if is_forward else own.output_adjoint(x)
        state = self._swept(arrays, do("reshape", given, (x.shape[0], *self._legs)), visit)
        if is_forward:
            return own.product_from_state(state, arrays, x)
        y = do("reshape", own.rows(state), (x.shape[0], math.prod(own.layout.shape[1:])))
        return y if not own.has_base else y + own.scaled(own.base_product_adjoint(arrays, x), arrays)

    def lookup(
        self, arrays: Params, index: Int[Array, " batch"], one_hot: OneHot, visit: Visit
    ) -> Float[Array, " batch *inner"]:
        """Return rows of the weight by their indices, ``(batch,)`` to ``(batch, *shape[1:])``."""
        own = self.weighting
        place = own.generated_index(index)
        digits = {leg: one_hot(place // stride % d, d) for leg, (stride, d) in self._digits.items()}
        first = do("reshape", one_hot(place * 0, 1), (index.shape[0],))
        state = self._end.value(self._swept(arrays, first, visit, digits))
        rows = do("reshape", own.rows(state), (index.shape[0], *own.layout.shape[1:]))
        return rows if not own.has_base else rows + own.scaled(own.base_rows(arrays, index, one_hot), arrays)

    def _swept(
        self,
        arrays: Params,
        found: Float[Array, " batch *legs"],
        visit: Visit,
        digits: dict[str, Float[Array, "batch leg"]] | None = None,
    ) -> Float[Array, " batch *made"]:
        slots = [] if self.head is None else [forward(self.head, arrays, self.space)]
        slots += [arrays[param] for param in self._params]
        for step in self.steps:
            fixed = [(digits or {})[leg] for leg in step.digits]
            found = do("einsum", step.equation, found, slots[step.slot], *fixed, like=found)
            for bond in step.bonds:
                found = _visited(found, step.inds.index(bond), bond, visit)
        return found


def _visited(found: Float[Array, " batch *legs"], axis: int, bond: str, visit: Visit) -> Float[Array, " batch *legs"]:
    order = [*(k for k in range(found.ndim) if k != axis), axis]  # "moveaxis" has no batching rule in PyTorch
    back = [order.index(k) for k in range(found.ndim)]
    moved = do("transpose", found, order)
    seen = visit(bond, do("reshape", moved, (moved.shape[0], math.prod(moved.shape[1:-1]), moved.shape[-1])))
    return do("transpose", do("reshape", seen, tuple(moved.shape)), back)


def _steps(segment: Segment, running: Inds, outputs: Inds, digits: frozenset[str]) -> tuple[SweepStep, ...]:
    """Choose the next core so that what was read is as small as possible.

    Raises
    ------
    TopologyError
        If there are not enough letters for an equation.
    """
    sizes = {**sizes_of([segment]), running[0]: _BATCH}
    legs = {*running, *outputs, *digits}
    left, steps, visited = dict(enumerate(segment.terms)), list[SweepStep](), set[str]()

    def after(k: int) -> Inds:
        needed = {*outputs, *(i for n, term in left.items() if n != k for i in term)} - digits
        return tuple(i for i in dict.fromkeys((*running, *left[k])) if i in needed)

    def size(k: int) -> tuple[bool, int, int]:
        return {*running, *digits}.isdisjoint(left[k]), math.prod(sizes[i] for i in after(k)), k

    while left:
        k = min(left, key=size)
        inds = after(k) if len(left) > 1 else outputs
        bonds = tuple(i for i in inds if i in left[k] and i not in legs | visited)
        fixed = tuple(i for i in left[k] if i in digits)
        equation = equation_of((running, left[k], *((running[0], leg) for leg in fixed)), inds)
        if not equation:
            raise TopologyError(
                f"Got a network with tensors of {len({*running, *left[k]})} indices; expected 52 at most."
            )
        steps.append(SweepStep(slot=k, equation=equation, inds=inds, bonds=bonds, digits=fixed))
        visited |= set(bonds)
        running = inds
        del left[k]
    return tuple(steps)
