"""Adam, AdamW and SGD: the optimizers of the backend, one for every learning rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..._typing import Params
from ...backends import Optimizer as BackendOptimizer
from .._optimizer import Iterate, Optimizer, Problem

State = tuple[Any, ...]  # of the groups


@dataclass(frozen=True)
class _Group:
    """Parameters with one learning rate, and their optimizer."""

    names: list[str]
    rate_factor: float
    optimizer: BackendOptimizer

    def own(self, arrays: Params) -> Params:
        return {name: arrays[name] for name in self.names}


class FirstOrder(Optimizer):
    """An optimizer from torch.optim, optax or quimb, as the backend adapts it."""

    backend_name: ClassVar[str]
    needs_scope = False  # the backends' optimizers see to it

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        names_by_factor: dict[float, list[str]] = {}
        for name in sorted(problem.rate_factors):
            names_by_factor.setdefault(problem.rate_factors[name], []).append(name)
        settings = self.settings()
        self._groups = [
            _Group(names, factor, problem.backend.optimizer(self.backend_name, **settings))
            for factor, names in names_by_factor.items()
        ]

    def settings(self) -> dict[str, float]:
        """Return the options of the backend's optimizer."""
        return {}

    def init(self, params: Params) -> State:
        """Return moments of zero."""
        return tuple(group.optimizer.init(group.own(params)) for group in self._groups)

    def step(self, at: Iterate, state: State) -> tuple[Params, State]:
        """One update of every group."""
        params, rate = dict(at.params), at.rate
        states: list[Any] = []
        for group, own_state in zip(self._groups, state, strict=True):
            own_params, own_grads = group.own(at.params), group.own(at.grads)
            moved, own_state = group.optimizer.step(own_params, own_grads, own_state, rate * group.rate_factor)
            params.update(moved)
            states.append(own_state)
        return params, tuple(states)

    def export_state(self, state: State) -> dict[str, np.ndarray]:
        """Return the moments of all groups, ``"0:..."`` for the first."""
        return {
            f"{n}:{name}": x
            for n, (group, own_state) in enumerate(zip(self._groups, state, strict=True))
            for name, x in group.optimizer.export_state(own_state).items()
        }

    def import_state(self, params: Params, arrays: dict[str, np.ndarray]) -> State:
        """The inverse of :meth:`export_state`."""
        states: list[Any] = []
        for n, group in enumerate(self._groups):
            moments = {k.partition(":")[2]: x for k, x in arrays.items() if k.startswith(f"{n}:")}
            own = group.own(params)
            states.append(group.optimizer.import_state(own, moments) if moments else group.optimizer.init(own))
        return tuple(states)

    def snapshot(self, params: Params) -> Params:
        """A copy where the backend works in place."""
        copies: dict[str, Any] = {}
        for group in self._groups:
            copies.update(group.optimizer.snapshot(group.own(params)))
        return copies


class Adam(FirstOrder):
    """The Adam optimizer of the backend."""

    backend_name = "adam"


class AdamW(FirstOrder):
    """The Adam optimizer with decoupled weight decay."""

    backend_name = "adamw"
    takes_weight_decay = True

    def settings(self) -> dict[str, float]:
        """Return the weight decay."""
        return {"weight_decay": self.problem.weight_decay}


class SGD(FirstOrder):
    """The method of gradient descent with momentum."""

    backend_name = "sgd"

    def settings(self) -> dict[str, float]:
        """Return the momentum."""
        return {"momentum": self.problem.momentum}
