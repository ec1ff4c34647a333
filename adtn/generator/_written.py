"""A weight that is written into an array of the caller."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .._checks import shown
from .._typing import Shape
from ..backends import Backend, backend_of
from ..device import itemsize_of
from ..errors import DeviceError, LayoutError, ScheduleError
from ..schedule import Planned, decide
from ..topology import sizes_of
from ..weight import Streamed

_LARGE = 16 << 20
"""Bytes of a weight that exceeds most caches."""


def check_out(out: Any, shape: Shape, device: str, dtype: str) -> None:
    """Check an array that a weight is to be written into.

    Raises
    ------
    LayoutError
        If it has another shape.
    DeviceError
        If it is elsewhere, of another dtype, or cannot be written to.
    """
    if not hasattr(out, "shape") or not hasattr(out, "dtype"):
        raise LayoutError(f"Got out={shown(out)}; expected an array of shape {shape}.")
    backend = backend_of(out)
    if tuple(out.shape) != shape:
        raise LayoutError(f"Got out of shape {tuple(out.shape)}; expected {shape}.")
    there, of = f"{backend.name}:{backend.device_of(out)}", backend.dtype_of(out)
    if (there, of) != (device, dtype):
        raise DeviceError(f"Got out on {there} in {of}; expected {device} in {dtype}, or pass these as arguments.")
    if backend.compiles:
        raise DeviceError("Got out of JAX, whose arrays cannot be written to; omit it.")


def blank(generator: Planned, backend: Backend, where: str, dtype: str) -> Any | None:
    """Make an array to write a large weight into, where blocks of it in the cache are faster than the whole."""
    shape, segments = generator.shape, generator.segments
    sizes, large = sizes_of(segments), math.prod(shape) * itemsize_of(dtype) >= _LARGE
    has_large_state = 4 * math.prod(sizes[i] for i in segments[-1].inputs) >= math.prod(shape)
    if not large or has_large_state or where != "cpu" or backend.compiles or dtype == "bfloat16":
        return None
    return backend.asarray(np.empty(shape, dtype), where, None, copy=False)


def streamed(generator: Planned, device: str, dtype: str) -> Streamed | None:
    """Plan the weight in blocks of rows; ``None`` where there are none that are smaller than the weight."""
    try:
        plan = decide(generator, "fit", device=device, dtype=dtype, mode="stream", loss="any", exact=True)
    except ScheduleError:
        return None
    return plan.executable if isinstance(plan.executable, Streamed) else None
