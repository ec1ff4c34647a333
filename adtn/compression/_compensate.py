r"""Closed forms that compensate the errors of the layers before them.

With the inputs x of a layer in the dense model and y in the compressed one, the linear map of y that is closest to
:math:`W x` is :math:`W K M^{-1}`, with :math:`K = \mathrm{E}[x y^\top]` and :math:`M = \mathrm{E}[y y^\top]`. It is
decomposed, or rounded, in the metric of M. As layers are taken in the order of their calls, each one answers to the
errors of all before it, which would otherwise add up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from types import MappingProxyType

import numpy as np

from .._typing import Float
from ..generator import Generator
from ..optim import decompose, has_decomposition, is_linear
from ..topology import Dense
from ._local import dense_generator
from ._model import Model
from ._rounding import rounded_in_metric
from ._samples import first_samples
from ._share import joined, sharing
from ._weighted import weighted_pair

_WAVES = 24  # passes over the data: with more groups of layers than that, several are changed at once
_ROWS = 64  # per column, from which moments are computed: on MiniLM 16 gained half as much
_RIDGE = 0.03  # of the mean of the diagonal of M: inputs that hardly vary are mapped as by the dense layer
NORMALISED = 256  # samples for statistics after every change; all of them are used afterwards
_SWEEPS = 12
NO_SCALES: Mapping[str, Float[np.ndarray, " rows"]] = MappingProxyType({})


def compensate(
    model: Model,
    data: Sequence[object],
    groups: Iterable[Sequence[str]],
    advance: Callable[[], None],
    scales: Mapping[str, Float[np.ndarray, " rows"]] = NO_SCALES,
) -> None:
    """Decompose all installed weights again, each behind the layers before it.

    Parameters
    ----------
    model : Model
        A model with installed generators.
    data : sequence of batches
        The data for second moments.
    groups : iterable of sequences of str
        The weights that are changed in every pass, see :func:`waves`.
    advance : callable
        Called after every pass.
    scales : mapping of str to numpy.ndarray
        By which errors of rows count, for low-rank pairs that layers share.
    """
    statistics = list(first_samples(data, NORMALISED))
    for names in groups:
        generators = model.generators()
        changed: dict[str, Generator] = {}
        for name, (moment, cross) in model.moments_behind(names, data, _ROWS).items():
            members = [model.weight(member) for member in sharing(name)]
            weight = members[0] if len(members) == 1 else joined(members, generators[name].shape)
            changed[name] = behind(generators[name], weight, moment, cross, scales.get(name))
        model.update(changed)
        model.normalise(statistics)
        advance()


def waves(model: Model, data: Iterable[object], *, single: bool = False) -> list[list[str]]:
    """Return the weights that are changed in every pass.

    Several groups at once answer to errors that change with them, which is worse than no answer for a decoder of 30
    blocks: with ``single``, each group has a pass of its own, where passes are short.
    """
    generators = model.generators()
    groups = [[name for name in group if is_direct(generators[name])] for group in model.in_order(data)]
    groups = [group for group in groups if group]
    step = 1 if single else max(math.ceil(len(groups) / _WAVES), 1)
    return [list(chain.from_iterable(groups[n : n + step])) for n in range(0, len(groups), step)]


def is_direct(generator: Generator) -> bool:
    """Return whether a weight's parameters are computed without a fit."""
    return isinstance(generator.topology, Dense) or (has_decomposition(generator) and is_linear(generator))


def behind(
    generator: Generator,
    weight: Float[np.ndarray, "*shape"],
    moment: Float[np.ndarray, "columns columns"],
    cross: Float[np.ndarray, "columns columns"],
    scale: Float[np.ndarray, " rows"] | None = None,
) -> Generator:
    """Return a generator of the same structure for the weight that answers to changed inputs.

    Parameters
    ----------
    generator : Generator
    weight : numpy.ndarray
        The dense weight W.
    moment, cross : numpy.ndarray
        M and K.
    scale : numpy.ndarray, optional
        By which the error of every row counts, for a low-rank pair.
    """
    if not np.trace(moment) > 0.0:
        return generator  # all inputs are zero
    target = answering(weight, moment, cross)
    if scale is not None:
        return weighted_pair(generator, target, moment, scale, generator.precision)
    if isinstance(generator.topology, Dense):
        changed = dense_generator(target)
    else:
        changed = decompose(generator, target, moment=moment, sweeps=_SWEEPS)
    if generator.precision is None:
        return changed
    return rounded_in_metric(changed, generator.precision, target, moment)


def answering(
    weight: Float[np.ndarray, "*shape"],
    moment: Float[np.ndarray, "columns columns"],
    cross: Float[np.ndarray, "columns columns"],
) -> Float[np.ndarray, "*shape"]:
    r"""Return the weight :math:`W (K + \lambda) (M + \lambda)^{-1}`."""
    ridge = _RIDGE * np.trace(moment) / len(moment) * np.eye(len(moment))
    rows = weight.reshape(weight.shape[0], -1)
    return np.linalg.solve(moment + ridge, ((rows @ (cross + ridge)).T)).T.reshape(weight.shape)
