"""Rows of the table of layers: all that the library must know about one kind of dense layer of Flax."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from adtn.errors import LayoutError
from flax import nnx

from ._weight import GeneratedWeight

_FUNCTIONS = ("dot_general", "conv_general_dilated", "promote_dtype", "preferred_element_type", "precision")


def no_reason(dense: Any) -> str:
    """Give no reason."""
    return ""


def no_rows(dense: Any, x: Any) -> None:
    """Give nothing, where second moments of the inputs are not worked out."""


def unchanged(dense: Any, x: Any) -> Any:
    """A weight that Flax orders as PyTorch does."""
    return x


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of dense layer, and the generated layer that takes its place.

    Parameters
    ----------
    dense : type
        The dense layer; subclasses are other kinds, as their call may do something else.
    generated : tuple of type
        Generated layers that take its place; their method ``to_dense`` is the way back.
    build : callable
        ``build(dense, weight, bias)``, the generated layer with this weight, and this bias or ``False``.
    axes : callable
        ``axes(dense)``, how many axes the variable has where it holds one layer.
    variable : str
        The variable that holds the weight.
    read : callable
        ``read(dense, kernel)``, a value of the variable in the order of PyTorch, ``(out, in, ...)``.
    write : callable
        ``write(dense, weight)``, its inverse.
    refusal : callable
        ``refusal(dense)``, why it has no generated form; empty when it has one.
    rows : callable
        ``rows(dense, x)``, what the layer multiplies its weight with, for second moments; ``None`` for nothing.
    batch : callable
        ``batch(layer, x)``, rows that the generated layer is applied to; 0 where it makes its weight in any case.
    """

    dense: type[nnx.Module]
    generated: tuple[type[nnx.Module], ...]
    build: Callable[[Any, GeneratedWeight, Any], nnx.Module]
    axes: Callable[[Any], int]
    variable: str = "kernel"
    read: Callable[[Any, Any], Any] = unchanged
    write: Callable[[Any, Any], Any] = unchanged
    refusal: Callable[[Any], str] = no_reason
    rows: Callable[[Any, Any], Any | None] = no_rows
    batch: Callable[[Any, Any], int] = lambda layer, x: 0

    def reason(self, dense: Any) -> str:
        """Why a dense layer of this kind has no generated form; empty when it has one."""
        if getattr(dense, self.variable).ndim != self.axes(dense):  # over layers that a scan goes through
            return "several layers in one array (nnx.vmap); make them a list"
        if own := _own_functions(dense):
            return f"its {own} would be lost"
        return self.refusal(dense)

    def weight(self, dense: Any) -> jax.Array:
        """The weight as PyTorch orders it, ``(out, in, ...)``."""
        return self.read(dense, getattr(dense, self.variable)[...])

    def refuse_other(self, dense: Any) -> None:
        """Refuse what a subclass, or a function that was given, does: it would be lost.

        Raises
        ------
        LayoutError
            If it is no plain layer of this class.
        """
        known = type(dense) is self.dense
        reason = self.reason(dense) if known else ""
        if not known or reason:
            what = f" ({reason})" if reason else ""
            raise LayoutError(f"Got {type(dense).__name__}{what}; expected a plain {self.dense.__name__}.")

    def filled(self, dense: Any, weight: Any, bias: Any) -> Any:
        """A dense layer with these values."""
        getattr(dense, self.variable)[...] = self.write(dense, weight)
        if bias is not None:
            dense.bias[...] = bias[...].reshape(dense.bias.shape)
        return dense


def _own_functions(dense: Any) -> str:
    """The option with which a layer of Flax computes otherwise than usual; empty where there is none."""
    usual = inspect.signature(type(dense).__init__).parameters
    for name in _FUNCTIONS:
        if name in usual and hasattr(dense, name) and getattr(dense, name) is not usual[name].default:
            return f"{name}={getattr(dense, name)!r}"
    return ""


def as_dtype(x: Any, dtype: Any) -> Any:
    """Convert values to the dtype of a layer's products, where it has one."""
    return x if dtype is None else x.astype(dtype)
