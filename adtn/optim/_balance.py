"""Equal norms of the cores of a generator."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np

from .._checks import checked
from ..errors import TopologyError
from ..generator import Generator


@checked(TopologyError)
def balanced(generator: Generator) -> Generator:
    """Rescale the cores of every segment to equal Frobenius norms, without changing the weight.

    A segment is multilinear, so factors whose product is one leave its output unchanged. Equal norms make gradients
    of cores comparable and need the fewest bits when cores are quantised with one step. Frozen cores, and those that
    several segments share, keep their norms.

    Parameters
    ----------
    generator : Generator

    Returns
    -------
    Generator

    Examples
    --------
    >>> import adtn, numpy as np
    >>> params = {"left": [[8.0], [0.0]], "right": [[0.0, 2.0]]}
    >>> pair = adtn.Generator((2, 2), adtn.LowRank(bond=1), scale=1.0, params=params)
    >>> even = balanced(pair)
    >>> even.params["left"].ravel(), even.params["right"].ravel()
    (array([4., 0.], dtype=float32), array([0., 4.], dtype=float32))
    """
    if generator.isometric_rows:
        return generator  # whose root alone has a norm of its own
    params = {name: np.asarray(x) for name, x in generator.params.items()}
    used = [Counter(core.param for core in segment.cores if core.trainable) for segment in generator.segments]
    for counts in used:
        own = {name: n for name, n in counts.items() if sum(name in other for other in used) == 1}
        norms = {name: float(np.linalg.norm(params[name].astype(np.float64))) for name in own}
        if not own or 0.0 in norms.values():
            continue  # a segment with a core of zeros has an output of zeros
        mean = math.exp(sum(n * math.log(norms[name]) for name, n in own.items()) / sum(own.values()))
        for name, norm in norms.items():
            params[name] = params[name] * (mean / norm)
    return generator.with_params(params)
