"""Aliases used in annotations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

Array: TypeAlias = Any
"""An array of any framework that autoray dispatches."""

Params: TypeAlias = Mapping[str, Array]
"""Parameter name to array."""

Shape: TypeAlias = tuple[int, ...]
Inds: TypeAlias = tuple[str, ...]
