"""How many parameters can influence the weight, by numerical rank and not by a formula."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np

from .._errors import TopologyError
from ._adjoint import forward_tape, pullback
from ._initial import frozen_values
from ._program import Program, compile_program
from ._segment import Core, Segment, cores_of, sizes_of

_TOLERANCE = 1e-9
_OVERSAMPLE = 4
# above this size a core's rank would take more probes than it is worth: its entries that move anything are counted
_LARGEST = 1024
_MOST = 10_000


def _probe_program(segments: tuple[Segment, ...]) -> Program:
    """The program closed with one frozen vector per physical leg, where the last segment is multilinear.

    Products of vectors span all cotangents, so random ones lose no rank, and the weight is never formed.
    """
    last = segments[-1]
    if last.activation != "identity":
        return compile_program(segments)
    sizes = sizes_of(segments)
    probes = tuple(
        Core(f"probe{q}", (i,), (sizes[i],), f"probe{q}", "probe", trainable=False) for q, i in enumerate(last.outputs)
    )
    return compile_program((*segments[:-1], replace(last, cores=(*last.cores, *probes), outputs=())))


def jacobian_rows(
    segments: tuple[Segment, ...], n: int, given: dict[str, np.ndarray], largest: int | None = None
) -> dict[str, np.ndarray]:
    """Products of ``n`` random cotangents with the Jacobian of the weight, at generic parameters.

    Parameters
    ----------
    segments : tuple of Segment
        The network.
    n : int
        Number of rows.
    given : dict of str to numpy.ndarray
        Frozen numbers that have no rule.
    largest : int, optional
        Of parameters with more entries only two rows are kept.

    Returns
    -------
    dict of str to numpy.ndarray
        Per parameter an array ``(n, size)``.
    """
    rng = np.random.default_rng(0)
    program = _probe_program(segments)
    arrays = frozen_values(cores_of(segments), given)
    for core in program.cores:
        if core.trainable and core.param not in arrays:
            arrays[core.param] = rng.standard_normal(core.shape) / np.sqrt(core.fan_in)
    probes = [core for core in program.cores if core.kind == "probe"]
    rows: dict[str, list[np.ndarray]] = {}
    for _ in range(n):
        for probe in probes:
            arrays[probe.param] = rng.standard_normal(probe.shape)
        state, tape = forward_tape(program, arrays)
        cotangent = np.ones(()) if probes else rng.standard_normal(state.shape)
        for name, grad in pullback(program, tape, cotangent).items():
            found = rows.setdefault(name, [])
            if largest is None or np.size(grad) <= largest or len(found) < 2:
                found.append(np.ravel(grad))
    return {name: np.stack(found) for name, found in rows.items()}


def _rank(rows: np.ndarray) -> int:
    # rows of very different length would hide directions: their directions are what counts
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = rows / np.where(norms > 0, norms, 1.0)
    values = np.linalg.svd(rows, compute_uv=False)
    return int(np.sum(values > _TOLERANCE * max(values[0], 1e-300)))


def active_parameters(segments: tuple[Segment, ...], given: dict[str, np.ndarray]) -> dict[str, int]:
    """Rank of the weight's Jacobian with respect to each parameter alone.

    It is smaller than the parameter's size when some of its entries, or combinations of them, meet only zeros:
    in the first column of a brick wall with a fixed boundary, for instance. Of cores with more than 1024 entries
    those with a nonzero derivative are counted instead.
    """
    ruled = all(core.init != "given" for s in segments for core in s.cores)
    return dict(_by_structure(segments)) if ruled else _active(segments, given)


@lru_cache(maxsize=1024)  # models have many layers of few shapes
def _by_structure(segments: tuple[Segment, ...]) -> dict[str, int]:
    return _active(segments, {})


def _active(segments: tuple[Segment, ...], given: dict[str, np.ndarray]) -> dict[str, int]:
    sizes = {core.param: core.size for s in segments for core in s.cores if core.trainable}
    largest = max((n for n in sizes.values() if n <= _LARGEST), default=0)
    rows = jacobian_rows(segments, largest + _OVERSAMPLE if largest else 2, given, _LARGEST)
    return {name: _rank(found) if sizes[name] <= _LARGEST else _moving(found) for name, found in rows.items()}


def _moving(rows: np.ndarray) -> int:
    return int(np.any(rows != 0, axis=0).sum())


def degrees_of_freedom(segments: tuple[Segment, ...], given: dict[str, np.ndarray]) -> int:
    """Rank of the whole Jacobian: the dimension of the set of weights, with gauge freedom taken out.

    Raises
    ------
    TopologyError
        For more than 10,000 parameters.
    """
    sizes = {core.param: core.size for s in segments for core in s.cores if core.trainable}
    if sum(sizes.values()) > _MOST:
        raise TopologyError(
            f"Got {sum(sizes.values())} parameters; the rank of the whole Jacobian is for at most {_MOST}."
        )
    rows = jacobian_rows(segments, sum(sizes.values()) + _OVERSAMPLE, given)
    # each parameter gets the same weight, whatever its scale
    blocks = [found / (np.linalg.norm(found) or 1.0) for found in rows.values()]
    return _rank(np.concatenate(blocks, axis=1))
