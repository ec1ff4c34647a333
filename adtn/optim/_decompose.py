"""Decompositions of a weight, in the Frobenius norm or in the metric of its inputs.

They run in NumPy float64 on the host, as MPS has neither float64 nor QR.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Annotated, Any

import numpy as np

from .._arrays import finite_array
from .._checks import Range, checked
from .._typing import Float
from ..calculus import canonical
from ..errors import TopologyError
from ..generator import Generator
from ..topology import LowRank, TensorRing
from ..weight import checked_moment, padded_moment
from ._alternating import alternate
from ._balance import balanced
from ._disentangle import disentangle, has_disentanglers, procrustes
from ._metric import InputMetric, along
from ._nearly_linear import slope_of, through_activations
from ._whitened_svd import whitened_svd


@checked(TopologyError)
def decompose(
    generator: Generator, target: Any, *, moment: Any = None, sweeps: Annotated[int, Range(0)] = 40
) -> Generator:
    r"""Compute the parameters of a generator by a decomposition of a weight.

    Without a moment, this is a truncated decomposition. With the second moment M of the inputs, it minimises the error
    of the outputs, :math:`\mathrm{tr}((\hat W - W) M (\hat W - W)^\top)`: in closed form for a pair of factors, else by
    alternating least squares that start from the truncated decomposition. Disentanglers are found by alternating
    Procrustes problems, and then improved together with the tree by L-BFGS, with a moment or without; with
    ``isometric=True`` they stay orthogonal, and the moment does not count. Without
    activations, the cores are those of least norm, see :meth:`adtn.Generator.balanced`.

    Parameters
    ----------
    generator : Generator
        A generator without a base: LowRank (SVD), TT or MPO (TT-SVD), TensorRing (TR-SVD), Tucker (HOSVD), CP
        (alternating least squares), KroneckerSum (SVD of the rearranged weight), or a TTN, ATTN or MERA (SVDs from the
        legs to the root; with disentanglers never worse than the tree of equal bonds). Between activations that
        are nearly linear around zero (tanh, silu, gelu, sine), the parameters are those of the network without
        activations, with states so small that the weight changes by at most 1 %.
    target : array
        The weight, of the generator's shape, as an array of any framework.
    moment : array, optional
        ``(n_in, n_in)``, the mean of ``x xᵀ`` over the layer's inputs, with all axes of the weight but the first
        flattened to ``n_in``. It may be singular.
    sweeps : int
        The largest number of sweeps of alternating least squares over the cores, or, with disentanglers, of 30 steps of
        L-BFGS each; they end when the error no longer decreases. A few are enough to compare topologies.

    Returns
    -------
    Generator

    Raises
    ------
    TopologyError
        If the topology has no decomposition, or the moment does not fit the weight.

    References
    ----------
    TT-SVD: I. Oseledets (2011), SIAM J. Sci. Comput. 33, 2295. TR-SVD: Q. Zhao, G. Zhou, S. Xie, L. Zhang, A. Cichocki
    (2016), arXiv:1606.05535. HOSVD: L. De Lathauwer, B. De Moor, J. Vandewalle (2000), SIAM J. Matrix Anal. Appl. 21,
    1253. Trees: L. Grasedyck (2010), SIAM J. Matrix Anal. Appl. 31, 2029. Disentanglers: G. Evenbly, G. Vidal (2009),
    arXiv:0707.1454. Kronecker products: C. Van Loan, N. Pitsianis (1993). ALS: T. Kolda, B. Bader (2009), SIAM Review
    51, 455.

    Examples
    --------
    >>> import adtn, numpy as np
    >>> W = np.outer(np.arange(1.0, 9.0), np.arange(1.0, 9.0))
    >>> gen = adtn.decompose(adtn.Generator((8, 8), adtn.TT(bond=1), dtype="float64"), W)
    >>> bool(np.allclose(gen.weight(), W))
    True

    Of two rows, that of large inputs is kept:

    >>> pair = adtn.Generator((2, 2), adtn.LowRank(bond=1), dtype="float64")
    >>> adtn.decompose(pair, np.diag([1.0, 2.0]), moment=np.diag([9.0, 1.0])).weight().round(6)
    array([[1., 0.],
           [0., 0.]])
    """
    if not _is_plain(generator):
        raise TopologyError(
            f"Got {generator.topology}; a decomposition needs a topology without shared cores and a base, whose "
            "activations are nearly linear around zero, with trained cores before and behind them. Train it instead."
        )
    if not is_linear(generator):
        # the gauge of the isometries suits the states that the activations see
        twin = _decomposed(_changed(generator, activation="identity"), target, moment, sweeps)
        return through_activations(generator, twin.params, np.asarray(twin.weight()))
    if generator.isometric_rows:
        return _with_isometries(generator, target, moment, sweeps)
    return _decomposed(generator, target, moment, sweeps).balanced()


def _with_isometries(generator: Generator, target: Any, moment: Any, sweeps: int) -> Generator:
    """Decompose a weight in the canonical form of a tree, whose root takes what is not orthogonal."""
    segment = generator.segments[-1]
    if has_disentanglers(segment):
        state = np.asarray(generator.weighting.to_state(_weight(generator, target)))
        found = procrustes(segment, state, generator.topology.decompose(generator.layout, state, generator.params))
    else:
        found = _decomposed(_changed(generator, isometric=False), target, moment, sweeps).params
    return generator.with_params(canonical(generator.segments, found))


def _decomposed(generator: Generator, target: Any, moment: Any, sweeps: int) -> Generator:
    """Decompose a weight without activations, in the gauge that the decomposition leaves."""
    topology, layout, initial = generator.topology, generator.layout, generator.params
    state = np.asarray(generator.weighting.to_state(_weight(generator, target)))
    second = None if moment is None else checked_moment(moment, generator.shape)
    segment = generator.segments[-1]
    if second is None and (isinstance(topology, TensorRing) or has_disentanglers(segment)):
        second = np.eye(math.prod(generator.shape[1:]))  # SVDs do not find exact rings, or disentanglers
    if second is None or len(second) == 1:
        return generator.with_params(topology.decompose(layout, state, initial))
    if isinstance(topology, LowRank) and topology.split == "axes":
        return generator.with_params(_best_pair(generator, topology, state, second))
    metric = InputMetric(generator.weighting, second)
    white = metric.whiten(state)
    start = topology.decompose(layout, white, initial)
    improve = disentangle if has_disentanglers(segment) else alternate
    params = improve(segment, layout, metric, white, start, sweeps=sweeps)
    legs = {layout.leg_names[q]: inverse for q, inverse in metric.inverse_roots.items()}
    for core in segment.cores:
        for axis, ind in enumerate(core.inds):
            if ind in legs:
                params[core.param] = along(legs[ind], params[core.param], axis)
    return balanced(generator.with_params({name: params[name] for name in start}))


def _best_pair(
    generator: Generator, topology: LowRank, state: Float[np.ndarray, "*legs"], moment: Float[np.ndarray, "n_in n_in"]
) -> dict[str, Float[np.ndarray, "..."]]:
    layout = generator.layout
    outer, inner = topology.sides(layout)
    rows = np.transpose(state, (*outer, *inner)).reshape(layout.padded_shape[0], -1)
    moment = padded_moment(layout, np.asarray(generator.weighting.moment_to_generated_order(moment)))
    left, right = whitened_svd(rows, moment, topology.rank(layout))
    shapes = {name: x.shape for name, x in generator.params.items()}
    return {"left": left.reshape(shapes["left"]), "right": right.reshape(shapes["right"])}


def _weight(generator: Generator, target: Any) -> Float[np.ndarray, "*shape"]:
    weight = np.asarray(finite_array("target", target, TopologyError), dtype=np.float64)
    if weight.shape != generator.shape:
        raise TopologyError(
            f"Got a target of shape {weight.shape} for a generator of {generator.shape}; expected that."
        )
    return weight


def _changed(generator: Generator, **options: Any) -> Generator:
    """Return a new generator in float64 with other options of the topology."""
    topology: Any = generator.topology
    return Generator(
        generator.shape,
        replace(topology, **options),
        layout=generator.layout,
        scale=generator.scale,
        permutations=generator.permutations or None,
        dtype="float64",
    )


def has_decomposition(generator: Generator) -> bool:
    """Return whether :func:`decompose` accepts a generator."""
    return generator.topology.has_decomposition and _is_plain(generator)


def is_linear(generator: Generator) -> bool:
    """Return whether there is no activation between the segments of a generator."""
    return all(segment.activation == "identity" for segment in generator.segments)


def _is_plain(generator: Generator) -> bool:
    segments = generator.segments
    smooth = all(slope_of(segment.activation) is not None for segment in segments[:-1])
    nonlinear = [pair for pair in pairwise(segments) if pair[0].activation != "identity"]
    # which take the small scale of the states; a Tucker form without factors has none behind its activation
    has_cores = all(any(core.trainable for core in s.cores) for pair in nonlinear for s in pair)
    is_free = not generator.topology.share and generator.base is None
    return smooth and has_cores and segments[-1].activation == "identity" and is_free
