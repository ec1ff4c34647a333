"""A program: segments turned into a fixed list of pairwise steps and activations."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from .._typing import Inds, Shape
from ._activation import Activation, get_activation
from ._pairwise import MatrixView, PairStep, plan_pair
from ._path import find_path
from ._segment import Core, Segment, sizes_of

Path = tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class Stage:
    """One segment, planned: operands fill the first slots, steps fill the others, the last slot is ``Z``.

    Parameters
    ----------
    segment : Segment
        What it computes.
    path : tuple of (int, int)
        The order in which it is contracted.
    cores : tuple of Core
        In slot order, after the state when there is one.
    steps : tuple of PairStep
        The contraction tree in execution order.
    alone : MatrixView or None
        For a segment with a single operand: how that is permuted.
    has_state : bool
        Whether slot 0 is the incoming state.
    need_state : bool
        Whether anything before this stage is trained.
    out_shape : tuple of int
        Shape of ``Z``.
    """

    segment: Segment
    path: Path
    cores: tuple[Core, ...]
    steps: tuple[PairStep, ...]
    alone: MatrixView | None
    has_state: bool
    need_state: bool
    out_shape: Shape

    @property
    def activation(self) -> Activation:
        """σ of this stage."""
        return get_activation(self.segment.activation)

    @property
    def flops(self) -> int:
        """Operations of the contractions, forward."""
        return sum(step.flops for step in self.steps)


@dataclass(frozen=True, eq=False)
class Program:
    """What is executed: stages in order, ``X_0 → Z_1 → X_1 → ... → X_T``.

    Parameters
    ----------
    stages : tuple of Stage
        One per segment.
    """

    stages: tuple[Stage, ...]

    @property
    def cores(self) -> tuple[Core, ...]:
        """All cores."""
        return tuple(core for stage in self.stages for core in stage.cores)

    @property
    def param_shapes(self) -> dict[str, Shape]:
        """Shape of every trained parameter."""
        return {core.param: core.shape for core in self.cores if core.trainable}

    @property
    def flops(self) -> int:
        """Operations of all contractions, forward."""
        return sum(stage.flops for stage in self.stages)


def _plan_stage(segment: Segment, sizes: dict[str, int], need_state: bool, path: Path | None) -> Stage:
    has_state = bool(segment.inputs)
    operands = [(segment.inputs, need_state)] if has_state else []
    operands += [(core.inds, core.trainable) for core in segment.cores]
    terms = tuple(inds for inds, _ in operands)
    out_shape = tuple(sizes[i] for i in segment.outputs)
    if len(operands) == 1:
        alone = MatrixView.of(terms[0], sizes, tuple((i,) for i in segment.outputs))
        return Stage(segment, (), segment.cores, (), alone, has_state, need_state, out_shape)
    if path is None:
        path = find_path(terms, segment.outputs, tuple(sorted(sizes.items())))
    live: list[tuple[int, Inds, bool]] = [(slot, inds, need) for slot, (inds, need) in enumerate(operands)]
    steps: list[PairStep] = []
    for i, j in path:
        right, left = live.pop(max(i, j)), live.pop(min(i, j))
        needed = set(segment.outputs).union(*(inds for _, inds, _ in live))
        slot = len(operands) + len(steps)
        order = None if live else segment.outputs
        step, inds = plan_pair(left, right, slot, needed, sizes, order)
        steps.append(step)
        live.append((slot, inds, left[2] or right[2]))
    return Stage(segment, path, segment.cores, tuple(steps), None, has_state, need_state, out_shape)


def compile_program(segments: tuple[Segment, ...], paths: tuple[Path | None, ...] | None = None) -> Program:
    """Plan every segment.

    Parameters
    ----------
    segments : tuple of Segment
        In order; the legs of one are the inputs of the next.
    paths : tuple of (path or None), optional
        Contraction order of each segment; ``None`` lets :func:`find_path` choose.

    Returns
    -------
    Program
    """
    sizes = sizes_of(segments)
    stages: list[Stage] = []
    trained = False
    for t, segment in enumerate(segments):
        path = paths[t] if paths is not None else None
        stages.append(_plan_stage(segment, sizes, trained, path))
        trained = trained or any(core.trainable for core in segment.cores)
    return Program(tuple(stages))


@lru_cache(maxsize=256)
def cached_program(segments: tuple[Segment, ...]) -> Program:
    """:func:`compile_program` with default paths, once per structure."""
    return compile_program(segments)
