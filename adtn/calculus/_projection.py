r"""The squared distance of a weight, or of its outputs, from a target, and its adjoint, without computing the weight.

If no activation follows the last segment, the weight is multilinear in its operands, and

.. math:: \lVert W - T\rVert^2 = \lVert T\rVert^2 - 2\,\langle T, W\rangle + \lVert W\rVert^2 .

The contraction tree ends in one product :math:`W = A B`. The adjoints of :math:`\langle T, W\rangle` are the
projections :math:`\bar A = T B^\top` and :math:`\bar B = A^\top T`: two products that read the target instead of three
that write and read a weight, and no array of its size is written. They are computed tile by tile, so that the target
is read from memory once. :math:`\lVert W\rVert^2` is the last segment contracted with its own copy, a small network.

The outputs of a layer whose inputs have the second moment C are as far apart as

.. math:: \operatorname{tr}\,(W - T)\,C\,(W - T)^\top
   = \operatorname{tr} T C T^\top - 2\,\langle T C, W\rangle + \operatorname{tr} W C W^\top ,

where :math:`T C` takes the place of the target, once, and C that of the identity between the two copies: no product
of C with a weight is left.

The price is cancellation: the sum has the rounding error of :math:`\lVert T\rVert^2`, however small the distance is.
"""

from __future__ import annotations

from typing import Any

from autoray import do

from .._typing import Array, Factor, Float, Params
from ..backends import Backend, Workspace
from ..program import MOMENT, STATE, PairStep, Stage, Tiled
from ._adjoint import backward_steps, forward_steps
from ._tiled_adjoint import accumulate, no_bars, operands_of


def squared_norm(
    stage: Stage, state: Float[Array, "*legs"] | None, arrays: Params, factor: Factor, space: Workspace
) -> tuple[Float[Array, ""], list[Float[Array, "..."] | None]]:
    """Compute ``factor * ‖W‖²`` of a :func:`closed` segment, and half of its adjoints: the state's, then the cores'.

    If it was closed over a second moment C, which is among the arrays, this is ``factor * tr(W C Wᵀ)``.
    """
    if stage.has_state:
        state = do("reshape", state, stage.cores[-1].shape)
    slots: list[Any] = [state] if stage.has_state else []
    slots += [state if core.param == STATE else arrays[core.param] for core in stage.cores]
    n_operands = len(slots)
    slots += [None] * len(stage.steps)
    matrices = forward_steps(stage.steps, slots, True, space)
    value = do("reshape", slots[-1], ()) * factor
    bars = backward_steps(stage.steps, matrices, do("zeros_like", value) + factor, n_operands, space=space)
    n_extra = sum(core.param in (STATE, MOMENT) for core in stage.cores)
    return value, bars[: stage.has_state + (len(stage.cores) - n_extra) // 2]


def project(
    tiled: Tiled,
    blocks: list[Float[Array, "..."]],
    backend: Backend,
    space: Workspace,
    target: Float[Array, " tiles *tile"],
    factor: Factor,
) -> tuple[Float[Array, ""], list[Float[Array, "..."] | None]]:
    """Compute ``factor * ⟨target, W⟩`` and the adjoint of every block.

    Parameters
    ----------
    tiled : Tiled
        The tiled program, with the last product among the steps of a tile.
    blocks : list of array
        The blocks of :func:`frontier`.
    backend : Backend
        The backend that runs the loop.
    space : Workspace
        Memory for intermediates.
    target : array
        The target as ``(tiles, ...)``, each tile in the order of its ``Z``.
    factor : float or array
        Factor of the value and the adjoints.
    """
    *steps, root = tiled.steps
    smallest = min((k for k, op in enumerate(tiled.operands) if op.need), key=lambda k: tiled.operands[k].entries)
    scaled = list(blocks)
    scaled[smallest] = scaled[smallest] * factor

    def body(i: Any, bars: Any) -> Any:
        at, slots = operands_of(tiled, scaled, backend, i)
        matrices = forward_steps(tuple(steps), slots, True, space)
        slot_bars: list[Any] = [None] * len(slots)
        slot_bars[root.left], slot_bars[root.right] = _project_root(
            root, slots[root.left], slots[root.right], backend.take(target, i), space
        )
        slot_bars = backward_steps(tuple(steps), matrices, None, len(blocks), slot_bars, space)
        return accumulate(tiled, backend, bars, at, slot_bars)

    bars = no_bars(tiled, blocks)
    bars = body(0, bars) if tiled.tiles == 1 else backend.loop(tiled.tiles, body, bars)
    bars[smallest] = bars[smallest] * factor
    # the weight is linear in every operand, and a sum of sums is more accurate than one long sum
    value = do("reshape", blocks[smallest] * bars[smallest], (blocks[smallest].shape[0], -1))
    return do("sum", do("sum", value, axis=-1)), bars


def _project_root(
    root: PairStep,
    left: Float[Array, "*left"],
    right: Float[Array, "*right"],
    target: Float[Array, "*tile"],
    space: Workspace,
) -> tuple[Float[Array, "..."] | None, Float[Array, "..."] | None]:
    """Compute the adjoints of both operands of the last product."""
    a, b, t = root.a.read(left, space), root.b.read(right, space), root.c.read(target, space)
    # read the target as it is stored: libraries are slow at thin products with a transposed operand
    transposed = root.c.swapped
    if transposed:
        a, b, t = b.mT, a.mT, t.mT
    need_a, need_b = (root.need_b, root.need_a) if transposed else (root.need_a, root.need_b)
    abar = space.matmul(t, b.mT) if need_a else None
    bbar = space.matmul(a.mT, t) if need_b else None
    if not transposed:
        return None if abar is None else root.a.write(abar), None if bbar is None else root.b.write(bbar)
    return None if bbar is None else root.a.write(bbar.mT), None if abar is None else root.b.write(abar.mT)
