"""A weight that is written into an array of the caller."""

from __future__ import annotations

from typing import Any

from .._checks import shown
from .._typing import Array, Float, Params, Shape
from ..backends import backend_of
from ..errors import DeviceError, LayoutError, ScheduleError
from ..schedule import Planned, decide
from ..weight import Streamed


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


def write_weight(generator: Planned, arrays: Params, out: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Write the weight block by block; where its state is as large as the weight, as a whole."""
    backend = backend_of(out)
    place: Any = {"device": f"{backend.name}:{backend.device_of(out)}", "dtype": backend.dtype_of(out)}
    try:
        executable = decide(generator, "fit", mode="stream", loss="any", exact=True, **place).executable
    except ScheduleError:  # nothing to stream
        executable = None
    if isinstance(executable, Streamed):
        executable.on(backend).write(arrays, out, generator.weighting.scale)
    else:
        out[...] = decide(generator, "generate", **place).materialised.on(backend).weight(arrays)
    return out
