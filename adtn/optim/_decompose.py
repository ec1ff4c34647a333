"""Truncated decompositions of a weight, as a start for linear topologies.

They run in NumPy float64 on the host, as MPS has neither float64 nor QR.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .._arrays import finite_array
from .._checks import checked
from .._typing import Float
from ..errors import TopologyError
from ..generator import Generator


@checked(TopologyError)
def decompose(generator: Generator, target: Any) -> Generator:
    """Compute the parameters of a generator by a truncated decomposition of a weight.

    Parameters
    ----------
    generator : Generator
        A generator with a TT or MPO (TT-SVD), Tucker (HOSVD) or CP (alternating least squares) topology, no activation
        and no base.
    target : array
        The weight, of the generator's shape, as an array of any framework.

    Returns
    -------
    Generator

    Raises
    ------
    TopologyError
        If the topology has no decomposition.

    References
    ----------
    TT-SVD: I. Oseledets (2011), SIAM J. Sci. Comput. 33, 2295. HOSVD: L. De Lathauwer, B. De Moor, J. Vandewalle
    (2000), SIAM J. Matrix Anal. Appl. 21, 1253. ALS: T. Kolda, B. Bader (2009), SIAM Review 51, 455.

    Examples
    --------
    >>> import adtn, numpy as np
    >>> W = np.outer(np.arange(1.0, 9.0), np.arange(1.0, 9.0))
    >>> gen = adtn.decompose(adtn.Generator((8, 8), adtn.TT(bond=1), dtype="float64"), W)
    >>> bool(np.allclose(gen.weight(), W))
    True
    """
    if not _is_plain(generator):
        raise TopologyError(
            "A decomposition needs a linear topology without shared cores and without a base; train it instead."
        )
    state = generator.weighting.to_state(_weight(generator, target))
    return generator.with_params(generator.topology.decompose(generator.layout, state, generator.params))


def _weight(generator: Generator, target: Any) -> Float[np.ndarray, "*shape"]:
    weight = np.asarray(finite_array("target", target, TopologyError), dtype=np.float64)
    if weight.shape != generator.shape:
        raise TopologyError(
            f"Got a target of shape {weight.shape} for a generator of {generator.shape}; expected that."
        )
    return weight


def has_decomposition(generator: Generator) -> bool:
    """Return whether :func:`decompose` accepts a generator."""
    return generator.topology.has_decomposition and _is_plain(generator)


def _is_plain(generator: Generator) -> bool:
    nonlinear = any(segment.activation != "identity" for segment in generator.segments)
    return not (nonlinear or generator.topology.share or generator.base is not None)
