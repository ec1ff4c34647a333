"""Types used in annotations.

Arrays are annotated as in jaxtyping: ``Float[Array, "n_out n_in"]`` is an array of floating-point numbers with two
axes. Equal names in one signature stand for equal sizes, ``*name`` for any number of axes, ``...`` for axes without a
name, ``""`` for a scalar. Type checkers see ``Array``, and nothing is checked at run time; the tests read the names and
check every call of an annotated function on every backend (``tests/shapes.py``).

===================  =======================================================================
``n_out n_in``       the axes of a matrix in weight order
``*shape``           the axes of a weight, ``layout.shape``
``*padded``          the same with padding, ``layout.padded_shape``
``*legs``            the legs of a state, ``layout.dims`` after the last segment
``batch``, ``*batch``  rows of an input
``tiles *tile``      a weight cut into tiles
``rows *inner``      rows of a weight, and its other axes
``parameters``       entries of all trained parameters
===================  =======================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated as Bool
from typing import Annotated as Float
from typing import Annotated as Int
from typing import Annotated as Shaped
from typing import Any, TypeAlias

__all__ = ["Array", "Bool", "ElementwiseFunction", "Factor", "Float", "Inds", "Int", "Params", "Shape", "Shaped"]

Array: TypeAlias = Any
"""An array of any framework that autoray dispatches."""

Params: TypeAlias = Mapping[str, Array]
"""Parameter name to array."""

Factor: TypeAlias = float | Float[Array, ""]
"""A number, or a scalar on the device."""

ElementwiseFunction: TypeAlias = Callable[[Float[Array, "*shape"]], Float[Array, "*shape"]]
"""A function of one array, entry by entry."""

Shape: TypeAlias = tuple[int, ...]
Inds: TypeAlias = tuple[str, ...]
