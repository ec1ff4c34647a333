"""The options of a fit."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from .._checks import Count, NotNegative, Positive, Range, Seed, check_fields
from ..device import Memory
from ..errors import FitError
from ..weight import Mode
from ._observer import Observer, check_callbacks
from ._optimizer import OptimizerName, get_optimizer, weight_decay_names
from ._schedules import ScheduleArgument

Callback = Callable[[int, float], "bool | None"]
Momentum = Annotated[float, Range(0.0, 1.0, below=True)]


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """The options of a fit, which are all arguments of :func:`fit` except the generator and the objective."""

    device: str = "numpy:cpu"
    dtype: str = "float32"
    optimizer: OptimizerName = "adam"
    steps: Count = 1000
    lr: Positive = 1e-2
    schedule: ScheduleArgument = "cosine"
    clip: Positive | None = None
    momentum: Momentum = 0.9
    weight_decay: NotNegative = 0.0
    lr_factors: Mapping[str, NotNegative] = field(default_factory=dict)
    seed: Seed = 0
    tolerance: NotNegative = 0.0
    patience: Count | None = None
    time_limit: NotNegative | None = None
    callbacks: Sequence[Callback | Observer] = ()
    progress: bool | None = None
    checkpoint: str | os.PathLike[str] | None = None
    checkpoint_every: Count = 100
    mode: Mode | None = None
    memory: Memory = None

    def __post_init__(self) -> None:
        check_fields(self, FitError)
        check_callbacks(self.callbacks, FitError)
        optimizer = get_optimizer(self.optimizer)
        if self.clip is not None and not optimizer.takes_clip:
            raise FitError(f"Got clip with {self.optimizer!r}, which requires the exact gradient; leave clip out.")
        if self.weight_decay and not optimizer.takes_weight_decay:
            raise FitError(
                f"Got weight_decay={self.weight_decay} with {self.optimizer!r}; expected 0, as only "
                f"{', '.join(map(repr, weight_decay_names()))} can decay weights."
            )

    @property
    def master(self) -> str:
        """The dtype of parameters and moments, at least float32: small updates and epsilon vanish in half precision."""
        return self.dtype if self.dtype in ("float64", "float32") else "float32"

    def mark(self) -> tuple[object, ...]:
        """Return the options that a resumed fit must have in common with the interrupted one."""
        schedule = self.schedule if isinstance(self.schedule, str) else "function"
        return (
            self.dtype,
            self.optimizer,
            self.steps,
            self.lr,
            schedule,
            self.clip,
            self.momentum,
            self.weight_decay,
            sorted(self.lr_factors.items()),
            self.seed,
        )
