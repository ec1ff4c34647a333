"""The request that a plan answers."""

from __future__ import annotations

from dataclasses import dataclass

from ..device import DeviceProfile
from ..topology import Segment
from ..weight import Mode, Weighting


@dataclass(frozen=True, kw_only=True)
class Request:
    """A record of everything a decision depends on; equal requests share a plan.

    Parameters
    ----------
    segments : tuple of Segment
        Of the generator.
    weighting : Weighting
        The formula that makes a state a weight.
    task : {"generate", "apply", "train", "fit"}
    device, dtype : str
    batch : int or None
        Rows of the input of a layer.
    memory : int or None
        Largest extra memory in bytes.
    mode : {"materialise", "stream", "factored"}, optional
        The one to use.
    profile : DeviceProfile
        What predictions stand on.
    topology : str
        For people.
    only_rows : bool
        The loss needs whole rows of the weight.
    exact : bool
        The loss needs the residuals themselves.
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
        """The number of rows of the input that are planned for."""
        return self.batch or 1
