"""One tensor in one order as one network: the best of all that fit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np

from .._checks import Positive, Range, Seed, check_fields
from .._typing import Float
from ..errors import OrderingError
from ..generator import Generator
from ..layout import Layout
from ..optim import decompose, has_decomposition, is_linear, round_cores
from ..precision import Precision
from ._bits import StoredBits, bits_of_generator
from ._gauge import Gauge, fixed
from ._none import Unordered
from ._nonnegative import nonnegative
from ._ordering import Order, Ordering, relative_error
from ._structure import Form, forms, smallest_bits, within


@dataclass(frozen=True, kw_only=True)
class Request:
    """The options of a search; see :func:`adtn.einsort`."""

    ordering: Ordering
    topology: Any
    layout: Layout | None
    bytes: Positive
    precision: Precision | None
    signs_apart: bool
    nonnegative: bool
    gauge: Gauge
    seed: Seed
    controls: Annotated[int, Range(2)]

    def __post_init__(self) -> None:
        check_fields(self, OrderingError)


@dataclass(frozen=True, kw_only=True)
class Solved:
    """A network with its order, and what it costs."""

    generator: Generator
    order: Order
    signs: np.ndarray | None
    bits: StoredBits
    error: float


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    form: Form
    order: Order
    generator: Generator
    error: float


def solve(tensor: Float[np.ndarray, "*shape"], request: Request) -> Solved:
    """Find the best network within the bytes of a request.

    Raises
    ------
    OrderingError
        If none is as small.
    """
    signs = np.packbits(tensor.reshape(-1) < 0) if request.signs_apart else None
    values = np.abs(tensor) if request.signs_apart else tensor
    if request.nonnegative and float(values.min(initial=0.0)) < 0.0:
        raise OrderingError("Got nonnegative=True for a tensor with negative entries; add signs_apart=True.")
    best = _best(values, request, 8.0 * request.bytes - (tensor.size if request.signs_apart else 0))
    generator = _stored(best, values, request)
    cores, scales = bits_of_generator(generator)
    bits = StoredBits(
        cores=cores,
        scales=scales,
        permutations=best.order.bits,
        signs=float(tensor.size) if request.signs_apart else 0.0,
    )
    error = relative_error(np.asarray(generator.weight(dtype="float64")).reshape(values.shape), values)
    return Solved(generator=generator, order=best.order, signs=signs, bits=bits, error=error)


def without_order(request: Request) -> Request:
    """Return a request for the same without an order."""
    return replace(request, ordering=Unordered())


def _best(values: Float[np.ndarray, "*shape"], request: Request, bits: float) -> _Candidate:
    ordering = request.ordering
    found = forms(values.shape, request.topology, request.layout, ordering.is_flat)
    most = ordering.bits(values)
    tried = [_fitted(form, order, values, bits - most, request) for order in ordering.starts(values) for form in found]
    fitting = [one for one in tried if one is not None]
    if not fitting:
        raise OrderingError(
            f"Got bytes={request.bytes:g}, {bits:,.0f} bits without signs; the order costs {most:,.0f} bits and the "
            f"smallest network {smallest_bits(found, request.precision):,.0f}. Allow more bytes, or absorb the order."
        )
    best = min(fitting, key=lambda one: one.error)
    if not ordering.refines:
        return best
    order = ordering.order(values, _refit(best.generator))
    refined = _fitted(best.form, order, values, bits - order.bits, request)
    assert refined is not None, "the order costs no more than was kept for it"
    return min(refined, best, key=lambda one: one.error)


def _refit(generator: Generator) -> Callable[[Float[np.ndarray, "*shape"]], Float[np.ndarray, "*shape"]]:
    """Return a function that approximates a tensor by a network of the same ranks."""
    plain = Generator(generator.shape, generator.topology, layout=generator.layout, scale=1.0, dtype="float64")
    return lambda tensor: np.asarray(decompose(plain, tensor).weight())


def _fitted(
    form: Form, order: Order, values: Float[np.ndarray, "*shape"], bits: float, request: Request
) -> _Candidate | None:
    sorted_ = order.sort(values)
    topology = within(form, sorted_, bits, request.precision)
    if topology is None:
        return None
    permutations = order.permutations
    start = Generator(
        form.layout.shape,
        topology,
        layout=form.layout,
        scale=1.0,
        permutations=permutations if any(p is not None for p in permutations) else None,
        dtype="float64",
    )
    if not has_decomposition(start):
        raise OrderingError(f"Got {topology}, which has no decomposition; use TT, MPO, Tucker, TTN, CP or LowRank.")
    target = values.reshape(start.shape)
    generator = decompose(start, target)
    if request.nonnegative:
        if not is_linear(generator):
            raise OrderingError(f"Got nonnegative=True for {topology}; use it without an activation.")
        generator = nonnegative(generator, target)
    error = relative_error(np.asarray(generator.weight()), target)
    return _Candidate(form=form, order=order, generator=generator, error=error)


def _stored(best: _Candidate, values: Float[np.ndarray, "*shape"], request: Request) -> Generator:
    """Fix the gauge, and round the cores to the precision."""
    generator, precision = fixed(best.generator, request.gauge), request.precision
    permutations = generator.permutations
    small = Generator(
        generator.shape,
        generator.topology,
        layout=generator.layout,
        scale=1.0,
        permutations=permutations or None,
        params=generator.params,
    )
    if precision is None:
        return small
    if request.nonnegative or not is_linear(small) or len(small.segments) > 1:
        return small.rounded(precision)
    return round_cores(small, precision, values.reshape(small.shape), None)


def gain(tensor: Float[np.ndarray, "*shape"], request: Request, error: float) -> float:
    """Compute the part of the error that an order saves, at equal bytes."""
    plain = solve(tensor, without_order(request)).error
    return (1.0 - error / plain) if plain > 0.0 else (0.0 if error == 0.0 else -math.inf)
