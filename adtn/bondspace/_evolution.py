"""Bonds while a model is trained: their spectra, and what inputs put on them, from step to step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from .._checks import Count, checked, shown
from .._typing import Array, Float
from ..drawing import new_figure, write_figure
from ..errors import TopologyError
from ..optim import Snapshot
from ._bonds import bonds
from ._curve import line_style, plain_axes
from ._measures import effective_rank, entropy
from ._statistics import Watched, watch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FONT = 8.0
_WIDE, _HIGH = 3.3, 2.6  # inches


@dataclass(frozen=True, kw_only=True)
class EvolutionPoint:
    """One bond at one step.

    Parameters
    ----------
    step : int
        The number of updates, counted over all trainings that were observed.
    bond : str
        The name of the bond, behind that of its layer in a model.
    dim : int
    spectrum : numpy.ndarray
        The values of :meth:`Bond.spectrum`, in descending order.
    exact : bool
        Whether they are those of a cut.
    """

    step: int
    bond: str
    dim: int
    spectrum: Float[np.ndarray, " rank"]
    exact: bool

    @property
    def entropy(self) -> float:
        """The entropy of the squares of the spectrum, in nats."""
        return entropy(self.spectrum)

    @property
    def effective_rank(self) -> float:
        """The exponential of the entropy."""
        return effective_rank(self.spectrum)


class Evolution:
    """An observer of a training that records the spectra of bonds, and with batches also what inputs put on them.

    Pass it among the ``callbacks`` of :func:`adtn.fit` or :func:`adtn.compress`; in a training of your own, call
    :meth:`observe`.

    Parameters
    ----------
    every : int
        The number of steps between two looks; step 0 and the last step are always seen.
    names : str or sequence of str
        Patterns of bonds: of one generator as :func:`adtn.bonds` names them, in a model ``"LAYER.bonds.BOND"``.
    batches : iterable, optional
        Batches for :func:`watch` in every look, as a list or a data loader; only in trainings of models.
    others, pairs, call
        See :func:`watch`.

    Raises
    ------
    TopologyError
        In a look: if a pattern fits no bond, or there are batches but no model.

    Examples
    --------
    >>> import adtn, numpy as np
    >>> from adtn.bondspace import Evolution
    >>> W = np.outer(np.arange(64.0), np.arange(64.0))  # of rank one
    >>> seen = Evolution(every=100)
    >>> gen = adtn.Generator((64, 64), adtn.LowRank(bond=4))
    >>> _ = adtn.fit(gen, W, steps=300, lr=0.03, callbacks=[seen])
    >>> seen.steps
    [0, 100, 200, 300]
    >>> first, *_, last = (point.effective_rank for point in seen.points)
    >>> first > 3.0, last < 1.1
    (True, True)
    """

    @checked(TopologyError)
    def __init__(
        self,
        every: Count = 100,
        names: Annotated[str | Sequence[str], "patterns of bonds"] = "*",
        *,
        batches: Annotated[Iterable[Any] | None, "batches of inputs, or pairs of inputs and labels"] = None,
        others: Annotated[Mapping[str, Callable[[Any], Array]] | None, "functions of a batch of inputs"] = None,
        pairs: Annotated[Sequence[tuple[str, str]], "pairs of names"] = (),
        call: Callable[[Any, Any], Any] | None = None,
    ) -> None:
        self.every = every
        self.names = (names,) if isinstance(names, str) else tuple(names)
        self.points: list[EvolutionPoint] = []
        self.watched: dict[int, Watched] = {}
        self._watching: dict[str, Any] = {"others": others, "pairs": pairs, "call": call}
        self._batches = batches
        self._done = 0  # updates of earlier trainings

    @property
    def steps(self) -> list[int]:
        """The steps that were seen."""
        return list(dict.fromkeys(point.step for point in self.points))

    def observe(self, snapshot: Snapshot) -> None:
        """Record a snapshot; one of an earlier step than the last one begins another training."""
        last = self.points[-1].step if self.points else 0
        if self._done + snapshot.step < last:
            self._done = last
        step = self._done + snapshot.step
        if self.points and step == last:  # the start of another training, or the end of a repeated one
            self.points = [point for point in self.points if point.step != step]
        is_single = snapshot.model is None and list(snapshot.generators) == ["weight"]
        found: list[EvolutionPoint] = []
        known: list[str] = []
        for name, generator in snapshot.generators.items():
            for bond in bonds(generator):
                full = bond.name if is_single else f"{name}.bonds.{bond.name}"
                known.append(full)
                if any(fnmatchcase(full, pattern) for pattern in self.names):
                    own = bond.spectrum()
                    found.append(EvolutionPoint(step=step, bond=full, dim=bond.dim, spectrum=own, exact=bond.exact))
        if not found:
            raise TopologyError(
                f"Got names={shown(self.names)}, which fit no bond; expected some of {', '.join(known) or 'none'}."
            )
        if self._batches is not None:
            if snapshot.model is None:
                raise TopologyError(
                    "Got batches in a fit of one weight; expected a training of a model. Leave them out."
                )
            self.watched[step] = watch(snapshot.model, self._batches, self.names, **self._watching)
        self.points += found

    def __str__(self) -> str:
        """Return a table of effective ranks: bonds by steps."""
        steps, by = self.steps, {(point.bond, point.step): point for point in self.points}
        names = list(dict.fromkeys(point.bond for point in self.points))
        width = max(map(len, ["bond", *names]))
        lines = [f"{'bond':{width}}" + "".join(f"{step:>9,}" for step in steps)]
        for name in names:
            own = [by.get((name, step)) for step in steps]
            lines.append(f"{name:{width}}" + "".join(f"{p.effective_rank:9.2f}" if p else " " * 9 for p in own))
        return "\n".join(lines)

    def draw(self, path: str | Path | None = None) -> Figure:
        """Draw effective ranks and, with labelled batches, class separability over the steps; one line per bond.

        Parameters
        ----------
        path : path, optional
            A file to write, atomically: SVG, PNG or PDF by its ending.

        Raises
        ------
        MissingDependencyError
            If matplotlib is not installed.
        TopologyError
            If nothing was observed.
        OutputError
            If the file cannot be written.
        """
        if not self.points:
            raise TopologyError("Got an evolution that observed nothing; pass it as a callback of a training first.")
        panels = {"effective rank": self._ranks()}
        if self.watched and all(own.has_labels for seen in self.watched.values() for own in seen.values()):
            panels["class separability"] = self._separability()
        figure = new_figure(_WIDE * len(panels) + 1.2, _HIGH, "A picture of an evolution")
        figure.set_layout_engine("constrained")
        grid = figure.subplots(1, len(panels), squeeze=False)
        styles = {name: line_style(k) for k, name in enumerate({name: None for own in panels.values() for name in own})}
        handles: dict[str, Any] = {}
        for axes, (title, lines) in zip(grid.flat, panels.items(), strict=True):
            for name, values in lines.items():
                (handles[name],) = axes.plot(list(values), list(values.values()), label=name, **styles[name])
            axes.set_xlabel("step", fontsize=_FONT)
            axes.set_ylabel(title, fontsize=_FONT)
            plain_axes(axes)
            axes.set_ylim(0.0, 1.08 * max(max(values.values()) for values in lines.values()) or 1.0)
        figure.legend(
            list(handles.values()), list(handles), loc="outside right upper", fontsize=_FONT - 1, frameon=False
        )
        if path is not None:
            write_figure(figure, path)
        return figure

    def _ranks(self) -> dict[str, dict[int, float]]:
        lines: dict[str, dict[int, float]] = {}
        for point in self.points:
            lines.setdefault(point.bond, {})[point.step] = point.effective_rank
        return lines

    def _separability(self) -> dict[str, dict[int, float]]:
        lines: dict[str, dict[int, float]] = {}
        for step, seen in self.watched.items():
            for name, own in seen.items():
                lines.setdefault(name, {})[step] = own.separability
        return lines
