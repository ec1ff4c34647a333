"""The description of one kind of layer: everything that the library has to know about a dense layer of Flax."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from adtn._typing import Int
from adtn.errors import LayoutError
from flax import nnx

from ...shared._passage import Passage
from ._slice import Weight

_FUNCTIONS = ("dot_general", "conv_general_dilated", "promote_dtype", "preferred_element_type", "precision")


def no_reason(dense: Any) -> str:
    """Return an empty reason: the layer has a generated form."""
    return ""


def no_rows(dense: Any, x: Any) -> None:
    """Return ``None``: second moments of the inputs are not implemented."""


def unchanged(dense: Any, x: Any) -> Any:
    """Return the weight, whose axes Flax orders as PyTorch does."""
    return x


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of dense layer, and the generated layers that replace it.

    Parameters
    ----------
    dense : type
        The class of the dense layer. Subclasses do not belong to this kind, as they may compute something else.
    generated : tuple of type
        The classes of generated layers that replace it; their method ``to_dense`` is the inverse.
    build : callable
        ``build(dense, weight, bias)`` makes the generated layer with this weight, and this bias or ``False``.
    axes : callable
        ``axes(dense)`` returns the number of axes of the variable if it holds the weight of one layer.
    variable : str
        The name of the variable that holds the weight.
    read : callable
        ``read(dense, kernel)`` orders the axes of a value of the variable as PyTorch does, ``(out, in, ...)``.
    write : callable
        ``write(dense, weight)`` is the inverse of ``read``.
    refusal : callable
        ``refusal(dense)`` says why the layer has no generated form; empty if it has one.
    rows : callable
        ``rows(dense, x)`` returns the rows that the layer multiplies with its weight, for second moments; or ``None``.
    batch : callable
        ``batch(layer, x)`` returns the number of rows to which the generated layer is applied, or 0 if it generates its
        weight for any input.
    passage : Passage, optional
        How inputs of the generated layer pass its network; ``None`` if a layer inside it has the weight.
    """

    dense: type[nnx.Module]
    generated: tuple[type[nnx.Module], ...]
    build: Callable[[Any, Weight, Any], nnx.Module]
    axes: Callable[[Any], int]
    variable: str = "kernel"
    read: Callable[[Any, Any], Any] = unchanged
    write: Callable[[Any, Any], Any] = unchanged
    refusal: Callable[[Any], str] = no_reason
    rows: Callable[[Any, Any], Any | None] = no_rows
    batch: Callable[[Any, Any], int] = lambda layer, x: 0
    passage: Passage | None = None

    def is_stacked(self, dense: Any) -> bool:
        """Return whether the variable holds the weights of several layers, stacked for a scan."""
        return getattr(dense, self.variable).ndim != self.axes(dense)

    def reason(self, dense: Any, *, stacked: bool = False) -> str:
        """Say why a dense layer, or with ``stacked`` several in one array, has no generated form; else return ""."""
        if not stacked and self.is_stacked(dense):
            return "several layers in one array (nnx.vmap); make them a list"
        if custom := _custom_functions(dense):
            return f"its {custom} would be lost"
        return self.refusal(dense)

    def weight(self, dense: Any) -> jax.Array:
        """Return the weight with the axes of PyTorch, ``(out, in, ...)``."""
        return self.read(dense, getattr(dense, self.variable)[...])

    def permute(self, dense: Any, axis: int, index: Int[np.ndarray, " n"]) -> None:
        """Permute an axis of the weight, or of all weights that are stacked along the first axis, in place."""
        variable = getattr(dense, self.variable)

        def permuted(kernel: jax.Array) -> jax.Array:
            return self.write(dense, jnp.take(self.read(dense, kernel), jnp.asarray(index), axis))

        variable[...] = (jax.vmap(permuted) if self.is_stacked(dense) else permuted)(variable[...])

    def refuse_other(self, dense: Any) -> None:
        """Refuse subclasses and layers with custom functions, whose behaviour would be lost.

        Raises
        ------
        LayoutError
            If it is not a plain layer of this class.
        """
        is_plain = type(dense) is self.dense
        reason = self.reason(dense) if is_plain else ""
        if not is_plain or reason:
            what = f" ({reason})" if reason else ""
            raise LayoutError(f"Got {type(dense).__name__}{what}; expected a plain {self.dense.__name__}.")

    def filled(self, dense: Any, weight: Any, bias: Any) -> Any:
        """Fill a dense layer with these values, and return it."""
        getattr(dense, self.variable)[...] = self.write(dense, weight)
        if bias is not None:
            dense.bias[...] = bias[...].reshape(dense.bias.shape)
        return dense


def _custom_functions(dense: Any) -> str:
    """Return the first option that makes a layer of Flax compute differently from the default, or an empty string."""
    parameters = inspect.signature(type(dense).__init__).parameters
    for name in _FUNCTIONS:
        if name in parameters and hasattr(dense, name) and getattr(dense, name) is not parameters[name].default:
            return f"{name}={getattr(dense, name)!r}"
    return ""


def as_dtype(x: Any, dtype: Any) -> Any:
    """Convert values to the dtype of a layer's products, if it has one."""
    return x if dtype is None else x.astype(dtype)
