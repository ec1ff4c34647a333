"""Conversion of the arrays that callers pass in, from any framework, to NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ._checks import shown
from .backends import backend_of
from .errors import ADTNError


def host_array(name: str, value: Any, error: type[ADTNError]) -> np.ndarray:
    """Convert an array, a model parameter or nested lists to a real NumPy array.

    Arrays on another device, with gradients or in bfloat16 are copied; NumPy arrays are returned as they are.

    Raises
    ------
    ADTNError
        An instance of ``error`` if the value is anything else.
    """
    expected = "an array of real numbers"
    if value is None or isinstance(value, str | bytes | Mapping):
        raise error(f"Got {name}={shown(value)}; expected {expected}.")
    try:
        if not isinstance(value, np.ndarray | np.generic) and hasattr(value, "dtype") and hasattr(value, "shape"):
            value = backend_of(value).to_numpy(value)
        array = np.asarray(value)
    except Exception as cause:
        raise error(f"Got {name}={shown(value)}, which is not an array ({cause}); expected {expected}.") from cause
    if array.dtype.name == "bfloat16":
        array = array.astype(np.float32)
    if array.dtype.kind not in "fiub":
        raise error(f"Got {name}={shown(value)} of dtype {array.dtype}; expected {expected}.")
    return array


def finite_array(name: str, value: Any, error: type[ADTNError]) -> np.ndarray:
    """Convert a value with :func:`host_array` and refuse NaN and infinity.

    Raises
    ------
    ADTNError
        An instance of ``error`` if the value is not an array of finite real numbers.
    """
    array = host_array(name, value, error)
    if not np.isfinite(array).all():
        raise error(f"Got {name}={shown(value)} with entries that are NaN or infinite; expected finite numbers.")
    return array
