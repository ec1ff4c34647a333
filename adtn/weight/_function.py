"""The weight as a function of arrays, with its adjoint."""

from __future__ import annotations

from dataclasses import dataclass

from .._typing import Array, Float, Params
from ..calculus import StageTape, forward, forward_tape, pullback
from ..program import Program
from ._weighting import BASE_SCALE, Weighting


@dataclass(frozen=True, eq=False)
class WeightFunction:
    """The weight of a program, computed at once in plain autoray operations: the reference for all other ways.

    Parameters
    ----------
    program : Program
        The program that generates the state.
    weighting : Weighting
        The formula that converts the state to a weight.
    """

    program: Program
    weighting: Weighting

    def __call__(self, arrays: Params) -> Float[Array, "*shape"]:
        """Compute the weight.

        Parameters
        ----------
        arrays : mapping of str to array
            Trained and frozen parameters of every core, and the base, all on one device.

        Returns
        -------
        array
            The weight, of shape ``weighting.layout.shape``.
        """
        return self.weighting.from_state(forward(self.program, arrays), arrays)

    def with_tape(self, arrays: Params) -> tuple[Float[Array, "*shape"], list[StageTape]]:
        """Compute the weight, and the tape for :meth:`pullback`."""
        state, tape = forward_tape(self.program, arrays)
        return self.weighting.from_state(state, arrays), tape

    def pullback(
        self, arrays: Params, tape: list[StageTape], wbar: Float[Array, "*shape"]
    ) -> dict[str, Float[Array, "..."]]:
        """Compute the adjoints of all trained parameters from ``W̄ = dL/dW``."""
        grads = pullback(self.program, tape, self.weighting.state_adjoint(wbar))
        if self.weighting.trains_base_scale:
            grads[BASE_SCALE] = self.weighting.base_scale_adjoint(wbar, arrays)
        return grads

    def vjp(
        self, arrays: Params, wbar: Float[Array, "*shape"]
    ) -> tuple[Float[Array, "*shape"], dict[str, Float[Array, "..."]]]:
        """Compute the weight and the adjoints of all trained parameters."""
        weight, tape = self.with_tape(arrays)
        return weight, self.pullback(arrays, tape, wbar)
