"""Requests for a product: what it is planned for, and how its input and arrays are given."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from autoray import do

from .._checks import shown
from .._typing import Array, Float, Shape
from ..backends import DTYPES, Backend, backend_of, check_device
from ..device import Memory
from ..errors import DeviceError, LayoutError
from ..weight import ANY_BATCH, Mode

_OPEN_BATCH = 64


class Request(NamedTuple):
    """A request for a product: everything that its plan depends on.

    Parameters
    ----------
    device, dtype : str
        Those of the input.
    batch : int
        The largest number of rows of the input.
    mode : str or None
        The mode of execution, unless the scheduler chooses it.
    memory : str, int or None
        The largest additional memory.
    """

    device: str
    dtype: str
    batch: int
    mode: Mode | None
    memory: Memory


def requested(x: Any, shape: Shape, mode: Mode | None, memory: Memory) -> tuple[Backend, Request]:
    """Return the backend of an input, and the request for its product with a weight of this shape.

    Raises
    ------
    LayoutError
        If the weight is not a matrix, or ``x`` does not match it.
    DeviceError
        If the dtype is not one of those that are supported.
    """
    if len(shape) != 2:
        raise LayoutError(f"apply needs a weight (n_out, n_in); this one is {shape}. Use weight() instead.")
    if not hasattr(x, "shape"):
        raise LayoutError(f"Got x={shown(x)}; expected an array (..., {shape[1]}).")
    if not len(x.shape) or x.shape[-1] != shape[1]:
        raise LayoutError(f"Got x of shape {tuple(x.shape)}; expected (..., {shape[1]}).")
    backend = backend_of(x)
    device, dtype = f"{backend.name}:{backend.device_of(x)}", backend.dtype_of(x)
    if dtype not in DTYPES:
        raise DeviceError(f"Got x of {dtype}; expected one of {', '.join(DTYPES)}.")
    batch = math.prod(x.shape[:-1])
    has_size = isinstance(batch, int)  # not with jax.export and a symbolic size: then the plan is for any size
    mode = mode if has_size or mode in ANY_BATCH else ANY_BATCH[0]
    # one decision for all batches up to the next power of two
    most = 1 << max(batch - 1, 0).bit_length() if has_size else _OPEN_BATCH
    return backend, Request(device, dtype, most, mode, memory)


def by_rows(product: Callable[[Array], Array], x: Any, shape: Shape) -> Float[Array, "*batch n_out"]:
    """Multiply all rows of an input of any number of axes with a weight of this shape."""
    if len(x.shape) == 2:
        return product(x)
    rows = do("reshape", x, (math.prod(x.shape[:-1]), shape[1]))
    return do("reshape", product(rows), (*x.shape[:-1], shape[0]))


def placed(device: str, dtype: str, values: Mapping[str, Any]) -> dict[str, Float[Array, "..."]]:
    """Place arrays on a device.

    Raises
    ------
    DeviceError, MissingDependencyError
        If the device or dtype is not available.
    """
    backend, where = check_device(device, dtype)
    return {name: backend.asarray(np.asarray(x), where, dtype) for name, x in values.items()}
