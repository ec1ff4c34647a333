r"""The forward and the adjoint pass of a program, written once with autoray for all backends.

With cores :math:`A_t` of segment :math:`t` and elementwise :math:`\sigma_t`::

    Z_t = C_t(X_{t-1}; A_t)        X_t = σ_t(Z_t)

    X̄_T     = the cotangent
    Z̄_t     = X̄_t ⊙ σ_t'(Z_t)
    X̄_{t-1} = C_tᵀ(Z̄_t; A_t)
    Ā_t[k]   = Env_k(X_{t-1}, Z̄_t, A_t[others])

All environments and the state's adjoint come from one reverse sweep over the contraction tree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from .._typing import Array, Float, Params
from ..backends import Workspace
from ..program import PLAIN, PairStep, Program, Stage
from ..topology import Core

Operands: TypeAlias = tuple[Float[Array, "*stack m k"], Float[Array, "*stack k n"]]
"""Both operands of a step as stacks of matrices, whose product the step is."""


@dataclass(slots=True, eq=False)
class StageTape:
    """A record of one stage for the backward pass: the operands as matrices, and ``Z``."""

    matrices: list[Operands]
    z: Float[Array, "*legs"] | None


def forward(program: Program, arrays: Params, space: Workspace = PLAIN) -> Float[Array, "*legs"]:
    """Compute the state ``X_T`` of a program.

    Parameters
    ----------
    program : Program
        The program to run.
    arrays : mapping of str to array
        Values of every core, trained or frozen, by its ``param``, all on one device.
    space : Workspace
        Memory for intermediates; the result may be in it as well.

    Returns
    -------
    array
        The state, with the legs of the last segment.
    """
    state: Any = None
    for stage in program.stages:
        state, _ = forward_stage(stage, state, arrays, keep=False, space=space)
    return state


def forward_tape(
    program: Program, arrays: Params, space: Workspace = PLAIN
) -> tuple[Float[Array, "*legs"], list[StageTape]]:
    """Compute the state as :func:`forward` does, and the tape that :func:`pullback` needs."""
    state: Any = None
    tape: list[StageTape] = []
    for stage in program.stages:
        state, record = forward_stage(stage, state, arrays, keep=True, space=space)
        tape.append(record)
    return state, tape


def pullback(
    program: Program, tape: list[StageTape], cotangent: Float[Array, "*legs"], space: Workspace = PLAIN
) -> dict[str, Float[Array, "..."]]:
    """Compute the adjoint of every trained parameter.

    Parameters
    ----------
    program : Program
        The program that wrote the tape.
    tape : list of StageTape
        From :func:`forward_tape`.
    cotangent : array
        ``X̄_T``, with the shape of the state.
    space : Workspace
        Memory for intermediates.

    Returns
    -------
    dict of str to array
        Adjoints by parameter name, summed over cores that share a parameter.
    """
    grads: dict[str, Array] = {}
    xbar = cotangent
    for stage, record in zip(reversed(program.stages), reversed(tape), strict=True):
        zbar = xbar if record.z is None else space.activate_vjp(stage.activation, record.z, xbar)
        operands = _backward_stage(stage, record, zbar, space)
        collect(grads, stage.cores, operands[stage.has_state :])
        if not stage.need_state:
            break
        xbar = operands[0]
    return grads


def collect(
    grads: dict[str, Float[Array, "..."]], cores: tuple[Core, ...], bars: list[Float[Array, "..."] | None]
) -> None:
    """Add the adjoints of cores to the gradients of their parameters."""
    for core, bar in zip(cores, bars, strict=True):
        if core.trainable and bar is not None:
            grads[core.param] = grads[core.param] + bar if core.param in grads else bar


def vjp(
    program: Program, arrays: Params, cotangent: Float[Array, "*legs"]
) -> tuple[Float[Array, "*legs"], dict[str, Float[Array, "..."]]]:
    """Compute the state and the adjoint of every trained parameter, at the cost of at most three forward passes."""
    state, tape = forward_tape(program, arrays)
    return state, pullback(program, tape, cotangent)


def forward_stage(
    stage: Stage,
    state: Float[Array, "..."] | None,
    arrays: Params,
    keep: bool,
    activate: bool = True,
    space: Workspace = PLAIN,
) -> tuple[Float[Array, "*legs"], StageTape]:
    """Compute ``X_t``, or ``Z_t`` unless ``activate``, from ``X_{t-1}``; the record is empty unless ``keep``."""
    slots: list[Any] = [state] if stage.has_state else []
    slots += [arrays[core.param] for core in stage.cores]
    matrices: list[Operands] = []
    if stage.alone is not None:
        z = stage.alone.read(slots[0])
    else:
        slots += [None] * len(stage.steps)
        matrices = forward_steps(stage.steps, slots, keep, space)
        z = slots[-1]
    if stage.segment.activation == "identity" or not activate:
        return z, StageTape(matrices, None)
    return space.activate(stage.activation, z), StageTape(matrices, z if keep else None)


def forward_steps(
    steps: tuple[PairStep, ...], slots: list[Any], keep: bool, space: Workspace = PLAIN
) -> list[Operands]:
    """Execute steps on slots, and return the operands as matrices if ``keep``."""
    matrices: list[Operands] = []
    for step in steps:
        slots[step.out], am, bm = step.forward(slots[step.left], slots[step.right], space)
        slots[step.left] = slots[step.right] = None  # every slot is read once, so free it
        if keep:
            matrices.append((am, bm))
    return matrices


def backward_steps(
    steps: tuple[PairStep, ...],
    matrices: list[Operands],
    cbar: Float[Array, "..."] | None,
    n_operands: int,
    bars: list[Any] | None = None,
    space: Workspace = PLAIN,
) -> list[Float[Array, "..."] | None]:
    """Compute the adjoints of the operands in one reverse sweep, from ``cbar`` or from adjoints ``bars`` by slot."""
    if bars is None:
        bars = [None] * (n_operands + len(steps))
        bars[-1] = cbar
    for step, (am, bm) in zip(reversed(steps), reversed(matrices), strict=True):
        bar, bars[step.out] = bars[step.out], None
        if bar is not None and (step.need_a or step.need_b):
            bars[step.left], bars[step.right] = step.backward(bar, am, bm, space)
    return bars[:n_operands]


def _backward_stage(
    stage: Stage, record: StageTape, zbar: Float[Array, "*legs"], space: Workspace
) -> list[Float[Array, "..."] | None]:
    """Compute the adjoints of all operands of a stage."""
    if stage.alone is not None:
        return [stage.alone.write(zbar)]
    return backward_steps(stage.steps, record.matrices, zbar, len(stage.cores) + stage.has_state, space=space)
