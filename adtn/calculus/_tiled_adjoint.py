r"""Forward and adjoint of a tiled program. Loops over tiles go through the backend.

With a consumer that turns a tile of the weight into a loss and ``W̄[s]``, one pass is::

    for s:  Z = steps(F[s]);  W = σ(Z);  loss, W̄ = consume(W, s);  F̄[s] += stepsᵀ(W̄ ⊙ σ'(Z))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from autoray import astype, do, get_dtype_name

from .._typing import Array, Params
from ..backends import Backend, Workspace
from ..program import Tiled
from ._adjoint import StageTape, backward_steps, collect, forward_steps, forward_tape, pullback

Consumer = Callable[[Array, Any, Any], "tuple[Any, Array | None]"]
"""``(tile, number, carry) -> (carry, adjoint of the tile)``."""


@dataclass(slots=True, eq=False)
class Frontier:
    """What is computed once, and what is needed on the way back.

    Parameters
    ----------
    blocks : list of array
        The operands of the tile network.
    head : list of StageTape
        Of the segments before the last.
    state : array or None
        What the last segment reads.
    matrices : list of tuple of array
        Of its steps.
    """

    blocks: list[Array]
    head: list[StageTape]
    state: Array | None
    matrices: list[tuple[Array, Array]]


def frontier(tiled: Tiled, arrays: Params, space: Workspace) -> Frontier:
    """Everything up to the operands of the tile network."""
    state, head = forward_tape(tiled.head, arrays, space) if tiled.head.stages else (None, [])
    last = tiled.last
    slots: list[Any] = [None] * tiled.n_slots
    operands = ([state] if last.has_state else []) + [arrays[core.param] for core in last.cores]
    slots[: len(operands)] = operands
    matrices = forward_steps(last.steps, slots, True, space)
    return Frontier([op.view.read(slots[op.slot], space) for op in tiled.operands], head, state, matrices)


def walk(
    tiled: Tiled,
    blocks: list[Array],
    backend: Backend,
    space: Workspace,
    consume: Consumer,
    carry: Any,
    *,
    scale: float | Array,
    adjoint: bool,
) -> tuple[Any, list[Array | None]]:
    """Generate all tiles of ``scale * W`` and hand each to ``consume``.

    Parameters
    ----------
    tiled : Tiled
        The program.
    blocks : list of array
        From :func:`frontier`.
    backend : Backend
        Loops.
    space : Workspace
        Where intermediates go.
    consume : callable
        ``(tile, number, carry) -> (carry, adjoint of the tile)``. The tile is its own: it may overwrite it.
    carry : any
        What the consumer accumulates.
    scale : float or array
        Factor of the weight.
    adjoint : bool
        Whether adjoints are wanted.

    Returns
    -------
    tuple of any and list of (array or None)
        The last carry, and the adjoint of every block.
    """
    sigma = tiled.activation
    blocks = list(blocks)
    if tiled.linear_end:  # scale the smallest operand instead of every tile
        least = tiled.smallest
        blocks[least] = blocks[least] * scale
    else:
        least = -1

    def body(i: Any, state: Any) -> Any:
        inner, bars = state
        at, slots = operands_of(tiled, blocks, backend, i)
        matrices = forward_steps(tiled.steps, slots, adjoint, space)
        tile = z = do("reshape", slots[-1], tiled.shape)
        if not tiled.linear_end:
            tile = space.activate(sigma, z) * scale
        inner, wbar = consume(tile, i, inner)
        if not adjoint:
            return inner, bars
        zbar = wbar if tiled.linear_end else space.activate_vjp(sigma, z, wbar) * scale
        found = backward_steps(tiled.steps, matrices, zbar, len(blocks), space=space)
        return inner, accumulate(tiled, backend, bars, at, found)

    bars = no_bars(tiled, blocks) if adjoint else []
    if tiled.tiles == 1:
        carry, bars = body(0, (carry, bars))
    else:
        carry, bars = backend.loop(tiled.tiles, body, (carry, bars))
    if adjoint and least >= 0 and bars[least] is not None:
        bars[least] = bars[least] * scale
    return carry, bars


def operands_of(tiled: Tiled, blocks: list[Array], backend: Backend, i: Any) -> tuple[list[Any], list[Any]]:
    """Which block of every operand tile ``i`` reads, and the slots of its workspace, filled with them."""
    at = [op.block(i) if op.digits else None for op in tiled.operands]
    slots: list[Any] = [x if b is None else backend.take(x, b) for x, b in zip(blocks, at, strict=True)]
    return at, slots + [None] * len(tiled.steps)


def no_bars(tiled: Tiled, blocks: list[Array]) -> list[Array | None]:
    """Where the adjoints of the blocks are summed."""
    return [_zeros(x) if op.need else None for op, x in zip(tiled.operands, blocks, strict=True)]


def accumulate(
    tiled: Tiled, backend: Backend, bars: list[Array | None], at: list[Any], found: list[Array | None]
) -> list[Array | None]:
    """``bars`` with the adjoints of one tile's operands added where they belong."""
    new: list[Array | None] = []
    for op, b, bar, got in zip(tiled.operands, at, bars, found, strict=True):
        if not op.need or got is None or bar is None:
            new.append(bar)
            continue
        got = _like(do("reshape", got, bar.shape if b is None else bar.shape[1:]), bar)
        new.append(backend.add(bar, got) if b is None else backend.add_at(bar, b, got))
    return new


def frontier_pullback(
    tiled: Tiled,
    arrays: Params,
    tape: Frontier,
    bars: list[Array | None],
    space: Workspace,
    others: list[Array | None] | None = None,
) -> dict[str, Array]:
    """Adjoints of all trained parameters from those of the blocks.

    Parameters
    ----------
    tiled, arrays, tape
        See :func:`frontier`.
    bars : list of (array or None)
        Of the blocks.
    space : Workspace
        Where intermediates go.
    others : list of (array or None), optional
        What is added to the adjoints of the state and of the cores of the last segment.
    """
    last = tiled.last
    slot_bars: list[Any] = [None] * tiled.n_slots
    for op, bar, block in zip(tiled.operands, bars, tape.blocks, strict=True):
        if bar is not None:
            slot_bars[op.slot] = op.view.write(_like(bar, block))
    backward_steps(last.steps, tape.matrices, None, 0, slot_bars, space)
    grads: dict[str, Array] = {}
    operands: list[Any] = [tape.state] if last.has_state else []
    operands += [arrays[core.param] for core in last.cores]

    def shaped(bars: list[Any]) -> list[Any]:  # a leg may have been read as two
        return [None if x is None else do("reshape", x, a.shape) for x, a in zip(bars, operands, strict=True)]

    found = shaped(slot_bars[: len(operands)])
    if others is not None:
        pairs = zip(found, shaped(others), strict=True)
        found = [x if y is None else y if x is None else x + y for x, y in pairs]
    collect(grads, last.cores, found[last.has_state :])
    xbar = found[0]
    if last.has_state and last.need_state and xbar is not None:
        for name, bar in pullback(tiled.head, tape.head, xbar, space).items():
            grads[name] = grads[name] + bar if name in grads else bar
    return grads


def _zeros(x: Array) -> Array:
    """Where adjoints are summed: half precisions sum in float32."""
    zeros = do("zeros_like", x)
    return astype(zeros, "float32") if get_dtype_name(x) in ("bfloat16", "float16") else zeros


def _like(x: Array, other: Array) -> Array:
    want = get_dtype_name(other)
    return x if get_dtype_name(x) == want else astype(x, want)
