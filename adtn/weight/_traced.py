"""The input contracted with the network, in operations that compilers can trace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from string import ascii_letters

from autoray import do

from .._typing import Array, Float, Inds, Params
from ..backends import Backend
from ..calculus import forward
from ..program import Path, compile_program, contraction_nodes
from ..topology import Segment
from ._factored import with_input
from ._weighting import Weighting

EinsumSteps = tuple[tuple[int, int, str], ...]


class TracedApply:
    """The product ``y = x Wᵀ`` with x as one more tensor: one graph for any batch, differentiated by the framework.

    Parameters
    ----------
    segments : tuple of Segment
        The segments of the generator.
    weighting : Weighting
        The formula that converts a state to a weight.
    backend : Backend
        The backend of the arrays.
    """

    def __init__(self, segments: tuple[Segment, ...], weighting: Weighting, backend: Backend) -> None:
        self.weighting = weighting
        self.space = backend.workspace(0)  # without memory: it is copied with the module
        self.last = with_input(segments, weighting.layout, 1)[-1]
        before = before_last(segments)
        self.head = compile_program(before) if before else None
        self.legs = tuple(d for dims in weighting.layout.factors[1:] for d in dims)

    def steps(self, path: Path) -> EinsumSteps | None:
        """List the last segment as ``(slot, slot, equation)``; ``None`` if a step has too many indices for einsum."""
        terms = self.last.terms
        nodes = contraction_nodes(terms, self.last.outputs, path)
        inds = [*terms, *(node.inds for node in nodes)]
        inds[-1] = self.last.outputs
        steps = tuple((n.left, n.right, equation_of((inds[n.left], inds[n.right]), inds[n.out])) for n in nodes)
        return steps if all(equation for *_, equation in steps) else None

    def __call__(
        self, steps: EinsumSteps, arrays: Params, x: Float[Array, "batch n_in"]
    ) -> Float[Array, "batch n_out"]:
        """Multiply ``(batch, n_in)`` to ``(batch, n_out)``."""
        slots = [] if self.head is None else [forward(self.head, arrays, self.space)]
        slots += [arrays[core.param] for core in self.last.cores[:-1]]
        slots.append(do("reshape", self.weighting.pad_input(x), (x.shape[0], *self.legs)))
        for left, right, equation in steps:
            slots.append(do("einsum", equation, slots[left], slots[right], like=x))
        return self.weighting.product_from_state(slots[-1], arrays, x)


def before_last(segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
    """Return all segments but the last, whose state has the names of the last one's incoming legs."""
    *before, last = segments
    return (*before[:-1], replace(before[-1], outputs=last.inputs)) if before else ()


def equation_of(inputs: Sequence[Inds], out: Inds) -> str:
    """Write the product of tensors as an equation; empty if there are not enough letters."""
    letter = dict(zip(dict.fromkeys(i for inds in inputs for i in inds), ascii_letters, strict=False))
    if any(i not in letter for inds in inputs for i in inds):
        return ""
    return ",".join("".join(letter[i] for i in inds) for inds in inputs) + "->" + "".join(letter[i] for i in out)
