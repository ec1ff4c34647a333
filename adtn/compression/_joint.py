"""Joint low-rank forms of layers that read the same input, in the place of separate ones of as many bytes.

With one generator for queries, keys and values, W = U V, the layers share the basis V of their rows and own the blocks
of U (see :mod:`adtn.compression._share`). A joint pair of r times as many ranks costs what separate pairs cost, so it
gains where the row spaces of the layers overlap. With the loss s_g per squared relative error of member g, it minimises
the sum of s_g tr(D_g M D_g^T) / tr(W_g M W_g^T), as the allocation over layers does: by a whitened SVD of the stack in
which every block is multiplied by the square root of its weight in that sum.

After the separate choice, such a pair is computed for every group of layers with one input of which a member became a
low-rank pair. Those that are not expected to lose more, or much more, take the place of the separate forms, or all
layers are chosen again with every group as one unit, if the model's outputs then are closer to the dense ones, after
compensation: what is expected adds up single layers, which is not exact.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .._typing import Float
from ..generator import Generator
from ..layout import Layout
from ..topology import LowRank
from ._choice import families
from ._choose import Search, Selection
from ._ladder import Ladder
from ._local import LocalResult, LocalTask
from ._model import Layer
from ._share import first_rows, joined, shared_name
from ._storage import to_bytes
from ._weighted import weighted_pair

_GROWTHS = (1.02, 1.3)  # of the expected loss, up to which joint forms are tried together


@dataclass(frozen=True, kw_only=True, eq=False)
class Joint:
    """A group of layers with the generator that they would share.

    Parameters
    ----------
    layer : Layer
        The group, as a layer with one weight.
    task : LocalTask
        Of that weight.
    result : LocalResult
        The joint form.
    growth : float
        The expected loss of the group over that of the separate forms.
    scale : numpy.ndarray
        By which the error of every row counts.
    """

    layer: Layer
    task: LocalTask
    result: LocalResult
    growth: float
    scale: Float[np.ndarray, " rows"]


def layers_of_one_input(layers: Sequence[Layer], tasks: Mapping[str, LocalTask]) -> list[tuple[Layer, ...]]:
    """Return the groups of two or more layers with one matrix each, which read the same input.

    Inputs are the same where their second moments are, bit by bit.
    """
    found: dict[tuple[str, int, bytes], list[Layer]] = {}
    for layer in layers:
        shapes = list(layer.weights.values())
        moment = tasks[layer.name].moment if layer.name in layer.weights else None
        if moment is not None and len(shapes) == 1 and len(shapes[0]) == 2 and not layer.tied and not layer.group:
            digest = hashlib.sha256(np.ascontiguousarray(moment).tobytes()).digest()
            found.setdefault((layer.place, len(moment), digest), []).append(layer)
    return [tuple(group) for group in found.values() if len(group) > 1]


def joint_forms(search: Search, selection: Selection) -> list[Joint]:
    """Return the joint forms that are not expected to lose much more than what was chosen, at no more than its cost."""
    ladders = {ladder.name: ladder for ladder in selection.ladders}
    found = [_joint(search, selection, group, ladders) for group in _allowed(search)]
    return [joint for joint in found if joint is not None]


@dataclass(frozen=True, kw_only=True)
class Joined:
    """A selection in which some layers may share generators.

    Parameters
    ----------
    search : Search
        With the groups as layers.
    selection : Selection
    scales : mapping of str to numpy.ndarray
        By which errors of rows count, by group.
    """

    search: Search
    selection: Selection
    scales: Mapping[str, Float[np.ndarray, " rows"]]


def best_joint(
    search: Search,
    selection: Selection,
    *,
    loss: Callable[[Selection, Mapping[str, Float[np.ndarray, " rows"]]], float],
    choose: Callable[[Search, int], Selection | None],
    most: int,
) -> Joined:
    """Return the selection with those joint forms that have the smallest loss, or with none.

    Parameters
    ----------
    search, selection
        The separate choice.
    loss : callable
        A measure of what a selection with these scales loses.
    choose : callable
        A choice within the budget, as the separate one was made.
    most : int
        The budget, in parameters.
    """
    best = Joined(search=search, selection=selection, scales={})
    forms = joint_forms(search, selection)
    least = loss(selection, {}) if forms else 0.0
    tried: list[list[Joint]] = []
    for some in ([form for form in forms if form.growth <= growth] for growth in _GROWTHS):
        if some and some not in tried:
            tried.append(some)
    options = [with_joint(search, selection, some) for some in tried]
    if forms:  # with other sizes for all layers
        whole = _with_groups(search)
        other = choose(whole, most)
        options += [] if other is None else [Joined(search=whole, selection=other, scales={})]
    for joint in options:
        found = loss(joint.selection, joint.scales)
        names = ", ".join(layer.name for layer in joint.search.layers if layer.group)
        search.say(f"generators that are shared by {names} change the loss from {least:.4g} to {found:.4g}")
        if found < least:
            best, least = joint, found
    return best


def chosen_within(search: Search, most: int) -> Selection | None:
    """Return the choice within a number of parameters of the layers."""
    return search.find(search.ladders(most), most)


def _with_groups(search: Search) -> Search:
    """Return the search with every group of layers with one input as a single unit."""
    groups = [_group(search, group) for group in _allowed(search)]
    members = {layer.name for group, _ in groups for layer in group.group}
    return replace(
        search,
        layers=[*(y for y in search.layers if y.name not in members), *(layer for layer, _ in groups)],
        tasks={**search.tasks, **{task.name: task for _, task in groups}},
    )


def _allowed(search: Search) -> list[tuple[Layer, ...]]:
    """Return the groups of layers with one input that may become low-rank pairs and have the same options."""
    found: list[tuple[Layer, ...]] = []
    for group in layers_of_one_input(search.layers, search.tasks):
        own = [search.config.options_of(layer) for layer in group]
        allowed = own[0].candidates is None or LowRank() in own[0].candidates
        if allowed and all(one.candidates == own[0].candidates and one.base is None for one in own):
            found.append(group)
    return found


def _group(search: Search, group: Sequence[Layer]) -> tuple[Layer, LocalTask]:
    """Return a group as a layer with one weight, and the task of that weight."""
    names = [layer.name for layer in group]
    weights = [search.tasks[name].weight for name in names]
    shape = (sum(map(len, weights)), weights[0].shape[1])
    name = shared_name(names)
    task = replace(search.tasks[names[0]], name=name, weight=joined(weights, shape), layout=Layout.whole(shape))
    layer = Layer(
        name=name,
        kind=", ".join(dict.fromkeys(layer.kind for layer in group)),
        weights={name: shape},
        itemsize=max(layer.itemsize for layer in group),
        group=tuple(group),
    )
    return layer, task


def with_joint(search: Search, selection: Selection, forms: Sequence[Joint]) -> Joined:
    """Return the search and the selection with joint forms in the place of the separate ones."""
    members = {layer.name for form in forms for layer in form.layer.group}
    layers = [layer for layer in search.layers if layer.name not in members]
    results = {name: result for name, result in selection.results.items() if name not in members}
    return Joined(
        search=replace(
            search,
            layers=[*layers, *(form.layer for form in forms)],
            tasks={**search.tasks, **{form.task.name: form.task for form in forms}},
        ),
        selection=replace(selection, results={**results, **{form.task.name: form.result for form in forms}}),
        scales={form.layer.name: form.scale for form in forms},
    )


def _joint(search: Search, selection: Selection, group: Sequence[Layer], ladders: Mapping[str, Ladder]) -> Joint | None:
    """Return the joint form of a group, ``None`` if there is none, or it is expected to lose much more."""
    names = [layer.name for layer in group]
    results = {name: selection.results.get(name) for name in names}
    if not any(r is not None and isinstance(r.generator.topology, LowRank) for r in results.values()):
        return None
    layer, task = _group(search, group)
    weights = [search.tasks[name].weight for name in names]
    params = sum(
        w.size if (r := results[n]) is None else r.generator.num_params for n, w in zip(names, weights, strict=True)
    )
    (pairs,) = families(task.weight.shape, (LowRank(),), (), layer.itemsize)
    choice = pairs.within(params)
    if choice is None or choice.topology is None:
        return None
    task = replace(task, topology=choice.topology)
    scale = _scales([_weight_of(search.tasks[name], ladders[name]) for name in names], weights)
    pair = Generator(task.weight.shape, task.topology, layout=task.layout, scale=1.0)
    generator = weighted_pair(pair, task.weight, task.moment, scale, task.precision)
    errors2, error2 = _errors2(task, generator.weight(), weights), _errors2(task, generator.weight(), [task.weight])
    result = LocalResult(task.name, to_bytes(generator), math.sqrt(error2[0]))
    before = sum(ladders[name].loss(r.relative_error**2) for name, r in results.items() if r is not None)
    after = sum(ladders[name].loss(error2) for name, error2 in zip(names, errors2, strict=True))
    if not after < _GROWTHS[-1] * before:
        return None
    return Joint(layer=layer, task=task, result=result, growth=after / before, scale=scale)


def _weight_of(task: LocalTask, ladder: Ladder) -> float:
    """Return the expected loss per squared error of the outputs of a member."""
    rows = np.asarray(task.weight, np.float64)
    return ladder.sensitivity / max(float(np.vdot(rows @ np.asarray(task.moment, np.float64), rows)), 1e-300)


def _scales(factors: Sequence[float], members: Sequence[Float[np.ndarray, "n columns"]]) -> Float[np.ndarray, " rows"]:
    """Return the square roots of the factors of squared errors, for every row of the stack."""
    roots = np.sqrt(np.maximum(np.asarray(factors) / max(factors), 1e-6))  # a member without influence is kept as well
    return np.repeat(roots, [len(member) for member in members])


def _errors2(
    task: LocalTask, weight: Float[np.ndarray, "rows columns"], members: Sequence[Float[np.ndarray, "n columns"]]
) -> list[float]:
    """Return the squared relative error of the outputs of every member."""
    moment = np.asarray(task.moment, np.float64)
    found: list[float] = []
    starts = first_rows(task.weight.shape, [member.shape for member in members])
    for start, member in zip(starts, members, strict=True):
        rows = np.asarray(member, np.float64)
        away = np.asarray(weight[start : start + len(rows)], np.float64) - rows
        found.append(float(np.vdot(away @ moment, away)) / max(float(np.vdot(rows @ moment, rows)), 1e-300))
    return found
