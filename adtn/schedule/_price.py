"""Prices of executables, whose own code is run on null arrays and priced by the profile of a device."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._typing import Shape
from ..backends import get_backend, split_device
from ..program import MOMENT
from ..weight import BASE, BASE_SCALE, Executable
from ._plan import task_call
from ._request import Request


@dataclass(frozen=True)
class Price:
    """The predicted cost of a task.

    Parameters
    ----------
    seconds : float
        Seconds of one call.
    first_seconds : float
        Seconds of work that is done once, such as generating a cached weight.
    peak_bytes : int
        The largest additional memory at any time.
    """

    seconds: float
    first_seconds: float
    peak_bytes: int


class Tracer:
    """A tracer that runs executables on null arrays.

    Parameters
    ----------
    request : Request
        The request, with task, device, dtype and batch size.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.null: Any = get_backend("null")
        # a shipped profile may describe a device that is not present
        name, where = split_device(request.device)
        absent = request.profile.source == "datasheet" and name == "null"
        backend = None if absent else get_backend(name)
        self.shares_memory = backend is None or backend.shares_memory(where)
        self.fused = frozenset[str]() if backend is None else backend.fused
        self.scratch_bytes = 0 if backend is None else backend.scratch_bytes

    def price(self, executable: Executable) -> Price:
        """Predict the cost of the task."""
        trace = {"generate": self._generate, "apply": self._apply, "train": self._train, "fit": self._fit}
        bound: Any = executable.on(self.null)
        seconds, first, peak = trace[self.request.task](bound)
        return Price(seconds, first, peak + self.scratch_bytes)

    def _generate(self, executable: Any) -> tuple[float, float, int]:
        arrays, counter = self._arrays()
        held = counter.live_bytes
        self._call(executable)(arrays, None)
        return self._seconds(counter), 0.0, counter.peak_bytes - held

    def _apply(self, executable: Any) -> tuple[float, float, int]:
        """Price products with the same parameters, where everything that can be cached is made before the first one."""
        arrays, counter = self._arrays()
        x = self._input()
        held = counter.live_bytes
        counter.ops.clear()
        apply = executable.fixed(lambda: arrays, lambda: executable.weight(arrays), self.request.rows)
        first = self._seconds(counter) if counter.ops else 0.0
        counter.ops.clear()
        apply(x)
        return self._seconds(counter), first, counter.peak_bytes - held

    def _train(self, executable: Any) -> tuple[float, float, int]:
        arrays, counter = self._arrays()
        x = self._input()
        held = counter.live_bytes
        counter.ops.clear()
        self._call(executable)(arrays, x)
        return self._seconds(counter), 0.0, counter.peak_bytes - held

    def _fit(self, executable: Any) -> tuple[float, float, int]:
        arrays, counter = self._arrays()
        target = self._null(executable.weighting.layout.shape)
        # if memory is shared with the host, the target exists before the fit
        held = counter.live_bytes if self.shares_memory else counter.live_bytes - target.nbytes
        arranged = executable.arrange(target)
        if executable.reads_base and BASE in arrays:
            arrays[BASE] = executable.arrange(arrays[BASE])
        if MOMENT in arrays:
            arrays[MOMENT] = executable.arrange_moment(arrays[MOMENT])
        counter.ops.clear()
        self._call(executable)(arrays, arranged)
        return self._seconds(counter), 0.0, counter.peak_bytes - held

    def _call(self, executable: Any) -> Any:
        return task_call(self.request.task, executable, executable.weighting.scale, self.request.loss)

    def _input(self) -> Any:
        return self._null((self.request.rows, self.request.weighting.layout.shape[1]))

    def _null(self, shape: Shape) -> Any:
        return self.null.asarray(_shaped(shape), "cpu", self.request.dtype)

    def _arrays(self) -> tuple[dict[str, Any], Any]:
        """Make null arrays for every core and the base, and the counter of operations on them."""
        request = self.request
        shapes = {core.param: _shaped(core.shape) for segment in request.segments for core in segment.cores}
        if request.weighting.has_base:
            shapes[BASE] = _shaped(request.weighting.layout.shape)
            shapes[BASE_SCALE] = _shaped(())
        if request.loss == "output distance":
            n_in = math.prod(request.weighting.layout.shape[1:])
            shapes[MOMENT] = _shaped((n_in, n_in))
        arrays, counter = self.null.arrays_like(shapes, request.dtype)
        counter.fused = self.fused
        return arrays, counter

    def _seconds(self, counter: Any) -> float:
        return self.request.profile.total_s(counter.ops.items())


def _shaped(shape: Shape) -> np.ndarray:
    """Make an array of any shape that takes no memory."""
    return np.broadcast_to(np.float32(0), shape)
