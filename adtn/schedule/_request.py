"""The request that a plan answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..device import DeviceProfile
from ..topology import Segment
from ..weight import Mode, Weighting

FitLoss = Literal["distance", "output distance", "any"]
"""The loss of a fit: the squared distance from a target, or of the outputs from its outputs, or any of whole rows."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A record of everything on which a decision depends; equal requests share a plan.

    Parameters
    ----------
    segments : tuple of Segment
        The segments of the generator.
    weighting : Weighting
        The formula that turns a state into a weight.
    task : {"generate", "apply", "train", "fit"}
    device, dtype : str
    batch : int or None
        The number of rows of a layer's input.
    memory : int or None
        The largest additional memory in bytes.
    mode : {"materialise", "stream", "factored"}, optional
        The mode to use.
    profile : DeviceProfile
        The profile on which predictions are based.
    topology : str
        A description of the topology.
    loss : {"distance", "output distance", "any"}
        The loss of a fit.
    exact : bool
        Whether the loss needs the residuals.
    """

    segments: tuple[Segment, ...]
    weighting: Weighting
    task: str
    device: str
    dtype: str
    batch: int | None
    memory: int | None
    mode: Mode | None
    profile: DeviceProfile
    topology: str
    loss: FitLoss
    exact: bool

    @property
    def rows(self) -> int:
        """The number of rows of the input."""
        return self.batch or 1
