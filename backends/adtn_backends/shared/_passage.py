"""The way of an input through the network of a generated weight, past its bonds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from adtn._typing import Array, Float, Int, Params, Shape
from adtn.backends import Backend
from adtn.generator import Generator
from adtn.weight import Enters, OneHot, Sweep
from autoray import do

from ._bond_names import checked_value
from ._geometry import check_input

Products: TypeAlias = Mapping[str, Callable[[Any], Any]]
"""Functions in place of the products with the weights of a layer, by part."""


@dataclass(frozen=True, kw_only=True)
class Passage:
    """The way of the input of a generated layer through the networks of its weights.

    Parameters
    ----------
    through : callable
        ``through(layer, products, *inputs, **options)`` is the forward pass of the layer with other functions in place
        of the products with its weights, by part: of ``(*batch, n)``, or of indices ``(*batch)`` for a lookup.
    weights : mapping of str to str
        The paths from the layer to its generated weights by part; a single one has an empty name.
    enters : {"columns", "rows", "lookup"}
        Where inputs enter: ``x Wᵀ``, ``x W``, or rows of W by their indices.
    """

    through: Callable[..., Any]
    weights: Mapping[str, str] = field(default_factory=lambda: {"": "generated"})
    enters: Enters = "columns"


@dataclass(frozen=True, kw_only=True)
class NoPassage:
    """The reason why inputs pass no bonds of a layer.

    Parameters
    ----------
    reason : str
    whole : bool
        Whether modules inside the layer belong to it, so that theirs are not passed either.
    """

    reason: str
    whole: bool = True


def generates_first(layer: Any) -> NoPassage:
    """Return that a layer generates its weight, and then uses it."""
    return NoPassage(
        reason=f"{type(layer).__name__} generates its whole weight and never applies its network to inputs"
    )


@dataclass(frozen=True, kw_only=True)
class Passed:
    """The weight of a layer, whose products pass the bonds of its network.

    Of a slice of a weight, they pass the bonds of the whole network: inputs that the slice does not have are zero, and
    outputs that it does not have are left out.

    Parameters
    ----------
    sweep : Sweep
        Through the whole weight.
    whole : tuple of int
        The shape of the whole weight.
    shape : tuple of int
        The shape of the weight of the layer.
    start : int
        Its first row.
    """

    sweep: Sweep
    whole: Shape
    shape: Shape
    start: int = 0

    @classmethod
    def of(cls, weight: Any, structure: Generator, enters: Enters, backend: Backend) -> Passed:
        """Make it for a generated weight, or for a slice of one, with this structure of the whole.

        Raises
        ------
        TopologyError
            If inputs do not pass such a network.
        """
        sweep = Sweep(structure.segments, structure.weighting, backend, enters)
        return cls(sweep=sweep, whole=structure.shape, shape=weight.shape, start=getattr(weight, "start", 0))

    def check(self, shape: Sequence[int]) -> None:
        """Refuse an input of another width.

        Raises
        ------
        LayoutError
            If it has another width.
        """
        check_input(tuple(shape), _matrix(self.shape)[1 if self.sweep.enters == "columns" else 0])

    def product(
        self, arrays: Params, x: Float[Array, "*batch n"], visit: Callable[[str, Array], Array]
    ) -> Float[Array, "*batch m"]:
        """Multiply the input; ``visit`` takes a bond with what is on it, ``(*batch, rest, bond)``."""
        (n_out, width), (rows, columns) = _matrix(self.shape), _matrix(self.whole)
        is_forward = self.sweep.enters == "columns"
        batch = tuple(x.shape[:-1])
        given = do("reshape", x, (math.prod(batch), x.shape[-1]))
        around = (0, columns - width) if is_forward else (self.start, rows - n_out - self.start)
        given = given if around == (0, 0) else do("pad", given, ((0, 0), around))
        y = self.sweep(arrays, given, _in_batch(batch, visit))
        y = y[:, self.start : self.start + n_out] if is_forward else y[:, :width]
        return do("reshape", y, (*batch, y.shape[-1]))

    def rows(
        self, arrays: Params, index: Int[Array, "*batch"], one_hot: OneHot, visit: Callable[[str, Array], Array]
    ) -> Float[Array, "*batch n_in"]:
        """Look up rows; ``visit`` takes a bond with what is on it, ``(*batch, rest, bond)``."""
        batch, place = tuple(index.shape), do("reshape", index, (-1,)) + self.start
        found = self.sweep.lookup(arrays, place, one_hot, _in_batch(batch, visit))
        return do("reshape", found[:, : self.shape[1]], (*batch, self.shape[1]))


def _matrix(shape: Shape) -> tuple[int, int]:
    return shape[0], math.prod(shape[1:])


def _in_batch(batch: Shape, visit: Callable[[str, Array], Array]) -> Callable[[str, Array], Array]:
    def visited(bond: str, value: Array) -> Array:
        given = do("reshape", value, (*batch, *value.shape[1:]))
        return do("reshape", checked_value(bond, visit(bond, given), given), tuple(value.shape))

    return visited
