"""Where Flax keeps the weight of a layer, and in which order."""

from __future__ import annotations

import inspect
import math
from typing import Any

import jax
import jax.numpy as jnp
from adtn.errors import LayoutError
from flax import nnx

from ._weight import GeneratedWeight


def weight_of(dense: Any) -> tuple[Any | None, str]:
    """The weight as PyTorch orders it, ``(out, in, ...)``, or why there is no generated form."""
    if _is_stacked(dense):
        return None, "several layers in one array (nnx.vmap); make them a list"
    if own := _own_functions(dense):
        return None, f"its {own} would be lost"
    if type(dense) is nnx.Linear:
        return dense.kernel[...].T, ""
    if type(dense) is nnx.Embed:
        return dense.embedding[...], ""
    if type(dense) is nnx.LinearGeneral:
        if dense.batch_axis or not _trailing(dense.axis):
            return None, "contracts other axes than the last ones"
        kernel = dense.kernel[...]
        return kernel.reshape(-1, math.prod(dense.out_features)).T, ""
    if type(dense) is nnx.Conv:
        kernel = dense.kernel[...]
        axes = kernel.ndim - 2
        if axes not in (1, 2, 3) or dense.mask is not None or set(_each(dense.input_dilation, axes)) != {1}:
            return None, "a masked, transposed or higher-dimensional convolution"
        if _padding(dense) is None:
            return None, f"padding {dense.padding!r}"
        return jnp.moveaxis(kernel, (-1, -2), (0, 1)), ""
    if isinstance(dense, GeneratedWeight) or hasattr(dense, "generated"):
        return None, "compressed already"
    return None, f"no generated form of {type(dense).__name__}"


def refuse_other(dense: Any, known: type[nnx.Module]) -> None:
    """What a subclass, or a function that was given, does would be lost.

    Raises
    ------
    LayoutError
        If it is no plain layer of this class.
    """
    _, reason = weight_of(dense)
    if type(dense) is not known or reason:
        raise LayoutError(
            f"Got {type(dense).__name__}{f' ({reason})' if reason else ''}; expected a plain {known.__name__}."
        )


def _own_functions(dense: Any) -> str:
    """The option with which a layer of Flax computes otherwise than usual; empty where there is none."""
    if type(dense) not in (nnx.Linear, nnx.LinearGeneral, nnx.Conv, nnx.Embed):
        return ""
    usual = inspect.signature(type(dense).__init__).parameters
    for name in ("dot_general", "conv_general_dilated", "promote_dtype", "preferred_element_type", "precision"):
        if name in usual and hasattr(dense, name) and getattr(dense, name) is not usual[name].default:
            return f"{name}={getattr(dense, name)!r}"
    return ""


def kernel_name(dense: Any) -> str:
    """Of the variable that holds the weight."""
    return "embedding" if isinstance(dense, nnx.Embed) else "kernel"


def kernel_of(dense: Any, weight: Any) -> Any:
    """A weight in the order of the dense layer's variable: the inverse of :func:`weight_of`."""
    if isinstance(dense, nnx.Embed):
        return weight
    if isinstance(dense, nnx.Conv):
        return jnp.moveaxis(weight, (0, 1), (-1, -2))
    return weight.T.reshape(dense.kernel.shape)


def filled(dense: Any, weight: Any, bias: Any) -> Any:
    """A dense layer with these numbers."""
    getattr(dense, kernel_name(dense))[...] = kernel_of(dense, weight)
    if bias is not None:
        dense.bias[...] = bias[...].reshape(dense.bias.shape)
    return dense


def as_dtype(x: Any, dtype: Any) -> Any:
    """The same numbers in the dtype of a layer's products, where it has one."""
    return x if dtype is None else x.astype(dtype)


def conv_options(dense: nnx.Conv) -> dict[str, Any]:
    """Geometry and dtype as :class:`ADTNConv2d` takes them."""
    axes = dense.kernel.ndim - 2
    stride, dilation = _each(dense.strides, axes), _each(dense.kernel_dilation, axes)
    return {"stride": stride, "padding": _padding(dense), "dilation": dilation, "groups": dense.feature_group_count,
            "dtype": dense.dtype}  # fmt: skip


def patches(dense: Any, x: Any) -> Any | None:
    """What a layer multiplies its weight with, as rows; ``None`` where that is not worked out."""
    if isinstance(dense, nnx.Linear):
        return x.reshape(-1, x.shape[-1])
    if isinstance(dense, nnx.LinearGeneral):
        return x.reshape(-1, math.prod(dense.in_features))
    if not isinstance(dense, nnx.Conv) or dense.kernel.ndim != 4 or dense.feature_group_count > 1:
        return None
    padding: Any = _padding(dense)
    padding = [(p, p) for p in padding] if isinstance(padding, tuple) else padding
    found = jax.lax.conv_general_dilated_patches(
        x, dense.kernel.shape[:2], _each(dense.strides, 2), padding, rhs_dilation=_each(dense.kernel_dilation, 2),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    return found.reshape(-1, found.shape[-1])


def _is_stacked(dense: Any) -> bool:
    """Whether an array has an axis more than the layer says: over layers that a scan goes through."""
    if type(dense) in (nnx.Linear, nnx.Embed):
        return getattr(dense, kernel_name(dense)).ndim != 2
    if type(dense) is nnx.LinearGeneral:
        return dense.kernel.ndim != sum(map(len, (dense.in_features, dense.out_features, dense.batch_axis)))
    return type(dense) is nnx.Conv and dense.kernel.ndim != 2 + len(dense.kernel_size)


def _trailing(axis: Any) -> bool:
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    return axes == tuple(range(-len(axes), 0))


def _each(value: Any, axes: int) -> tuple[int, ...]:
    return (int(value),) * axes if isinstance(value, int) else tuple(map(int, value))


def _padding(dense: Any) -> Any:
    """As :class:`ADTNConv2d` takes it; ``None`` for what it does not know."""
    given, axes = dense.padding, dense.kernel.ndim - 2
    if isinstance(given, str):
        return given if given in ("SAME", "VALID") else None
    if isinstance(given, int):
        return (given,) * axes
    around = [(p, p) if isinstance(p, int) else tuple(p) for p in given]
    return tuple(a for a, _ in around) if len(around) == axes and all(a == b for a, b in around) else None
