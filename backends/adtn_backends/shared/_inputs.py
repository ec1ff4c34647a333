"""The inputs of the layers of a model: their second moments, their order, and what compression changes in them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import numpy as np
from adtn.compression import Layer, first_samples, sharing

from ._batches import cycled
from ._moments import LEAST_ROWS, ROWS_PER_COLUMN_OF_ALL, Moments, SpacedRows

LARGEST_MOMENT = 1 << 26
"""The largest number of entries for which the second moment of a layer's inputs is computed."""


def has_moment(shape: Sequence[int]) -> bool:
    """Return whether the second moment of the inputs of a weight is small enough to be computed."""
    return math.prod(shape[1:]) ** 2 <= LARGEST_MOMENT


class _Reached(Exception):
    """The last layer that was asked for has been called, so that the model need not run any further."""


class WatchedInputs(ABC):
    """A model whose layers' inputs are watched, a part of :class:`ReplacedModel`."""

    model: Any
    _dense: Any
    _originals: dict[str, Any]
    _weights: dict[str, Any]

    @abstractmethod
    def layers(self) -> list[Layer]:
        """List all layers with parameters of their own."""

    @abstractmethod
    def _look_at_inputs(
        self, model: Any, names: Sequence[str], batch: Any, look: Callable[[str, Any, Any | None], None]
    ) -> None:
        """Run a model on one batch, and call ``look`` with the name, the input and its rows for each call of a layer.

        There are no rows if the weight is not applied to rows; exceptions of ``look`` end the run.
        """

    def second_moments(self, names: Sequence[str], data: Iterable[Any], samples: int = 512) -> dict[str, np.ndarray]:
        """Compute second moments of the inputs of linear layers and ungrouped convolutions, and of no other layers."""
        shapes = {name: shape for layer in self.layers() for name, shape in layer.weights.items()}
        small, moments, spaced = [name for name in names if has_moment(shapes[name])], Moments(), SpacedRows()

        def look(name: str, inputs: Any, rows: Any | None) -> None:
            if rows is not None:
                moments.add(name, spaced.of(inputs, rows))

        linear = all(len(shapes[name]) == 2 for name in small)  # positions of images hardly differ
        for batch in first_samples(data, samples):
            self._look_at_inputs(self.model, small, batch, look)
            if linear and moments.has_rows(ROWS_PER_COLUMN_OF_ALL, LEAST_ROWS):
                break
        return moments.means()

    def input_rows(self, names: Sequence[str], batch: Any) -> dict[str, int]:
        """Count the rows to which weights are applied for one batch."""
        counts: Counter[str] = Counter()

        def look(name: str, inputs: Any, rows: Any | None) -> None:
            if rows is not None:
                counts[name] += rows.shape[0]

        self._look_at_inputs(self.model, names, batch, look)
        return dict(counts)

    def output_moments(self, names: Sequence[str], data: Iterable[Any], *, classes: bool) -> dict[str, np.ndarray]:
        """Return nothing: this framework has no gradients with respect to the outputs of layers."""
        return {}

    def in_order(self, data: Iterable[Any]) -> list[list[str]]:
        """Return the installed weights that act on rows, in the order of their calls; those of one input together.

        Layers that are called several times are left out, and so are those that no call of the first batch reaches, or
        whose second moments would be too large, and those that share a generator but not their input.
        """
        calls: list[tuple[str, Any]] = []
        wholes = {member: name for name in self._weights for member in sharing(name) if member in self._originals}
        names = [member for member, name in wholes.items() if has_moment(self._weights[name].shape)]

        def look(name: str, inputs: Any, rows: Any | None) -> None:
            if rows is not None:
                calls.append((name, inputs))  # which are held, so that no other input gets their address

        self._look_at_inputs(self.model, names, next(cycled(data, 1)), look)
        counts = Counter(name for name, _ in calls)
        inputs_of = dict(calls)
        groups: list[list[str]] = []
        last: Any = None
        for name, inputs in calls:
            first, *others = sharing(wholes[name])
            apart = any(counts[one] != 1 or inputs_of[one] is not inputs for one in (first, *others))
            if apart or name != first:  # what is shared is listed once
                continue
            if inputs is not last:
                groups.append([])
            groups[-1].append(wholes[name])
            last = inputs
        return groups

    def moments_behind(
        self, names: Sequence[str], data: Iterable[Any], most: int
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Compute the means of ``y yᵀ`` and ``x yᵀ`` for the inputs x of layers in the dense model and y in this one.

        Parameters
        ----------
        names : sequence of str
            Weights whose layers are called once, see :meth:`in_order`.
        data : iterable
            Batches.
        most : int
            The number of rows per column after which no more batches are drawn.
        """
        now, cross = Moments(), Moments()
        columns: dict[str, int] = {}
        wholes = {sharing(name)[0]: name for name in names}  # layers that share a generator have one input
        firsts = list(wholes)
        for n, batch in enumerate(data):
            with self._resumed(self._dense, ("dense", n), firsts):
                dense = self._rows_until(self._dense, firsts, batch)
            with self._resumed(self.model, ("now", n), firsts):
                found = self._rows_until(self.model, firsts, batch)
            for name, rows in found.items():
                if name in dense and dense[name].shape == rows.shape:  # routed differently otherwise
                    now.add_product(name, rows, rows)
                    cross.add_product(name, dense[name], rows)
                    columns[name] = rows.shape[1]
            if columns and all(now.rows(name) >= most * width for name, width in columns.items()):
                break
        means = now.means()
        return {wholes[name]: (means[name], mean) for name, mean in cross.means().items()}

    def in_turn(self, batch: Any) -> AbstractContextManager[bool]:
        """Declare that weights change in the order of their calls inside this block, and batches stay the same.

        Return whether passes over the data then begin where nothing changes any more.
        """
        return nullcontext(False)

    def _resumed(self, model: Any, key: Any, names: Sequence[str]) -> AbstractContextManager[None]:
        """Leave out what is known of a pass that ends at these layers."""
        return nullcontext()

    def _rows_until(self, model: Any, names: Sequence[str], batch: Any) -> dict[str, Any]:
        """Return the rows of the inputs of layers for one batch; the model runs until all have been called."""
        found: dict[str, Any] = {}
        spaced = SpacedRows()

        def look(name: str, inputs: Any, rows: Any) -> None:
            found[name] = spaced.of(inputs, rows)
            if len(found) == len(names):
                raise _Reached

        with suppress(_Reached):
            self._look_at_inputs(model, names, batch, look)
        return found
