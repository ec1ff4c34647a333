"""The weight as a network that the input passes through."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import ClassVar

from autoray import do

from .._typing import Array, Float, Params
from ..backends import Backend, Dialect
from ..calculus import FlatProgram, StageTape, forward, forward_tape, pullback
from ..layout import Layout
from ..program import Path, Program, compile_program
from ..topology import Core, Segment
from ._executable import Layer, ListedStep, Tape
from ._mode import Mode
from ._weighting import BASE_SCALE, Weighting

INPUT = "x/input"
_BATCH = "x/batch"


class Factored(Layer):
    """The input as one more tensor of the last segment: the weight never exists.

    The backward pass reads intermediates of the size of the batch, which are stored, as for any layer.

    Parameters
    ----------
    segments : tuple of Segment
        The segments of the generator.
    paths : tuple of path
        Contraction orders of all segments; the last one is for the segment that :func:`with_input` returns.
    weighting : Weighting
        The formula that converts a state to a weight.
    batch : int
        The number of rows of the input for which it was planned; other numbers are possible as well.
    backend : Backend
        The backend of the arrays.
    """

    mode: ClassVar[Mode] = "factored"
    keeps: bool = True
    merges_batch: ClassVar[bool] = True

    def __init__(
        self,
        segments: tuple[Segment, ...],
        paths: tuple[Path, ...],
        *,
        weighting: Weighting,
        batch: int,
        backend: Backend,
    ) -> None:
        super().__init__(backend)
        self.segments = segments
        self.paths = paths
        self.batch = batch
        self._weighting = weighting
        self._programs = lru_cache(maxsize=16)(self._program)
        self._codes = lru_cache(maxsize=16)(self._code)

    @property
    def weighting(self) -> Weighting:
        """The formula that converts a state to a weight."""
        return self._weighting

    @property
    def label(self) -> str:
        """Name the mode."""
        return self.mode

    def steps(self) -> Iterator[ListedStep]:
        """List all contractions, each of which is computed once."""
        for t, stage in enumerate(self.program(self.batch).stages):
            yield from ((t, 1, step) for step in stage.steps)

    def program(self, batch: int, need_x: bool = True) -> Program:
        """Plan for ``batch`` rows of ``x``, which is trained like a core where its adjoint is wanted."""
        return self._programs(
            batch, need_x
        )  # always both arguments: otherwise the cache treats the default as another program

    def _program(self, batch: int, need_x: bool) -> Program:
        return _compiled(self.segments, self.paths, self.weighting.layout, batch, need_x)

    def _flat(self, batch: int, need_x: bool) -> FlatProgram | None:
        """Return the program as straight-line code, where the backend runs it."""
        return None if self.backend.dialect is None else self._codes(batch, need_x, self.backend.dialect)

    def _code(self, batch: int, need_x: bool, dialect: Dialect) -> FlatProgram:
        return _flattened(self.program(batch, need_x), dialect)

    def code(self, dialect: Dialect) -> str:
        """Return the text of the straight-line code for the batch for which this was planned."""
        return self._codes(self.batch, True, dialect).code()

    def __call__(self, arrays: Params, x: Float[Array, "batch n_in"]) -> Float[Array, "batch n_out"]:
        """Multiply ``(batch, n_in)`` to ``(batch, n_out)``."""
        flat, own = self._flat(x.shape[0], True), self._with_input(arrays, x)
        state = forward(self.program(x.shape[0]), own, self.space) if flat is None else flat.forward(own, self.space)
        return self._weighting.product_from_state(state, arrays, x)

    def with_tape(self, arrays: Params, x: Float[Array, "batch n_in"]) -> tuple[Float[Array, "batch n_out"], Tape]:
        """Return the product and the tape of :meth:`pullback`."""
        flat, own = self._flat(x.shape[0], True), self._with_input(arrays, x)
        if flat is not None:
            state, arrays_of_tape = flat.forward_tape(own, self.space)
            return self._weighting.product_from_state(state, arrays, x), arrays_of_tape
        state, tape = forward_tape(self.program(x.shape[0]), own, self.space)
        return self._weighting.product_from_state(state, arrays, x), tuple(_arrays_of(tape))

    def _with_input(self, arrays: Params, x: Float[Array, "batch n_in"]) -> Params:
        return {**arrays, INPUT: self._weighting.pad_input(x)}

    def pullback(
        self,
        tape: Tape,
        arrays: Params,
        x: Float[Array, "batch n_in"],
        ybar: Float[Array, "batch n_out"],
        *,
        need_x: bool = True,
    ) -> tuple[dict[str, Float[Array, "..."]], Float[Array, "batch n_in"] | None]:
        """Compute the adjoints of the parameters from that of the product, and that of ``x`` if ``need_x``."""
        weighting, program = self.weighting, self.program(x.shape[0], need_x)
        cotangent = do("reshape", weighting.output_adjoint(ybar) * weighting.scale, program.stages[-1].out_shape)
        flat = self._flat(x.shape[0], need_x)
        if flat is None:
            grads = pullback(program, _records(program, tape), cotangent, self.space)
        else:
            grads = flat.pullback(tape, cotangent, self.space)
        xbar = weighting.pad_input_adjoint(grads.pop(INPUT)) if need_x else None
        if weighting.has_base and (need_x or weighting.trains_base_scale):
            through = weighting.base_product_adjoint(arrays, ybar)
            if weighting.trains_base_scale:
                grads[BASE_SCALE] = do("sum", x * through)
            xbar = None if xbar is None else xbar + weighting.scaled(through, arrays)
        return grads, xbar


@lru_cache(maxsize=256)  # equal layers share programs and their code
def _compiled(
    segments: tuple[Segment, ...], paths: tuple[Path, ...], layout: Layout, batch: int, need_x: bool
) -> Program:
    return compile_program(with_input(segments, layout, batch, trained=need_x), paths, free_states=True)


@lru_cache(maxsize=256)
def _flattened(program: Program, dialect: Dialect) -> FlatProgram:
    return FlatProgram(program, dialect)


def _arrays_of(tape: list[StageTape]) -> Iterator[Float[Array, "..."]]:
    """Yield the arrays of a tape in order: frameworks store arrays, and nothing else."""
    for record in tape:
        for pair in record.matrices:
            yield from pair
        if record.z is not None:
            yield record.z


def _records(program: Program, arrays: Tape) -> list[StageTape]:
    """Invert :func:`_arrays_of`."""
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
    """Add ``x``, of shape ``(batch, n_in)``, to the last segment as one more tensor."""
    last = segments[-1]
    legs = sorted(zip(layout.leg_axes, last.outputs, strict=True))
    rows = tuple(name for (axis, _), name in legs if axis == 0)
    columns = tuple(name for (axis, _), name in legs if axis > 0)
    x = Core(
        name=INPUT,
        inds=(_BATCH, *columns),
        shape=(batch, *(d for dims in layout.factors[1:] for d in dims)),
        param=INPUT,
        kind="input",
        init="given",
        trainable=trained,
    )
    return (*segments[:-1], replace(last, cores=(*last.cores, x), outputs=(_BATCH, *rows)))
