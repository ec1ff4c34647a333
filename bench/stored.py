"""The peers' way: segments contracted by cotengra's stored expressions, in its own orders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cotengra as ctg
from adtn.topology import Segment


def expressions(segments: tuple[Segment, ...]) -> list[Any]:
    """One contraction per segment; nothing for a segment of a single tensor."""
    shapes = {i: n for s in segments for core in s.cores for i, n in zip(core.inds, core.shape, strict=True)}
    found: list[Any] = []
    for segment in segments:
        terms = segment.terms
        found.append(
            ctg.array_contract_expression(
                terms,
                segment.outputs,
                shapes=[tuple(shapes[i] for i in t) for t in terms],
                optimize=ctg.AutoOptimizer(parallel=False),
            )
            if len(terms) > 1
            else None
        )
    return found


def contract(
    segments: tuple[Segment, ...],
    made: list[Any],
    arrays: dict[str, Any],
    silu: Callable[[Any], Any],
    backend: str,
) -> Any:
    """The state after the last segment."""
    state: Any = None
    for segment, expression in zip(segments, made, strict=True):
        operands = ([state] if segment.inputs else []) + [arrays[core.param] for core in segment.cores]
        # named, or PyTorch's compiler does not follow how the framework is inferred
        state = expression(*operands, backend=backend) if expression is not None else operands[0]
        if segment.activation != "identity":
            state = silu(state)
    return state
