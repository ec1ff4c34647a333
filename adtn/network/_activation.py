"""Elementwise activations: value and derivative, one definition for every backend."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from autoray import astype, do, get_dtype_name

from .._errors import TopologyError
from .._typing import Array


@dataclass(frozen=True)
class Activation:
    """An elementwise function and its derivative, both written over autoray.

    Parameters
    ----------
    name : str
        Name under which topologies refer to it.
    value, derivative : callable
        Functions of one array; ``derivative(z)`` is the derivative of ``value`` at ``z``.
    """

    name: str
    value: Callable[[Array], Array]
    derivative: Callable[[Array], Array]


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
    """The activation called ``name``.

    Raises
    ------
    TopologyError
        If there is none of that name.
    """
    try:
        return _ACTIVATIONS[name]
    except KeyError:
        raise TopologyError(
            f"Got activation {name!r}; known are {', '.join(_ACTIVATIONS)}. Add one with adtn.register_activation."
        ) from None


def register_activation(name: str, value: Callable[[Array], Array], derivative: Callable[[Array], Array]) -> Activation:
    """Add an activation that every topology and backend can then use by name.

    Parameters
    ----------
    name : str
        A new name.
    value, derivative : callable
        Elementwise functions of one array, written with operators and ``autoray.do``.

    Returns
    -------
    Activation

    Raises
    ------
    TopologyError
        If the name is taken, or if ``derivative`` is not the derivative of ``value`` (checked by central
        differences at a few points).

    Examples
    --------
    >>> from autoray import astype, do, get_dtype_name
    >>> a = register_activation("gaussian", lambda z: do("exp", z * z * -0.5),
    ...                         lambda z: -z * do("exp", z * z * -0.5))
    >>> a.name
    'gaussian'
    """
    if name in _ACTIVATIONS:
        raise TopologyError(f"Activation {name!r} exists already; choose another name.")
    z, h = np.array([-2.3, -0.7, 0.4, 1.9]), 1e-5
    slope = (value(z + h) - value(z - h)) / (2 * h)
    got = derivative(z)
    if not np.allclose(got, slope, rtol=1e-5, atol=1e-7):
        raise TopologyError(
            f"The derivative of {name!r} at {z.tolist()} is {np.asarray(got).tolist()}, but differences of its "
            f"value give {slope.tolist()}; correct the derivative."
        )
    _ACTIVATIONS[name] = Activation(name, value, derivative)
    return _ACTIVATIONS[name]
