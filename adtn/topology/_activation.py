"""Elementwise activations: value and derivative, defined once for all backends."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from autoray import astype, do, get_dtype_name

from .._checks import Name, checked
from .._plugins import load_plugin, unregistered
from .._typing import Array, ElementwiseFunction, Float
from ..backends import get_backend
from ..errors import TopologyError

Gauge = Literal["GL", "positive monomial", "signed permutations", "permutations"]


@dataclass(frozen=True)
class Activation:
    """An elementwise function and its derivative, both written with autoray.

    Parameters
    ----------
    name : str
        Name under which topologies refer to it.
    value, derivative : callable
        Functions of one array; ``derivative(z)`` is the derivative of ``value`` at ``z``.
    own : bool
        Whether a user registered the activation.
    gauge : {"GL", "positive monomial", "signed permutations", "permutations"}
        The matrices M on a leg with ``value(z M) = value(z) M``, which change the cores but not the weight: all
        invertible ones for the identity, permutations times positive scalings for ReLU, permutations with signs for odd
        functions, and permutations for every function.
    """

    name: str
    value: ElementwiseFunction
    derivative: ElementwiseFunction
    own: bool = False
    gauge: Gauge = "permutations"


_POINTS = np.array([-2.3, -0.7, 0.4, 1.9])
_ELEMENTWISE = "an elementwise function of one array, written with operators and autoray.do"


def _sigmoid(z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    # by tanh, which does not overflow in any framework
    return do("tanh", z * 0.5) * 0.5 + 0.5


def _step(z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return do("where", z > 0, z * 0.0 + 1.0, z * 0.0)


def _silu_derivative(z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    s = _sigmoid(z)
    return s + z * s * (1.0 - s)


def _normal_cdf(z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    # SciPy has no half precision and returns a wider dtype
    return astype(do("scipy.special.erf", z * math.sqrt(0.5)), get_dtype_name(z)) * 0.5 + 0.5


def _gelu_derivative(z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return _normal_cdf(z) + z * do("exp", z * z * -0.5) * (1.0 / math.sqrt(2.0 * math.pi))


def _leaky_slope(z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return do("where", z > 0, z * 0.0 + 1.0, z * 0.0 + 0.01)


def _softplus(z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return do("where", z > 0, z, z * 0.0) + do("log1p", do("exp", -do("abs", z)))


def _tanh_derivative(z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    t = do("tanh", z)
    return 1.0 - t * t


_ACTIVATIONS: dict[str, Activation] = {
    a.name: a
    for a in (
        Activation("identity", lambda z: z, lambda z: z * 0.0 + 1.0, gauge="GL"),
        Activation("relu", lambda z: do("where", z > 0, z, z * 0.0), _step, gauge="positive monomial"),
        Activation("leaky_relu", lambda z: do("where", z > 0, z, z * 0.01), _leaky_slope, gauge="positive monomial"),
        Activation("silu", lambda z: z * _sigmoid(z), _silu_derivative),
        Activation("gelu", lambda z: z * _normal_cdf(z), _gelu_derivative),
        Activation("tanh", lambda z: do("tanh", z), _tanh_derivative, gauge="signed permutations"),
        Activation("softplus", _softplus, _sigmoid),
        Activation("sine", lambda z: do("sin", z), lambda z: do("cos", z), gauge="signed permutations"),
    )
}


def get_activation(name: str) -> Activation:
    """Return the activation called ``name``, also from an entry point in the group ``adtn.activations``.

    Raises
    ------
    TopologyError
        If no activation has that name.
    """
    if name not in _ACTIVATIONS:
        load_plugin("activations", name)  # importing the module registers the activation
    if name not in _ACTIVATIONS:
        raise unregistered("activations", name, tuple(_ACTIVATIONS))
    return _ACTIVATIONS[name]


@checked(TopologyError)
def register_activation(name: Name, value: ElementwiseFunction, derivative: ElementwiseFunction) -> Activation:
    """Register an activation, which every topology and backend can then use by name.

    Parameters
    ----------
    name : str
        A new name.
    value, derivative : callable
        Elementwise functions of one array, written with operators and ``autoray.do``. Their results are converted to
        the dtype of the array.

    Returns
    -------
    Activation

    Raises
    ------
    TopologyError
        If the name is taken, if one of the functions fails, is not elementwise or is not finite at a few points
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
        raise TopologyError(f"Got name={name!r}, which is already registered as an activation; expected a new name.")
    activation = Activation(name, _in_dtype(value), _in_dtype(derivative), own=True)
    for what in ("value", "derivative"):
        _try_on_numpy(what, getattr(activation, what))
        _try("null", "cpu", activation, what)
    h = 1e-5
    slope = (activation.value(_POINTS + h) - activation.value(_POINTS - h)) / (2 * h)
    slope_given = activation.derivative(_POINTS)
    if not np.allclose(slope_given, slope, rtol=1e-5, atol=1e-7):
        raise TopologyError(
            f"Got a derivative of {name!r} that is {np.asarray(slope_given).tolist()} at {_POINTS.tolist()}; expected "
            f"{slope.tolist()}, the finite differences of its value. Correct the derivative."
        )
    _ACTIVATIONS[name] = activation
    return activation


def check_activation(name: str, backend: str, where: str) -> None:
    """Check that a registered activation runs on a backend, before anything is planned for it.

    Raises
    ------
    TopologyError
        If the activation uses an operation that the framework lacks.
    """
    activation = get_activation(name)
    if activation.own:
        for what in ("value", "derivative"):
            _try(backend, where, activation, what)


def _in_dtype(fn: ElementwiseFunction) -> ElementwiseFunction:
    """Wrap a function so that it returns the dtype of its argument, whatever its constants and masks have."""

    def call(z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        result, dtype = fn(z), get_dtype_name(z)
        return result if get_dtype_name(result) == dtype else astype(result, dtype)

    return call


def _try_on_numpy(what: str, fn: ElementwiseFunction) -> None:
    for dtype in ("float64", "float32", "float16"):
        z = _POINTS.astype(dtype)
        try:
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                values = fn(z)
                alone = np.concatenate([fn(z[i : i + 1]) for i in range(len(z))])
        except Exception as error:
            raise TopologyError(f"Got a {what} that fails ({_first_line(error)}); expected {_ELEMENTWISE}.") from error
        if values.shape != z.shape or not np.array_equal(values, alone, equal_nan=True):
            raise TopologyError(f"Got a {what} that mixes entries or changes the shape; expected {_ELEMENTWISE}.")
        if not np.isfinite(values).all():
            raise TopologyError(f"Got a {what} that is {values.tolist()} at {z.tolist()}; expected finite numbers.")


@lru_cache(maxsize=256)
def _try(backend: str, where: str, activation: Activation, what: str) -> None:
    framework = get_backend(backend)
    try:
        with framework.scope("float32"):
            getattr(activation, what)(framework.asarray(_POINTS, where, "float32"))
    except Exception as error:
        raise TopologyError(
            f"Got a {what} of activation {activation.name!r} that fails on {backend} ({_first_line(error)}); expected "
            f"{_ELEMENTWISE}, from operations that {backend} has as well."
        ) from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:160]
