"""Weights of equal shape and role, of which a few are examined closely and the others by comparison with them.

A large model repeats one block many times. How the errors of two formats compare, and what rounding adds to the error
of a low-rank pair, is then about the same in all blocks, while the error itself is not.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from ..precision import Precision
from ..topology import Dense
from ._ladder import Curve, Ladder

_LEAST = 24  # weights of a group, above which a part of it is screened
_SCREENED = 4  # weights per group
_FLOOR = 1e-12


def screened(kinds: Mapping[str, Hashable]) -> dict[str, tuple[str, ...]]:
    """Return the weights that need no probes of their own, each with those that are probed in their place.

    Parameters
    ----------
    kinds : mapping of str to object
        The shape and whatever else must be equal by the name of the weight, in the order of the model.

    Examples
    --------
    >>> of = screened({f"block{n}.fc": (8, 8) for n in range(30)})
    >>> len(of), of["block1.fc"]
    (26, ('block0.fc', 'block10.fc', 'block19.fc', 'block29.fc'))
    """
    groups: dict[tuple[str, Hashable], list[str]] = {}
    for name, kind in kinds.items():
        groups.setdefault((name.rpartition(".")[2], kind), []).append(name)
    found: dict[str, tuple[str, ...]] = {}
    for names in groups.values():
        if len(names) > _LEAST:
            probed = tuple(names[round(n)] for n in np.linspace(0, len(names) - 1, _SCREENED))
            found |= {name: probed for name in names if name not in probed}
    return found


def reference(ladders: Sequence[Ladder]) -> Precision | None:
    """Return the integers by which the other formats of dense weights are compared: the one in the middle."""
    rounded = {c.family.precision for c in ladders[0].curves if _is_rounded(c)}
    coarse = [p for p in rounded if p is not None and p.is_coarse and not p.ordered]
    by_error = sorted(coarse, key=lambda p: (p.bits, -(p.group or math.inf)))
    return by_error[(len(by_error) - 1) // 2] if by_error else None


def compared(ladder: Ladder, others: Sequence[Ladder], own: float | None) -> Ladder:
    """Return the ladder of a weight with curves that follow from those of others.

    Parameters
    ----------
    ladder : Ladder
        With the curves that were computed for this weight.
    others : sequence of Ladder
        Complete ones of the same shape.
    own : float or None
        The squared error of this weight in the format that is the :func:`reference`.
    """
    curves = {curve.family: curve for curve in ladder.curves}
    precision = reference(others)
    for curve in others[0].curves:
        family = curve.family
        if family in curves or (family.precision is not None and family.precision.ordered):
            continue  # whether an order pays is compared for every weight
        known = [c for other in others for c in other.curves if c.family == family and c.errors]
        if _is_rounded(curve) and own is not None:
            ratios = [_ratio(other, curve, precision) for other in others]
            errors = {ladder.entries: min(own * math.exp(float(np.mean(np.log(ratios)))), 1.0)}
            curves[family] = Curve(family=family, errors=errors)
            continue
        exact = curves.get(replace(family, precision=None)) if family.precision is not None else None
        errors = {}
        for n in set(known[0].errors).intersection(*(c.errors for c in known)):
            if exact is None:
                errors[n] = math.exp(float(np.mean([math.log(max(c.errors[n], _FLOOR)) for c in known])))
            else:
                added = [c.errors[n] - c.exact.at(n) for c in known if c.exact is not None]
                errors[n] = min(exact.at(n) + max(float(np.mean(added)), 0.0), 1.0)
        if errors:
            curves[family] = Curve(family=family, errors=errors, exact=exact)
    return replace(ladder, curves=list(curves.values()))


def _is_rounded(curve: Curve) -> bool:
    return isinstance(curve.family.topology, Dense) and curve.family.precision is not None


def _ratio(ladder: Ladder, curve: Curve, precision: Precision | None) -> float:
    """Return how much larger the squared error of a dense weight is in one format than in another one."""
    errors = {c.family.precision: c.errors[ladder.entries] for c in ladder.curves if _is_rounded(c)}
    return max(errors[curve.family.precision], _FLOOR) / max(errors[precision], _FLOOR)
