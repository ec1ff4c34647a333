"""The precision of what is not generated in a file: half precision, or 8 bits for matrices."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from adtn.precision import Codes, Precision, round_symmetric

KEY = "adtn_rest"
"""The entry of a file's metadata that lists arrays that are stored as codes."""
_INT8 = Precision("int8")
_LEAST = 256  # entries below which scales do not pay


def half_of(rest: Precision) -> str:
    """Return the floating-point dtype of what is not stored as codes."""
    return "float16" if rest.is_integer else rest.format


def is_coded(shape: tuple[int, ...], rest: Precision | None) -> bool:
    """Return whether an array of real numbers is stored as codes."""
    return rest is not None and rest.is_integer and len(shape) > 1 and int(np.prod(shape)) >= _LEAST


def coded(x: np.ndarray) -> Codes | None:
    """Return the codes of an array; ``None`` if it has entries that are not finite."""
    return round_symmetric(x) if np.isfinite(x).all() else None


class CodedArrays:
    """The arrays of a file that are stored as codes, with their shapes and dtypes."""

    def __init__(self) -> None:
        self.arrays: dict[str, tuple[list[int], str]] = {}

    def add(self, name: str, codes: Codes, dtype: str) -> np.ndarray:
        """Add an array, and return its bytes."""
        self.arrays[name] = list(codes.shape), dtype
        return np.array(codes.data)

    def metadata(self) -> dict[str, str]:
        """Return the metadata of the file; none without such arrays."""
        return {KEY: json.dumps(self.arrays, separators=(",", ":"))} if self.arrays else {}


def decoded_arrays(metadata: Mapping[str, str], tensors: Mapping[str, Any], to_numpy: Any) -> dict[str, Any]:
    """Decode the arrays that are stored as codes, as float32, with their dtypes.

    Parameters
    ----------
    metadata : mapping of str to str
        That of the file.
    tensors : mapping of str to array
    to_numpy : callable

    Returns
    -------
    dict of str to (numpy.ndarray, str)
    """
    listed: Mapping[str, Any] = json.loads(metadata.get(KEY, "{}"))
    return {
        name: (Codes(tuple(shape), _INT8, to_numpy(tensors[name])).decode(), dtype)
        for name, (shape, dtype) in listed.items()
    }
