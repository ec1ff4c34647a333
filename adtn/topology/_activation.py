"""Elementwise activations: value and derivative, one definition for every backend."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from autoray import astype, do, get_dtype_name

from .._checks import Name, checked
from .._plugins import load_plugin, unregistered
from .._typing import Array
from ..backends import get_backend
from ..errors import TopologyError


@dataclass(frozen=True)
class Activation:
    """An elementwise function and its derivative, both written over autoray.

    Parameters
    ----------
    name : str
        Name under which topologies refer to it.
    value, derivative : callable
        Functions of one array; ``derivative(z)`` is the derivative of ``value`` at ``z``.
    own : bool
        Whether a user registered it.
    """

    name: str
    value: Callable[[Array], Array]
    derivative: Callable[[Array], Array]
    own: bool = False


_POINTS = np.array([-2.3, -0.7, 0.4, 1.9])
_ELEMENTWISE = "an elementwise function of one array, written with operators and autoray.do"


def _sigmoid(z: Array) -> Array:
    # through tanh, which no framework lets overflow
    return do("tanh", z * 0.5) * 0.5 + 0.5


def _step(z: Array) -> Array:
    return do("where", z > 0, z * 0.0 + 1.0, z * 0.0)


def _silu_derivative(z: Array) -> Array:
    s = _sigmoid(z)
    return s + z * s * (1.0 - s)


def _normal_cdf(z: Array) -> Array:
    # SciPy has no half precision: it answers in a wider dtype
    return astype(do("scipy.special.erf", z * math.sqrt(0.5)), get_dtype_name(z)) * 0.5 + 0.5


def _gelu_derivative(z: Array) -> Array:
    return _normal_cdf(z) + z * do("exp", z * z * -0.5) * (1.0 / math.sqrt(2.0 * math.pi))


def _leaky_slope(z: Array) -> Array:
    return do("where", z > 0, z * 0.0 + 1.0, z * 0.0 + 0.01)


def _softplus(z: Array) -> Array:
    return do("where", z > 0, z, z * 0.0) + do("log1p", do("exp", -do("abs", z)))


def _tanh_derivative(z: Array) -> Array:
    t = do("tanh", z)
    return 1.0 - t * t


_ACTIVATIONS: dict[str, Activation] = {
    a.name: a
    for a in (
        Activation("identity", lambda z: z, lambda z: z * 0.0 + 1.0),
        Activation("relu", lambda z: do("where", z > 0, z, z * 0.0), _step),
        Activation("leaky_relu", lambda z: do("where", z > 0, z, z * 0.01), _leaky_slope),
        Activation("silu", lambda z: z * _sigmoid(z), _silu_derivative),
        Activation("gelu", lambda z: z * _normal_cdf(z), _gelu_derivative),
        Activation("tanh", lambda z: do("tanh", z), _tanh_derivative),
        Activation("softplus", _softplus, _sigmoid),
        Activation("sine", lambda z: do("sin", z), lambda z: do("cos", z)),
    )
}


def get_activation(name: str) -> Activation:
    """The activation called ``name``; entry points in the group ``adtn.activations`` are asked, too.

    Raises
    ------
    TopologyError
        If there is none of that name.
    """
    if name not in _ACTIVATIONS:
        load_plugin("activations", name)  # its import registers it
    if name not in _ACTIVATIONS:
        raise unregistered("activations", name, tuple(_ACTIVATIONS))
    return _ACTIVATIONS[name]


@checked(TopologyError)
def register_activation(
    name: Name, value: Callable[[Array], Array], derivative: Callable[[Array], Array]
) -> Activation:
    """Add an activation that every topology and backend can then use by name.

    Parameters
    ----------
    name : str
        A new name.
    value, derivative : callable
        Elementwise functions of one array, written with operators and ``autoray.do``. What they return is converted to
        the dtype of the array.

    Returns
    -------
    Activation

    Raises
    ------
    TopologyError
        If the name is taken, if one of the functions cannot run, is not elementwise or not finite at a few points
        between -2.3 and 1.9, or if ``derivative`` is not the derivative of ``value`` (by central differences).

    Examples
    --------
    >>> from autoray import do
    >>> a = register_activation("gaussian", lambda z: do("exp", z * z * -0.5),
    ...                         lambda z: -z * do("exp", z * z * -0.5))
    >>> a.name
    'gaussian'
    """
    if name in _ACTIVATIONS:
        raise TopologyError(f"Got name={name!r}, an activation that exists already; expected another name.")
    made = Activation(name, _in_dtype(value), _in_dtype(derivative), own=True)
    for what in ("value", "derivative"):
        _try_on_numpy(what, getattr(made, what))
        _try("null", "cpu", made, what)
    h = 1e-5
    slope = (made.value(_POINTS + h) - made.value(_POINTS - h)) / (2 * h)
    got = made.derivative(_POINTS)
    if not np.allclose(got, slope, rtol=1e-5, atol=1e-7):
        raise TopologyError(
            f"Got a derivative of {name!r} that is {np.asarray(got).tolist()} at {_POINTS.tolist()}, but differences "
            f"of its value give {slope.tolist()}; expected these. Correct the derivative."
        )
    _ACTIVATIONS[name] = made
    return made


def check_activation(name: str, backend: str, where: str) -> None:
    """See that a registered activation runs on a backend, before anything is planned for it.

    Raises
    ------
    TopologyError
        If it uses what that framework lacks.
    """
    activation = get_activation(name)
    if activation.own:
        for what in ("value", "derivative"):
            _try(backend, where, activation, what)


def _in_dtype(fn: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """The same function, in the dtype of its argument: constants and masks may have another."""

    def call(z: Array) -> Array:
        found, dtype = fn(z), get_dtype_name(z)
        return found if get_dtype_name(found) == dtype else astype(found, dtype)

    return call


def _try_on_numpy(what: str, fn: Callable[[Array], Array]) -> None:
    for dtype in ("float64", "float32", "float16"):
        z = _POINTS.astype(dtype)
        try:
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = fn(z)
                alone = np.concatenate([fn(z[i : i + 1]) for i in range(len(z))])
        except Exception as error:
            raise TopologyError(f"Got a {what} that fails ({_first_line(error)}); expected {_ELEMENTWISE}.") from error
        if found.shape != z.shape or not np.array_equal(found, alone, equal_nan=True):
            raise TopologyError(f"Got a {what} that mixes entries or changes the shape; expected {_ELEMENTWISE}.")
        if not np.isfinite(found).all():
            raise TopologyError(f"Got a {what} that is {found.tolist()} at {z.tolist()}; expected finite numbers.")


@lru_cache(maxsize=256)
def _try(backend: str, where: str, activation: Activation, what: str) -> None:
    found = get_backend(backend)
    try:
        with found.scope("float32"):
            getattr(activation, what)(found.asarray(_POINTS, where, "float32"))
    except Exception as error:
        raise TopologyError(
            f"Got a {what} of activation {activation.name!r} that fails on {backend} ({_first_line(error)}); expected "
            f"{_ELEMENTWISE}, which {backend} has, too."
        ) from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:160]
