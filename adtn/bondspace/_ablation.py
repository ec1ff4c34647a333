"""Loss without single components of a bond."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from .._arrays import finite_array
from .._checks import number, shown
from .._typing import Float
from ..errors import TopologyError
from ..generator import Generator


class Removable(Protocol):
    """A bond whose components can be removed one by one."""

    @property
    def index(self) -> str: ...
    @property
    def dim(self) -> int: ...
    def without(self, component: int) -> Float[np.ndarray, "dim dim"]: ...


def ablation(
    bond: Removable, generator: Generator, inputs: Any, loss: Callable[[Any], float] | None, place: Any
) -> Float[np.ndarray, " dim"]:
    """Measure every component of a bond by the weight without it.

    Raises
    ------
    TopologyError
        If the inputs do not fit, or both inputs and a loss are given.
    """
    if inputs is not None and loss is not None:
        raise TopologyError("Got inputs and a loss; expected one of them.")
    if loss is not None and not callable(loss):
        raise TopologyError(f"Got loss={shown(loss)}; expected a function of the weight.")
    weight = _weight(generator)
    x = _checked(inputs, weight)

    def size(matrix: np.ndarray) -> float:
        rows = matrix.reshape(len(matrix), -1)
        return float(np.linalg.norm(rows if x is None else rows @ x.T))

    whole = _lost(loss, weight) if loss is not None else max(size(weight), 1e-300)
    found: list[float] = []
    for component in range(bond.dim):
        changed = generator.with_bond(bond.index, bond.without(component), place=place, unshare=True)
        other = _weight(changed)
        found.append(_lost(loss, other) - whole if loss is not None else size(other - weight) / whole)
    return np.array(found)


def _weight(generator: Generator) -> Float[np.ndarray, "*shape"]:
    return np.asarray(generator.function(generator.arrays("numpy:cpu", "float64")))


def _lost(loss: Callable[[Any], float], weight: np.ndarray) -> float:
    return number("the value of loss", loss(weight), TopologyError)


def _checked(inputs: Any, weight: Float[np.ndarray, "n_out ..."]) -> Float[np.ndarray, "n n_in"] | None:
    if inputs is None:
        return None
    n_in = weight[0].size
    x = np.asarray(finite_array("inputs", inputs, TopologyError), np.float64)
    if x.ndim != 2 or x.shape[1] != n_in:
        raise TopologyError(f"Got inputs={shown(inputs)}; expected (n, {n_in}).")
    return x
