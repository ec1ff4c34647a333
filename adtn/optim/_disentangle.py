r"""Networks with disentanglers from a weight: alternating Procrustes problems, then descent in the metric.

A tree with isometries w and orthogonal disentanglers u maps its root R to the state :math:`Z = C(R; w, u)` without
changing norms. So the error of a target X is smallest for the root that X itself gives, contracted with all of w and u:

.. math:: \min_R \|X - Z\|^2 = \|X\|^2 - \|R\|^2, \qquad R = C^\top(X; w, u).

As Z is linear in each of them, the best isometry or disentangler with all others fixed maximises
:math:`\mathrm{tr}(E^\top u)` for its environment E, X contracted with all other cores: an orthogonal Procrustes
problem, whose solution is the orthogonal factor of the polar decomposition of E. Sweeps from the legs to the root solve
them one after the other, and the error never rises above that of the tree from which they start.

This is in the Frobenius norm of a state that is whitened leg by leg. Correlations of inputs between legs have no such
form, so all cores, which need not stay orthogonal, then descend together in the metric itself, by L-BFGS. Least squares
for one core at a time, which trees use, are not possible: in a network with loops, what is behind the legs of an
isometry has a Gram matrix with as many rows as the isometry has entries.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from .._typing import Float
from ..calculus import forward
from ..layout import Layout
from ..program import compile_program
from ..topology import Core, Segment
from ._alternating import alternate
from ._descent import descend
from ._metric import InputMetric

_TURNS = 10  # sweeps of Procrustes problems: the first few find most
_STEPS = 30  # of L-BFGS in the place of one sweep of least squares
_STATE = "target"


def has_disentanglers(segment: Segment) -> bool:
    """Return whether a network is a tree with disentanglers."""
    return any(core.kind == "disentangler" for core in segment.cores)


def disentangle(
    segment: Segment,
    layout: Layout,
    metric: InputMetric,
    target: Float[np.ndarray, "*legs"],
    params: Mapping[str, Float[np.ndarray, "..."]],
    *,
    sweeps: int,
) -> dict[str, Float[np.ndarray, "..."]]:
    """Improve a tree with disentanglers; it never becomes worse than the tree without them.

    Parameters
    ----------
    segment : Segment
        The network.
    layout : Layout
        The layout of the weight.
    metric : InputMetric
        The metric.
    target : numpy.ndarray
        The whitened state to approximate.
    params : mapping of str to numpy.ndarray
        The tree, decomposed, with identities as disentanglers.
    sweeps : int
        The largest number of sweeps of least squares over the tree, and of times that 30 steps of L-BFGS are taken.

    References
    ----------
    G. Evenbly, G. Vidal (2009), arXiv:0707.1454: environments and their polar decompositions. Descent of all cores, and
    the metric, are choices of this library.
    """
    turned = procrustes(segment, target, params)
    found, error = descend(segment, metric, target, turned, steps=_STEPS * sweeps)
    bare = _without_disentanglers(segment)
    own = {core.param: params[core.param] for core in bare.cores}
    tree = {**params, **alternate(bare, layout, metric, target, own, sweeps=sweeps)}
    if descend(segment, metric, target, tree, steps=0)[1] < error:
        found, _ = descend(segment, metric, target, tree, steps=_STEPS * sweeps)
    return found


def procrustes(
    segment: Segment, target: Float[np.ndarray, "*legs"], params: Mapping[str, Float[np.ndarray, "..."]]
) -> dict[str, Float[np.ndarray, "..."]]:
    """Solve the Procrustes problem of every core in turn, from the legs to the root."""
    sizes = dict(zip(segment.outputs, target.shape, strict=True))
    given = Core(
        name=_STATE,
        inds=segment.outputs,
        shape=tuple(sizes.values()),
        param=_STATE,
        kind="core",
        trainable=False,
        init="given",
    )
    order = sorted(segment.cores, key=lambda core: (-core.level, core.kind != "disentangler"))
    environments = [
        compile_program((Segment((), (given, *(one for one in segment.cores if one is not core)), core.inds),))
        for core in order
    ]
    now = dict(params)
    for _ in range(_TURNS):
        for core, program in zip(order, environments, strict=True):
            environment = np.asarray(forward(program, {**now, _STATE: target})).reshape(core.shape)
            now[core.param] = environment if core.kind == "root" else _orthogonal(environment, core)
    return now


def _orthogonal(environment: Float[np.ndarray, "..."], core: Core) -> Float[np.ndarray, "..."]:
    """Return the isometry with the largest overlap: from the parent to its children, or between two pairs of legs."""
    rows = math.prod(core.shape[:2]) if core.kind == "disentangler" else core.shape[0]
    u, _, vt = np.linalg.svd(environment.reshape(rows, -1), full_matrices=False)
    return (u @ vt).reshape(core.shape)


def _without_disentanglers(segment: Segment) -> Segment:
    """Return the tree alone, whose legs end where those of the disentanglers do."""
    ends = {
        raw: leg
        for core in segment.cores
        if core.kind == "disentangler"
        for leg, raw in zip(core.inds[:2], core.inds[2:], strict=True)
    }

    def end(leg: str) -> str:
        while leg in ends:  # a leg may pass through several levels
            leg = ends[leg]
        return leg

    tree = [core for core in segment.cores if core.kind != "disentangler"]
    return replace(segment, cores=tuple(replace(core, inds=tuple(map(end, core.inds))) for core in tree))
