r"""A matrix on a bond: a core next to it absorbs the matrix.

For a bond between the cores A and B, :math:`W(M) = \sum_{kl} A_k M_{kl} B_l`; without the matrix, M is the identity.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from .._arrays import finite_array
from .._checks import shown
from .._typing import Float, Shape
from ..errors import TopologyError
from ..layout import Layout
from ..topology import (
    BondIndex,
    Core,
    Networks,
    Segment,
    Topology,
    cores_of,
    find_bond,
    is_elementwise,
    renamed_index,
    sizes_of,
)

Place = Literal["before", "after"]


@dataclass(frozen=True, kw_only=True)
class Absorbed:
    """A network with a matrix on one of its bonds.

    Parameters
    ----------
    segments : tuple of Segment
        The cores, some with another shape or a parameter of their own.
    values : dict of str to numpy.ndarray
        The parameters that changed, in float64.
    """

    segments: tuple[Segment, ...]
    values: dict[str, Float[np.ndarray, "..."]]


def absorb(
    segments: tuple[Segment, ...],
    values: Mapping[str, np.ndarray],
    name: str,
    matrix: Any,
    *,
    into: str | None,
    place: Place,
    unshare: bool,
) -> Absorbed:
    """Let the cores next to a bond absorb a matrix, or each of them one factor of it.

    Parameters
    ----------
    segments : tuple of Segment
    values : mapping of str to numpy.ndarray
        Values of all cores, by parameter.
    name : str
        Name of the bond.
    matrix, into, place, unshare
        See :meth:`adtn.Generator.with_bond`.

    Raises
    ------
    TopologyError
        If the matrix does not fit the bond, or no core can absorb it.
    """
    bond = find_bond(segments, name)
    left, right = _factors(bond, matrix)
    if right is None:
        assert left is not None
        core, is_above = _absorbing(segments, bond, into, place, left, unshare)
        changes = [(core, left if is_above else left.T)]
    elif bond.kind == "hyper":
        assert left is not None
        cores = {core.name: core for core in cores_of(segments)}
        changes = [(cores[end], left) for end in bond.ends]
    else:
        above, below = (_only(segments, bond, side) for side in ("above", "below"))
        if into is not None:
            raise TopologyError(f"Got into={shown(into)} with two factors, which both ends absorb; expected None.")
        if above.name == below.name:
            raise TopologyError(f"Got the bond {name!r} of {above.name!r} with itself; it needs a square matrix.")
        assert left is not None
        changes = [(above, left), (below, right.T)]
    return _changed(segments, values, bond, changes, unshare)


def _selects(left: Float[np.ndarray, "dim rank"], right: Float[np.ndarray, "rank dim"]) -> bool:
    """Return whether factors are columns and rows of the identity, each once."""
    return np.array_equal(left, right.T) and np.array_equal(right @ left, np.eye(len(right))) and not np.any(left % 1.0)


def _factors(bond: BondIndex, matrix: Any) -> tuple[Float[np.ndarray, "dim rank"] | None, np.ndarray | None]:
    """Return a square matrix, or two factors; those of a hyper-index are diagonal."""
    d = bond.dim
    expected = f"a matrix ({d}, {d}), its diagonal ({d},), or two factors ({d}, r) and (r, {d})"
    if isinstance(matrix, tuple):
        found = [np.asarray(finite_array("matrix", x, TopologyError), np.float64) for x in matrix]
        shapes = [x.shape for x in found]
        fits = len(found) == 2 and all(x.ndim == 2 for x in found)
        if not fits or found[0].shape[::-1] != found[1].shape or len(found[0]) != d or not found[0].shape[1]:
            raise TopologyError(f"Got matrix of shapes {shapes} for the bond {bond.name!r}; expected {expected}.")
        if bond.kind == "hyper" and not _selects(*found):
            raise TopologyError(
                f"Got matrix of shapes {shapes} for {bond.name!r}, which is on {len(bond.ends)} cores; expected a "
                "diagonal matrix, the only one that such an index can carry, or two factors that select components."
            )
        return found[0], found[1]
    found = np.asarray(finite_array("matrix", matrix, TopologyError), np.float64)
    if found.ndim == 1:
        found = np.diag(found)
    if found.shape != (d, d):
        raise TopologyError(f"Got matrix={shown(matrix)} for the bond {bond.name!r}; expected {expected}.")
    if bond.kind == "hyper":
        _check_diagonal(found, bond, f"which is on {len(bond.ends)} cores")
    return found, None


def _check_diagonal(matrix: np.ndarray, bond: BondIndex, why: str) -> None:
    if np.count_nonzero(matrix - np.diag(np.diag(matrix))):
        raise TopologyError(
            f"Got matrix={shown(matrix)} for {bond.name!r}, {why}; expected a diagonal matrix, the only one that such "
            "an index can carry."
        )


def _absorbing(
    segments: Sequence[Segment], bond: BondIndex, into: str | None, place: Place, matrix: np.ndarray, unshare: bool
) -> tuple[Core, bool]:
    """Choose the core that absorbs a square matrix, and return whether it is on the first side of the bond."""
    sides = {"linear": ("above", "below"), "hyper": ("above",), "state": ("above" if place == "before" else "below",)}
    options: list[tuple[Core, bool]] = []
    for side in sides[bond.kind]:
        cores = _cores(segments, bond, side)
        if bond.kind == "state" and (len(cores) != 1 or is_elementwise(segments, bond, side)):
            if not cores:
                _only(segments, bond, side)
            _check_diagonal(matrix, bond, "a leg that is multiplied entry by entry")
        options += [(core, side == "above") for core in cores]
    if into is not None:
        options = [option for option in options if option[0].name == into]
        if not options:
            raise TopologyError(f"Got into={shown(into)} for {bond.name!r}; expected one of {bond.ends}, or None.")
    uses = Counter(core.param for core in cores_of(segments))
    # a trained core of its own can absorb anything without a change of the structure
    best = min(options, key=lambda option: (uses[option[0].param] > 1, not option[0].trainable))
    if uses[best[0].param] > 1 and not unshare:
        raise _shared(best[0], uses)
    return best


def _cores(segments: Sequence[Segment], bond: BondIndex, side: str) -> list[Core]:
    """Return the cores on one side of a bond."""
    t = bond.segment + (bond.kind == "state" and side == "below")
    names = bond.above if side == "above" else bond.below
    return [core for core in segments[t].cores if core.name in names and bond.index in core.inds]


def _only(segments: Sequence[Segment], bond: BondIndex, side: str) -> Core:
    """Return the single core on one side of a bond."""
    cores = _cores(segments, bond, side)
    if len(cores) == 1 and not is_elementwise(segments, bond, side):
        return cores[0]
    what = "no core makes it" if side == "above" else "no core takes it"
    why = what if not cores else "it is multiplied entry by entry"
    other = "after" if side == "above" else "before"
    raise TopologyError(
        f"Got name={bond.name!r}, a leg that a matrix cannot be put on here, as {why}; expected another bond, or "
        f"place={other!r}."
    )


def _shared(core: Core, uses: Mapping[str, int]) -> TopologyError:
    return TopologyError(
        f"Got a bond of the core {core.name!r}, whose parameter {core.param!r} is shared by {uses[core.param]} cores, "
        "all of which would change; expected unshare=True, which gives this core a parameter of its own."
    )


def _changed(
    segments: tuple[Segment, ...],
    values: Mapping[str, np.ndarray],
    bond: BondIndex,
    changes: Sequence[tuple[Core, Float[np.ndarray, "old new"]]],
    unshare: bool,
) -> Absorbed:
    """Multiply cores by matrices over one of their axes, and adapt the segments."""
    uses = Counter(core.param for core in cores_of(segments))
    new_cores: dict[str, Core] = {}
    found: dict[str, np.ndarray] = {}
    index = _free_name(segments, bond, changes)
    for core, matrix in changes:
        axis = core.inds.index(bond.index)
        x = np.tensordot(np.asarray(values[core.param], np.float64), matrix, axes=(axis, 0))
        x = np.ascontiguousarray(np.moveaxis(x, -1, axis))
        param = core.param
        if uses[param] > 1:
            if not unshare:
                raise _shared(core, uses)
            param = f"{core.name}_own"
        inds = renamed_index(core.inds, bond.index, index)
        new = replace(core, shape=x.shape, param=param, inds=inds)
        new_cores[core.name] = new if core.trainable else replace(new, init="given")
        found[param] = x
    return Absorbed(segments=_with_cores(segments, new_cores, bond, index), values=found)


def _free_name(segments: Sequence[Segment], bond: BondIndex, changes: Sequence[tuple[Core, np.ndarray]]) -> str:
    """Return the index, or another name for it if its dimension changes and it is used elsewhere as well."""
    if all(len(matrix) == matrix.shape[1] for _, matrix in changes) or "#" not in bond.name:
        return bond.index
    taken = sizes_of(segments)
    k = 1
    while f"{bond.index}_{k}" in taken:
        k += 1
    return f"{bond.index}_{k}"


def _with_cores(
    segments: tuple[Segment, ...], cores: Mapping[str, Core], bond: BondIndex, index: str
) -> tuple[Segment, ...]:
    """Replace cores by name, and an index that has another name in the segments of a bond."""
    out: list[Segment] = []
    for t, segment in enumerate(segments):
        new = replace(segment, cores=tuple(cores.get(core.name, core) for core in segment.cores))
        if bond.kind == "state" and t == bond.segment:
            new = replace(new, outputs=renamed_index(new.outputs, bond.index, index))
        if bond.kind == "state" and t == bond.segment + 1:
            new = replace(new, inputs=renamed_index(new.inputs, bond.index, index))
        out.append(new)
    return tuple(out)


def topology_for(topology: Topology, layout: Layout, segments: tuple[Segment, ...]) -> Topology:
    """Return a topology with these segments: the given one with other bonds if possible, or else a list of them."""
    resized = topology.resized(layout, sizes_of(segments))
    if resized is not None and _shapes(resized.segments(layout)) == _shapes(segments):
        return resized
    *inner, last = segments
    activation = inner[0].activation if inner else last.activation
    where: Any = "all" if last.activation != "identity" else "inner"
    return Networks(pieces=segments, activation=activation, where=where)


def _shapes(segments: Sequence[Segment]) -> list[tuple[Any, ...]]:
    def shape(core: Core) -> tuple[str, tuple[str, ...], Shape, str, bool, str]:
        given = core.init if not core.trainable else ""
        return core.name, core.inds, core.shape, core.param, core.trainable, given

    return [(s.inputs, s.outputs, s.activation, *map(shape, s.cores)) for s in segments]
