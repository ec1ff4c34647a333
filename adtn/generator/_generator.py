"""The generator: a topology on a layout, with its parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np

from .._checks import Seed, checked
from .._recent import Recent
from .._typing import Array, Float, Params, Shape
from ..backends import Backend, check_device
from ..calculus import active_parameters, degrees_of_freedom, frozen_values
from ..device import Memory
from ..errors import DeviceError, GeneratorError, LayoutError, ScheduleError, TopologyError
from ..layout import Layout, Permutation
from ..precision import Codes, Precision
from ..program import Program, cached_program
from ..schedule import decide
from ..topology import Networks, RuleBase, Segment, Topology, TopologyArgument, Where, cores_of, read_networks
from ..weight import BASE, BASE_SCALE, Mode, WeightFunction, Weighting
from ._balance import balanced_values
from ._bond_matrix import Place, absorb, topology_for
from ._decoded import Decoded
from ._grouped import in_groups
from ._networks import networks_of, shape_of
from ._picture import drawn
from ._requests import Request, by_rows, placed, requested
from ._rounding import checked_codes, rounded_codes
from ._start import formula, start
from ._values import Base, checked_base, guarded, kaiming, plain, readonly, spread

if TYPE_CHECKING:
    import quimb.tensor as qtn
    from matplotlib.figure import Figure

_PLACES = 2
"""Devices and dtypes for which a generator caches parameters, a weight and what makes it."""
_PRODUCTS = 8
"""Sizes of batch, devices, dtypes and modes for which it caches how products are done; they share the above."""
_MAPPINGS = ("_params", "_given", "_codes")
Dtype = Literal["float32", "float64"]


class Generator:
    r"""A weight as the output of a small network: ``W = base + scale * crop(reshape(X_T))``.

    A generator is immutable: :meth:`with_params` returns another one with other parameters, and :meth:`rounded` one
    whose parameters are stored in fewer bits.

    Parameters
    ----------
    shape : tuple of int
        The shape of the weight, 1 to 5 axes. With a leading axis over layers, one generator serves several layers.
    topology : Topology
        The structure of the network, such as ``adtn.TTN(bond=4)``.
    layout : Layout, optional
        The factorisation of axes into legs; by default, the topology chooses it.
    seed : int
        The seed of the initial values; equal seeds give equal parameters on every backend.
    scale : float or array, optional
        The standard deviation of the weight, or a weight that has it; by default, Kaiming's ``sqrt(2 / fan_in)``
        with the number ``fan_in`` of entries per output.
    base : SeededBase, IdentityBase or numpy.ndarray, optional
        A frozen weight to which the generated one is added. The first two have one trained factor and store a rule; an
        array makes the generator an adapter. With the last two, the generated weight starts at zero.
    dtype : {"float32", "float64"}
        The dtype of the stored parameters.
    params : mapping of str to array, optional
        Values to use instead of initial ones, and values of frozen cores that have no rule.
    permutations : sequence of (Permutation, sequence of int or None), optional
        One permutation per axis, ``None`` for an axis that keeps its order: entry ``(i, j)`` of the generated part is
        entry ``(p0[i], p1[j])`` of the output of the network.

    Raises
    ------
    LayoutError, TopologyError
        If shape, layout and topology do not fit together.
    GeneratorError
        If the seed, scale, base, dtype or parameters are not valid.

    Examples
    --------
    >>> import adtn
    >>> gen = adtn.Generator((64, 64), adtn.TTN(bond=3), layout=adtn.Layout.of((64, 64), leg=8))
    >>> gen.num_params, round(gen.compression_ratio, 1)
    (159, 25.8)
    >>> gen.weight("numpy:cpu").shape
    (64, 64)
    """

    @checked(GeneratorError, topology=TopologyError, permutations=LayoutError, shape=LayoutError, layout=LayoutError)
    def __init__(
        self,
        shape: Annotated[Sequence[int], "whole numbers, such as (512, 784)"],
        topology: TopologyArgument,
        *,
        layout: Layout | None = None,
        seed: Seed = 0,
        scale: Any = None,
        base: Base = None,
        dtype: Dtype = "float32",
        params: Mapping[str, Any] | None = None,
        permutations: Sequence[Permutation | Sequence[int] | None] | None = None,
    ) -> None:
        shape = tuple(shape)
        self._layout = layout if layout is not None else topology.default_layout(shape)
        if self._layout.shape != shape:
            raise LayoutError(f"Got a layout for {self._layout.shape} and the shape {shape}; they must be equal.")
        self._topology = topology
        self._dtype: Dtype = dtype
        self._scale = kaiming(shape) if scale is None else spread(scale)
        self._base = checked_base(base, shape)
        self._weighting = formula(self._layout, self._scale, base, permutations)
        begun = start(topology, self._layout, passed=params or {}, seed=seed, scale=self._scale, base=base, dtype=dtype)
        self._params, self._given, self._spread_is_exact = begun.params, begun.given, begun.spread_is_exact
        self._precision: Precision | None = None
        self._codes: Mapping[str, Codes] = MappingProxyType({})
        self._made: dict[str, Mapping[str, np.ndarray]] = {}  # values that follow from rules, shared by copies
        self._compiled: Recent[tuple[str, str], Callable[[Params], Array]] = Recent(_PLACES)
        self._forget()

    def _forget(self) -> None:
        """Start with empty caches of everything that is computed from the parameters."""
        self._weights: Recent[tuple[str, str], Array] = Recent(_PLACES)
        self._placed: Recent[tuple[str, str], dict[str, Array]] = Recent(_PLACES)
        self._products: Recent[Request, Callable[[Array], Array]] = Recent(_PRODUCTS)

    @classmethod
    @checked(
        TopologyError,
        shape=LayoutError,
        layout=LayoutError,
        scale=GeneratorError,
        base=GeneratorError,
        dtype=GeneratorError,
    )
    def from_networks(
        cls,
        networks: Sequence[qtn.TensorNetwork],
        *,
        shape: Sequence[int] | None = None,
        layout: Layout | None = None,
        trainable: str | None = None,
        outputs: Sequence[str] | None = None,
        output_inds: Sequence[Sequence[str] | None] | None = None,
        activation: str | None = "silu",
        where: Where = "inner",
        scale: Any = 1.0,
        base: Base = None,
        dtype: Dtype = "float32",
    ) -> Generator:
        """Make a generator from any quimb networks whose outer indices feed the next one.

        Parameters
        ----------
        networks : sequence of quimb.tensor.TensorNetwork
            From root to legs. Outer indices of one network that the previous one also has are contracted with
            its output; the others are new legs.
        shape, layout : optional
            Shape and layout of the weight; by default, every output leg is an axis. Operators and vectors of quimb
            (MPO, MPS, PEPO) become the array of their ``to_dense()``: upper indices are rows, lower ones columns, in
            the order of the sites. Other networks need ``outputs`` if several legs make up an axis.
        trainable : str, optional
            Tag of the trained tensors; by default, all are trained. Frozen tensors are stored.
        outputs : sequence of str, optional
            Order of the legs of the last network: axis by axis, or that of the legs of ``layout``.
        output_inds : sequence of (sequence of str or None), optional
            Outgoing legs of each network; required if an index belongs to more than two tensors.
        activation, where
            See :class:`Topology`.
        scale, base, dtype
            See :class:`Generator`.

        Returns
        -------
        Generator

        Raises
        ------
        TopologyError
            If the networks do not fit together.

        Examples
        --------
        >>> import quimb.tensor as qtn
        >>> a = qtn.TensorNetwork([qtn.rand_tensor((3, 3), ("x", "y"), tags="A", seed=1)])
        >>> b = qtn.TensorNetwork([qtn.rand_tensor((3, 8), ("x", "out"), seed=2),
        ...                        qtn.rand_tensor((3, 8), ("y", "in"), seed=3)])
        >>> Generator.from_networks([a, b], activation="tanh").shape
        (8, 8)
        """
        pieces, values = read_networks(
            networks, trainable=trainable, outputs=outputs, output_inds=output_inds, shape=shape, layout=layout
        )
        topology = Networks(pieces=pieces, activation=activation, where=where)
        shape = shape_of(pieces, layout) if shape is None else shape
        return cls(shape, topology, layout=layout, scale=scale, base=base, dtype=dtype, params=values)

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

    @checked(GeneratorError)
    def with_params(self, params: Mapping[str, Any]) -> Generator:
        """Return the same generator with other parameters, which are not rounded.

        Raises
        ------
        GeneratorError
            If a name is missing or unknown, or a shape differs.
        """
        if set(params) != set(self._params):
            raise GeneratorError(f"Got params of {sorted(params)}; expected those of {sorted(self._params)}.")
        new = self._copied()
        new._params = readonly(params, self._stored_shapes, self._dtype)
        new._given = MappingProxyType(dict(self._given))
        new._precision, new._codes = None, MappingProxyType({})
        return new

    @checked(TopologyError)
    def with_bond(
        self, name: str, matrix: Any, *, into: str | None = None, place: Place = "after", unshare: bool = False
    ) -> Generator:
        r"""Return a generator with a matrix on one of its bonds, which the cores next to it absorb.

        With the cores A and B on both sides of a bond, :math:`W(M) = \sum_{kl} A_k M_{kl} B_l`. A projection removes
        what the bond carries in some directions, and two factors of lower rank make it smaller. The result has the same
        topology, if its options can express the new bonds, or else one that lists its cores. It is not rounded.

        Parameters
        ----------
        name : str
            The bond, as :func:`adtn.bonds` lists it (its ``index``).
        matrix : array, or tuple of two arrays
            M, ``(dim, dim)``, or its diagonal, ``(dim,)``: one core absorbs it. Two factors ``(dim, r)`` and
            ``(r, dim)`` of M are absorbed by one side each, and the bond has the dimension r afterwards. A hyper-index
            takes a diagonal matrix, or factors that select some of its components.
        into : str, optional
            The core that absorbs it, one of both ends; by default, a trained one that shares its parameter with no
            other.
        place : {"before", "after"}
            On a leg of a state: whether the matrix acts before or after the activation. Of two factors the first one
            acts before and the second one after it, so that the weight is the same only for factors that the
            activation commutes with, such as a selection of components.
        unshare : bool
            Give a core with a shared parameter one of its own; otherwise its bonds are refused.

        Returns
        -------
        Generator

        Raises
        ------
        TopologyError
            If there is no such bond, the matrix does not fit, or no core can absorb it.

        Examples
        --------
        >>> import adtn, numpy as np
        >>> gen = adtn.Generator((64, 64), adtn.MPO(bond=3), dtype="float64")
        >>> half = gen.with_bond("b0", 0.5 * np.eye(3))
        >>> bool(np.allclose(half.weight(), 0.5 * gen.weight()))
        True
        >>> gen.with_bond("b0", (np.eye(3)[:, :2], np.eye(3)[:2])).topology
        MPO(bond=(2,))
        """
        values = {**self._params, **self._frozen}
        found = absorb(self.segments, values, name, matrix, into=into, place=place, unshare=unshare)
        if found.segments == self.segments:
            return self.with_params({**self._params, **found.values})
        return self.with_topology(topology_for(self._topology, self._layout, found.segments), found.values)

    @checked(TopologyError)
    def with_topology(self, topology: Topology, params: Mapping[str, Any]) -> Generator:
        """Return a generator with another topology on the same layout, scale, base and permutations.

        Parameters
        ----------
        topology : Topology
        params : mapping of str to array
            Values of its cores that are new or have other shapes; all others keep theirs.

        Returns
        -------
        Generator
            It is not rounded.

        Raises
        ------
        GeneratorError
            If a core has no value, or one of another shape.

        Examples
        --------
        >>> import adtn, numpy as np
        >>> gen = adtn.Generator((64, 64), adtn.LowRank(bond=3))
        >>> first = {name: np.take(x, [0], np.argmin(x.shape)) for name, x in gen.params.items()}
        >>> gen.with_topology(adtn.LowRank(bond=1), first).num_params
        128
        """
        known = {**self._params, **self._given, **params}
        used = {core.param for core in cores_of(topology.segments(self._layout))} | {BASE_SCALE}
        return Generator(
            self.shape,
            topology,
            layout=self._layout,
            scale=self._scale,
            base=self._base,
            dtype=self._dtype,
            params={k: x for k, x in known.items() if k in used},
            permutations=self.permutations or None,
        )

    def balanced(self) -> Generator:
        """Return a generator with the same weight, whose cores have the least sum of squared norms.

        Inside a segment, both sides of every bond then have equal Gram matrices, and all cores equal norms, so that
        their gradients are comparable: cores of very different norms train badly. Legs of states keep their gauge, as
        do frozen cores and those that share a parameter. Components of a bond that contribute nothing to the weight
        become zero on both sides. The result is not rounded.

        Returns
        -------
        Generator

        References
        ----------
        G. Kempf, L. Ness (1979), Lecture Notes in Mathematics 732, 233. A. Acuaviva et al. (2022), arXiv:2209.14358.

        Examples
        --------
        >>> import adtn, numpy as np
        >>> params = {"left": [[8.0], [0.0]], "right": [[0.0, 2.0]]}
        >>> pair = adtn.Generator((2, 2), adtn.LowRank(bond=1), scale=1.0, params=params)
        >>> {name: float(np.linalg.norm(x)) for name, x in pair.balanced().params.items()}
        {'left': 4.0, 'right': 4.0}
        """
        cores = {core.param for core in cores_of(self.segments)}
        values = balanced_values(self.segments, {k: x for k, x in self._params.items() if k in cores})
        return self.with_params({**self._params, **values})

    def _copied(self) -> Generator:
        new = object.__new__(Generator)
        new.__dict__.update(
            {k: v for k, v in self.__dict__.items() if k not in ("num_active_params", "degrees_of_freedom")}
        )
        new._forget()
        return new

    @checked(GeneratorError)
    def rounded(
        self,
        precision: Precision,
        hessians: Mapping[str, Any] | None = None,
        *,
        row_hessians: Mapping[str, Any] | None = None,
    ) -> Generator:
        """Return the same generator with parameters that are stored in fewer bits.

        The axes of a core in its equation (see :attr:`segments`) are those of its array: the first one is the rows, the
        others are the columns. Cores of fewer than 64 entries are stored as float16, and single entries as float32.
        A fit of the result, like :meth:`with_params`, returns a generator that is not rounded.

        Parameters
        ----------
        precision : Precision
            The precision of the cores.
        hessians : mapping of str to array, optional
            Second moments ``(columns, columns)`` of what cores are multiplied with, by name of the core; these cores
            are rounded with error feedback, see :func:`adtn.precision.round_to`. That of ``adtn.Dense`` on whole axes
            is the second moment of the inputs, in the order that ``permutations`` give them.
        row_hessians : mapping of str to array, optional
            Second moments ``(rows, rows)`` of what the rows of cores are multiplied with, for other cores.

        Returns
        -------
        Generator

        Raises
        ------
        GeneratorError
            If a core cannot be rounded, or a moment belongs to no core or does not fit.

        Examples
        --------
        >>> import adtn
        >>> layout = adtn.Layout((64, 128), ((64,), (128,)), (0, 1))
        >>> small = adtn.Generator((64, 128), adtn.Dense(), layout=layout).rounded(adtn.Precision("int4", group=64))
        >>> small, small.nbytes
        (Generator(64x128, Dense(), legs=(64, 128), params=8192, ratio=1x, int4/64), 4417)
        """
        if precision == self._precision and not hessians and not row_hessians:
            return self
        return self.with_codes(precision, rounded_codes(self.stored, precision, hessians or {}, row_hessians or {}))

    @checked(GeneratorError)
    def with_codes(self, precision: Precision, codes: Mapping[str, Codes]) -> Generator:
        """Return the same generator with parameters that are stored as these codes, such as those of a file.

        Raises
        ------
        GeneratorError
            If a name is missing or unknown, or a shape or precision differs.
        """
        codes = checked_codes(codes, precision, self._stored_shapes)
        new = self._copied()
        new._precision, new._codes = precision, codes
        new._params = Decoded({name: codes[name] for name in self._params}, self._dtype)
        new._given = Decoded({name: codes.get(name, self._given[name]) for name in self._given}, self._dtype)
        return new

    @checked(LayoutError)
    def with_permutations(self, permutations: Sequence[Permutation | Sequence[int] | None]) -> Generator:
        """Return a generator with the same parameters or codes, and other permutations of the axes of its weight.

        Parameters
        ----------
        permutations : sequence of (Permutation, sequence of int, or None)
            One per axis, ``None`` where the axis shall have the order of the network. A base keeps its order.

        Raises
        ------
        LayoutError
            If their number or a size does not fit.

        Examples
        --------
        >>> import adtn
        >>> gen = adtn.Generator((4, 6), adtn.TT(bond=2), permutations=[[2, 0, 1, 3], None])
        >>> plain = gen.with_permutations([None, None])
        >>> bool((plain.weight()[[2, 0, 1, 3]] == gen.weight()).all())
        True
        """
        new = self._copied()
        new._weighting = formula(self._layout, self._scale, self._base, permutations)
        new._compiled = Recent(_PLACES)
        return new

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

    @checked(DeviceError)
    def arrays(self, device: str, dtype: str) -> dict[str, Float[Array, "..."]]:
        """Place trained and frozen parameters on a device.

        Raises
        ------
        DeviceError, MissingDependencyError
            If the device or dtype is not available.
        """
        return placed(device, dtype, {**self._params, **self.constants()})

    @checked(DeviceError)
    def weight(self, device: str = "numpy:cpu", dtype: str | None = None) -> Float[Array, "*shape"]:
        """Generate the weight.

        Parameters
        ----------
        device : str
            The device, for instance ``"numpy:cpu"``, ``"torch:cuda:0"``, ``"jax:cpu"``.
        dtype : str, optional
            The dtype; by default, that of the parameters.

        Returns
        -------
        array
            An array of the framework, of shape :attr:`shape`.

        Raises
        ------
        DeviceError, MissingDependencyError
            If the device or dtype is not available.
        """
        dtype = self._dtype if dtype is None else dtype
        backend, _ = check_device(device, dtype)
        make = self._compiled.get(
            (device, dtype), lambda: decide(self, "generate", device=device, dtype=dtype).generator(backend)
        )
        return make(self.arrays(device, dtype))

    @checked(ScheduleError)
    def apply(
        self, x: Float[Array, "*batch n_in"], *, mode: Mode | None = None, memory: Memory = None
    ) -> Float[Array, "*batch n_out"]:
        """Multiply, ``y = x @ W.T``, on the framework, device and dtype of ``x``; differentiable if the framework is.

        Parameters
        ----------
        x : array
            The input, ``(..., n_in)``.
        mode : {"materialise", "stream", "factored"}, optional
            The mode of execution; by default, the scheduler chooses it.

            - ``"materialise"``: the weight is generated at the first call and cached in this generator; that of a
              generator that is rounded to integers is generated in every call, so that only codes stay in memory
            - ``"stream"``: one block of rows of the weight after the other is generated and discarded
            - ``"factored"``: ``x`` is contracted with the network, which must not end with an activation
        memory : str or int, optional
            The largest additional memory in bytes, or a string such as ``"512MiB"``.

        Returns
        -------
        array
            The output, ``(..., n_out)``.

        Raises
        ------
        LayoutError
            If the weight is not a matrix, or ``x`` does not match it.
        ScheduleError
            If the memory limit is too small, or the mode is not possible.
        """
        backend, request = requested(x, self.shape, mode, memory)
        product = self._products.get(request, lambda: self._product(backend, request))
        with backend.scope(request.dtype):
            return by_rows(product, x, self.shape)

    def _product(self, backend: Backend, request: Request) -> Callable[[Array], Array]:
        """Plan ``apply`` for one device, dtype and batch size."""
        place = (request.device, request.dtype)
        # a weight that is generated in every call costs as much as in training
        plan = decide(self, "train" if self.decodes else "apply", **request._asdict())
        layer = plan.layer.on(backend)
        if self.decodes:
            apply = backend.with_vjp(layer)

            def others() -> dict[str, Float[Array, "..."]]:
                return placed(*place, {k: x for k, x in self.constants().items() if k not in self._codes})

            # only what follows from rules is cached
            def product(x: Array) -> Array:
                return apply({**self._placed.get(place, others), **placed(*place, self.stored)}, x)

            return in_groups(self, apply, backend, request) or product
        return layer.fixed(
            lambda: self._placed.get(place, lambda: self.arrays(*place)),
            lambda: self._weights.get(place, lambda: self.weight(*place)),
            request.batch,
        )

    def networks(self) -> list[qtn.TensorNetwork]:
        """Build one quimb network per segment, named and tagged, ready for ``.draw()``.

        Tensors are tagged with their name, kind and level; a segment's incoming state is tagged ``STATE``.
        """
        return networks_of(self.program, self.segments, {**self._params, **self._frozen})

    @checked(GeneratorError)
    def draw(self, path: str | Path | None = None, *, entropies: bool = True) -> Figure:
        """Draw the whole network, from the root or first segment to the legs of the weight.

        Lines are as wide as their dimension is large, and bonds have the colour of their entropy relative to the
        logarithm of their dimension; those on loops, whose entropies are not those of a cut, are dashed. Dashed rules
        are activations. Isometries are triangles, disentanglers and gates squares, other cores circles; cores that are
        not trained are white.

        Parameters
        ----------
        path : path, optional
            A file to write, atomically: SVG, PNG or PDF by its ending.
        entropies : bool
            Whether bonds are coloured by :func:`adtn.bonds`; without them only the structure is needed, so networks of
            any size can be drawn.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        MissingDependencyError
            If matplotlib is not installed.
        TopologyError
            If an entropy needs a tensor that is too large.
        OutputError
            If the file cannot be written, or its ending is no such format.

        Examples
        --------
        >>> import adtn
        >>> gen = adtn.Generator((64, 64), adtn.TTN(bond=3), layout=adtn.Layout.of((64, 64), leg=8))
        >>> picture = gen.draw(entropies=False)
        """
        return drawn(self, path, entropies)
