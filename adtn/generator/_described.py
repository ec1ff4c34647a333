"""The parts of a generator: its structure, its parameters, their number and their bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, Literal

import numpy as np

from .._recent import Recent
from .._typing import Array, Float, Params, Shape
from ..calculus import active_parameters, degrees_of_freedom, frozen_values, isometric_rows
from ..layout import Layout, Permutation
from ..precision import Codes, Precision
from ..program import Program, cached_program
from ..topology import RuleBase, Segment, Topology, cores_of
from ..weight import BASE, BASE_SCALE, WeightFunction, Weighting
from ._decoded import Decoded
from ._requests import Request
from ._values import Base, guarded, plain, readonly

PLACES = 2
"""Devices and dtypes for which a generator caches parameters, a weight and what makes it."""
_PRODUCTS = 8
"""Sizes of batch, devices, dtypes and modes for which it caches how products are done; they share the above."""
_MAPPINGS = ("_params", "_given", "_codes")
Dtype = Literal["float32", "float64"]


class Described:
    """The parts of a generator, which are read; see :class:`adtn.Generator`."""

    _layout: Layout
    _topology: Topology
    _dtype: Dtype
    _scale: float
    _base: Base
    _weighting: Weighting
    _params: Mapping[str, Float[np.ndarray, "..."]]
    _given: Mapping[str, Float[np.ndarray, "..."]]
    _spread_is_exact: bool
    _precision: Precision | None
    _codes: Mapping[str, Codes]
    _made: dict[str, Mapping[str, np.ndarray]]
    _compiled: Recent[tuple[str, str], Callable[[Params], Array]]

    def _forget(self) -> None:
        """Start with empty caches of everything that is computed from the parameters."""
        self._weights: Recent[tuple[str, str], Array] = Recent(PLACES)
        self._placed: Recent[tuple[str, str], dict[str, Array]] = Recent(PLACES)
        self._products: Recent[Request, Callable[[Array], Array]] = Recent(_PRODUCTS)

    def __getstate__(self) -> dict[str, Any]:
        # caches of values that are computed from the parameters are not copied
        return {**self.__dict__, **{name: plain(self.__dict__[name]) for name in _MAPPINGS}, "_made": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state | {name: guarded(state[name]) for name in _MAPPINGS})

    def __repr__(self) -> str:
        return (
            f"Generator({'x'.join(map(str, self.shape))}, {self.topology}, legs={self.layout.dims}, "
            f"params={self.num_params}, ratio={self.compression_ratio:.0f}x"
            f"{'' if self._precision is None else f', {self._precision}'}"
            f"{'' if self._spread_is_exact else ', spread estimated'})"
        )

    @property
    def shape(self) -> Shape:
        """The shape of the weight."""
        return self._layout.shape

    @property
    def layout(self) -> Layout:
        """The layout: how the axes of the weight are factored into legs."""
        return self._layout

    @property
    def topology(self) -> Topology:
        """The topology: the structure of the network."""
        return self._topology

    @property
    def scale(self) -> float:
        """The factor of the generated state."""
        return self._scale

    @property
    def spread_is_exact(self) -> bool:
        """Whether a new generator's weight has exactly the requested standard deviation.

        Otherwise it is an estimate, within about a factor of two, as generating the weight to measure it would take too
        much memory (nonlinear brick walls of more than a million entries). :func:`repr` says so as well.
        """
        return self._spread_is_exact

    @property
    def base(self) -> Base:
        """The base to which the generated weight is added."""
        return self._base

    @property
    def permutations(self) -> tuple[Permutation | None, ...]:
        """The permutations, one per axis; empty if all axes keep their order."""
        return self._weighting.permutations

    @property
    def dtype(self) -> Dtype:
        """The dtype of the stored parameters."""
        return self._dtype

    @property
    def params(self) -> Mapping[str, Float[np.ndarray, "..."]]:
        """The trained parameters by name, read-only; those of a rounded generator are decoded at each access."""
        return self._params

    @property
    def precision(self) -> Precision | None:
        """The precision to which the stored parameters were rounded; ``None`` if they have that of :attr:`dtype`."""
        return self._precision

    @property
    def codes(self) -> Mapping[str, Codes]:
        """The codes of the stored parameters by name; empty if the generator is not rounded."""
        return self._codes

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The program as index equations."""
        return self._topology.segments(self._layout)

    @property
    def isometric_rows(self) -> Mapping[str, int]:
        """The number of rows of every core that stays an isometry, by its parameter; see :class:`adtn.TTN`."""
        return isometric_rows(cores_of(self.segments))

    @property
    def program(self) -> Program:
        """The program as pairwise steps."""
        return cached_program(self.segments)

    @property
    def _frozen(self) -> Mapping[str, Float[np.ndarray, "..."]]:
        """The values of cores that are not trained; those that follow from a rule are made when first needed."""
        if "frozen" not in self._made:
            values = frozen_values([core for core in cores_of(self.segments) if core.param not in self._given], {})
            self._made["frozen"] = readonly(values, {name: np.shape(x) for name, x in values.items()}, self._dtype)
        return dict(sorted({**self._made["frozen"], **self._given}.items()))

    @property
    def decodes(self) -> bool:
        """Whether codes are decoded whenever the weight is used, so that nothing decoded stays in memory."""
        return self._precision is not None and not self._precision.is_coded

    @property
    def function(self) -> WeightFunction:
        """The weight as a function of :meth:`arrays`."""
        return WeightFunction(self.program, self.weighting)

    @property
    def weighting(self) -> Weighting:
        """The formula by which the generated state becomes a weight."""
        return self._weighting

    @property
    def stored(self) -> Mapping[str, Float[np.ndarray, "..."]]:
        """The parameters that a file must contain: trained ones, and frozen ones that have no rule."""
        if self._codes:
            return Decoded(self._codes, self._dtype)
        return {**self._params, **{name: self._given[name] for name in self._stored_shapes if name in self._given}}

    @property
    def _stored_shapes(self) -> dict[str, Shape]:
        """The shapes of :attr:`stored`, for which nothing is decoded."""
        cores = [core for core in cores_of(self.segments) if core.trainable or core.init == "given"]
        return {core.param: core.shape for core in cores} | {k: () for k in (BASE_SCALE,) if k in self._params}

    @property
    def stored_names(self) -> tuple[str, ...]:
        """The names of :attr:`stored`, for which nothing is decoded."""
        return tuple(self._stored_shapes)

    @property
    def num_params(self) -> int:
        """The number of stored parameters (an adapter's frozen base is not counted)."""
        return sum(map(math.prod, self._stored_shapes.values()))

    @property
    def nbytes(self) -> int:
        """The number of bytes of the stored parameters, without an adapter's frozen base."""
        if self._codes:
            return sum(codes.nbytes for codes in self._codes.values())
        return self.num_params * np.dtype(self._dtype).itemsize

    @cached_property
    def num_active_params(self) -> int:
        """The number of parameters that can influence the weight: the ranks of its Jacobian per core, summed."""
        active = active_parameters(self._topology, self._layout, dict(self._frozen))
        return sum(active.values()) + (BASE_SCALE in self._params)

    @cached_property
    def degrees_of_freedom(self) -> int:
        """The rank of the whole Jacobian: the number of active parameters without gauge freedom."""
        return degrees_of_freedom(self.segments, dict(self._frozen)) + (BASE_SCALE in self._params)

    @property
    def compression_ratio(self) -> float:
        """The number of entries of the weight per stored parameter."""
        return self._layout.size / max(self.num_params, 1)

    def constants(self, implied: bool = True) -> dict[str, Float[np.ndarray, "..."]]:
        """Return frozen values: cores that are not trained, and the base (an identity only if ``implied``)."""
        frozen = dict(self._frozen)
        if self.weighting.identity is not None and not implied:
            return frozen
        if isinstance(self._base, RuleBase):
            frozen[BASE] = self._base.values(self.shape)
        elif self._base is not None:
            frozen[BASE] = self._base
        return frozen
