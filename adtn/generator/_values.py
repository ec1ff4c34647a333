"""The values of a generator: checked, converted and read-only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any

import numpy as np

from .._arrays import finite_array, host_array
from .._checks import shown
from .._typing import Float, Shape
from ..calculus import Rows, stored_isometries
from ..errors import GeneratorError, LayoutError
from ..layout import Permutation
from ..program import Program
from ..topology import RuleBase
from ._decoded import Decoded

Base = Annotated[RuleBase | np.ndarray | None, "adtn.SeededBase(seed=0), adtn.IdentityBase(), an array or None"]


def kaiming(shape: Shape) -> float:
    fan_in = math.prod(shape[1:]) if len(shape) > 1 else math.prod(shape)
    return math.sqrt(2.0 / max(fan_in, 1))


def spread(scale: Any) -> float:
    """Compute the standard deviation of a weight, or the magnitude of its entries if all are equal."""
    if isinstance(scale, bool | np.bool_):
        raise GeneratorError(f"Got scale={scale}; expected a number, or a weight.")
    scale = finite_array("scale", scale, GeneratorError)
    if not scale.ndim:
        return float(scale)
    if not scale.size:
        raise GeneratorError(f"Got scale={shown(scale)}, which has no entries; expected a weight.")
    largest = float(np.abs(scale).max())
    if scale.dtype != np.float64 and not (scale.dtype == np.float32 and 1e-12 < largest < 1e12):
        scale = scale.astype(np.float64)  # squares could underflow or overflow
    spread, size = float(np.std(scale)), float(np.linalg.norm(np.ravel(scale))) / math.sqrt(np.size(scale))
    return spread if spread > 1e-6 * size else size


def checked_base(base: Base, shape: Shape) -> Base:
    if base is None or isinstance(base, RuleBase):
        return base
    finite_array("base", base, GeneratorError)
    if base.shape != shape:
        raise GeneratorError(f"Got base={shown(base)}, of shape {base.shape}; expected the weight's shape, {shape}.")
    base = base.copy()
    base.setflags(write=False)
    return base


def as_permutations(
    given: Sequence[Permutation | Sequence[int] | None] | None, shape: Shape
) -> tuple[Permutation | None, ...]:
    """Return one permutation per axis, ``None`` for identities; an empty tuple if all are identities."""
    if given is None:
        return ()
    if len(given) != len(shape):
        raise LayoutError(
            f"Got permutations={shown(given)}, {len(given)} for {len(shape)} axes; expected one per axis, None where "
            "an axis keeps its order."
        )
    made = [p if p is None or isinstance(p, Permutation) else Permutation(p) for p in given]
    made = [None if p is None or (p.is_identity and len(p) == n) else p for p, n in zip(made, shape, strict=True)]
    return tuple(made) if any(p is not None for p in made) else ()


def silence(program: Program, params: dict[str, Float[np.ndarray, "..."]]) -> None:
    """Set one core of the last segment to zero, so that an adapter starts as the weight it adapts."""
    for core in reversed(program.stages[-1].cores):
        if core.trainable and core.init != "identity" and not core.isometric:
            params[core.param] = np.zeros(core.shape)
            return


def readonly(
    arrays: Mapping[str, Any], shapes: Mapping[str, Shape], dtype: str, rows: Rows | None = None
) -> Mapping[str, Float[np.ndarray, "..."]]:
    """Return checked copies; of parameters that stand for isometries, whose ``rows`` are given, the isometries."""
    given = {name: host_array(f"params[{name!r}]", arrays[name], GeneratorError) for name in sorted(arrays)}
    for name, x in given.items():
        if x.shape != shapes[name]:
            raise GeneratorError(f"Got params[{name!r}] of shape {x.shape}; expected {shapes[name]}.")
    given = stored_isometries(given, rows, dtype) if rows else given
    out = {name: np.array(x, dtype=dtype) for name, x in given.items()}
    for x in out.values():
        x.setflags(write=False)
    return MappingProxyType(out)


def plain(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a mapping that can be pickled."""
    return values if isinstance(values, Decoded) else dict(values)


def guarded(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a mapping that was pickled, read-only as before."""
    if isinstance(values, Decoded):
        return values
    for x in values.values():
        if isinstance(x, np.ndarray):
            x.setflags(write=False)
    return MappingProxyType(values)
