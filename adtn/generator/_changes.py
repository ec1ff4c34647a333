"""Generators that are made of others: with other parameters, bonds, precisions or permutations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Self

from .._checks import checked
from .._recent import Recent
from ..errors import GeneratorError, LayoutError, TopologyError
from ..layout import Permutation
from ..precision import Codes, Precision
from ..topology import Topology, cores_of
from ..weight import BASE_SCALE
from ._balance import balanced_values
from ._bond_matrix import Place, absorb, topology_for
from ._decoded import Decoded
from ._described import PLACES, Described
from ._rounding import checked_codes, rounded_codes
from ._start import formula
from ._values import readonly


class Changeable(Described):
    """The ways to make another generator of one; see :class:`adtn.Generator`."""

    @checked(GeneratorError)
    def with_params(self, params: Mapping[str, Any]) -> Self:
        """Return the same generator with other parameters, which are not rounded.

        Raises
        ------
        GeneratorError
            If a name is missing or unknown, or a shape differs.
        """
        if set(params) != set(self._params):
            raise GeneratorError(f"Got params of {sorted(params)}; expected those of {sorted(self._params)}.")
        new = self._copied()
        new._params = readonly(params, self._stored_shapes, self._dtype, self.isometric_rows)
        new._given = MappingProxyType(dict(self._given))
        new._precision, new._codes = None, MappingProxyType({})
        return new

    @checked(TopologyError)
    def with_bond(
        self, name: str, matrix: Any, *, into: str | None = None, place: Place = "after", unshare: bool = False
    ) -> Self:
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
        if self.isometric_rows:
            free = self.without_isometries()
            return free.with_bond(name, matrix, into=into, place=place, unshare=unshare)
        values = {**self._params, **self._frozen}
        found = absorb(self.segments, values, name, matrix, into=into, place=place, unshare=unshare)
        if found.segments == self.segments and set(found.values) <= set(self._params):
            return self.with_params({**self._params, **found.values})
        return self.with_topology(topology_for(self._topology, self._layout, found.segments), found.values)

    @checked(TopologyError)
    def with_topology(self, topology: Topology, params: Mapping[str, Any]) -> Self:
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
        make: Any = type(self)
        return make(
            self.shape,
            topology,
            layout=self._layout,
            scale=self._scale,
            base=self._base,
            dtype=self._dtype,
            params={k: x for k, x in known.items() if k in used},
            permutations=self.permutations or None,
        )

    def balanced(self) -> Self:
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
        if self.isometric_rows:
            return self.without_isometries().balanced()
        cores = {core.param for core in cores_of(self.segments)}
        values = balanced_values(self.segments, {k: x for k, x in self._params.items() if k in cores})
        return self.with_params({**self._params, **values})

    def without_isometries(self) -> Self:
        """Return a generator with the same cores, which need not stay isometries; see ``isometric`` of :class:`TTN`.

        Returns
        -------
        Generator

        Examples
        --------
        >>> import adtn
        >>> gen = adtn.Generator((16, 16), adtn.TTN(bond=2, activation=None, isometric=True))
        >>> gen.without_isometries().topology
        TTN(activation='identity', bond=2)
        """
        topology: Any = self._topology
        return self.with_topology(replace(topology, isometric=False), {}) if self.isometric_rows else self

    def _copied(self) -> Self:
        new = object.__new__(type(self))
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
    ) -> Self:
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
    def with_codes(self, precision: Precision, codes: Mapping[str, Codes]) -> Self:
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
    def with_permutations(self, permutations: Sequence[Permutation | Sequence[int] | None]) -> Self:
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
        new._compiled = Recent(PLACES)
        return new
