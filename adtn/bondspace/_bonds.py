"""All bonds of a generator."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .._arrays import finite_array
from .._checks import checked, shown
from .._files import write_bytes
from .._typing import Float
from .._version import __version__
from ..drawing import Shade, measures_shades
from ..errors import TopologyError
from ..generator import Generator
from ..layout import Layout
from ..topology import BondIndex, Topology, bond_indices
from ._bond import Bond
from ._cut import cut_spectrum
from ._network import end_label
from ._source import Source

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Bonds(Sequence[Bond]):
    """The bonds of a generator, in the order of its segments; see :func:`adtn.bonds`.

    Parameters
    ----------
    generator : Generator
        The generator; nothing of it is changed.
    """

    def __init__(self, generator: Generator) -> None:
        self._source = Source(generator)
        self._bonds = tuple(b for index in bond_indices(generator.segments) for b in _records(self._source, index))

    def __len__(self) -> int:
        return len(self._bonds)

    def __iter__(self) -> Iterator[Bond]:
        return iter(self._bonds)

    def __getitem__(self, key: Any) -> Any:
        """Return a bond by its name or position."""
        if not isinstance(key, str):
            return self._bonds[key]
        for bond in self._bonds:
            if bond.name == key:
                return bond
        listed = ", ".join(bond.name for bond in self._bonds[:12]) or "none"
        raise TopologyError(f"Got the bond {shown(key)}; expected one of these {len(self)}: {listed}.")

    @property
    def generator(self) -> Generator:
        """The generator."""
        return self._source.generator

    @checked(TopologyError)
    def cut(self, legs: Sequence[str]) -> Float[np.ndarray, " rank"]:
        """Compute the singular values of the generated weight across any bipartition of its legs.

        The generated weight has its scale and its padding, and no base.

        Parameters
        ----------
        legs : sequence of str
            The legs of one side, of ``generator.layout.leg_names``.

        Returns
        -------
        numpy.ndarray
            In descending order.

        Raises
        ------
        TopologyError
            If there is no such leg, or the cut needs a tensor that is too large.

        Examples
        --------
        >>> import adtn
        >>> gen = adtn.Generator((16, 16), adtn.TT(bond=2), layout=adtn.Layout.of((16, 16), 4), dtype="float64")
        >>> len(adtn.bonds(gen).cut(["a0_0", "a0_1"]))
        2
        """
        names = self.generator.layout.leg_names
        if isinstance(legs, str) or set(legs) - set(names) or len(set(legs)) < len(legs):
            raise TopologyError(f"Got legs={shown(legs)}; expected some of {names}, each once.")
        return cut_spectrum(self._source.weight_tree, set(legs)) * abs(self.generator.scale)

    def table(self) -> str:
        """Render all bonds as a table of plain text."""
        from ._table import table

        return table(self)

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        return f"Bonds({len(self)} of {self.generator!r})"

    def to_json(self) -> str:
        """Convert to JSON, with the spectrum of every bond."""
        rows = [
            {
                "name": bond.name,
                "index": bond.index,
                "kind": bond.kind,
                "dim": bond.dim,
                "ends": bond.ends,
                "legs": bond.legs,
                "exact": bond.exact,
                "gauge": bond.gauge,
                "segment": bond.segment,
                "quantity": bond.quantity,
                "spectrum": bond._values.tolist(),  # pyright: ignore[reportPrivateUsage]
                "entropy": bond.entropy,
                "effective_rank": bond.effective_rank,
                "participation": bond.participation,
                "span": bond.span,
            }
            for bond in self
        ]
        return json.dumps({"version": __version__, "generator": repr(self.generator), "bonds": rows}, indent=1)

    def save(self, path: str | Path) -> None:
        """Write JSON, or a self-contained page if the name ends in ``.html``, atomically."""
        text = self.to_html() if Path(path).suffix == ".html" else self.to_json() + "\n"
        write_bytes(path, text.encode())

    def shades(self) -> dict[str, Shade]:
        """Return the colours of the bonds in :meth:`adtn.Generator.draw`: entropies over logarithms of dimensions.

        Raises
        ------
        TopologyError
            If an entropy needs a tensor that is too large.
        """
        found: dict[str, Shade] = {}
        for bond in self:
            share = bond.entropy / math.log(bond.dim) if bond.dim > 1 else 0.0
            found[bond.name] = Shade(share=share, exact=bond.exact)
        return found

    def draw(self, path: str | Path | None = None) -> Figure:
        """Draw the values of every bond relative to the largest, on a logarithmic scale.

        Every bond has a panel; dots are hollow where a bond is on a loop, so that its values are not those of a cut.

        Parameters
        ----------
        path : path, optional
            A file to write, atomically: SVG, PNG or PDF by its ending.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        MissingDependencyError
            If matplotlib is not installed.
        TopologyError
            If there are no bonds, or their values need a tensor that is too large.
        OutputError
            If the file cannot be written.

        Examples
        --------
        >>> import adtn
        >>> picture = adtn.bonds(adtn.Generator((64, 64), adtn.MPO(bond=3))).draw()
        """
        from ._spectra import spectra

        return spectra(self, path)

    def to_html(self) -> str:
        """Render a self-contained page with a picture of every spectrum."""
        from ._page import page

        return page(self)


@measures_shades
def _shades(generator: Generator) -> dict[str, Shade]:
    return Bonds(generator).shades()


def _records(source: Source, index: BondIndex) -> Iterator[Bond]:
    """Make the record of a bond; those of a hyper-index, one per core."""
    if index.kind == "state":
        below = source.weight_legs(index, (index.index,))
        yield _record(source, index, below, below, exact=True)
        return
    view = source.view(index.segment)
    if index.kind == "linear":
        legs = view.legs_below(index.index, index.ends[-1])
        yield _record(source, index, legs, source.weight_legs(index, legs), exact=view.is_exact(index.index))
        return
    for core in index.ends:
        edge = end_label(index.index, core)
        legs = view.legs_below(edge, core)
        record = _record(source, index, legs, source.weight_legs(index, legs), exact=view.is_exact(edge))
        yield replace(record, name=edge, ends=(*(c for c in index.ends if c != core), core))


def _record(source: Source, index: BondIndex, legs: tuple[str, ...], below: tuple[str, ...], *, exact: bool) -> Bond:
    return Bond(
        name=index.name,
        index=index.name,
        kind=index.kind,
        dim=index.dim,
        ends=index.ends,
        legs=legs,
        exact=exact,
        gauge=index.gauge,
        segment=index.segment,
        _source=source,
        _weight_legs=below,
    )


@checked(TopologyError)
def bonds(generator: Any, *, layout: Layout | None = None, topology: Topology | None = None) -> Bonds:
    """Look into the bonds of a generator, or of the decomposition of a weight.

    Parameters
    ----------
    generator : Generator or array
        A generator, or a dense weight, which is decomposed first: without truncation where the bonds of ``topology``
        permit.
    layout : Layout, optional
        The layout of a dense weight; by default, the topology chooses it.
    topology : Topology, optional
        The structure of the decomposition of a dense weight, such as ``adtn.MPO(bond=64)``; its activation is left out.

    Returns
    -------
    Bonds
        A sequence of :class:`adtn.bondspace.Bond`; ``print`` shows a table.

    Raises
    ------
    TopologyError
        If the weight cannot be decomposed as requested.

    References
    ----------
    Spectra on trees: U. Schollwöck (2011), arXiv:1008.3477. Loops: J. Tindall, M. Fishman (2023), arXiv:2306.17837.

    Examples
    --------
    >>> import adtn, numpy as np
    >>> W = np.diag([4.0, 2.0, 1.0, 0.0])
    >>> b = adtn.bonds(W, layout=adtn.Layout.whole((4, 4)), topology=adtn.TT(bond=4))
    >>> b["b0"].spectrum().round(6).tolist()
    [4.0, 2.0, 1.0, 0.0]
    """
    if isinstance(generator, Generator):
        if layout is not None or topology is not None:
            raise TopologyError(
                f"Got layout={shown(layout)} and topology={shown(topology)} for a generator, which has its own; "
                "expected None, or a dense weight."
            )
        return Bonds(generator)
    weight = np.asarray(finite_array("generator", generator, TopologyError), np.float64)
    if topology is None:
        raise TopologyError(
            f"Got generator={shown(generator)} without a topology; expected a generator, or a weight with topology=, "
            "such as adtn.MPO(bond=64)."
        )
    return Bonds(_decomposed(weight, layout, topology))


def _decomposed(weight: Float[np.ndarray, "*shape"], layout: Layout | None, topology: Topology) -> Generator:
    if not 1 <= weight.ndim <= 5 or not weight.size:
        raise TopologyError(f"Got generator={shown(weight)}; expected a weight with 1 to 5 axes.")
    if not topology.has_decomposition or topology.share:
        raise TopologyError(
            f"Got topology={topology}, which has no decomposition; expected one that has, such as adtn.MPO(bond=64)."
        )
    topology = replace(topology, activation="identity")
    empty = Generator(weight.shape, topology, layout=layout, scale=1.0, dtype="float64")
    state = np.asarray(empty.weighting.to_state(weight))
    return empty.with_params(topology.decompose(empty.layout, state, empty.params))
