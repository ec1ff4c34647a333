r"""How sampled entries of the weight move with every trained number.

The network is closed so that it puts out nothing but the sample. With unit tensors U in place of one core after the
other::

    Ż_t = C_t(X_{t-1}; A with U in place of A_k)        Ẋ_t = σ_t'(Z_t) ⊙ Ż_t        Ż_{t+1} = C_{t+1}(Ẋ_t; A)  ...

one pass gives the derivatives by all entries of :math:`A_k`, as an axis of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from autoray import do

from .._typing import Array, Params
from ..layout import Layout
from ..program import Program, chosen, compile_program, probe_digits
from ..topology import Segment
from ._adjoint import forward_stage

_UNIT = "unit"


@dataclass(frozen=True, eq=False)
class SampledJacobian:
    """Derivatives of a sample of the generated state, for one size of the sample.

    Parameters
    ----------
    program : Program
        Of the sampled state.
    chains : list of (str, int, Program)
        Per trained core its parameter, its segment, and everything from there on with unit tensors in its place.
    layout : Layout
        Of the weight.
    counts : tuple of int
        Sampled rows, and sampled positions on the other axes together; 0 for all of these.
    """

    program: Program
    chains: list[tuple[str, int, Program]]
    layout: Layout
    counts: tuple[int, int]

    def probes(self, rows: np.ndarray, columns: np.ndarray | None) -> dict[str, np.ndarray]:
        """One-hot cores for the sample: ``rows`` of the first axis, positions in the others, flattened."""
        shape = self.layout.shape
        at = [rows, *(np.unravel_index(columns, shape[1:]) if columns is not None else ())]
        return {
            name: np.eye(d)[index // stride % d]
            for axis, index in enumerate(at)
            for name, stride, d in probe_digits(self.layout, axis)
        }

    def __call__(self, arrays: Params) -> dict[str, Array]:
        """By parameter ``(entries, rows, columns)``; without sampled columns, the legs of the other axes at the end.

        Parameters
        ----------
        arrays : mapping of str to array
            Numbers of all cores, those of :meth:`probes`, and the unit tensors ``"unit/<parameter>"``,
            ``(entries, *shape)``.
        """
        state: Any = None
        states: list[Any] = []
        slopes: list[Any] = []
        for stage in self.program.stages:
            states.append(state)
            z, _ = forward_stage(stage, state, arrays, keep=False, activate=False)
            plain = stage.segment.activation == "identity"
            slopes.append(None if plain else stage.activation.derivative(z))
            state = z if plain else stage.activation.value(z)
        out: dict[str, Array] = {}
        for name, t, chain in self.chains:
            dot = states[t]
            own = {**arrays, _UNIT: arrays[f"{_UNIT}/{name}"]}
            for u, stage in enumerate(chain.stages, t):
                dot, _ = forward_stage(stage, dot, own, keep=False)
                dot = dot if slopes[u] is None else dot * slopes[u]
            out[name] = out[name] + dot if name in out else dot
        return out


def sampled_jacobian(segments: tuple[Segment, ...], layout: Layout, rows: int, columns: int) -> SampledJacobian:
    """Plan the derivatives of ``rows`` times ``columns`` entries; all columns when that is 0."""
    closed = chosen(segments, layout, rows, columns)
    chains: list[tuple[str, int, Program]] = []
    for t, segment in enumerate(closed):
        for k, core in enumerate(segment.cores):
            if core.trainable:
                unit = replace(core, inds=(_UNIT, *core.inds), shape=(core.size, *core.shape), param=_UNIT)
                cores = (*segment.cores[:k], unit, *segment.cores[k + 1 :])
                first = Segment(segment.inputs, cores, (_UNIT, *segment.outputs))
                later = (Segment((_UNIT, *s.inputs), s.cores, (_UNIT, *s.outputs)) for s in closed[t + 1 :])
                chains.append((core.param, t, compile_program((first, *later))))
    return SampledJacobian(compile_program(closed), chains, layout, (rows, columns))


def stacked(found: Params, order: list[str]) -> Array:
    """Derivatives of all parameters as ``(parameters, rows, entries)``."""
    parts = [do("reshape", found[name], (*found[name].shape[:2], -1)) for name in order]
    return do("concatenate", tuple(parts), axis=0)
