"""The line search of L-BFGS: it takes the same trials as SciPy's L-BFGS-B, which also follows Moré and Thuente."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from adtn.optim.solvers._line_search import search
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

Phi = Callable[[float], tuple[float, float]]


def recorded(phi: Phi) -> tuple[Phi, list[float]]:
    trials: list[float] = []

    def record(distance: float) -> tuple[float, float]:
        if not trials or trials[-1] != distance:  # SciPy does not evaluate twice in a row at one point
            trials.append(distance)
        return phi(distance)

    return record, trials


def of_scipy(phi: Phi) -> tuple[bool, list[float]]:
    """Take one step of L-BFGS-B in one dimension: its first direction is the line, and its first trial 1."""
    phi, trials = recorded(phi)

    def function(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = phi(float(x[0]))
        return value, np.array([slope])

    options = {"maxiter": 1, "ftol": 0.0, "gtol": 0.0}
    result = minimize(function, np.zeros(1), jac=True, method="L-BFGS-B", options=options)
    return result.nit == 1, trials[1:]  # the first is the start


def quartic(a: float, b: float, c: float) -> Phi:
    return lambda t: (-t + a * t**2 + b * t**3 + c * t**4, -1 + 2 * a * t + 3 * b * t**2 + 4 * c * t**3)


def waves(height: float, frequency: float, phase: float, bend: float) -> Phi:
    """Make a function with a slope of -1 at the start and many minima."""
    tilt = 1.0 + height * frequency * math.cos(phase)

    def phi(t: float) -> tuple[float, float]:
        value = height * (math.sin(frequency * t + phase) - math.sin(phase)) - tilt * t + bend * t**2
        return value, height * frequency * math.cos(frequency * t + phase) - tilt + 2 * bend * t

    return phi


@pytest.mark.parametrize(
    "phi",
    [
        quartic(0.5, 0.0, 0.0),  # the first trial is the minimum
        quartic(0.01, 0.0, 0.0),  # far away
        quartic(1e3, 0.0, 0.0),  # near
        quartic(0.0, 0.0, 0.0),  # nowhere
        quartic(0.0, -1.0, 0.0),  # down for ever
        quartic(-1.0, 0.0, 1.0),
        quartic(2.0, -1.5, 0.3),
        lambda t: (t - 2 * math.sin(t), 1 - 2 * math.cos(t)),
        lambda t: (-t / (t * t + 2) * 2, 2 * (t * t - 2) / (t * t + 2) ** 2),  # the paper's first function
        lambda t: (abs(t - 0.3) - 0.3, math.copysign(1.0, t - 0.3)),  # a kink
    ],
)
def test_known_lines(phi: Phi) -> None:
    recorder, trials = recorded(phi)
    succeeded, expected = of_scipy(phi)
    assert search(recorder) == succeeded
    np.testing.assert_allclose(trials, expected, rtol=1e-6)
    assert succeeded or len(trials) == 20


@settings(max_examples=300, deadline=None)
@given(st.floats(-3, 30), st.floats(-3, 3), st.floats(-1, 3))
def test_the_trials_are_those_of_scipy_on_polynomials(a: float, b: float, c: float) -> None:
    agree(quartic(a, b, c))


@settings(max_examples=300, deadline=None)
@given(st.floats(0.01, 2), st.floats(0.1, 30), st.floats(0, 6.3), st.floats(0.05, 20))
def test_the_trials_are_those_of_scipy_on_waves(height: float, frequency: float, phase: float, bend: float) -> None:
    agree(waves(height, frequency, phase, bend))


def agree(phi: Phi) -> None:
    recorder, trials = recorded(phi)
    succeeded = search(recorder)
    expected_success, expected = of_scipy(phi)
    assert succeeded == expected_success
    assert len(trials) == len(expected)
    np.testing.assert_allclose(trials, expected, rtol=1e-5, atol=1e-12)


def test_the_conditions_hold_where_it_succeeds() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        phi = waves(*rng.uniform((0.01, 0.1, 0.0, 0.1), (0.2, 8.0, 6.3, 5.0)))
        recorder, trials = recorded(phi)
        assert search(recorder)
        value, slope = phi(trials[-1])
        assert value <= -1e-3 * trials[-1]
        assert abs(slope) <= 0.9
