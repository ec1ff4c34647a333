"""Layers as a plan runs them: with the weight in tiles, or without it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from string import ascii_letters
from typing import Any

from autoray import do

from .._backend import Backend
from .._typing import Array, Inds, Params
from ..network import (
    BASE_SCALE,
    Core,
    Layout,
    Path,
    Program,
    Segment,
    StageTape,
    Weighting,
    compile_program,
    contraction_nodes,
    forward,
    forward_tape,
    pullback,
)
from ._execution import TiledWeight, generate, with_base
from ._search import terms_of

Tape = tuple[Array, ...]
INPUT = "x/input"
_BATCH = "x/batch"


class TiledApply:
    """``y = x Wᵀ`` and its adjoint, one block of rows of W after the other, or all at once.

    Parameters
    ----------
    weight : TiledWeight
        By rows.
    backend : Backend
        Of the arrays.
    """

    keeps = False

    def __init__(self, weight: TiledWeight, backend: Backend) -> None:
        self.weight = weight
        self.backend = backend
        self.space = backend.workspace()

    def __call__(self, arrays: Params, x: Array) -> Array:
        """``(batch, n_in)`` to ``(batch, n_out)``."""
        backend, weight = self.backend, self.weight
        layout, tiles = weight.weighting.layout, weight.tiled.tiles
        if tiles == 1:
            return x @ generate(weight, backend, arrays).mT
        arrays, weighting, x = with_base(weight, arrays), weight.weighting, weight.weighting.input(x)

        def consume(w: Array, i: Any, y: Any) -> tuple[Any, None]:
            return backend.put(y, i, x @ w.mT), None

        some = next(iter(arrays.values()))  # not x, which may be empty
        zero = do("reshape", do("zeros_like", do("reshape", some, (-1,))[:1]), (1, 1, 1))
        y = zero + do("zeros_like", do("broadcast_to", zero, (tiles, x.shape[0], weight.rows)))
        y, _ = weight.run(backend, arrays, consume, y, adjoint=False, space=self.space)
        return weighting.output(do("reshape", do("transpose", y, (1, 0, 2)), (x.shape[0], layout.padded_shape[0])))

    def with_tape(self, arrays: Params, x: Array) -> tuple[Array, Tape]:
        """The product, and nothing: tiles are generated again."""
        return self(arrays, x), ()

    def pullback(
        self, tape: Tape, arrays: Params, x: Array, ybar: Array, *, need_x: bool = True
    ) -> tuple[dict[str, Array], Array | None]:
        """Adjoints of the parameters, and of ``x`` where it is wanted."""
        backend, weight = self.backend, self.weight
        weighting, tiles = weight.weighting, weight.tiled.tiles
        x, ybar = weighting.input(x), weighting.output_adjoint(ybar)
        by_tile = do("transpose", do("reshape", ybar, (x.shape[0], tiles, weight.rows)), (1, 0, 2))

        def consume(w: Array, i: Any, xbar: Any) -> tuple[Any, Array]:
            yb = backend.take(by_tile, i)
            xbar = backend.add(xbar, yb @ w) if need_x else None
            return xbar, yb.mT @ x

        start = do("zeros_like", x) if need_x else None
        xbar, grads = weight.run(backend, with_base(weight, arrays), consume, start, adjoint=True, space=self.space)
        return grads, xbar if xbar is None else weighting.input_adjoint(xbar)


class _WithInput:
    """What is around the contraction with x."""

    weighting: Weighting

    def _inputs(self, arrays: Params, x: Array) -> Params:
        return {**arrays, INPUT: self.weighting.pad_input(x)}

    def _finish(self, state: Array, arrays: Params, x: Array) -> Array:
        weighting = self.weighting
        y = weighting.output(do("reshape", state, (x.shape[0], weighting.layout.padded_shape[0])))
        y = y * weighting.scale  # a new array: the state lies in the workspace
        return y if not weighting.has_base else y + weighting.scaled(weighting.base_product(arrays, x), arrays)


class FactoredApply(_WithInput):
    """``y = x Wᵀ`` and its adjoint with x as one more tensor of the last segment; W never exists.

    What the way back reads again is kept, as for any layer: intermediates of the batch's size.

    Parameters
    ----------
    segments : tuple of Segment
        Of the generator.
    paths : tuple of path
        Contraction orders, the last one of the segment :func:`with_input`.
    weighting : Weighting
        What makes it a weight.
    backend : Backend
        Of the arrays.
    """

    keeps = True

    def __init__(
        self, segments: tuple[Segment, ...], paths: tuple[Path, ...], weighting: Weighting, backend: Backend
    ) -> None:
        self.segments = segments
        self.paths = paths
        self.weighting = weighting
        self.space = backend.workspace()
        self._programs = lru_cache(maxsize=16)(self._program)

    def program(self, batch: int, need_x: bool = True) -> Program:
        """For so many rows of ``x``, which is trained like a core where its adjoint is wanted."""
        return self._programs(batch, need_x)  # both always: or the cache takes the default for another program

    def _program(self, batch: int, need_x: bool) -> Program:
        segments = with_input(self.segments, self.weighting.layout, batch, trained=need_x)
        return compile_program(segments, self.paths, free_states=True)

    def __call__(self, arrays: Params, x: Array) -> Array:
        """``(batch, n_in)`` to ``(batch, n_out)``."""
        program = self.program(x.shape[0])
        return self._finish(forward(program, self._inputs(arrays, x), self.space), arrays, x)

    def with_tape(self, arrays: Params, x: Array) -> tuple[Array, Tape]:
        """The product, and what :meth:`pullback` needs."""
        state, tape = forward_tape(self.program(x.shape[0]), self._inputs(arrays, x), self.space)
        return self._finish(state, arrays, x), tuple(_flat(tape))

    def pullback(
        self, tape: Tape, arrays: Params, x: Array, ybar: Array, *, need_x: bool = True
    ) -> tuple[dict[str, Array], Array | None]:
        """Adjoints of the parameters, and of ``x`` where it is wanted."""
        weighting, program = self.weighting, self.program(x.shape[0], need_x)
        cotangent = do("reshape", weighting.output_adjoint(ybar) * weighting.scale, program.stages[-1].out_shape)
        grads = pullback(program, _records(program, tape), cotangent, self.space)
        xbar = weighting.pad_input_adjoint(grads.pop(INPUT)) if need_x else None
        if weighting.has_base and (need_x or weighting.trains_base_scale):
            through = weighting.base_product_adjoint(arrays, ybar)
            if weighting.trains_base_scale:
                grads[BASE_SCALE] = do("sum", x * through)
            xbar = None if xbar is None else xbar + weighting.scaled(through, arrays)
        return grads, xbar


Steps = tuple[tuple[int, int, str], ...]


class TracedApply(_WithInput):
    """``y = x Wᵀ`` with x as one more tensor, for compilers: one graph for any batch, in operations they know.

    Parameters
    ----------
    segments : tuple of Segment
        Of the generator.
    weighting : Weighting
        What makes it a weight.
    backend : Backend
        Of the arrays.
    """

    def __init__(self, segments: tuple[Segment, ...], weighting: Weighting, backend: Backend) -> None:
        self.weighting = weighting
        self.space = backend.workspace(0)  # keeps nothing: modules are copied with it
        *before, self.last = with_input(segments, weighting.layout, 1)
        if before:
            before[-1] = replace(before[-1], outputs=self.last.inputs)
        self.head = compile_program(tuple(before)) if before else None
        self.legs = weighting.layout.factors[1]
        self.chosen: dict[tuple[str | None, ...], Steps | None] = {}
        """What a scheduler said, by what it was asked: function transforms ask at every call."""

    def steps(self, path: Path) -> Steps | None:
        """The last segment as ``(slot, slot, equation)``; nothing if one has more indices than einsum has letters."""
        terms = terms_of(self.last)
        nodes = contraction_nodes(terms, self.last.outputs, path)
        inds = [*terms, *(node.inds for node in nodes)]
        inds[-1] = self.last.outputs
        found = [(n.left, n.right, _equation(inds[n.left], inds[n.right], inds[n.out])) for n in nodes]
        return tuple(found) if all(equation for *_, equation in found) else None

    def __call__(self, steps: Steps, arrays: Params, x: Array) -> Array:
        """``(batch, n_in)`` to ``(batch, n_out)``, differentiated by the framework."""
        slots = [] if self.head is None else [forward(self.head, arrays, self.space)]
        slots += [arrays[core.param] for core in self.last.cores[:-1]]
        slots.append(do("reshape", self._inputs(arrays, x)[INPUT], (x.shape[0], *self.legs)))
        for left, right, equation in steps:
            slots.append(do("einsum", equation, slots[left], slots[right], like=x))
        return self._finish(slots[-1], arrays, x)


def _equation(a: Inds, b: Inds, c: Inds) -> str:
    """Of two tensors with one einsum; empty when letters run out."""
    letter = dict(zip(dict.fromkeys((*a, *b)), ascii_letters, strict=False))
    if any(i not in letter for i in (*a, *b)):
        return ""
    left, right, out = ("".join(letter[i] for i in inds) for inds in (a, b, c))
    return f"{left},{right}->{out}"


def _flat(tape: list[StageTape]) -> Iterator[Array]:
    """The arrays of a tape one after the other: frameworks keep those, and nothing else."""
    for record in tape:
        for pair in record.matrices:
            yield from pair
        if record.z is not None:
            yield record.z


def _records(program: Program, arrays: Tape) -> list[StageTape]:
    """The inverse of :func:`_flat`."""
    rest = iter(arrays)
    return [
        StageTape(
            [(next(rest), next(rest)) for _ in stage.steps],
            None if stage.segment.activation == "identity" else next(rest),
        )
        for stage in program.stages
    ]


def with_input(
    segments: tuple[Segment, ...], layout: Layout, batch: int, *, trained: bool = True
) -> tuple[Segment, ...]:
    """The segments with ``x``, of shape ``(batch, n_in)``, as one more tensor of the last one."""
    last = segments[-1]
    by_axis: list[list[tuple[int, str]]] = [[], []]
    for name, (axis, k) in zip(last.outputs, layout.leg_axes, strict=True):
        by_axis[axis].append((k, name))
    rows, columns = (tuple(name for _, name in sorted(legs)) for legs in by_axis)
    x = Core(INPUT, (_BATCH, *columns), (batch, *layout.factors[1]), INPUT, "input", init="given", trainable=trained)
    return (*segments[:-1], replace(last, cores=(*last.cores, x), outputs=(_BATCH, *rows)))
