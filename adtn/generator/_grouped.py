"""Weights whose columns are stored group by group, so that a product permutes its input instead of the weight."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .._typing import Params
from ..backends import Backend
from ..layout import Layout
from ..precision import parts_of
from ..topology import Dense
from ._described import Described
from ._requests import Request, placed


def is_core(generator: Described) -> bool:
    """Return whether the only core of a generator has the entries of the weight in their order."""
    has_own_order = bool(generator.permutations) or generator.layout != Layout.whole(generator.shape)
    changed = generator.scale != 1.0 or generator.base is not None
    return isinstance(generator.topology, Dense) and not has_own_order and not changed


def grouped_core(generator: Described) -> str | None:
    """Return the name of the core that is the matrix with its columns in another order, ``None`` if there is none.

    Few rows are permuted faster than the weight, wherever integers are decoded in every call.
    """
    if len(generator.shape) != 2 or len(generator.codes) != 1 or not is_core(generator):
        return None
    ((name, codes),) = generator.codes.items()
    parts = parts_of(codes.shape, codes.precision)
    return name if parts.is_ordered and not parts.turned else None


def in_groups(
    generator: Described, apply: Callable[[Params, np.ndarray], np.ndarray], backend: Backend, request: Request
) -> Callable[[np.ndarray], np.ndarray] | None:
    """Return a product on the host that permutes its input, ``None`` where it is better to permute the weight."""
    name = grouped_core(generator)
    if name is None or backend.name != "numpy" or request.batch > generator.shape[0]:
        return None
    codes, place = generator.codes[name], (request.device, request.dtype)
    order = codes.order.astype(np.int32)  # held, and a hundredth of the codes

    def product(x: np.ndarray) -> np.ndarray:
        values = placed(*place, {name: codes.in_groups().reshape(codes.shape)})
        return apply(values, x.take(order, 1))

    return product
