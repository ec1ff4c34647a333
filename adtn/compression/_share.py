r"""Weights that share one generator: the places of several weights in one matrix, and its layout.

Weights W_1, ..., W_k, each with all axes but the first flattened, ``(R_g, C_g)``, are blocks of one matrix W of shape
``(k R, C)``, with C the largest C_g and R at least every R_g:

    W[g R + r, c] = W_g[r, c]  for r < R_g and c < C_g,  else 0.

Its first axis begins with a leg for g, so that every topology sees the stack ``(k, R, *rest)``: a Tucker network has
one factor for the rows and one for the columns of all layers, and a tree a core that tells layers apart. A stack as an
axis of its own would have the same legs, but would be no matrix: a low-rank pair would split it at the axis g, and
second moments of inputs would have no columns to act on. For a :class:`adtn.LowRank` pair, nothing is padded to R:
with W = U V, blocks of U are the layers' own factors, and all layers share the basis V of their rows, at ``b (sum of
R_g + C)`` parameters instead of the sum of ``b (R_g + C_g)``. Within a budget nothing is padded either, so that what a
dense weight and its integers cost is the same for a group as for its members.

A layer uses its block only, so dL/dW is the sum of the dL/dW_g, each in its place, and every core gets the sum of the
gradients of all layers. In the metric of the data, the sum of tr(D_g M D_g^T) over the errors D_g of all blocks is
minimised, with M the mean of the second moments of the layers' inputs, if these have the same number of columns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import accumulate

import numpy as np

from .._typing import Shape
from ..errors import CompressError, LayoutError, TopologyError
from ..layout import MAX_AXES, Layout
from ..topology import LowRank
from ._config import Config
from ._model import Layer

_JOINT = " + "
_OWN = ("topology", "leg", "order", "base")


def shared_name(members: Sequence[str]) -> str:
    """Return the name of the generator that several weights share."""
    return _JOINT.join(members)


def sharing(name: str) -> tuple[str, ...]:
    """Return the names of the weights that share a generator, the inverse of :func:`shared_name`.

    Examples
    --------
    >>> sharing("fc1 + fc2"), sharing("conv1")
    (('fc1', 'fc2'), ('conv1',))
    """
    return tuple(name.split(_JOINT))


def first_rows(shape: Shape, members: Sequence[Shape]) -> list[int]:
    """Return the first row of every weight in the matrix of that shape, which follows from the shapes alone.

    Parameters
    ----------
    shape : tuple of int
        Of the matrix.
    members : sequence of tuple of int
        Shapes of the weights.

    Raises
    ------
    LayoutError
        If the matrix does not have room for these weights.

    Examples
    --------
    >>> first_rows((24, 50), [(8, 50), (12, 5, 5)]), first_rows((20, 50), [(8, 50), (12, 5, 5)])
    ([0, 12], [0, 8])
    """
    rows = [shape[0] for shape in members]
    step = shape[0] // len(members)
    starts = [0, *accumulate(rows)][:-1] if shape[0] == sum(rows) else [g * step for g in range(len(members))]
    padded = shape[0] == sum(rows) or (shape[0] == step * len(members) and max(rows) <= step)
    if len(shape) != 2 or not padded or max(map(_columns, members)) > shape[1]:
        raise LayoutError(
            f"Got a generator of shape {shape} for weights of shapes {', '.join(map(str, members))}; expected one "
            "with all their rows and columns."
        )
    return starts


def shared_layout(config: Config, members: Sequence[Shape]) -> Layout:
    """Return the layout of the matrix with these weights, as the topology chooses it for their stack."""
    rows, columns = max(shape[0] for shape in members), max(map(_columns, members))
    pair = isinstance(config.topology, LowRank) and config.leg is None and config.order is None
    if pair or config.chooses_formats:
        return Layout.whole((sum(shape[0] for shape in members), columns))
    # of convolutions with the same kernel, the input channels are padded
    kernel = members[0][2:] if len({shape[2:] for shape in members}) == 1 else ()
    stack = (len(members), rows, columns // math.prod(kernel), *kernel)
    inner = config.layout(stack if len(stack) <= MAX_AXES else (*stack[:2], columns))
    if math.prod(inner.padded_shape[2:]) != columns:  # padding inside an axis would be between columns
        inner = config.layout((*stack[:2], columns))
    factors = ((*inner.factors[0], *inner.factors[1]), tuple(f for axis in inner.factors[2:] for f in axis))
    return Layout((len(members) * inner.padded_shape[1], columns), factors, inner.order, inner.max_padding)


def joined(weights: Sequence[np.ndarray], shape: Shape) -> np.ndarray:
    """Return the matrix with these weights as blocks, and zeros elsewhere."""
    matrix = np.zeros(shape)
    starts = first_rows(shape, [weight.shape for weight in weights])
    for start, weight in zip(starts, weights, strict=True):
        rows = weight.reshape(len(weight), -1)
        matrix[start : start + len(rows), : rows.shape[1]] = rows
    return matrix


def mean_moment(moments: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """Return the mean of second moments of the same size, ``None`` if one is missing or has another size."""
    known = [moment for moment in moments if moment is not None]
    same = len(known) == len(moments) and len({moment.shape for moment in known}) == 1
    return np.mean(known, axis=0) if same else None


def members_of(layer: Layer) -> dict[str, Shape]:
    """Return the shapes of the weights that share the generator of a group, or else of the layer's weights."""
    if not layer.group:
        return dict(layer.weights)
    names = sharing(layer.name)
    return {name: tuple(owner.weights[name]) for name, owner in zip(names, layer.group, strict=True)}


def with_groups(config: Config, layers: Sequence[Layer], dense: Mapping[str, str]) -> list[Layer]:
    """Put every group of weights that share a generator in the place of its members, as a layer with one weight.

    Parameters
    ----------
    config : Config
    layers : sequence of Layer
        The layers that are replaced.
    dense : mapping of str to str
        The reasons why other layers stay dense.

    Returns
    -------
    list of Layer
        Layers without the weights that are in a group, and then the groups.

    Raises
    ------
    CompressError
        If a name matches no weight that is replaced, a weight is in two groups, or weights cannot share a generator.
    """
    groups: list[Layer] = []
    taken: dict[str, str] = {}
    for patterns in config.share:
        members = _matching(patterns, layers, dense)
        name = shared_name(list(members))
        if len(members) < 2:
            raise CompressError(
                f"Got the group {list(patterns)} in share, which has one weight, {name!r}; expected two or more."
            )
        for member in members:
            if member in taken:
                raise CompressError(
                    f"Got {member!r} in two groups of share, {taken[member]!r} and {name!r}; expected each weight in "
                    "one group at most."
                )
            taken[member] = name
        groups.append(_group(config, name, members))
    left = [replace(y, weights={n: s for n, s in y.weights.items() if n not in taken}) for y in layers]
    return [*(layer for layer in left if layer.weights), *groups]


def _columns(shape: Shape) -> int:
    return math.prod(shape[1:])


def _matching(patterns: Sequence[str], layers: Sequence[Layer], dense: Mapping[str, str]) -> dict[str, Layer]:
    """Return the layers of the weights that match, by weight."""
    members: dict[str, Layer] = {}
    for pattern in patterns:
        found = {
            weight: layer
            for layer in layers
            for weight in layer.weights
            if pattern == layer.kind or fnmatchcase(layer.name, pattern) or fnmatchcase(weight, pattern)
        }
        if not found:
            others = [f"{name} stays dense: {why}" for name, why in dense.items() if fnmatchcase(name, pattern)]
            known = ", ".join(weight for layer in layers for weight in layer.weights)
            raise CompressError(
                f"Got {pattern!r} in share, which matches no weight that is replaced; expected names among {known}."
                + (f" Of the others, {'; '.join(others)}." if others else "")
            )
        members |= found
    return members


def _group(config: Config, name: str, members: Mapping[str, Layer]) -> Layer:
    """Return a group as a layer."""
    layers = list(members.values())
    for member, layer in members.items():
        if layer.tied:
            raise CompressError(
                f"Got {member!r} in share, which has the same weight as {', '.join(layer.tied)}; tied layers share "
                "their generator already. Leave it out."
            )
        if _JOINT in member:
            raise CompressError(f"Got {member!r} in share, a name with {_JOINT!r}; rename the layer.")
    places = {member: layer.place for member, layer in members.items()}
    if len(set(places.values())) > 1:
        what = ", ".join(f"{member} is {place}" for member, place in places.items())
        raise CompressError(f"Got layers of several dtypes or devices in a group of share: {what}; convert them first.")
    own = {member: config.options_of(layer) for member, layer in members.items()}
    for option in _OWN:
        values = {member: getattr(options, option) for member, options in own.items()}
        if any(value != next(iter(values.values())) for value in values.values()):
            what = ", ".join(f"{value} for {member}" for member, value in values.items())
            raise CompressError(f"Got different values of {option} in a group of share: {what}; expected one for all.")
    first = config.options_of(layers[0])
    if first.base is not None:
        raise CompressError(f"Got base={first.base} for the group {name!r} in share; a base is that of one weight.")
    if first.topology is None and not first.chooses_formats:
        raise CompressError(f"Got the group {name!r} in share without a topology, unlike other layers; pass one.")
    group = Layer(
        name=name,
        kind=", ".join(dict.fromkeys(layer.kind for layer in layers)),
        itemsize=max(layer.itemsize for layer in layers),
        group=tuple(layers),
    )
    columns = {math.prod(shape[1:]) for shape in members_of(group).values()}
    if first.chooses_formats and len(columns) > 1:
        raise CompressError(
            f"Got the group {name!r} in share within a budget, whose weights have {sorted(columns)} columns; expected "
            "the same number. Pass topology= instead of a budget, with which columns are padded."
        )
    try:
        layout = shared_layout(first, list(members_of(group).values()))
        if first.topology is not None and not first.chooses_formats:
            first.topology.segments(layout)
    except (LayoutError, TopologyError) as error:
        raise CompressError(
            f"Got the group {name!r} in share, which {first.topology} cannot generate: {error}"
        ) from error
    return replace(group, weights={name: layout.shape})
