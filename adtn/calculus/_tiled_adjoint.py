r"""The forward and the adjoint pass of a tiled program; the backend runs the loop over tiles.

With a consumer that turns a tile of the weight into a loss and ``W̄[s]``, one pass is::

    for s:  Z = steps(F[s]);  W = σ(Z);  loss, W̄ = consume(W, s);  F̄[s] += stepsᵀ(W̄ ⊙ σ'(Z))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from autoray import astype, do, get_dtype_name

from .._typing import Array, Factor, Float, Params
from ..backends import Backend, Workspace
from ..program import Tiled
from ._adjoint import Operands, StageTape, backward_steps, collect, forward_steps, forward_tape, pullback

Consumer: TypeAlias = Callable[[Float[Array, "*tile"], Any, Any], tuple[Any, Float[Array, "*tile"] | None]]
"""A function ``(tile, index, carry) -> (carry, adjoint of the tile)``."""


@dataclass(slots=True, eq=False)
class Frontier:
    """The results of the part that is computed once, with the records for the backward pass.

    Parameters
    ----------
    blocks : list of array
        The operands of the tile network.
    head : list of StageTape
        Records of the segments before the last.
    state : array or None
        The incoming state of the last segment.
    matrices : list of tuple of array
        Operands of the steps of the last segment.
    """

    blocks: list[Float[Array, "..."]]
    head: list[StageTape]
    state: Float[Array, "*legs"] | None
    matrices: list[Operands]


def frontier(tiled: Tiled, arrays: Params, space: Workspace) -> Frontier:
    """Compute the operands of the tile network."""
    state, head = forward_tape(tiled.head, arrays, space) if tiled.head.stages else (None, [])
    last = tiled.last
    slots: list[Any] = [None] * tiled.n_slots
    operands = ([state] if last.has_state else []) + [arrays[core.param] for core in last.cores]
    slots[: len(operands)] = operands
    matrices = forward_steps(last.steps, slots, True, space)
    return Frontier([op.view.read(slots[op.slot], space) for op in tiled.operands], head, state, matrices)


def walk(
    tiled: Tiled,
    blocks: list[Float[Array, "..."]],
    backend: Backend,
    space: Workspace,
    consume: Consumer,
    carry: Any,
    *,
    scale: Factor,
    adjoint: bool,
) -> tuple[Any, list[Float[Array, "..."] | None]]:
    """Generate all tiles of ``scale * W`` and pass each to ``consume``.

    Parameters
    ----------
    tiled : Tiled
        The tiled program.
    blocks : list of array
        The blocks of :func:`frontier`.
    backend : Backend
        The backend that runs the loop.
    space : Workspace
        Memory for intermediates.
    consume : callable
        Function ``(tile, index, carry) -> (carry, adjoint of the tile)``, which may overwrite the tile.
    carry : any
        Initial value of what the consumer accumulates.
    scale : float or array
        Factor of the weight.
    adjoint : bool
        Whether to compute adjoints.

    Returns
    -------
    tuple of any and list of (array or None)
        The final carry, and the adjoint of every block.
    """
    sigma = tiled.activation
    blocks = list(blocks)
    if tiled.linear_end:  # scale the smallest operand instead of every tile
        smallest = tiled.smallest
        blocks[smallest] = blocks[smallest] * scale
    else:
        smallest = -1

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
        slot_bars = backward_steps(tiled.steps, matrices, zbar, len(blocks), space=space)
        return inner, accumulate(tiled, backend, bars, at, slot_bars)

    bars = no_bars(tiled, blocks) if adjoint else []
    if tiled.tiles == 1:
        carry, bars = body(0, (carry, bars))
    else:
        carry, bars = backend.loop(tiled.tiles, body, (carry, bars))
    if adjoint and smallest >= 0 and bars[smallest] is not None:
        bars[smallest] = bars[smallest] * scale
    return carry, bars


def operands_of(
    tiled: Tiled, blocks: list[Float[Array, "..."]], backend: Backend, i: Any
) -> tuple[list[Any], list[Any]]:
    """Find the block of every operand that tile ``i`` reads, and fill the slots of its workspace with them."""
    at = [op.block(i) if op.digits else None for op in tiled.operands]
    slots: list[Any] = [x if b is None else backend.take(x, b) for x, b in zip(blocks, at, strict=True)]
    return at, slots + [None] * len(tiled.steps)


def no_bars(tiled: Tiled, blocks: list[Float[Array, "..."]]) -> list[Float[Array, "..."] | None]:
    """Create the accumulators of the adjoints of the blocks."""
    return [_zeros(x) if op.need else None for op, x in zip(tiled.operands, blocks, strict=True)]


def accumulate(
    tiled: Tiled,
    backend: Backend,
    bars: list[Float[Array, "..."] | None],
    at: list[Any],
    increments: list[Float[Array, "..."] | None],
) -> list[Float[Array, "..."] | None]:
    """Add the adjoints of the operands of one tile to the accumulators ``bars``."""
    new: list[Float[Array, "..."] | None] = []
    for op, b, bar, increment in zip(tiled.operands, at, bars, increments, strict=True):
        if not op.need or increment is None or bar is None:
            new.append(bar)
            continue
        increment = _like(do("reshape", increment, bar.shape if b is None else bar.shape[1:]), bar)
        new.append(backend.add(bar, increment) if b is None else backend.add_at(bar, b, increment))
    return new


def frontier_pullback(
    tiled: Tiled,
    arrays: Params,
    tape: Frontier,
    bars: list[Float[Array, "..."] | None],
    space: Workspace,
    others: list[Float[Array, "..."] | None] | None = None,
) -> dict[str, Float[Array, "..."]]:
    """Compute the adjoints of all trained parameters from those of the blocks.

    Parameters
    ----------
    tiled, arrays, tape
        The arguments and the result of :func:`frontier`.
    bars : list of (array or None)
        Adjoints of the blocks.
    space : Workspace
        Memory for intermediates.
    others : list of (array or None), optional
        Further adjoints of the state and of the cores of the last segment, to be added.
    """
    last = tiled.last
    slot_bars: list[Any] = [None] * tiled.n_slots
    for op, bar, block in zip(tiled.operands, bars, tape.blocks, strict=True):
        if bar is not None:
            slot_bars[op.slot] = op.view.write(_like(bar, block))
    backward_steps(last.steps, tape.matrices, None, 0, slot_bars, space)
    grads: dict[str, Float[Array, "..."]] = {}
    operands: list[Any] = [tape.state] if last.has_state else []
    operands += [arrays[core.param] for core in last.cores]

    def shaped(bars: list[Any]) -> list[Any]:  # a leg may have been split into two
        return [None if x is None else do("reshape", x, a.shape) for x, a in zip(bars, operands, strict=True)]

    operand_bars = shaped(slot_bars[: len(operands)])
    if others is not None:
        pairs = zip(operand_bars, shaped(others), strict=True)
        operand_bars = [x if y is None else y if x is None else x + y for x, y in pairs]
    collect(grads, last.cores, operand_bars[last.has_state :])
    xbar = operand_bars[0]
    if last.has_state and last.need_state and xbar is not None:
        for name, bar in pullback(tiled.head, tape.head, xbar, space).items():
            grads[name] = grads[name] + bar if name in grads else bar
    return grads


def _zeros(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Create an accumulator; half precisions are accumulated in float32."""
    zeros = do("zeros_like", x)
    return astype(zeros, "float32") if get_dtype_name(x) in ("bfloat16", "float16") else zeros


def _like(x: Float[Array, "*shape"], other: Float[Array, "..."]) -> Float[Array, "*shape"]:
    dtype = get_dtype_name(other)
    return x if get_dtype_name(x) == dtype else astype(x, dtype)
