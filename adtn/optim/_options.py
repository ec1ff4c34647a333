"""Everything about a fit that is neither generator nor objective."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Literal

from .._backend import OPTIMIZERS
from .._errors import FitError
from ..schedule import MODES
from ._schedules import Schedule, ScheduleName

Callback = Callable[[int, float], "bool | None"]
Name = Literal["adam", "adamw", "sgd", "lbfgs", "lm"]


@dataclass(frozen=True)
class FitOptions:
    """Everything about a fit that is neither generator nor objective; see :func:`fit`."""

    device: str = "numpy:cpu"
    dtype: str = "float32"
    optimizer: Name = "adam"
    steps: int = 1000
    lr: float = 1e-2
    schedule: ScheduleName | Schedule = "cosine"
    clip: float | None = None
    momentum: float = 0.9
    weight_decay: float = 0.0
    lr_factors: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    tolerance: float = 0.0
    patience: int | None = None
    time_limit: float | None = None
    callbacks: Sequence[Callback] = ()
    progress: bool | None = None
    checkpoint: str | os.PathLike[str] | None = None
    checkpoint_every: int = 100
    mode: str | None = None
    memory: str | int | None = None

    def __post_init__(self) -> None:
        known = (*OPTIMIZERS, "lbfgs", "lm")
        if self.optimizer not in known:
            raise FitError(f"Got optimizer={self.optimizer!r}; expected one of {', '.join(known)}.")
        if not all(isinstance(n, Integral) and n >= 1 for n in (self.steps, self.checkpoint_every)):
            raise FitError(
                f"Got steps={self.steps!r}, checkpoint_every={self.checkpoint_every!r}; expected whole numbers of at "
                "least 1."
            )
        if not (isinstance(self.lr, Real) and math.isfinite(self.lr) and self.lr > 0):
            raise FitError(f"Got lr={self.lr!r}; expected a positive number.")
        if self.mode is not None and self.mode not in MODES:
            raise FitError(f"Got mode={self.mode!r}; expected one of {', '.join(MODES)}.")
        if self.clip is not None and not self.clip > 0:
            raise FitError(f"Got clip={self.clip}; expected a positive norm, or None.")
        if self.clip is not None and self.optimizer in ("lbfgs", "lm"):
            raise FitError(f"Got clip with {self.optimizer!r}, which needs the gradient as it is; leave clip out.")
        if self.weight_decay and self.optimizer != "adamw":
            raise FitError(
                f"Got weight_decay={self.weight_decay} with {self.optimizer!r}; only 'adamw' decays weights."
            )

    @property
    def master(self) -> str:
        """Dtype of parameters and moments: half precisions lose small updates, and Adam's epsilon is zero there."""
        return self.dtype if self.dtype in ("float64", "float32") else "float32"

    def mark(self) -> tuple[object, ...]:
        """What a resumed fit must have in common with the interrupted one."""
        schedule = self.schedule if isinstance(self.schedule, str) else "function"
        return (
            self.dtype, self.optimizer, self.steps, self.lr, schedule, self.clip, self.momentum,
            self.weight_decay, sorted(self.lr_factors.items()), self.seed,
        )  # fmt: skip
