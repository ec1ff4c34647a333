r"""Derivatives of sampled entries of the weight with respect to every trained parameter.

The network is contracted with one-hot cores so that it computes only the sample. With unit tensors U in place of one
core after the other::

    Ż_t = C_t(X_{t-1}; A with U in place of A_k)        Ẋ_t = σ_t'(Z_t) ⊙ Ż_t        Ż_{t+1} = C_{t+1}(Ẋ_t; A)  ...

one pass gives the derivatives with respect to all entries of :math:`A_k`, along an additional axis.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from autoray import do

from .._typing import Array, Float, Int, Params
from ..layout import Layout
from ..program import Program, chosen, compile_program, probe_digits
from ..topology import Segment
from ._adjoint import forward_stage

_UNIT = "unit"


@dataclass(frozen=True, eq=False)
class SampledJacobian:
    """The derivatives of a sample of the generated state, planned for one sample size.

    Parameters
    ----------
    program : Program
        The program of the sampled state.
    chains : list of (str, int, Program)
        For each trained core its parameter, its segment, and the program from there on with unit tensors in its
        place.
    layout : Layout
        The layout of the weight.
    counts : tuple of int
        Numbers of sampled rows and of sampled positions along the other axes together; 0 for all positions.
    """

    program: Program
    chains: list[tuple[str, int, Program]]
    layout: Layout
    counts: tuple[int, int]

    def probes(
        self, rows: Int[np.ndarray, " rows"], columns: Int[np.ndarray, " columns"] | None
    ) -> dict[str, Float[np.ndarray, "n leg"]]:
        """Build the one-hot cores of a sample: ``rows`` of the first axis, flattened positions along the others."""
        shape = self.layout.shape
        at = [rows, *(np.unravel_index(columns, shape[1:]) if columns is not None else ())]
        return {
            name: np.eye(d)[index // stride % d]
            for axis, index in enumerate(at)
            for name, stride, d in probe_digits(self.layout, axis)
        }

    def __call__(self, arrays: Params) -> dict[str, Float[Array, "entries rows ..."]]:
        """Compute arrays ``(entries, rows, columns)`` by parameter, or ``(entries, rows, *legs)`` for all columns.

        Parameters
        ----------
        arrays : mapping of str to array
            Values of all cores, the cores of :meth:`probes`, and the unit tensors ``"unit/<parameter>"`` of shape
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
        out: dict[str, Float[Array, "entries rows ..."]] = {}
        for name, t, chain in self.chains:
            dot = states[t]
            chain_arrays = {**arrays, _UNIT: arrays[f"{_UNIT}/{name}"]}
            for u, stage in enumerate(chain.stages, t):
                dot, _ = forward_stage(stage, dot, chain_arrays, keep=False)
                dot = dot if slopes[u] is None else dot * slopes[u]
            out[name] = out[name] + dot if name in out else dot
        return out


def sampled_jacobian(segments: tuple[Segment, ...], layout: Layout, rows: int, columns: int) -> SampledJacobian:
    """Plan the derivatives of ``rows`` times ``columns`` entries, or of all columns if ``columns`` is 0."""
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


def stacked(
    derivatives: Mapping[str, Float[Array, "entries rows ..."]], order: list[str]
) -> Float[Array, "parameters rows all_columns"]:
    """Stack the derivatives of all parameters to ``(parameters, rows, entries)``."""
    parts = [do("reshape", derivatives[name], (*derivatives[name].shape[:2], -1)) for name in order]
    return do("concatenate", tuple(parts), axis=0)
