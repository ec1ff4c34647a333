"""Contraction as peers do it: segments contracted by cotengra's stored expressions, in cotengra's orders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cotengra as ctg
from adtn.topology import Segment


def expressions(segments: tuple[Segment, ...]) -> list[Any]:
    """Make one contraction expression per segment; ``None`` for a segment of a single tensor."""
    shapes = {i: n for s in segments for core in s.cores for i, n in zip(core.inds, core.shape, strict=True)}
    stored: list[Any] = []
    for segment in segments:
        terms = segment.terms
        stored.append(
            ctg.array_contract_expression(
                terms,
                segment.outputs,
                shapes=[tuple(shapes[i] for i in t) for t in terms],
                optimize=ctg.AutoOptimizer(parallel=False),
            )
            if len(terms) > 1
            else None
        )
    return stored


def contract(
    segments: tuple[Segment, ...],
    stored: list[Any],
    arrays: dict[str, Any],
    silu: Callable[[Any], Any],
    backend: str,
) -> Any:
    """Compute the state after the last segment."""
    state: Any = None
    for segment, expression in zip(segments, stored, strict=True):
        operands = ([state] if segment.inputs else []) + [arrays[core.param] for core in segment.cores]
        # the backend is named, as PyTorch's compiler cannot trace how it is inferred
        state = expression(*operands, backend=backend) if expression is not None else operands[0]
        if segment.activation != "identity":
            state = silu(state)
    return state
