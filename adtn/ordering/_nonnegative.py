"""Networks of non-negative cores."""

from __future__ import annotations

import numpy as np

from .._typing import Float
from ..calculus import forward, vjp
from ..generator import Generator

_STEPS = 200
_TINY = 1e-12


def nonnegative(generator: Generator, target: Float[np.ndarray, "*shape"]) -> Generator:
    """Fit non-negative cores to a non-negative tensor by multiplicative updates, from the absolute values of the cores.

    Each core is multiplied by the ratio of two environments, that of the target and that of the current weight, so it
    stays non-negative and the error does not increase.

    Parameters
    ----------
    generator : Generator
        A linear generator.
    target : numpy.ndarray

    References
    ----------
    D. Lee, S. Seung (2000), Algorithms for Non-negative Matrix Factorization, NIPS 13.
    """
    generator = generator.without_isometries()
    program = generator.program
    state = np.asarray(generator.weighting.to_state(target))
    params = {name: np.abs(np.asarray(x, np.float64)) for name, x in generator.params.items()}
    whole = float(np.vdot(state, state))
    made = np.asarray(forward(program, params))
    first = sorted(params)[0]
    # the absolute values make a tensor of another size
    params[first] = params[first] * (float(np.vdot(made, state)) / max(float(np.vdot(made, made)), _TINY))
    floor = _TINY * np.sqrt(whole / max(state.size, 1))
    for _ in range(_STEPS):
        for name in params:
            of_made = vjp(program, params, np.asarray(forward(program, params)))[1][name]
            of_target = vjp(program, params, state)[1][name]
            params[name] = params[name] * np.maximum(of_target, 0.0) / np.maximum(of_made, floor)
    return generator.with_params(params)
