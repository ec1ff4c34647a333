r"""The squared distance of a weight from a target, and its adjoint, without the weight.

Where no activation follows the last segment, the weight is multilinear in its operands, and

.. math:: \lVert W - T\rVert^2 = \lVert T\rVert^2 - 2\,\langle T, W\rangle + \lVert W\rVert^2 .

The contraction tree ends in one product :math:`W = A B`. The adjoints of :math:`\langle T, W\rangle` are the
projections :math:`\bar A = T B^\top` and :math:`\bar B = A^\top T`: two products that read the target instead of three
that make and read a weight, and nothing of its size is written. They are done tile by tile, so that the target comes
from memory once. :math:`\lVert W\rVert^2` is the network of the last segment closed with its own copy, which is small.

The price is cancellation: the rounding error of the sum is one of :math:`\lVert T\rVert^2`, whatever is left of the
distance.
"""

from __future__ import annotations

from typing import Any

from autoray import do

from .._typing import Array, Params
from ..backends import Backend, Workspace
from ..program import STATE, PairStep, Stage, Tiled
from ._adjoint import backward_steps, forward_steps
from ._tiled_adjoint import accumulate, no_bars, operands_of


def squared_norm(
    stage: Stage, state: Array | None, arrays: Params, factor: float | Array, space: Workspace
) -> tuple[Array, list[Array | None]]:
    """``factor * ‖W‖²`` by a :func:`closed` segment, and half of its adjoints: of the state, then of every core."""
    if stage.has_state:
        state = do("reshape", state, stage.cores[-1].shape)
    slots: list[Any] = [state] if stage.has_state else []
    slots += [state if core.param == STATE else arrays[core.param] for core in stage.cores]
    n_operands = len(slots)
    slots += [None] * len(stage.steps)
    matrices = forward_steps(stage.steps, slots, True, space)
    value = do("reshape", slots[-1], ()) * factor
    bars = backward_steps(stage.steps, matrices, do("zeros_like", value) + factor, n_operands, space=space)
    return value, bars[: stage.has_state + len(stage.cores) // 2]


def project(
    tiled: Tiled, blocks: list[Array], backend: Backend, space: Workspace, target: Array, factor: float | Array
) -> tuple[Array, list[Array | None]]:
    """``factor * ⟨target, W⟩`` and the adjoint of every block.

    Parameters
    ----------
    tiled : Tiled
        With the last product among the steps of a tile.
    blocks : list of array
        From :func:`frontier`.
    backend : Backend
        Loops.
    space : Workspace
        Where intermediates go.
    target : array
        ``(tiles, ...)``, each as the tile's ``Z``.
    factor : float or array
        Of everything.
    """
    *steps, root = tiled.steps
    least = min((k for k, op in enumerate(tiled.operands) if op.need), key=lambda k: tiled.operands[k].entries)
    scaled = list(blocks)
    scaled[least] = scaled[least] * factor

    def body(i: Any, bars: Any) -> Any:
        at, slots = operands_of(tiled, scaled, backend, i)
        matrices = forward_steps(tuple(steps), slots, True, space)
        found: list[Any] = [None] * len(slots)
        found[root.left], found[root.right] = _project_root(
            root, slots[root.left], slots[root.right], backend.take(target, i), space
        )
        found = backward_steps(tuple(steps), matrices, None, len(blocks), found, space)
        return accumulate(tiled, backend, bars, at, found)

    bars = no_bars(tiled, blocks)
    bars = body(0, bars) if tiled.tiles == 1 else backend.loop(tiled.tiles, body, bars)
    bars[least] = bars[least] * factor
    # the weight is linear in every operand; sums of sums lose less than one long sum
    value = do("reshape", blocks[least] * bars[least], (blocks[least].shape[0], -1))
    return do("sum", do("sum", value, axis=-1)), bars


def _project_root(
    root: PairStep, left: Array, right: Array, target: Array, space: Workspace
) -> tuple[Array | None, Array | None]:
    """Adjoints of both operands."""
    a, b, t = root.a.read(left, space), root.b.read(right, space), root.c.read(target, space)
    turned = root.c.swapped  # the target is read as it lies: libraries are slow at thin products with a transposed one
    if turned:
        a, b, t = b.mT, a.mT, t.mT
    need_a, need_b = (root.need_b, root.need_a) if turned else (root.need_a, root.need_b)
    abar = space.matmul(t, b.mT) if need_a else None
    bbar = space.matmul(a.mT, t) if need_b else None
    if not turned:
        return None if abar is None else root.a.write(abar), None if bbar is None else root.b.write(bbar)
    return None if bbar is None else root.a.write(bbar.mT), None if abar is None else root.b.write(abar.mT)
