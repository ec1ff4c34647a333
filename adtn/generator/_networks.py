"""Generators from networks of quimb, and networks of quimb from generators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .._typing import Shape
from ..calculus import forward_stage
from ..layout import Layout
from ..program import Program
from ..topology import Segment, as_networks

if TYPE_CHECKING:
    import quimb.tensor as qtn


def shape_of(pieces: Sequence[Segment], layout: Layout | None) -> Shape:
    """Return the shape of the weight that networks generate: that of the layout, or one axis per leg."""
    if layout is not None:
        return layout.shape
    sizes = {i: d for piece in pieces for core in piece.cores for i, d in zip(core.inds, core.shape, strict=True)}
    return tuple(sizes[i] for i in pieces[-1].outputs)


def networks_of(
    program: Program, segments: Sequence[Segment], arrays: Mapping[str, np.ndarray]
) -> list[qtn.TensorNetwork]:
    """Return one network per segment, each with the state that comes in."""
    states: list[Any] = []
    state: Any = None
    for stage in program.stages:
        states.append(state)
        state, _ = forward_stage(stage, state, arrays, keep=False)
    return as_networks(segments, arrays, states)
