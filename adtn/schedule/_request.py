"""The request that a plan answers."""

from __future__ import annotations

from dataclasses import dataclass

from ..device import DeviceProfile
from ..topology import Segment
from ..weight import Mode, Weighting


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
    only_rows : bool
        Whether the loss needs whole rows of the weight.
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
    only_rows: bool
    exact: bool

    @property
    def rows(self) -> int:
        """The number of rows of the input."""
        return self.batch or 1
