"""Activations: values, derivatives, registration, placement."""

from __future__ import annotations

from functools import partial

import adtn
import numpy as np
import pytest
from adtn.backends import check_device
from adtn.errors import TopologyError
from adtn.topology import get_activation
from adtn.topology._activation import _ACTIVATIONS
from autoray import do

from oracles import SIGMA
from table import to_numpy, tolerance


@pytest.mark.parametrize("name", SIGMA)
def test_value_and_derivative(name: str, device_dtype: tuple[str, str]) -> None:
    device, dtype = device_dtype
    z = np.array([-3.0, -1.25, -0.5, 0.25, 0.75, 2.5, 4.0])
    backend, where = check_device(device, dtype)
    a = get_activation(name)
    x = backend.asarray(z, where, dtype)
    ones, space = backend.asarray(np.ones_like(z), where, dtype), backend.workspace()
    h = 1e-6
    want = (SIGMA[name](z + h) - SIGMA[name](z - h)) / (2 * h)
    pairs = [(a.value, a.derivative), (partial(space.activate, a), lambda x: space.activate_vjp(a, x, ones))]
    for value_of, slope_of in pairs:
        value, slope = backend.compile(value_of)(x), backend.compile(slope_of)(x)
        assert backend.dtype_of(value) == backend.dtype_of(slope) == dtype
        np.testing.assert_allclose(to_numpy(value), SIGMA[name](z), rtol=tolerance(dtype, 4), atol=tolerance(dtype))
        np.testing.assert_allclose(to_numpy(slope), want, rtol=1e-6 + tolerance(dtype, 4), atol=1e-9 + tolerance(dtype))


@pytest.mark.parametrize("name", SIGMA)
def test_extreme_arguments_stay_finite(name: str, device_dtype: tuple[str, str]) -> None:
    device, dtype = device_dtype
    backend, where = check_device(device, dtype)
    a, space = get_activation(name), backend.workspace()
    far = 1e4 if dtype.startswith("float") and dtype != "float16" else 200.0
    with backend.scope(dtype):
        z = backend.asarray(np.array([-far, -100.0, 0.0, 100.0, far]), where, dtype)
        for found in (a.value(z), a.derivative(z), space.activate(a, z), space.activate_vjp(a, z, z)):
            assert np.isfinite(to_numpy(found)).all()


def test_own_activation_works_everywhere(device: str) -> None:
    adtn.register_activation("cube", lambda z: z * z * z, lambda z: 3.0 * z * z)
    try:
        gen = adtn.Generator((8, 8), adtn.TTN(bond=2, activation="cube"), layout=adtn.Layout.of((8, 8), 4))
        assert np.allclose(to_numpy(gen.weight(device)), gen.weight(), rtol=1e-4, atol=1e-6)
    finally:
        del _ACTIVATIONS["cube"]


def test_wrong_registrations_are_refused() -> None:
    with pytest.raises(TopologyError, match="already registered"):
        adtn.register_activation("tanh", lambda z: z, lambda z: z * 0 + 1)
    with pytest.raises(TopologyError, match=r"the finite differences of its value. Correct the derivative"):
        adtn.register_activation("wrong", lambda z: do("sin", z), lambda z: do("sin", z))
    with pytest.raises(TopologyError, match=r"expected one of identity, relu.*register_activation"):
        adtn.TTN(activation="nothing")


def test_placement() -> None:
    layout = adtn.Layout.of((16, 16), 4)

    def of(where) -> list[str]:
        return [s.activation for s in adtn.TTN(bond=2, activation="tanh", where=where).segments(layout)]

    assert of("inner") == ["tanh", "tanh", "identity"]
    assert of("all") == ["tanh", "tanh", "tanh"]
    assert of((0,)) == ["tanh", "identity"], "levels without an activation between them form one segment"
    assert of((1,)) == ["tanh", "identity"]
    assert of((-1,)) == ["tanh"]
    with pytest.raises(TopologyError, match=r"levels 0\.\.2"):
        of((3,))
    with pytest.raises(TopologyError, match="'inner', 'all' or a tuple"):
        adtn.TTN(where="nowhere")  # type: ignore[arg-type]
