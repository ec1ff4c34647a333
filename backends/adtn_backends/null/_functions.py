"""The elementwise functions of NumPy and SciPy for null arrays, in a module where autoray looks them up by name."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

import numpy as np


def apply(kind: str, *arrays: Any) -> Any:
    """Record an operation; the null backend replaces this function."""
    raise NotImplementedError(kind)


_ELEMENTWISE = frozenset({"where", "clip", "nan_to_num", "round", "around", "sinc", "real", "i0", "abs"})
_CHEAP = frozenset(
    [
        "abs",
        "absolute",
        "add",
        "around",
        "ceil",
        "clip",
        "conj",
        "conjugate",
        "copysign",
        "divide",
        "equal",
        "fabs",
        "floor",
        "fmax",
        "fmin",
        "greater",
        "greater_equal",
        "heaviside",
        "isfinite",
        "isinf",
        "isnan",
        "less",
        "less_equal",
        "logical_and",
        "logical_not",
        "logical_or",
        "logical_xor",
        "maximum",
        "minimum",
        "multiply",
        "nan_to_num",
        "negative",
        "not_equal",
        "positive",
        "real",
        "reciprocal",
        "rint",
        "round",
        "sign",
        "signbit",
        "square",
        "subtract",
        "true_divide",
        "trunc",
        "where",
    ]
)


def __getattr__(name: str) -> Any:
    return _Namespace("").__getattr__(name)


class _Namespace:
    """A module of functions, such as ``scipy.special``."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __getattr__(self, name: str) -> Any:
        path = f"{self._path}{name}"
        if name.startswith("__"):
            raise AttributeError(name)
        if path in ("scipy", "scipy.special"):
            return _Namespace(f"{path}.")
        function = getattr(importlib.import_module(self._path[:-1]) if self._path else np, name, None)
        is_elementwise = isinstance(function, np.ufunc) and function.signature is None and function.nout == 1
        if not (is_elementwise or path in _ELEMENTWISE):
            raise AttributeError(f"{path} is not an elementwise function")
        return partial(apply, "arithmetic" if name in _CHEAP else name)
