"""Tensors as permuted networks within a number of bytes."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np

from .._arrays import finite_array
from .._checks import Positive, Range, Seed, checked
from ..errors import OrderingError
from ..layout import Layout
from ..precision import Precision
from ._gauge import Gauge
from ._metric import Metric
from ._registry import get_ordering
from ._solve import Request, solve
from ._sorted_tensor import SortedTensor

MAX_AXES = 4


@checked(OrderingError)
def einsort(
    tensor: Any,
    *,
    ordering: Any = "search",
    topology: Any = "auto",
    bytes: Positive,
    moment: Any = None,
    layout: Layout | None = None,
    precision: Precision | None = None,
    signs_apart: bool = False,
    nonnegative: bool = False,
    gauge: Gauge = "bonds",
    seed: Seed = 0,
    controls: Annotated[int, Range(2)] = 3,
) -> SortedTensor:
    """Approximate a tensor by a network that is read through permutations, within a number of bytes.

    Everything is counted: cores in their precision with its scales, permutations, and signs if they are stored apart.
    Orders of the rows and of the columns leave the singular values of a matrix as they are, so they change nothing for
    :class:`adtn.LowRank`; they do change the unfoldings of the tensor that is folded to several legs per axis.

    Parameters
    ----------
    tensor : array
        1 to 4 axes, of any framework.
    ordering : str or Ordering
        A name, or a record of :mod:`adtn.ordering`, such as ``adtn.ordering.Norm(axes=(1,), absorbed=(1,))``.

        - ``"none"``: the tensor as it is
        - ``"norm"``, ``"spectral"``, ``"leaf"``: slices of every axis by their norms, by the Fiedler vector of their
          similarity, or in the optimal order of the leaves of a tree of clusters
        - ``"assignment"``, ``"search"``: the best of these, improved for the network by linear assignments, or by
          exchanges of pairs
        - ``adtn.ordering.Buckets(k=4)``, ``"rows"``, ``"entries"``: entries sorted into buckets, within rows, or all
    topology : Topology, str
        A topology, of which only the proportions of its ranks matter, the name of one such as ``"tt"``, or ``"auto"``:
        the best of LowRank, TT, Tucker, MPO and TTN.
    bytes : float
        The largest number of bytes. With several topologies or sizes of legs, the one with the smallest error is taken.
    moment : array, optional
        The second moment ``x.T @ x / n`` of the inputs ``x`` over all axes but the first, ``(n_in, n_in)``. Order,
        network, ranks and rounding are then chosen for small errors of the outputs, ``weighted_error``, which stands
        beside the plain one. Exchanges of inputs are sought as if each were weighted on its own, and are kept only if
        the error falls.
    layout : Layout, optional
        The legs; by default, several sizes are tried.
    precision : Precision, optional
        The precision of the cores; by default, float32.
    signs_apart : bool
        Store one bit per entry for the sign, and approximate the magnitudes.
    nonnegative : bool
        Use non-negative cores, for non-negative tensors or magnitudes.
    gauge : {"bonds", "cores", "none"}
        What is made equal before cores are rounded: the norms of the slices of two cores at every value of their bond,
        the norms of cores only, or nothing.
    seed : int
        The seed of the Gaussian tensors of the control.
    controls : int
        Their number.

    Returns
    -------
    SortedTensor

    Raises
    ------
    OrderingError
        If the tensor has no axes, more than four or entries that are not finite, the ordering is unknown, or nothing is
        as small as ``bytes``; if the moment does not fit, or is given with entries that are ordered, signs that are
        stored apart, or non-negative cores.
    TopologyError
        If the topology is unknown.

    References
    ----------
    T. Koike-Akino, J. Liu, Y. Wang (2026), arXiv:2606.08565, for the idea to order indices before a decomposition; the
    ways of ordering and counting here are our choice.

    Examples
    --------
    >>> import adtn, numpy as np
    >>> rng = np.random.default_rng(0)
    >>> tensor = np.kron(rng.standard_normal((6, 6)), rng.standard_normal((6, 6)))  # an MPO of bond 1
    >>> tensor = tensor[rng.permutation(36)][:, rng.permutation(36)]  # whose order is lost
    >>> options = {"topology": "mpo", "layout": adtn.Layout.of((36, 36), 6, "interleaved"), "bytes": 600}
    >>> for ordering in ("none", "search"):
    ...     print(f"{adtn.einsort(tensor, ordering=ordering, **options).relative_error:.2f}")
    0.88
    0.47
    """
    given = finite_array("tensor", tensor, OrderingError)
    if not 1 <= given.ndim <= MAX_AXES or not given.size:
        raise OrderingError(f"Got a tensor of shape {given.shape}; expected 1 to {MAX_AXES} axes with entries.")
    values = np.asarray(given, np.float64)
    request = Request(
        ordering=get_ordering(ordering),
        topology=topology,
        layout=layout,
        bytes=bytes,
        precision=precision,
        signs_apart=signs_apart,
        nonnegative=nonnegative,
        gauge=gauge,
        seed=seed,
        controls=controls,
        metric=None if moment is None else Metric.of(moment, values.shape),
    )
    if layout is not None and layout.shape != values.shape:
        raise OrderingError(
            f"Got a layout for {layout.shape} and a tensor of shape {values.shape}; expected equal ones."
        )
    solved = solve(values, request)
    return SortedTensor(
        shape=values.shape,
        generator=solved.generator,
        order=solved.order,
        signs=solved.signs,
        bits=solved.bits,
        relative_error=solved.error,
        weighted_error=solved.weighted_error,
        source=values,
        request=request,
    )
