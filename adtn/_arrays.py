"""Arrays of any framework that a caller hands over, as NumPy has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ._checks import shown
from .backends import backend_of
from .errors import ADTNError


def host_array(name: str, value: Any, error: type[ADTNError]) -> np.ndarray:
    """Real numbers from an array, a parameter of a model, or nested lists.

    What is on another device, has gradients or is in bfloat16 is copied; NumPy arrays are taken as they are.

    Raises
    ------
    ADTNError
        Of class ``error``, if it is something else.
    """
    expected = "an array of real numbers"
    if value is None or isinstance(value, str | bytes | Mapping):
        raise error(f"Got {name}={shown(value)}; expected {expected}.")
    try:
        if not isinstance(value, np.ndarray | np.generic) and hasattr(value, "dtype") and hasattr(value, "shape"):
            value = backend_of(value).to_numpy(value)
        found = np.asarray(value)
    except Exception as failed:
        raise error(f"Got {name}={shown(value)}, which is no array ({failed}); expected {expected}.") from failed
    if found.dtype.name == "bfloat16":
        found = found.astype(np.float32)
    if found.dtype.kind not in "fiub":
        raise error(f"Got {name}={shown(value)}, of {found.dtype}; expected {expected}.")
    return found


def finite_array(name: str, value: Any, error: type[ADTNError]) -> np.ndarray:
    """:func:`host_array` without NaN and infinity.

    Raises
    ------
    ADTNError
        Of class ``error``, if it is something else.
    """
    found = host_array(name, value, error)
    if not np.isfinite(found).all():
        raise error(f"Got {name}={shown(value)} with entries that are NaN or infinite; expected finite numbers.")
    return found
