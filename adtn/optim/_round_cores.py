"""Rounding of the cores of a linear network in the metric of a layer's inputs.

One core after the other is rounded, with error feedback, and the others are changed so that they make up for its error.
This is repeated, so that the cores that are rounded first answer to the errors of the last ones as well: with few bits,
one pass left up to 1.6 times the error of several ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from .._typing import Float, Inds
from ..calculus import forward
from ..generator import Generator
from ..precision import Codes, Precision, round_to
from ..program import compile_program
from ..weight import checked_moment, padded_moment
from ._block import MOMENT, PULLED, Block

Factor = tuple[Inds, Float[np.ndarray, "n n"] | None]

_RIDGE = 1e-9  # relative, of the first pass
_DAMPING = 1e-2  # relative, of later ones: it keeps cores near the grid on which they are
_LARGEST_DAMPING = 1.0
_LARGEST = 1024  # columns up to which a matrix over them is made for the feedback
_LEAST_GAIN = 2e-3  # relative decrease of the error in a pass, below which they end


def round_cores(
    generator: Generator,
    precision: Precision,
    weight: Float[np.ndarray, "*shape"],
    moment: Float[np.ndarray, "n_in n_in"] | None,
    *,
    passes: int = 8,
) -> Generator:
    """Round the cores of a generator so that the outputs of its layer change little.

    Parameters
    ----------
    generator : Generator
        A generator that :func:`has_decomposition`.
    precision : Precision
    weight : numpy.ndarray
        The weight that it approximates.
    moment : numpy.ndarray or None
        The second moment of the inputs, see :func:`decompose`.
    passes : int
        The largest number of passes; they end when the error no longer decreases.

    Returns
    -------
    Generator
        The best of all passes, and of rounding to the nearest values.
    """
    nearest = generator.rounded(precision)
    (segment,) = generator.segments
    if not precision.is_coarse or {core.param for core in segment.cores if core.trainable} != set(generator.stored):
        return nearest  # a float is exact enough, and frozen cores cannot make up for anything
    problem = _Problem(generator, weight, moment)
    best, least = nearest, problem.missing(nearest.params)[1]
    params = {name: np.asarray(x, np.float64) for name, x in generator.params.items()}
    start, damping, lowest = params, _RIDGE, math.inf
    for _ in range(passes):
        codes: dict[str, Codes] = {}
        for block in problem.blocks:
            x, factors = problem.improved(block, params, damping)
            codes[block.core.param] = _rounded(x, precision.of(x.shape), block.core.inds, factors)
            params = {**params, block.core.param: codes[block.core.param].decode().astype(np.float64)}
        error = problem.missing(params)[1]
        if error < least:
            best, least = generator.with_codes(precision, codes), error
        if error >= lowest:  # changes were so large that rounding lost more than they gained
            params, damping = start, 10.0 * damping
            if damping > _LARGEST_DAMPING:
                break
            continue
        if error > (1.0 - _LEAST_GAIN) * lowest:
            break
        start, damping, lowest = params, max(damping, _DAMPING), error
    return best


class _Problem:
    """The error of a network as a function of its cores."""

    def __init__(self, generator: Generator, weight: np.ndarray, moment: np.ndarray | None) -> None:
        layout, weighting = generator.layout, generator.weighting
        legs = sorted(range(layout.ndim_legs), key=lambda q: layout.leg_axes[q])
        # without a moment, the metric is the identity on all legs
        outer = [q for q in legs if layout.leg_axes[q][0] == 0 or moment is None]
        inner = [q for q in legs if q not in outer]
        self.order = (*outer, *inner)
        self.matrix = np.ones((1, 1))
        if moment is not None:
            second = checked_moment(moment, generator.shape)
            self.matrix = padded_moment(layout, np.asarray(weighting.moment_to_generated_order(second)))
        self.moment = self.matrix.reshape(tuple(layout.dims[q] for q in inner) * 2)
        self.target = np.asarray(weighting.to_state(np.asarray(weight, np.float64)))
        (segment,) = generator.segments
        self.program = compile_program((segment,))
        sides = [tuple(layout.leg_names[q] for q in side) for side in (outer, inner)]
        dims = dict(zip(layout.leg_names, layout.dims, strict=True))
        # from the inputs to the outputs, as later cores make up for the errors of earlier ones
        self.blocks = [
            Block(segment.cores, core, sides[0], sides[1], dims, exact=_LARGEST) for core in reversed(segment.cores)
        ]

    def pulled(self, state: Float[np.ndarray, "*legs"]) -> Float[np.ndarray, "*legs"]:
        """Multiply a state by the moment over its input legs."""
        rows = np.transpose(state, self.order)
        product = (rows.reshape(-1, len(self.matrix)) @ self.matrix).reshape(rows.shape)
        return np.transpose(product, np.argsort(self.order))

    def missing(self, params: Mapping[str, Float[np.ndarray, "..."]]) -> tuple[Float[np.ndarray, "*legs"], float]:
        """Return what is missing to the target, times the moment, and its norm in the metric."""
        whole = {name: np.asarray(x, np.float64) for name, x in params.items()}
        away = self.target - np.asarray(forward(self.program, whole))
        pulled = self.pulled(away)
        return pulled, math.sqrt(max(float(np.vdot(away, pulled)), 0.0))

    def improved(
        self, block: Block, params: Mapping[str, Float[np.ndarray, "..."]], damping: float
    ) -> tuple[Float[np.ndarray, "..."], list[Factor]]:
        """Return a better core, and the factors of its Gram matrix."""
        pulled, _ = self.missing(params)
        arrays = {**params, MOMENT: self.moment}
        factors = block.gram_factors(arrays)
        change = block.divided(block.gradient({**arrays, PULLED: pulled}), factors, damping)
        if not block.is_direct:  # an estimate of the Gram matrix gives a direction only
            image = np.asarray(forward(self.program, {**params, block.core.param: change}))
            bent = float(np.vdot(image, self.pulled(image)))
            change = change * min(float(np.vdot(pulled, image)) / bent, 1.0) if bent > 0.0 else 0.0 * change
        return params[block.core.param] + change, factors


def _rounded(x: np.ndarray, precision: Precision, inds: Inds, factors: Sequence[Factor]) -> Codes:
    """Round a core with error feedback over its columns, or over its rows if there are too many columns."""
    if not precision.is_coarse:
        return round_to(x, precision)
    if x.size <= _LARGEST * len(x):
        return round_to(x, precision, _over(inds[1:], inds, x.shape, factors))
    if len(x) <= _LARGEST:
        return round_to(x, precision, row_hessian=_over(inds[:1], inds, x.shape, factors))
    return round_to(x, precision)


def _over(kept: Inds, inds: Inds, shape: Sequence[int], factors: Sequence[Factor]) -> Float[np.ndarray, "n n"]:
    """Return the mean over the other indices of the Gram matrix of some indices of a core."""
    size = dict(zip(inds, shape, strict=True))
    product, order = np.ones((1, 1)), ()
    for own, gram in factors:
        left = tuple(i for i in own if i in kept)
        if not left:
            continue
        if gram is None:
            part = np.eye(math.prod(size[i] for i in left))
        else:
            tensor = gram.reshape(tuple(size[i] for i in own) * 2)
            numbers = {i: k for k, i in enumerate(own)}
            second = [numbers[i] + (len(own) if i in left else 0) for i in own]
            out = [numbers[i] for i in left] + [numbers[i] + len(own) for i in left]
            n = math.prod(size[i] for i in left)
            part = np.einsum(tensor, [*range(len(own)), *second], out).reshape(n, n)
        product, order = np.kron(product, part), (*order, *left)
    dims = tuple(size[i] for i in order)
    turn = [order.index(i) for i in kept]
    n = math.prod(dims)
    return product.reshape(dims * 2).transpose([*turn, *(k + len(dims) for k in turn)]).reshape(n, n)
