"""The generator: a topology on a layout, with its parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from .._checks import Seed, checked
from .._recent import Recent
from .._typing import Array, Float, Params
from ..backends import Backend, check_device
from ..calculus import unit_isometries
from ..device import Memory
from ..errors import DeviceError, GeneratorError, LayoutError, ScheduleError, TopologyError
from ..layout import Layout, Permutation
from ..precision import Codes, Precision
from ..schedule import decide
from ..topology import Networks, TopologyArgument, Where, read_networks
from ..weight import Mode
from ._changes import Changeable
from ._described import PLACES, Dtype
from ._grouped import in_groups
from ._networks import networks_of, shape_of
from ._picture import drawn
from ._requests import Request, by_rows, placed, requested
from ._start import formula, start
from ._values import Base, checked_base, kaiming, spread
from ._written import blank, check_out, streamed

if TYPE_CHECKING:
    import quimb.tensor as qtn
    from matplotlib.figure import Figure


class Generator(Changeable):
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
        self._compiled: Recent[tuple[str, str], Callable[[Params], Array]] = Recent(PLACES)
        self._forget()

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
    def weight(self, device: str = "numpy:cpu", dtype: str | None = None, *, out: Any = None) -> Float[Array, "*shape"]:
        """Generate the weight.

        Parameters
        ----------
        device : str
            The device, for instance ``"numpy:cpu"``, ``"torch:cuda:0"``, ``"jax:cpu"``.
        dtype : str, optional
            The dtype; by default, that of the parameters.
        out : array, optional
            An array of NumPy or PyTorch that the weight is written into, on that device and in that dtype. Then little
            memory is needed beside it: one block of rows, and the state before the last segment.

        Returns
        -------
        array
            An array of the framework, of shape :attr:`shape`, or ``out``.

        Raises
        ------
        DeviceError, MissingDependencyError
            If the device or dtype is not available, or ``out`` is elsewhere or of another dtype.
        LayoutError
            If ``out`` has another shape.

        Examples
        --------
        >>> import adtn, numpy as np
        >>> table = np.empty((64, 64), "float32")
        >>> adtn.Generator((64, 64), adtn.MPO(bond=2)).weight(out=table) is table
        True
        """
        dtype = self._dtype if dtype is None else dtype
        backend, where = check_device(device, dtype)
        if out is not None:
            check_out(out, self.shape, f"{backend.name}:{where}", dtype)
        target = blank(self, backend, where, dtype) if out is None else out
        blocks = None if target is None else streamed(self, device, dtype)
        if blocks is not None:
            blocks.on(backend).write(self.arrays(device, dtype), target, self.scale)
            return target
        make = self._compiled.get(
            (device, dtype), lambda: decide(self, "generate", device=device, dtype=dtype).generator(backend)
        )
        weight = make(self.arrays(device, dtype))
        if out is None:
            return weight
        out[...] = weight
        return out

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

        Tensors are tagged with their name, kind and level; a segment's incoming state is tagged ``STATE``. With
        ``isometric=True``, the rows of isometries have unit norm here, and the root has the norm of the state.
        """
        arrays = unit_isometries(self.segments, {**self._params, **self._frozen})
        return networks_of(self.program, self.segments, arrays)

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
