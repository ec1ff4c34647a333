"""The solution that a fit returns."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np

from ..generator import Generator
from ._svd_error import svd_error


class Status(Enum):
    """The reason why a fit ended; each value is a sentence that ends with advice.

    Examples
    --------
    >>> import adtn, numpy as np
    >>> stop = [lambda step, loss: step == 3]
    >>> status = adtn.fit(adtn.Generator((8, 8), adtn.TTN(bond=2)), np.eye(8), steps=5, callbacks=stop).status
    >>> status is adtn.Status.STOPPED, status.value
    (True, 'A callback asked to stop; start again from the checkpoint to go on.')
    """

    FINISHED = "All steps were taken; take more steps if the loss still falls."
    REACHED = "The requested relative error is reached; nothing to do."
    STALLED = "The loss stopped falling; try another seed, a larger bond or a larger learning rate."
    TIME = "The time limit is over; start again from the checkpoint or allow more time."
    INTERRUPTED = (
        "It was interrupted, as by Ctrl-C, and the best parameters so far are kept; "
        "start again from the checkpoint to go on."
    )
    STOPPED = "A callback asked to stop; start again from the checkpoint to go on."
    DIVERGED = (
        "The loss became NaN or infinite and the best parameters before that are kept; "
        "lower lr, set clip=1.0, or use dtype='float32' instead of a half precision."
    )


@dataclass(frozen=True, kw_only=True)
class Solution:
    """The result of :func:`adtn.fit`.

    Parameters
    ----------
    generator : Generator
        The generator with the best parameters, or those of the last step if every step has its own data.
    loss : float
        The loss of these parameters.
    status : Status
        The reason why the fit ended; ``status.value`` says what to do next.
    history : numpy.ndarray
        The loss before each step, in float64.
    steps : int
        The total number of steps, including resumed ones.
    seconds : float
        The wall time of this call.
    params : dict of str to numpy.ndarray
        Further trained arrays of a :class:`adtn.Task`.
    is_relative_square : bool
        Whether the loss is a squared relative error.

    Examples
    --------
    >>> import adtn, numpy as np
    >>> solution = adtn.fit(adtn.Generator((8, 8), adtn.TTN(bond=2)), np.eye(8), steps=5)
    >>> solution.steps, solution.history.shape, solution.status.name
    (5, (5,), 'FINISHED')
    >>> round(solution.svd_error(np.eye(8)), 4)  # 36 parameters are rank 2 of 8
    0.866
    """

    generator: Generator
    loss: float
    status: Status
    history: np.ndarray
    steps: int
    seconds: float
    params: dict[str, np.ndarray] = field(default_factory=dict)
    is_relative_square: bool = False

    @property
    def relative_error(self) -> float:
        """The square root of the loss of a reconstruction; NaN for a task."""
        return math.sqrt(max(self.loss, 0.0)) if self.is_relative_square else math.nan

    def svd_error(self, weight: Any, moment: Any = None) -> float:
        """Compute the relative error of a truncated singular value decomposition of equal size, for comparison.

        Parameters
        ----------
        weight : numpy.ndarray
            The target of the fit.
        moment : numpy.ndarray, optional
            The second moment of the inputs, if outputs were reconstructed.
        """
        return svd_error(weight, self.generator.num_params, moment)

    def uninterrupted(self) -> Solution:
        """Return this solution, for callers that are part of a larger task, which an interruption ends as a whole.

        Raises
        ------
        KeyboardInterrupt
            If the fit was interrupted.
        """
        if self.status is Status.INTERRUPTED:
            raise KeyboardInterrupt
        return self

    @property
    def converged(self) -> bool:
        """Whether the fit ended without an error."""
        return self.status is not Status.DIVERGED

    def __repr__(self) -> str:
        error = f", relative_error={self.relative_error:.4g}" if self.is_relative_square else ""
        return (
            f"Solution({self.status.name}, loss={self.loss:.6g}{error}, steps={self.steps}, seconds={self.seconds:.1f})"
        )
