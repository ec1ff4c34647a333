"""The weight as a function of arrays, with its adjoint."""

from __future__ import annotations

from dataclasses import dataclass

from .._typing import Array, Float, Params
from ..calculus import StageTape, forward, forward_tape, pullback
from ..program import Program
from ._weighting import BASE_SCALE, Weighting


@dataclass(frozen=True, eq=False)
class WeightFunction:
    """The weight of a program, all of it at once, in plain autoray operations: what other ways are compared with.

    Parameters
    ----------
    program : Program
        Generates the state.
    weighting : Weighting
        Makes it a weight.
    """

    program: Program
    weighting: Weighting

    def __call__(self, arrays: Params) -> Float[Array, "*shape"]:
        """Make the weight.

        Parameters
        ----------
        arrays : mapping of str to array
            Trained and frozen parameters of every core, and the base, all on one device.

        Returns
        -------
        array
            Of shape ``weighting.layout.shape``.
        """
        return self.weighting.from_state(forward(self.program, arrays), arrays)

    def with_tape(self, arrays: Params) -> tuple[Float[Array, "*shape"], list[StageTape]]:
        """Make the weight, and the tape for :meth:`pullback`."""
        state, tape = forward_tape(self.program, arrays)
        return self.weighting.from_state(state, arrays), tape

    def pullback(
        self, arrays: Params, tape: list[StageTape], wbar: Float[Array, "*shape"]
    ) -> dict[str, Float[Array, "..."]]:
        """Take ``W̄ = dL/dW`` to the adjoints of all trained parameters."""
        grads = pullback(self.program, tape, self.weighting.state_adjoint(wbar))
        if self.weighting.trains_base_scale:
            grads[BASE_SCALE] = self.weighting.base_scale_adjoint(wbar, arrays)
        return grads

    def vjp(
        self, arrays: Params, wbar: Float[Array, "*shape"]
    ) -> tuple[Float[Array, "*shape"], dict[str, Float[Array, "..."]]]:
        """Make the weight and the adjoints of all trained parameters."""
        weight, tape = self.with_tape(arrays)
        return weight, self.pullback(arrays, tape, wbar)
