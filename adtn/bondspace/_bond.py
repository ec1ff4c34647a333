"""One bond of a generator, and what can be asked about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from .._checks import checked
from .._typing import Float
from ..errors import TopologyError
from ..topology import BondGauge, BondKind
from ._measures import effective_rank, entropy, participation
from ._messages import triangular
from ._source import Source

Place = Literal["before", "after"]


@dataclass(frozen=True, kw_only=True)
class Bond:
    """One bond: where it is, and its spectrum.

    Parameters
    ----------
    name : str
        Its name, by which :func:`adtn.bonds` finds it; at a hyper-index, the index, ``@`` and one of its cores.
    index : str
        The name that :meth:`adtn.Generator.with_bond` takes.
    kind : {"linear", "state", "hyper"}
        A bond between two cores, a leg of the state between two segments, or a hyper-index seen from one of its cores.
    dim : int
        Its dimension.
    ends : tuple of str
        The cores that it joins.
    legs : tuple of str
        The open legs of its segment on the side of the last of its ends, where its cut separates any; for a leg of a
        state, the legs of the weight that depend on it.
    exact : bool
        Whether the spectrum is that of a cut. On loops it is that of belief propagation, which predicts no errors: in
        short loops a truncation can cost many times what the spectrum says.
    gauge : str
        The matrices that can be inserted with their inverse: ``"GL"`` on linear bonds, where only Schmidt components
        have a meaning; on a leg of a state what its activation leaves (``"positive monomial"``, ``"signed
        permutations"`` or ``"permutations"``), so that its components have a meaning each; ``"monomial"`` on
        hyper-indices.
    segment : int
        The position of its segment.
    """

    name: str
    index: str
    kind: BondKind
    dim: int
    ends: tuple[str, ...]
    legs: tuple[str, ...]
    exact: bool
    gauge: BondGauge
    segment: int
    _source: Source = field(repr=False, compare=False)
    _weight_legs: tuple[str, ...] = field(repr=False, compare=False)

    def spectrum(self, metric: Any = None) -> Float[np.ndarray, " rank"]:
        """Compute the values inside the segment, in descending order.

        These are the Schmidt values of the segment as a multilinear map, with the legs of its incoming state open,
        across this bond. In a network without activations the segment is the weight, with its scale and its padding,
        without its base; permutations of the axes do not change the values.

        Parameters
        ----------
        metric : Metric, optional
            See :class:`adtn.bondspace.Metric`; by default, the Frobenius norm.

        Returns
        -------
        numpy.ndarray

        Raises
        ------
        TopologyError
            If the bond is a leg of a state, which has three other quantities, or the metric does not fit.
        """
        if self.kind == "state":
            raise TopologyError(
                f"Got the bond {self.name!r}, a leg of a state, which has no spectrum inside a segment; use "
                "state_spectrum(), weight_spectrum() or ablation()."
            )
        if metric is None:
            return self._values
        from ._metric import metric_spectrum  # imported late: it is seldom needed

        return metric_spectrum(self._source, self.name, self.ends[-1], metric)

    def is_exact(self, metric: Any = None) -> bool:
        """Return whether :meth:`spectrum` are singular values across a cut.

        In a metric they are where all input legs are on one side of the bond and, if outputs have a metric, so are all
        output legs. Otherwise they are generalised values, see :class:`adtn.bondspace.Metric`.
        """
        if metric is None or not self.exact:
            return self.exact
        from ._metric import is_product

        return is_product(self._source, self.legs, metric)

    def environment(self, metric: Any = None) -> Float[np.ndarray, "dim dim dim dim"]:
        r"""Compute the environment :math:`Y_{kl,mn} = \langle W_{kl}, W_{mn}\rangle`, with :math:`W = \sum_k W_{kk}`.

        The squared norm of the weight with a matrix M on the bond is :math:`\sum M_{kl} Y_{kl,mn} M_{mn}`.

        Parameters
        ----------
        metric : Metric, optional
            See :class:`adtn.bondspace.Metric`; by default, the Frobenius norm.

        Raises
        ------
        TopologyError
            If the bond is a leg of a state, or does not cut a network without activations.
        """
        if self.kind == "state":
            raise TopologyError(f"Got the bond {self.name!r}, a leg of a state, which has no environment.")
        from ._metric import metric_environment

        return metric_environment(self._source, self.name, self.ends[-1], metric)

    def without(self, component: int) -> Float[np.ndarray, "dim dim"]:
        r"""Return the matrix for :meth:`adtn.Generator.with_bond` that removes one component.

        On a linear bond this is the Schmidt component at that position of :meth:`spectrum`, and the matrix
        :math:`1 - R_b^\top v\, u^\top R_a / s`. On hyper-indices and legs of states it is the entry itself.

        Parameters
        ----------
        component : int
            From 0, which is the largest on a linear bond.

        Raises
        ------
        TopologyError
            If there is no such component, or it is zero.
        """
        d = self.dim
        if not isinstance(component, int) or not 0 <= component < d:
            raise TopologyError(f"Got component={component!r} of the bond {self.name!r}; expected 0 to {d - 1}.")
        if self.kind != "linear":
            return np.diag(np.arange(d) != component).astype(np.float64)
        r_a, r_b = self._source.view(self.segment).factors(self.name, self.ends[-1])
        u, s, vt = np.linalg.svd(r_a @ r_b.T)
        if component >= len(s) or s[component] <= 1e-15 * s[0]:
            return np.eye(d)
        return np.eye(d) - np.outer(r_b.T @ vt[component], u[:, component] @ r_a) / s[component]

    def leading(self, rank: int) -> tuple[Float[np.ndarray, "dim rank"], Float[np.ndarray, "rank dim"]]:
        r"""Return the two factors for :meth:`adtn.Generator.with_bond` that keep the leading Schmidt components only.

        Their product is :math:`\sum_{j < r} R_b^\top v_j\, u_j^\top R_a / s_j`. On a tree no other bond of this
        dimension is closer to the weight in the Frobenius norm; on a loop others are.

        Parameters
        ----------
        rank : int
            The new dimension, from 1 to the number of values that are not zero.

        Raises
        ------
        TopologyError
            If the bond is not linear, or has fewer components.

        Examples
        --------
        >>> import adtn
        >>> gen = adtn.Generator((64, 64), adtn.MPO(bond=3), dtype="float64")
        >>> gen.with_bond("b0", adtn.bonds(gen)["b0"].leading(2)).topology
        MPO(bond=(2,))
        """
        if self.kind != "linear":
            raise TopologyError(f"Got the bond {self.name!r}, a {self.kind} bond; expected a linear one.")
        r_a, r_b = self._source.view(self.segment).factors(self.name, self.ends[-1])
        u, s, vt = np.linalg.svd(r_a @ r_b.T, full_matrices=False)
        most = int((s > 1e-15 * s[0]).sum()) if s.size else 0
        if not isinstance(rank, int) or not 1 <= rank <= most:
            raise TopologyError(f"Got rank={rank!r} of the bond {self.name!r}; expected 1 to {most}.")
        root = np.sqrt(s[:rank])
        return r_b.T @ vt[:rank].T / root, u[:, :rank].T @ r_a / root[:, None]

    def ablation(
        self, *, inputs: Any = None, loss: Callable[[Any], float] | None = None, place: Place = "after"
    ) -> Float[np.ndarray, " dim"]:
        r"""Measure what the weight loses without each of the components, see :meth:`without`.

        Parameters
        ----------
        inputs : array, optional
            Inputs x of the layer, ``(n, n_in)``. The result is the norm of the change of the outputs,
            :math:`\lVert \Delta W x\rVert`, relative to that of the outputs. Without inputs and a loss, it is that of
            the change of the weight relative to the weight.
        loss : callable, optional
            A function of the weight, a NumPy array; the result is its increase.
        place : {"before", "after"}
            On a leg of a state: before or after its activation.

        Returns
        -------
        numpy.ndarray
            One number per component, ``(dim,)``.

        Raises
        ------
        TopologyError
            If the inputs do not fit, or both arguments are given.
        """
        from ._ablation import ablation

        return ablation(self, self._source.generator, inputs, loss, place)

    @cached_property
    def _values(self) -> Float[np.ndarray, " rank"]:
        """The spectrum inside the segment, or that of the state."""
        if self.kind == "state":
            return self.state_spectrum()
        values = self._source.view(self.segment).spectrum(self.name)
        values.setflags(write=False)
        return values

    @checked(TopologyError)
    def state_spectrum(self, place: Place = "after") -> Float[np.ndarray, " rank"]:
        """Compute the singular values of the unfolding of the state along this leg, as in a HOSVD.

        Parameters
        ----------
        place : {"before", "after"}
            The state before or after its activation.

        Raises
        ------
        TopologyError
            If the bond is not a leg of a state, or the state is too large.
        """
        if self.kind != "state":
            raise TopologyError(f"Got the bond {self.name!r}, which is not a leg of a state; use spectrum().")
        state = self._source.state(self.segment, activated=place == "after")
        axis = self._source.generator.program.stages[self.segment].segment.outputs.index(self.index.partition("#")[0])
        unfolding = np.moveaxis(state, axis, -1).reshape(-1, state.shape[axis])
        return np.linalg.svd(triangular(unfolding), compute_uv=False)

    def weight_spectrum(self) -> Float[np.ndarray, " rank"]:
        """Compute the singular values of the generated weight across the legs that depend on this bond.

        In a network without activations these are those of :meth:`spectrum`; behind activations there can be more of
        them than the dimension of the bond.

        Raises
        ------
        TopologyError
            If a tensor is too large.
        """
        from ._cut import cut_spectrum

        return cut_spectrum(self._source.weight_tree, self._weight_legs) * abs(self._source.generator.scale)

    @property
    def weight_legs(self) -> tuple[str, ...]:
        """The legs of the weight that depend on this bond, or on its last end."""
        return self._weight_legs

    @property
    def quantity(self) -> str:
        """The spectrum of which :attr:`entropy` and its like are: ``"segment"`` or ``"state"``."""
        return "state" if self.kind == "state" else "segment"

    @property
    def entropy(self) -> float:
        """The entropy of the squared values in nats."""
        return entropy(self._values)

    @property
    def effective_rank(self) -> float:
        """The exponential of the entropy."""
        return effective_rank(self._values)

    @property
    def participation(self) -> float:
        """One over the sum of the squared weights."""
        return participation(self._values)

    @cached_property
    def span(self) -> int | None:
        """The dimension of the span of the networks with both ends of this bond fixed.

        It is ``dim**2`` where every component counts. On a loop, fewer show what other ways around it repeat. ``None``
        for legs of a state, and where the opened network is too large.
        """
        return None if self.kind == "state" else self._source.view(self.segment).span(self.name)
