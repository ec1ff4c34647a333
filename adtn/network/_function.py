"""The weight as a function of arrays: program, layout, scale and base together, with its adjoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from autoray import do

from .._typing import Array, Params
from ._adjoint import StageTape, forward, forward_tape, pullback
from ._layout import Layout, pad
from ._program import Program

BASE = "base"
BASE_SCALE = "base.scale"


@dataclass(frozen=True)
class Weighting:
    """How a generated state becomes a weight: ``base.scale * base + scale * crop(reshape(X_T))``.

    Parameters
    ----------
    layout : Layout
        Reads the state as a weight.
    scale : float
        Standard deviation that a generated state of unit variance gets.
    has_base : bool
        Whether there is a frozen ``"base"``.
    trains_base_scale : bool
        Whether its factor ``"base.scale"`` is trained; it is 1 otherwise.
    identity : float, optional
        The base of a matrix is so many times the identity, cut to shape: batches need no product with it, and the
        arrays need not hold it.
    """

    layout: Layout
    scale: float
    has_base: bool = False
    trains_base_scale: bool = False
    identity: float | None = None


def base_of(weighting: Weighting, arrays: Params) -> Array:
    """The base as a dense array; an identity that the arrays do not hold is made."""
    if BASE in arrays or weighting.identity is None:
        return arrays[BASE]
    n_out, n_in = weighting.layout.shape
    n = min(n_out, n_in)
    # n numbers with n zeros behind each: cut into rows of n, they are the diagonal
    entry = do("reshape", arrays[BASE_SCALE] * 0.0 + weighting.identity, (1, 1))
    flat = do("reshape", pad(do("broadcast_to", entry, (n, 1)), 1, n), (-1,))
    return pad(pad(do("reshape", flat[: n * n], (n, n)), 0, n_out - n), 1, n_in - n)


@dataclass(frozen=True, eq=False)
class WeightFunction:
    """The weight of a program.

    Parameters
    ----------
    program : Program
        Generates the state.
    weighting : Weighting
        Makes it a weight.
    """

    program: Program
    weighting: Weighting

    def __call__(self, arrays: Params) -> Array:
        """The weight.

        Parameters
        ----------
        arrays : mapping of str to array
            Trained and frozen numbers of every core, and the base, all on one device.

        Returns
        -------
        array
            Of shape ``weighting.layout.shape``.
        """
        return self._finish(forward(self.program, arrays), arrays)

    def with_tape(self, arrays: Params) -> tuple[Array, list[StageTape]]:
        """The weight, and the tape for :meth:`pullback`."""
        state, tape = forward_tape(self.program, arrays)
        return self._finish(state, arrays), tape

    def pullback(self, arrays: Params, tape: list[StageTape], wbar: Array) -> dict[str, Array]:
        """Adjoints of all trained parameters from ``W̄ = dL/dW``."""
        weighting = self.weighting
        grads = pullback(self.program, tape, weighting.layout.to_legs(wbar) * weighting.scale)
        if weighting.trains_base_scale:
            grads[BASE_SCALE] = do("sum", wbar * base_of(weighting, arrays))
        return grads

    def vjp(self, arrays: Params, wbar: Array) -> tuple[Array, dict[str, Any]]:
        """The weight and the adjoints of all trained parameters."""
        weight, tape = self.with_tape(arrays)
        return weight, self.pullback(arrays, tape, wbar)

    def _finish(self, state: Array, arrays: Params) -> Array:
        weighting = self.weighting
        weight = weighting.layout.from_legs(state) * weighting.scale
        if not weighting.has_base:
            return weight
        base = base_of(weighting, arrays)
        return weight + (base * arrays[BASE_SCALE] if weighting.trains_base_scale else base)
