"""Names of the bonds of a model, and what is to be done with what is on them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, TypeAlias

from adtn._typing import Array
from adtn.errors import TopologyError
from autoray import do, get_dtype_name, infer_backend

Patches: TypeAlias = Mapping[str, Callable[[Array], Array]]
"""Functions of what is on a bond, ``(*batch, rest, bond)``."""


def chosen(patterns: str | Sequence[str], names: Iterable[str], skipped: Mapping[str, str] | None = None) -> list[str]:
    """Return the names that one of the patterns fits; ``skipped`` says why layers have no bonds.

    Raises
    ------
    TopologyError
        If a pattern fits none.
    """
    known, found = list(names), dict[str, None]()
    for pattern in (patterns,) if isinstance(patterns, str) else patterns:
        own = [name for name in known if fnmatchcase(name, pattern)]
        if not own:
            near = difflib.get_close_matches(pattern, known, 3, 0.3) or known[:3]
            why = "; ".join(f"{name or 'the model'}: {reason}" for name, reason in (skipped or {}).items())
            raise TopologyError(
                f"Got the name {pattern!r}, which fits none of the {len(known)} bonds of generated layers in the model"
                + (f", such as {', '.join(near)}" if near else "")
                + ". Names are those of layers, '.bonds.' and the bond."
                + (f" Without bonds for inputs: {why}." if why else "")
            )
        found.update(dict.fromkeys(own))
    return list(found)


def patches_of(patch: Mapping[str, Any], sizes: Mapping[str, int]) -> Patches:
    """Return functions for matrices ``(bond, bond)`` and functions, by the names that their patterns fit.

    Raises
    ------
    TopologyError
        If a pattern fits no bond, or a matrix does not fit it.
    """
    found: dict[str, Callable[[Array], Array]] = {}
    for pattern, own in patch.items():
        for name in chosen(pattern, sizes):
            if callable(own):
                found[name] = own
                continue
            expected = (sizes[name], sizes[name])
            if tuple(own.shape) != expected:
                raise TopologyError(f"Got a patch of shape {tuple(own.shape)} for {name!r}; expected {expected}.")
            found[name] = partial(_times, own)
    return found


def _times(matrix: Array, value: Array) -> Array:
    own = matrix if infer_backend(matrix) == infer_backend(value) else do("asarray", matrix, like=value)
    return do("matmul", value, do("astype", own, get_dtype_name(value)))


def checked_value(bond: str, found: Any, given: Array) -> Array:
    """Return what goes on from a bond.

    Raises
    ------
    TopologyError
        If it has another shape than what was on the bond.
    """
    shape = getattr(found, "shape", None)
    if shape is None or tuple(shape) != tuple(given.shape):
        raise TopologyError(
            f"Got {type(found).__name__} of shape {None if shape is None else tuple(shape)} from a patch or hook of "
            f"{bond!r}; expected the shape of what is on the bond, {tuple(given.shape)}."
        )
    return found
