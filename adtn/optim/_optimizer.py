"""The optimizer interface, the view that an optimizer has of a fit, and the registry of optimizers by name."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeAlias

import numpy as np

from .._checks import Registered, listed, shown
from .._plugins import load_plugin, plugin_names
from .._typing import Params
from ..backends import Backend
from ..errors import FitError
from ..generator import Generator
from ._objective import Objective

_METHODS = ("init", "step", "export_state", "import_state")
_OPTIMIZERS: dict[str, type[Optimizer]] = {}


@dataclass(slots=True, kw_only=True, eq=False)  # made at every step, and frozen ones take three times as long
class Evaluation:
    """The loss and gradients at some parameters.

    Parameters
    ----------
    params : mapping of str to array
        The parameters.
    loss : float
    grads : mapping of str to array
        Gradients by the names of the parameters.
    """

    params: Params
    loss: float
    grads: Params


@dataclass(slots=True, kw_only=True, eq=False)
class Iterate(Evaluation):
    """An evaluation from which an optimizer takes its next step.

    Parameters
    ----------
    step : int
        The number of the step, from 0.
    schedule : callable
        A function that returns the learning rate at a step.
    """

    step: int
    schedule: Callable[[int], float]

    @property
    def rate(self) -> float:
        """The learning rate of this step."""
        return self.schedule(self.step)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """The part of a fit that an optimizer can access.

    Parameters
    ----------
    generator : Generator
        The generator: structure, scale and base of the weight, and initial parameters.
    objective : Objective
        The objective that is minimised.
    backend : Backend
        The backend of the arrays.
    device : str
        The device of the arrays, without the name of the backend.
    dtype : str
        The dtype of parameters and gradients.
    seed : int
        The seed of all random numbers.
    momentum, weight_decay : float
        The options of :func:`adtn.fit`.
    rate_factors : mapping of str to float
        The learning rate of every parameter relative to the schedule, from ``lr_factors``.
    has_batches : bool
        Whether the data of the loss change from step to step.
    evaluate : callable
        ``evaluate(params)`` returns an :class:`Evaluation` with the data of the current step.
    """

    generator: Generator
    objective: Objective
    backend: Backend
    device: str
    dtype: str
    seed: int
    momentum: float
    weight_decay: float
    rate_factors: Mapping[str, float]
    has_batches: bool
    evaluate: Callable[[Params], Evaluation]


class Optimizer(ABC):
    """A rule that turns an evaluation into the next parameters.

    The fit evaluates the loss, records the best parameters and the history, stops, and writes checkpoints; an optimizer
    only takes steps. Everything that a step depends on besides its arguments belongs in the state, so that a
    resumed fit takes the same steps.

    Parameters
    ----------
    problem : Problem
        The fit; the optimizer's constructor is called with it.

    Attributes
    ----------
    on_host : bool
        Whether parameters and gradients are float64 NumPy arrays, whatever backend evaluates the loss. Such an
        optimizer must not write to its arguments. Otherwise they are arrays of the backend.
    takes_clip, takes_weight_decay : bool
        Whether ``clip`` and ``weight_decay`` of :func:`adtn.fit` are allowed.
    solves_matrices : bool
        Whether a step does dense linear algebra on the host, for which all threads are used.
    needs_scope : bool
        Whether operations on arrays of the backend must run in its :meth:`scope <adtn.backends.Backend.scope>`, where
        they preserve float64 on JAX; not for optimizers that enter it themselves.

    Examples
    --------
    >>> import adtn, numpy as np
    >>> from autoray import do
    >>> class SignDescent(adtn.Optimizer):
    ...     def init(self, params):
    ...         return None
    ...
    ...     def step(self, at, state):
    ...         return {k: x - at.rate * do("sign", at.grads[k]) for k, x in at.params.items()}, state
    ...
    ...     def export_state(self, state):
    ...         return {}
    ...
    ...     def import_state(self, params, arrays):
    ...         return None
    >>> _ = adtn.register_optimizer("sign-descent", SignDescent)
    >>> gen = adtn.Generator((8, 8), adtn.TTN(bond=2))
    >>> adtn.fit(gen, np.eye(8), optimizer="sign-descent", steps=5).status.name
    'FINISHED'
    """

    on_host: ClassVar[bool] = False
    takes_clip: ClassVar[bool] = True
    takes_weight_decay: ClassVar[bool] = False
    solves_matrices: ClassVar[bool] = False
    needs_scope: ClassVar[bool] = True

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    @abstractmethod
    def init(self, params: Params) -> Any:
        """Return the state before the first step.

        Parameters
        ----------
        params : mapping of str to array
            The initial values.
        """

    @abstractmethod
    def step(self, at: Iterate, state: Any) -> tuple[Params | Evaluation | None, Any]:
        """Take one step.

        Parameters
        ----------
        at : Iterate
            Current parameters with their loss, gradients and learning rate.
        state
            The state that the previous step returned.

        Returns
        -------
        next : mapping of str to array, Evaluation or None
            The next parameters; an :class:`Evaluation` if the step has evaluated them already, so that the fit
            does not evaluate them again, or ``None`` if no better ones can be found, which ends the fit.
        state
            The state for the next step.
        """

    @abstractmethod
    def export_state(self, state: Any) -> dict[str, np.ndarray]:
        """Return the state as named NumPy arrays, for a checkpoint; without any, a resumed fit calls :meth:`init`."""

    @abstractmethod
    def import_state(self, params: Params, arrays: dict[str, np.ndarray]) -> Any:
        """Rebuild the state from the arrays of :meth:`export_state` and the parameters at that time."""

    def snapshot(self, params: Params) -> Params:
        """Return parameters that later steps do not change; optimizers that work in place must override this."""
        return params


def register_optimizer(name: str, optimizer: type[Optimizer]) -> type[Optimizer]:
    """Add an optimizer that :func:`adtn.fit`, :class:`adtn.Config` and the command line can then use by name.

    Parameters
    ----------
    name : str
        A new name of letters, digits, ``-`` and ``_``.
    optimizer : type
        Subclass of :class:`adtn.Optimizer`.

    Returns
    -------
    type
        The optimizer.

    Raises
    ------
    FitError
        If the name is not valid or already registered, or the optimizer is not a subclass of :class:`adtn.Optimizer`
        or lacks a method.

    Examples
    --------
    >>> import adtn
    >>> adtn.register_optimizer("adam", adtn.Optimizer)
    Traceback (most recent call last):
    ...
    adtn.errors.FitError: Got name='adam', which is already registered; expected a new name.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise FitError(f"Got name={shown(name)}; expected letters, digits, '-' and '_', such as 'sign-descent'.")
    if name in _OPTIMIZERS:
        raise FitError(f"Got name={name!r}, which is already registered; expected a new name.")
    if not isinstance(optimizer, type) or not issubclass(optimizer, Optimizer):
        raise FitError(f"Got optimizer={shown(optimizer)}; expected a subclass of adtn.Optimizer.")
    missing = [method for method in _METHODS if getattr(optimizer, method) is getattr(Optimizer, method)]
    if missing:
        raise FitError(
            f"Got optimizer={optimizer.__name__}, which lacks {', '.join(f'{method}()' for method in missing)}; "
            f"expected a class that defines {', '.join(_METHODS)}. Add what is missing."
        )
    _OPTIMIZERS[name] = optimizer
    return optimizer


def optimizer_names() -> tuple[str, ...]:
    """List the names of all optimizers, including entry points in the group ``adtn.optimizers``."""
    return tuple(dict.fromkeys((*_OPTIMIZERS, *plugin_names("optimizers"))))


def get_optimizer(name: str) -> type[Optimizer]:
    """Return the optimizer called ``name``, also from an entry point in the group ``adtn.optimizers``.

    Raises
    ------
    FitError
        If there is no optimizer of that name, or its package cannot be loaded.
    """
    if name not in _OPTIMIZERS:
        plugin = load_plugin("optimizers", name, FitError)  # importing the module should register the class
        if plugin is not None and name not in _OPTIMIZERS:
            register_optimizer(name, plugin)
    if name not in _OPTIMIZERS:
        raise FitError(f"Got optimizer={shown(name)}; expected {_expected()}.")
    return _OPTIMIZERS[name]


def weight_decay_names() -> tuple[str, ...]:
    """List the names of the registered optimizers that decay weights."""
    return tuple(name for name, optimizer in _OPTIMIZERS.items() if optimizer.takes_weight_decay)


def is_own(optimizer: type[Optimizer]) -> bool:
    """Return whether a user wrote an optimizer."""
    return not optimizer.__module__.startswith(f"{__package__}.")


def _expected() -> str:
    return (
        f"{listed([repr(name) for name in optimizer_names()])} (for your own, import the module that calls "
        "adtn.register_optimizer first; command line: --import MODULE)"
    )


OptimizerName: TypeAlias = Annotated[
    str, Registered(lambda name: name in _OPTIMIZERS or name in plugin_names("optimizers"), _expected)
]
