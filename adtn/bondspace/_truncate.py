"""Bonds made as small as a loss permits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated

import numpy as np

from .._checks import Range, checked, shown
from .._typing import Float
from ..errors import TopologyError
from ..generator import Generator
from ..optim import decompose
from ..topology import BondIndex, bond_indices
from ._double_layer import double_layer
from ._metric import Metric, metric_environment
from ._projection import Projection, environment_projection, schmidt_projection
from ._source import Source

_NOTHING = 1e-26  # squared loss of a component that contributes nothing
_SWEEPS = 8  # of alternating least squares over all cores at the end
_DENSE = 1 << 25  # entries of a weight that is made to measure an error


@dataclass(frozen=True, kw_only=True)
class Cut:
    """One bond that became smaller.

    Parameters
    ----------
    bond : str
        Its name.
    before, after : int
        Its dimensions.
    """

    bond: str
    before: int
    after: int


@dataclass(frozen=True, kw_only=True)
class Truncation:
    """A generator with smaller bonds; see :func:`adtn.truncate`.

    Parameters
    ----------
    generator : Generator
    relative_error : float
        The norm of the change of the weight, relative to the norm of the generated weight (without its base), in the
        metric. It is measured, or, for a weight of more than 2**25 entries, the root of the sum of the squares of what
        every step predicted.
    is_measured : bool
        Whether it is measured.
    cuts : tuple of Cut
        All bonds that changed.
    params : tuple of int
        The numbers of parameters before and after.
    """

    generator: Generator
    relative_error: float
    is_measured: bool
    cuts: tuple[Cut, ...]
    params: tuple[int, int]

    def __str__(self) -> str:
        """Return a table."""
        before, after = self.params
        lines = [f"{before:,} to {after:,} parameters, relative error {self.relative_error:.3g}"]
        return "\n".join([*lines, *(f"  {cut.bond:<12} {cut.before:>4} to {cut.after}" for cut in self.cuts)])


@dataclass(frozen=True, kw_only=True)
class Step:
    """A bond with one component less: the factors, the relative squared loss, and what it costs per parameter."""

    bond: BondIndex
    factors: tuple[np.ndarray, np.ndarray]
    loss: float
    saved: int

    @property
    def price(self) -> float:
        return self.loss / self.saved


@checked(TopologyError)
def truncate(
    generator: Generator,
    *,
    params: Annotated[int, Range(1)] | None = None,
    error: Annotated[float, Range(0)] | None = None,
    metric: Metric | None = None,
) -> Truncation:
    """Make bonds smaller where it changes the weight least, down to a number of parameters or up to an error.

    In every step the bond that loses least per parameter it saves gives up one component: on bonds that cut the network
    the smallest Schmidt component, on loops and in a metric the best projection in the environment of the bond, on
    hyper-indices and legs of states the entry without which the weight changes least. In a metric of inputs, all cores
    of topologies with a decomposition are then improved together by :func:`adtn.decompose`, if that is better in the
    whole metric. The result is balanced. Bonds next to cores that share their parameter stay.

    Parameters
    ----------
    generator : Generator
        It may be nonlinear: then every step is measured on the whole weight.
    params : int, optional
        The largest number of parameters of the result.
    error : float, optional
        The largest relative error of the result. One of both is needed.
    metric : Metric, optional
        Second moments of inputs, and of gradients with respect to outputs, in which changes count; by default, the
        Frobenius norm. With it, bonds are truncated where the data do not need them.

    Returns
    -------
    Truncation

    Raises
    ------
    TopologyError
        If there is no goal, or two, or the number of parameters cannot be reached by smaller bonds.

    References
    ----------
    G. Evenbly (2018), arXiv:1801.05390 (full-environment truncation).

    Examples
    --------
    >>> import adtn, numpy as np
    >>> W = np.add.outer(np.arange(64.0), np.arange(64.0))  # of rank 2
    >>> gen = adtn.decompose(adtn.Generator((64, 64), adtn.LowRank(bond=8), dtype="float64"), W)
    >>> print(adtn.truncate(gen, error=1e-9).generator.topology)
    LowRank(bond=2)
    """
    if (params is None) == (error is None):
        raise TopologyError(f"Got params={shown(params)} and error={shown(error)}; expected one of them.")
    if params is not None:
        return truncate_together({"": generator}, params=params, metrics={"": metric})[""]
    assert error is not None
    work = Work(generator, metric)
    while (step := work.cheapest(error**2)) is not None:
        work.take(step)
    return work.result(error)


@checked(TopologyError)
def truncate_together(
    generators: Mapping[str, Generator],
    *,
    params: Annotated[int, Range(1)],
    metrics: Mapping[str, Metric | None] | None = None,
) -> dict[str, Truncation]:
    """Make the bonds of several generators smaller, each where the sum of all losses grows least.

    Parameters
    ----------
    generators : mapping of str to Generator
    params : int
        The largest number of parameters of all results together.
    metrics : mapping of str to Metric, optional
        By the same names. With second moments of inputs and of gradients with respect to outputs, the losses of layers
        of one network compare; by default, they are squared Frobenius norms.

    Returns
    -------
    dict of str to Truncation

    Raises
    ------
    TopologyError
        If the number of parameters cannot be reached by smaller bonds.

    Examples
    --------
    >>> import adtn
    >>> from adtn.bondspace import truncate_together
    >>> low = adtn.LowRank(bond=8)
    >>> pair = {name: adtn.Generator((64, 64), low, scale=scale) for name, scale in (("a", 1.0), ("b", 9.0))}
    >>> found = truncate_together(pair, params=1800)
    >>> [one.generator.topology for one in found.values()]
    [LowRank(bond=6), LowRank(bond=8)]
    """
    if unknown := sorted(set(metrics or {}) - set(generators)):
        raise TopologyError(f"Got metrics of {shown(unknown)}; expected some of {shown(sorted(generators))}.")
    works = {name: Work(own, (metrics or {}).get(name)) for name, own in generators.items()}
    while (total := sum(work.generator.num_params for work in works.values())) > params:
        found = {name: work.cheapest(math.inf, excess=total - params) for name, work in works.items()}
        steps = {name: step for name, step in found.items() if step is not None}
        if not steps:
            raise TopologyError(
                f"Got params={params:,}; expected at least {total:,}, where every bond that can be truncated has the "
                "dimension 1."
            )
        sizes = {name: works[name].size for name in steps}
        name = _next({name: (step, sizes[name]) for name, step in steps.items()}, total - params)
        works[name].take(steps[name])
    for work in works.values():
        work.drop_unused()
    return {name: work.result(None) for name, work in works.items()}


@dataclass
class Work:
    """The present generator, and what was lost before."""

    original: Generator
    metric: Metric | None
    generator: Generator = field(init=False)
    lost: float = 0.0
    history: list[tuple[Generator, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.generator = self.original
        self.history.append((self.original, 0.0))
        self._weight: np.ndarray | None = None
        self._source: Source | None = None
        self._steps: dict[str, Step] = {}
        self._fresh: set[str] = set()
        self._stuck: set[str] = set()

    @property
    def _is_linear(self) -> bool:
        segments = self.generator.segments
        return len(segments) == 1 and segments[0].activation == "identity"

    def cheapest(self, limit: float, excess: float = math.inf) -> Step | None:
        """Return the next step whose loss fits under the limit; steps are renewed only when they lead."""
        bonds = {bond.name: bond for bond in bond_indices(self.generator.segments)}
        while True:
            for name, bond in bonds.items():
                if name not in self._steps and name not in self._stuck and bond.dim > 1:
                    self._renew(bond)
            fitting = {name: (s, 1.0) for name, s in self._steps.items() if self.lost + s.loss <= limit}
            if not fitting:
                return None
            name = _next(fitting, excess)
            if name in self._fresh:
                return self._steps[name]
            self._renew(bonds[name])

    def _renew(self, bond: BondIndex) -> None:
        self._steps.pop(bond.name, None)
        self._fresh.add(bond.name)
        if bond.dim < 2:
            return
        if self._source is None:
            self._source = Source(self.generator)
        found = self._step(self._source, bond)
        if found is None:
            self._stuck.add(bond.name)
        else:
            self._steps[bond.name] = found

    def take(self, step: Step) -> None:
        """Make a bond smaller."""
        self.generator = self._applied(step.bond, step.factors)
        self.lost += step.loss
        self.history.append((self.generator, self.lost))
        self._fresh, self._source = set(), None
        del self._steps[step.bond.name]

    def _applied(self, bond: BondIndex, factors: tuple[np.ndarray, np.ndarray]) -> Generator:
        return self.generator.with_bond(bond.name, factors)

    def _step(self, source: Source, bond: BondIndex) -> Step | None:
        """Return the best way to take one component off a bond, ``None`` if there is none."""
        is_cut = self._is_linear and bond.kind == "linear"
        candidates = self._linear(source, bond) if is_cut else self._others(source, bond)
        best: Step | None = None
        for projection in candidates:
            try:
                changed = self._applied(bond, projection.factors)
            except TopologyError:  # shared cores, or a form that cannot be stored
                return None
            saved = self.generator.num_params - changed.num_params
            loss = projection.loss
            if saved <= 0:
                return None
            if math.isnan(loss):
                loss = max(self.measured(changed) - self.lost, 0.0)
            if best is None or loss < best.loss:
                best = Step(bond=bond, factors=projection.factors, loss=loss, saved=saved)
        return best

    def _linear(self, source: Source, bond: BondIndex) -> Iterator[Projection]:
        view, core, rank = source.view(0), bond.ends[-1], bond.dim - 1
        whole = self.size
        if self.metric is None and view.is_exact(bond.index):
            found = schmidt_projection(*view.factors(bond.index, core), rank)
            outside = view.messages.outside(bond.index) if view.messages is not None else 1.0
            yield Projection(factors=found.factors, loss=found.loss * (outside * view.scale) ** 2 / whole)
            return
        y: np.ndarray | None = None
        if self.metric is not None and view.is_exact(bond.index):
            try:
                y = metric_environment(source, bond.index, core, self.metric)
            except TopologyError:  # too large: from samples
                y = None
        if y is None:
            y = double_layer(source, bond.index, core, self.metric)
        found = environment_projection(y, rank)
        yield Projection(factors=found.factors, loss=found.loss / whole)

    def _others(self, source: Source, bond: BondIndex) -> Iterator[Projection]:
        """Yield what is measured on the whole weight: Schmidt components inside a segment, or single entries."""
        if bond.kind == "linear":
            view = source.view(bond.segment)
            found = schmidt_projection(*view.factors(bond.index, bond.ends[-1]), bond.dim - 1)
            yield Projection(factors=found.factors, loss=math.nan)
            return
        for k in range(bond.dim):
            kept = np.eye(bond.dim)[:, np.arange(bond.dim) != k]
            yield Projection(factors=(kept, kept.T), loss=math.nan)

    @cached_property
    def size(self) -> float:
        """The squared norm of the original weight, without its base, in the metric."""
        found = self._squared(self._dense(self.original)) if self.can_measure else self._estimated()
        if not 0.0 < found < math.inf:
            raise TopologyError(
                f"Got a generator whose weight, without its base, has the squared norm {found:g} in this metric; "
                "expected a trained one, with values that are finite."
            )
        return found

    def _estimated(self) -> float:
        """Compute the squared norm from an environment, as the weight is too large."""
        source = Source(self.original)
        bond = next(b for b in bond_indices(self.original.segments) if b.kind == "linear")
        y = double_layer(source, bond.index, bond.ends[-1], self.metric)
        return float(np.einsum("kkmm->", y))

    @property
    def can_measure(self) -> bool:
        return math.prod(self.original.layout.padded_shape) <= _DENSE

    def _dense(self, generator: Generator) -> Float[np.ndarray, "n_out n_in"]:
        """Return the generated weight without its base, in generated order."""
        state, layout = Source(generator).state(len(generator.segments) - 1), generator.layout
        weight = np.asarray(layout.from_legs(state)) * generator.scale  # without its padding
        weight = np.pad(weight, [(0, p - n) for n, p in zip(layout.shape, layout.padded_shape, strict=True)])
        return weight.reshape(len(weight), -1)

    def _squared(self, weight: Float[np.ndarray, "n_out n_in"]) -> float:
        if self.metric is not None:
            outputs, inputs = self.metric.factors(self.original.weighting)
            weight = weight if outputs is None else outputs @ weight
            weight = weight if inputs is None else weight @ inputs.T
        return float(np.vdot(weight, weight))

    def measured(self, generator: Generator) -> float:
        """Return the squared relative error of a generator."""
        if self._weight is None:
            self._weight = self._dense(self.original)
        return self._squared(self._dense(generator) - self._weight) / self.size

    def refined(self, generator: Generator, error: float) -> tuple[Generator, float]:
        """Improve all cores together in the metric of the inputs, if they have a decomposition."""
        topology, moment = generator.topology, None if self.metric is None else self.metric.inputs
        possible = self._is_linear and topology.has_decomposition and not topology.share
        if moment is None or not possible or not self.can_measure or generator is self.original:
            return generator, error
        target = np.asarray(_bare(self.original).weight())
        found = decompose(_bare(generator), target, moment=moment, sweeps=_SWEEPS)
        changed = generator.with_params({**generator.params, **found.params})
        own = math.sqrt(max(self.measured(changed), 0.0))
        return (changed, own) if own < error else (generator, error)

    def drop_unused(self) -> None:
        """Take off components that contribute nothing: on both sides zero, they could not be trained."""
        while len(self.history) > 1 and (step := self.cheapest(math.inf)) is not None and step.loss <= _NOTHING:
            self.take(step)

    def _unchanged(self) -> Truncation:
        size = self.original.num_params
        return Truncation(
            generator=self.original,
            relative_error=0.0,
            is_measured=self.can_measure,
            cuts=(),
            params=(size, size),
        )

    def result(self, error: float | None) -> Truncation:
        """Return the smallest generator that keeps to the error, balanced."""
        if len(self.history) == 1:
            return self._unchanged()
        while True:
            generator, lost = self.history.pop()
            found = math.sqrt(max(self.measured(generator) if self.can_measure else lost, 0.0))
            if error is None or found <= error or not self.history:
                break
        generator, found = self.refined(generator, found)
        before, after = ({b.name: b.dim for b in bond_indices(g.segments)} for g in (self.original, generator))
        return Truncation(
            generator=generator.balanced(),
            relative_error=found,
            is_measured=self.can_measure,
            cuts=tuple(Cut(bond=n, before=d, after=after[n]) for n, d in before.items() if after.get(n, d) < d),
            params=(self.original.num_params, generator.num_params),
        )


def _next(steps: Mapping[str, tuple[Step, float]], excess: float) -> str:
    """Choose the step of the least price; if one is enough for what is too much, that of the least loss.

    Parameters
    ----------
    steps : mapping of str to (Step, float)
        With the unit of their losses.
    excess : float
        The number of parameters that are too many.
    """
    cheapest = min(steps, key=lambda name: steps[name][0].price * steps[name][1])
    enough = [name for name, (step, _) in steps.items() if step.saved >= excess]
    return min((cheapest, *enough), key=lambda name: steps[name][0].loss * steps[name][1]) if enough else cheapest


def _bare(generator: Generator) -> Generator:
    """Return a generator without its base."""
    names = {core.param for segment in generator.segments for core in segment.cores}
    return Generator(
        generator.shape,
        generator.topology,
        layout=generator.layout,
        scale=generator.scale,
        dtype="float64",
        params={k: x for k, x in generator.params.items() if k in names},
        permutations=generator.permutations or None,
    )
