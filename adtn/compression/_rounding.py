"""Rounding the cores of a closed form in the metric of the data.

One core after the other is rounded with error feedback. In pairs of factors, the second factor is computed anew for the
rounded first one, so that it takes up most of the first one's errors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from .._typing import Float
from ..generator import Generator
from ..precision import Precision, round_to
from ..topology import Dense, LowRank, Tucker


def rounded_in_metric(
    generator: Generator,
    precision: Precision,
    weight: Float[np.ndarray, "*shape"],
    moment: Float[np.ndarray, "columns columns"] | None,
) -> Generator:
    """Round a generator so that the outputs of its layer change little.

    Parameters
    ----------
    generator : Generator
    precision : Precision
    weight : numpy.ndarray
        The dense weight that it approximates.
    moment : numpy.ndarray or None
        The second moment of the inputs of its layer.
    """
    top = generator.topology
    matrix = np.asarray(weight, np.float64).reshape(weight.shape[0], -1)
    metric = np.eye(matrix.shape[1]) if moment is None else np.asarray(moment, np.float64)
    if isinstance(top, Dense) and moment is not None and generator.params["weight"].shape == generator.shape:
        return generator.rounded(precision, {"weight": metric})
    if generator.base is None and generator.layout.dims == generator.shape:
        if isinstance(top, LowRank):
            return _pair(generator, precision, matrix, metric)
        if (
            isinstance(top, Tucker)
            and len(generator.shape) > 2
            and set(generator.params) == {"core", "factor0", "factor1"}
        ):
            return _tucker2(generator, precision, matrix, metric)
    return generator.rounded(precision)


def _pair(
    generator: Generator,
    precision: Precision,
    matrix: Float[np.ndarray, "n_out columns"],
    metric: Float[np.ndarray, "columns columns"],
) -> Generator:
    """Round ``right``, compute ``left`` anew, and round it."""
    shape, right = generator.shape, generator.params["right"]
    spatial = generator.topology.split == "spatial"  # type: ignore[attr-defined]
    own = _without(metric, shape, 2) if spatial else metric
    codes = {"right": round_to(right, precision.of(right.shape), own)}
    rows = _rows(codes["right"].decode().astype(np.float64), shape, spatial)
    gram = rows @ metric @ rows.T
    left = _solved(gram, rows @ metric @ matrix.T).T / generator.scale
    left = left.reshape(generator.params["left"].shape)
    codes["left"] = round_to(left, precision.of(left.shape), gram)
    return generator.with_codes(precision, codes)


def _rows(right: Float[np.ndarray, "..."], shape: tuple[int, ...], spatial: bool) -> Float[np.ndarray, "k columns"]:
    """Return the matrix that ``left`` multiplies; for a spatial pair, with a row per kernel height and rank."""
    if not spatial:
        return right.reshape(len(right), -1)
    r, n_in, kw = right.shape
    kh = shape[2]
    rows = np.zeros((kh, r, n_in, kh, kw))
    for h in range(kh):
        rows[h, :, :, h] = right
    return rows.reshape(kh * r, -1)


def _tucker2(
    generator: Generator,
    precision: Precision,
    matrix: Float[np.ndarray, "n_out columns"],
    metric: Float[np.ndarray, "columns columns"],
) -> Generator:
    """Round the factor of the inputs, then the core, compute the factor of the outputs anew, and round it."""
    shape = generator.shape
    params: Mapping[str, np.ndarray] = generator.params
    n_in, kernel = shape[1], math.prod(shape[2:])
    blocks = metric.reshape(n_in, kernel, n_in, kernel)
    codes = {
        "factor1": round_to(params["factor1"], precision.of(params["factor1"].shape), np.einsum("akbk->ab", blocks))
    }
    inner = codes["factor1"].decode().astype(np.float64)
    small = np.einsum("ra,akbl,sb->rksl", inner, blocks, inner, optimize=True)
    columns = len(inner) * kernel
    codes["core"] = round_to(params["core"], precision.of(params["core"].shape), small.reshape(columns, columns))
    core = codes["core"].decode().astype(np.float64)
    rows = np.einsum("ork,ra->oak", core.reshape(len(core), len(inner), kernel), inner).reshape(len(core), -1)
    outer = _solved(rows @ metric @ rows.T, rows @ metric @ matrix.T) / generator.scale
    codes["factor0"] = round_to(outer, precision.of(outer.shape))
    return generator.with_codes(precision, codes)


def _without(metric: Float[np.ndarray, "n n"], shape: tuple[int, ...], axis: int) -> Float[np.ndarray, "m m"]:
    """Sum the metric of ``(in, kh, kw)`` over equal positions on an axis of the weight."""
    dims = shape[1:]
    blocks = np.trace(metric.reshape(*dims, *dims), axis1=axis - 1, axis2=axis - 1 + len(dims))
    n = math.isqrt(blocks.size)
    return blocks.reshape(n, n)


def _solved(gram: Float[np.ndarray, "k k"], right: Float[np.ndarray, "k n"]) -> Float[np.ndarray, "k n"]:
    """Solve the normal equations, which may be singular."""
    ridge = 1e-9 * np.trace(gram) / len(gram) + np.finfo(float).tiny
    return np.linalg.solve(gram + ridge * np.eye(len(gram)), right)
