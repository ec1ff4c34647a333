"""Programs: segments compiled to a fixed list of pairwise steps and activations."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from .._typing import Inds, Shape
from ..topology import Activation, Core, Segment, get_activation, sizes_of
from ._order import Node, arrange, contraction_nodes
from ._pairwise import MatrixView, PairStep, plan_pair
from ._path import find_path

Path = tuple[tuple[int, int], ...]
Halves = tuple[Inds, Inds]


@dataclass(frozen=True, eq=False, kw_only=True)
class Stage:
    """A planned segment: operands fill the first slots, steps fill the others, and the last slot is ``Z``.

    Parameters
    ----------
    segment : Segment
        The segment that it computes.
    path : tuple of (int, int)
        The contraction order.
    cores : tuple of Core
        The cores in slot order, after the state, if any.
    steps : tuple of PairStep
        The contraction tree in execution order.
    alone : MatrixView or None
        For a segment with a single operand: the view that permutes it.
    has_state : bool
        Whether slot 0 is the incoming state.
    need_state : bool
        Whether the state depends on trained parameters.
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
        """The activation σ of this stage."""
        return get_activation(self.segment.activation)

    @property
    def flops(self) -> int:
        """The number of operations of the contractions in the forward pass."""
        return sum(step.flops for step in self.steps)


@dataclass(frozen=True, eq=False)
class Program:
    """An executable sequence of stages, ``X_0 → Z_1 → X_1 → ... → X_T``.

    Parameters
    ----------
    stages : tuple of Stage
        One stage per segment.
    """

    stages: tuple[Stage, ...]

    @property
    def cores(self) -> tuple[Core, ...]:
        """The cores of all stages."""
        return tuple(core for stage in self.stages for core in stage.cores)

    @property
    def param_shapes(self) -> dict[str, Shape]:
        """The shape of every trained parameter."""
        return {core.param: core.shape for core in self.cores if core.trainable}

    @property
    def flops(self) -> int:
        """The number of operations of all contractions in the forward pass."""
        return sum(stage.flops for stage in self.stages)


def plan_stage(
    segment: Segment, sizes: dict[str, int], need_state: bool, path: Path | None, halves: Halves | None = None
) -> Stage:
    """Plan one segment.

    Parameters
    ----------
    segment : Segment
        The segment, with its inputs in the index order of the state unless ``halves`` is given.
    sizes : dict of str to int
        Dimension of each index.
    need_state : bool
        Whether the state depends on trained parameters.
    path : path or None
        The contraction order; ``None`` uses that of :func:`find_path`.
    halves : tuple of two tuples of str, optional
        Leave the index order of the state free, with each of these two groups of indices contiguous.
    """
    has_state = bool(segment.inputs)
    operands = [(segment.inputs, need_state)] if has_state else []
    operands += [(core.inds, core.trainable) for core in segment.cores]
    terms = tuple(inds for inds, _ in operands)
    out_shape = tuple(sizes[i] for i in segment.outputs)
    if len(operands) == 1:
        alone = MatrixView.plain(terms[0], sizes, tuple((i,) for i in segment.outputs))
        return Stage(
            segment=segment,
            path=(),
            cores=segment.cores,
            steps=(),
            alone=alone,
            has_state=has_state,
            need_state=need_state,
            out_shape=out_shape,
        )
    if path is None:
        path = find_path(terms, segment.outputs, tuple(sorted(sizes.items())))
    constants = {slot for slot, core in enumerate(segment.cores, has_state) if core.kind == "moment"}
    stored: list[Inds | None] = [*terms, *(None for _ in path[1:]), segment.outputs]
    stored = [None if slot in constants else inds for slot, inds in enumerate(stored)]  # arranged once, in any order
    free: dict[int, Halves] = {}
    if has_state and halves is not None:
        stored[0], free = None, {0: halves}
    nodes, orders = arrange(contraction_nodes(terms, segment.outputs, path), stored, sizes, free)
    steps = plan_steps(nodes, orders, {slot: need for slot, (_, need) in enumerate(operands)}, sizes)
    segment = replace(segment, inputs=orders[0]) if has_state else segment
    cores = [
        replace(core, inds=orders[slot], shape=tuple(sizes[i] for i in orders[slot])) if slot in constants else core
        for slot, core in enumerate(segment.cores, has_state)
    ]
    return Stage(
        segment=replace(segment, cores=tuple(cores)) if constants else segment,
        path=path,
        cores=tuple(cores),
        steps=steps,
        alone=None,
        has_state=has_state,
        need_state=need_state,
        out_shape=out_shape,
    )


def plan_steps(
    nodes: list[Node], orders: list[Inds], needs: dict[int, bool], sizes: dict[str, int]
) -> tuple[PairStep, ...]:
    """Plan a step for every node; an entry for every result is added to ``needs``, which is indexed by slot."""
    steps: list[PairStep] = []
    for node in nodes:
        need = (needs[node.left], needs[node.right])
        steps.append(plan_pair(node, (orders[node.left], orders[node.right], orders[node.out]), need, sizes))
        needs[node.out] = any(need)
    return tuple(steps)


def compile_program(
    segments: tuple[Segment, ...], paths: tuple[Path | None, ...] | None = None, *, free_states: bool = False
) -> Program:
    """Compile segments to a program.

    Parameters
    ----------
    segments : tuple of Segment
        The segments in order; the outputs of one are the inputs of the next.
    paths : tuple of (path or None), optional
        Contraction order of each segment; ``None`` uses that of :func:`find_path`.
    free_states : bool
        Leave the index order of states between segments free, to save permutations.

    Returns
    -------
    Program
    """
    sizes = sizes_of(segments)
    paths = paths if paths is not None else (None,) * len(segments)
    trained = [any(core.trainable for core in segment.cores) for segment in segments]
    stages: list[Stage] = []
    outputs = segments[-1].outputs
    # from the last to the first, because a segment decides the index order of its incoming state
    for t in reversed(range(len(segments))):
        segment = replace(segments[t], outputs=outputs)
        halves = last_halves(segments[t - 1], paths[t - 1]) if t and free_states else None
        stage = plan_stage(segment, sizes, any(trained[:t]), paths[t], halves)
        stages.append(stage)
        outputs = stage.segment.inputs
    return Program(tuple(reversed(stages)))


def last_halves(segment: Segment, path: Path | None) -> Halves | None:
    """Return the two groups of outputs that the last contraction of a segment joins."""
    if not path:
        return None
    terms = segment.terms
    last = contraction_nodes(terms, segment.outputs, path)[-1]
    return last.rows, last.cols


@lru_cache(maxsize=256)
def cached_program(segments: tuple[Segment, ...]) -> Program:
    """Compile segments with default paths, once per structure; see :func:`compile_program`."""
    return compile_program(segments)
