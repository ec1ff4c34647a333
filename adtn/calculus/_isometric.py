r"""Cores that stay isometries: each is a function of its parameter, so that no optimizer needs to know of them.

The parameter, as a matrix with a row per incoming index, is :math:`A^\top`, and the core is :math:`c\, Q^\top` of

.. math:: A = Q R, \qquad \bar A = (\bar Q + Q\, \mathrm{sym}(M)) R^{-\top}, \qquad M = -\mathrm{triu}(Q^\top \bar Q)

with a positive diagonal of R, and :math:`\mathrm{sym}(M) = M + M^\top` with half of its diagonal. :math:`c^2` is the
ratio of the numbers of columns and rows of :math:`Q^\top`: the entries of a state then keep their variance, and a
disentangler is orthogonal itself. An isometry stands for itself, so that what is stored are the cores.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TypeAlias

import numpy as np
from autoray import astype, do

from .._typing import Array, Float, Params
from ..topology import Core, Segment, cores_of

Rows: TypeAlias = Mapping[str, int]
"""The number of rows of every core that stays an isometry, by its parameter."""

_HALVES = ("float16", "bfloat16")
_SAME = 4.0  # of the resolution of a dtype: an array whose rows are as orthonormal as this is not changed


def isometric_rows(cores: Iterable[Core]) -> dict[str, int]:
    """Collect the cores that stay isometries."""
    return {core.param: core.fan_in for core in cores if core.isometric and core.trainable}


def _factor(rows: int, columns: int) -> float:
    return math.sqrt(columns / rows)


def _grouped(arrays: Params, rows: Rows) -> list[tuple[list[str], int, int]]:
    """Group parameters by the shape of their matrix, as one factorisation of many is cheaper than many."""
    groups: dict[tuple[int, int], list[str]] = defaultdict(list)
    for name, n in rows.items():
        groups[n, math.prod(arrays[name].shape) // n].append(name)
    return [(names, *shape) for shape, names in groups.items()]


def _stacked(arrays: Params, names: list[str], rows: int, columns: int) -> Float[Array, "cores columns rows"]:
    matrices = tuple(do("reshape", arrays[name], (1, rows, columns)) for name in names)
    return do("transpose", do("concatenate", matrices, axis=0), (0, 2, 1))


def _unstacked(
    stack: Float[Array, "cores columns rows"], like: Params, names: list[str]
) -> dict[str, Float[Array, "..."]]:
    return {
        name: do("reshape", do("transpose", stack[i], (1, 0)), tuple(like[name].shape)) for i, name in enumerate(names)
    }


def _qr(
    stack: Float[Array, "cores columns rows"],
) -> tuple[Float[Array, "cores columns rows"], Float[Array, "cores rows rows"]]:
    """Factorise with a positive diagonal of R, so that orthonormal columns stay what they are."""
    q, r = do("linalg.qr", stack)
    diagonal = r.diagonal(0, -2, -1)  # the names of the axes differ between frameworks
    signs = do("sign", do("sign", diagonal) + 0.5)  # never zero
    return q * signs[:, None, :], r * signs[:, :, None]


def isometric(arrays: Params, rows: Rows) -> dict[str, Float[Array, "..."]]:
    """Return the cores that belong to parameters; those that are free are their parameters.

    Parameters
    ----------
    arrays : mapping of str to array
        All parameters, of any framework, which differentiates this function if it differentiates a QR decomposition.
    rows : mapping of str to int
        From :func:`isometric_rows`.
    """
    cores = dict(arrays)
    for names, n, m in _grouped(arrays, rows):
        stack = _stacked(arrays, names, n, m)
        half = next((d for d in _HALVES if d == str(stack.dtype).rpartition(".")[2]), None)
        q, _ = _qr(stack if half is None else astype(stack, "float32"))
        q = q * _factor(n, m)
        cores |= _unstacked(q if half is None else astype(q, half), arrays, names)
    return cores


def isometric_vjp(arrays: Params, rows: Rows, bars: Params) -> dict[str, Float[Array, "..."]]:
    """Compute the adjoints of parameters from those of the cores.

    Parameters
    ----------
    arrays, rows
        See :func:`isometric`.
    bars : mapping of str to array
        The adjoints of the cores; cores without one have none of their parameter.
    """
    grads = dict(bars)
    for names, n, m in _grouped(arrays, {name: k for name, k in rows.items() if name in bars}):
        q, r = _qr(_stacked(arrays, names, n, m))
        qbar = _stacked(bars, names, n, m) * _factor(n, m)
        upper = do("triu", do("matmul", q.mT, qbar))
        upper = upper - 0.5 * upper * do("eye", n, like=q)
        abar = qbar - do("matmul", q, upper + upper.mT)
        grads |= _unstacked(do("linalg.solve", r, abar.mT).mT, bars, names)
    return grads


def isometric_jacobian(
    arrays: Mapping[str, Float[np.ndarray, "..."]], rows: Rows
) -> dict[str, Float[np.ndarray, "entries entries"]]:
    """Compute the derivatives of the entries of isometries (rows) by those of their parameters (columns)."""
    found: dict[str, np.ndarray] = {}
    for name, n in rows.items():
        x = np.asarray(arrays[name], np.float64)
        units = {f"{k}": unit.reshape(x.shape) for k, unit in enumerate(np.eye(x.size))}
        grads = isometric_vjp(dict.fromkeys(units, x), dict.fromkeys(units, n), units)
        found[name] = np.stack([grads[k].ravel() for k in units])
    return found


def stored_isometries(
    arrays: Mapping[str, Float[np.ndarray, "..."]], rows: Rows, dtype: str
) -> dict[str, Float[np.ndarray, "..."]]:
    """Return parameters that are the cores themselves, to the resolution of a dtype."""
    kept = {name: np.asarray(arrays[name], np.float64) for name in rows}
    for name, n in rows.items():
        matrix = kept[name].reshape(n, -1) / _factor(n, kept[name].size // n)
        if np.abs(matrix @ matrix.T - np.eye(n)).max(initial=0.0) <= _SAME * np.finfo(dtype).eps:
            kept[name] = arrays[name]  # bit for bit, so that files keep what they hold
        else:
            kept[name] = isometric({name: kept[name]}, {name: n})[name]
    return {**arrays, **kept}


def canonical(
    segments: Iterable[Segment], arrays: Mapping[str, Float[np.ndarray, "..."]]
) -> dict[str, Float[np.ndarray, "..."]]:
    """Return isometries that make the same state as cores of the same tree, whose root takes what they are not.

    From the legs to the root, the core above absorbs R. Disentanglers can only pass a number on: if they, and what is
    below them, are no multiples of isometries, the state changes.
    """
    cores = cores_of(segments)
    found = {name: np.asarray(x, np.float64) for name, x in arrays.items()}
    (root,) = (core for core in cores if not core.isometric)
    trees = [core for core in cores if core.kind != "disentangler"]
    owners = {ind: core for core in trees for ind in core.inds[0 if core is root else 1 :]}
    for core in reversed(cores):
        if not core.isometric:
            continue
        n, m = core.fan_in, core.size // core.fan_in
        q, r = (x[0] for x in _qr(found[core.param].reshape(1, n, m).mT))
        found[core.param] = (_factor(n, m) * q.T).reshape(core.shape)
        rest, above = r.T / _factor(n, m), owners.get(core.inds[0])
        if core.kind == "disentangler" or above is None:
            found[root.param] = found[root.param] * (np.trace(rest) / n)
        else:
            axis = above.inds.index(core.inds[0])
            found[above.param] = np.moveaxis(np.tensordot(found[above.param], rest, axes=(axis, 0)), -1, axis)
    return found


def unit_isometries(
    segments: Iterable[Segment], arrays: Mapping[str, Float[np.ndarray, "..."]]
) -> dict[str, Float[np.ndarray, "..."]]:
    """Move the factors of isometries to the root, so that their rows have unit norm."""
    cores = cores_of(segments)
    found = dict(arrays)
    if not isometric_rows(cores):
        return found
    (root,) = (core for core in cores if not core.isometric)
    factor = 1.0
    for core in cores:
        if core.isometric:
            own = _factor(core.fan_in, core.size // core.fan_in)
            found[core.param] = arrays[core.param] / own
            factor *= own
    found[root.param] = arrays[root.param] * factor
    return found
