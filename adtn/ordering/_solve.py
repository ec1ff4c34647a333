"""One tensor in one order as one network: the best of all that fit."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
from ._metric import Metric
from ._none import Unordered
from ._nonnegative import nonnegative
from ._ordering import Approximate, Order, Ordering, relative_error
from ._structure import Form, forms, smallest_bits, within

_WIDE = 512
"""Inputs from which on a sweep in their metric takes seconds, so that there are few of them."""
_TO_CHOOSE, _TO_SETTLE = (6, 1), (40, 4)
"""Sweeps of fits among which one is chosen, and of that one: up to that many inputs, and beyond."""
_COMPARED = 3
"""Starts of a search that are compared after a sweep, beyond that many inputs."""


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
    metric: Metric | None = None

    def __post_init__(self) -> None:
        check_fields(self, OrderingError)
        if self.metric is not None and (self.signs_apart or self.nonnegative or self.ordering.is_flat):
            what = "signs_apart" if self.signs_apart else "nonnegative" if self.nonnegative else f"{self.ordering}"
            raise OrderingError(f"Got a moment with {what}, which knows no inputs; leave one of the two out.")

    def content(self, tensor: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """Return the tensor whose plain error is minimised: in the metric of the inputs, if there is one."""
        return tensor if self.metric is None else self.metric.whiten(tensor)

    def error(self, found: Float[np.ndarray, "..."], wanted: Float[np.ndarray, "..."]) -> float:
        """Compute the relative error that is minimised."""
        return relative_error(self.content(found), self.content(wanted))


@dataclass(frozen=True, kw_only=True)
class Solved:
    """A network with its order, and what it costs."""

    generator: Generator
    order: Order
    signs: np.ndarray | None
    bits: StoredBits
    error: float
    weighted_error: float | None

    @property
    def score(self) -> float:
        """The error that was minimised."""
        return self.error if self.weighted_error is None else self.weighted_error


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
    made = np.asarray(generator.weight(dtype="float64")).reshape(values.shape)
    return Solved(
        generator=generator,
        order=best.order,
        signs=signs,
        bits=bits,
        error=relative_error(made, values),
        weighted_error=None if request.metric is None else request.error(made, values),
    )


def without_order(request: Request) -> Request:
    """Return a request for the same without an order."""
    return replace(request, ordering=Unordered())


def _best(values: Float[np.ndarray, "*shape"], request: Request, bits: float) -> _Candidate:
    ordering, content = request.ordering, request.content(values)
    found = forms(values.shape, request.topology, request.layout, ordering.is_flat)
    most = ordering.bits(values)
    started = [(form, order) for order in ordering.starts(content) for form in found]
    tried = [_fitted(*one, values, bits - most, request) for one in _promising(started, values, bits - most, request)]
    fitting = [one for one in tried if one is not None]
    if not fitting:
        raise OrderingError(
            f"Got bytes={request.bytes:g}, {bits:,.0f} bits without signs; the order costs {most:,.0f} bits and the "
            f"smallest network {smallest_bits(found, request.precision):,.0f}. Allow more bytes, or absorb the order."
        )
    best = min(fitting, key=lambda one: one.error)
    if ordering.refines:
        order = ordering.order(content, _refit(best.generator, values, request))
        refined = _fitted(best.form, order, values, bits - order.bits, request)
        assert refined is not None, "the order costs no more than was kept for it"
        best = min(refined, best, key=lambda one: one.error)
    if request.metric is not None:
        best = _settled(best, values, request)
    if ordering.refines and best.order.bits:  # what an order costs can be worth more in the cores
        plain = _best(values, without_order(request), bits)
        best = min(best, plain, key=lambda one: one.error)
    return best


def _promising(
    started: Sequence[tuple[Form, Order]], values: Float[np.ndarray, "*shape"], bits: float, request: Request
) -> Sequence[tuple[Form, Order]]:
    """Return the starts of a search that are worth the time of their sweeps: the best ones before any."""
    if not request.ordering.refines or not _is_wide(request.metric) or len(started) <= _COMPARED:
        return started
    before = [(one, _fitted(*one, values, bits, request, sweeps=0)) for one in started]
    errors = [(found.error, k) for k, (_, found) in enumerate(before) if found is not None]
    return [started[k] for _, k in sorted(errors)[:_COMPARED]]


def _settled(best: _Candidate, values: Float[np.ndarray, "*shape"], request: Request) -> _Candidate:
    """Fit the network that was chosen in as many sweeps as its cores still gain from."""
    assert request.metric is not None, "without a moment, a decomposition has no sweeps"
    generator = decompose(
        best.generator, values, moment=request.metric.moment, sweeps=_sweeps(request.metric, _TO_SETTLE)
    )
    error = request.error(np.asarray(generator.weight()), values)
    return replace(best, generator=generator, error=error) if error < best.error else best


def _refit(generator: Generator, values: Float[np.ndarray, "*shape"], request: Request) -> Approximate:
    """Return a function that approximates the tensor in an order by a network of the same ranks."""
    plain = Generator(generator.shape, generator.topology, layout=generator.layout, scale=1.0, dtype="float64")

    def approximate(order: Order) -> Float[np.ndarray, "*shape"]:
        if request.metric is None:
            return np.asarray(decompose(plain, order.sort(values)).weight())
        metric = request.metric.sorted(order, values.shape)
        sweeps = _sweeps(metric, _TO_CHOOSE)
        found = decompose(plain, order.sort(values), moment=metric.moment, sweeps=sweeps)
        return metric.whiten(np.asarray(found.weight()))

    return approximate


def _fitted(
    form: Form,
    order: Order,
    values: Float[np.ndarray, "*shape"],
    bits: float,
    request: Request,
    *,
    sweeps: int | None = None,
) -> _Candidate | None:
    # ranks follow from the spectra of the tensor that is multiplied with the root of the moment
    topology = within(form, order.sort(request.content(values)), bits, request.precision)
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
    moment = None if request.metric is None else request.metric.moment
    sweeps = _sweeps(request.metric, _TO_CHOOSE) if sweeps is None else sweeps
    generator = decompose(start, target, moment=moment, sweeps=sweeps)
    if request.nonnegative:
        if not is_linear(generator):
            raise OrderingError(f"Got nonnegative=True for {topology}; use it without an activation.")
        generator = nonnegative(generator, target)
    error = request.error(np.asarray(generator.weight()), target)
    return _Candidate(form=form, order=order, generator=generator, error=error)


def _sweeps(metric: Metric | None, few_or_many: tuple[int, int]) -> int:
    """Return how many sweeps are worth their time; without a moment, decompositions have none."""
    return few_or_many[_is_wide(metric)]


def _is_wide(metric: Metric | None) -> bool:
    return metric is not None and len(metric.moment) > _WIDE


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
    moment = None if request.metric is None else request.metric.moment
    return round_cores(small, precision, values.reshape(small.shape), moment)


def gain(tensor: Float[np.ndarray, "*shape"], request: Request, error: float) -> float:
    """Compute the part of the error that an order saves, at equal bytes."""
    plain = solve(tensor, without_order(request)).score
    return (1.0 - error / plain) if plain > 0.0 else (0.0 if error == 0.0 else -math.inf)
