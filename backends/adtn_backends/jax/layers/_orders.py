"""Permutations of generated weights that move into neighbouring layers of a Flax model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from adtn import Permutation
from adtn._typing import Int
from adtn.errors import LayoutError
from adtn.ordering import Absorption
from flax import nnx
from jax.core import Tracer

from ...shared._neighbours import absorb_all
from ...shared._probes import Heads, LinearLayer, OrderedModel, Watch
from ._adapted import Adapted
from ._attention import is_attention
from ._kinds import known_kind_of
from ._linear import is_general, is_linear
from ._places import mode_of, modules_of, params_of, put_module
from ._weight import GeneratedWeight

_ONE_WEIGHT = nnx.WeightNorm | nnx.SpectralNorm | Adapted


def absorb_orders(model: nnx.Module, *inputs: Any, **options: Any) -> Absorption:
    """Move the permutations of generated weights into neighbouring layers, where they cost nothing.

    The neighbours are found by experiments with example inputs: outputs of a layer are permuted, and the inputs of all
    others are compared. A permutation moves if everything that sees it can take it over: hidden units between linear
    layers with elementwise functions between them (also gated ones), channels of values inside each head, heads,
    channels of keys and queries, also where one layer computes several of these, and rotary pairs with the frequencies
    (a variable whose name contains ``freq``). All others stay, and the layer permutes its inputs or outputs as before;
    so it is with the residual stream, behind normalisations, and for weights that several layers share or that have a
    base. The model is changed in place; its outputs change by rounding only, which is checked with the example, or else
    the move is undone.

    Parameters
    ----------
    model : flax.nnx.Module
        The model. Layers in a :func:`flax.nnx.scan`, stacked along the first axis of their arrays, have one order that
        moves for all of them; layers in other transformations, such as :func:`flax.nnx.vmap`, are not seen.
    *inputs, **options
        An example call, ``model(*inputs, **options)``: several samples, or tokens, of which no two are equal.

    Returns
    -------
    Absorption
        What moved where, how many bits are saved, and why the rest stays.

    Raises
    ------
    LayoutError
        If there is no model or example, or the model answers differently to the same inputs.

    Examples
    --------
    >>> import adtn, jax, numpy as np
    >>> from adtn_backends.jax import ADTNLinear
    >>> from flax import nnx
    >>> rng = np.random.default_rng(0)
    >>> found = adtn.einsort(rng.standard_normal((24, 16)), ordering="norm", topology="tt", bytes=1100)
    >>> model = nnx.Sequential(ADTNLinear(found.generator), jax.nn.gelu, nnx.Linear(24, 5, rngs=nnx.Rngs(0)))
    >>> print(absorb_orders(model, jax.numpy.asarray(rng.standard_normal((7, 16)), "float32")))
    1 order absorbed, 79.0 bits saved; 1 kept (44.3 bits)
      hidden: layers.0 outputs -> layers.2 inputs (79.0 bits)
      kept: layers.0 inputs (44.3 bits), no layer before it has outputs of this size
    """
    if not isinstance(model, nnx.Module):
        raise LayoutError(f"Got a {type(model).__name__} as the model; expected a flax.nnx.Module.")
    if not inputs and not options:
        raise LayoutError("Got no example inputs; expected those of a call, absorb_orders(model, x).")
    return absorb_all(NnxOrders(model, inputs, options))


class NnxOrders(OrderedModel):
    """The linear layers of a Flax model."""

    def __init__(self, model: nnx.Module, inputs: Sequence[Any], options: Mapping[str, Any]) -> None:
        self.model, self.inputs, self.options = model, inputs, options
        dtypes = {x.dtype for x in jax.tree.leaves(nnx.state(model, nnx.Param)) if jnp.issubdtype(x.dtype, jnp.inexact)}
        self.eps = max((float(jnp.finfo(dtype).eps) for dtype in dtypes), default=0.0)
        modules = dict(modules_of(model))
        self._heads: dict[str, Any] = {k: m for k, m in modules.items() if is_attention(m)}
        hidden = tuple(f"{k}." for k, m in modules.items() if _is_whole(m) or isinstance(m, _ONE_WEIGHT))
        self._modules = {k: m for k, m in modules.items() if is_linear(m) and not k.startswith(hidden)}
        places = Counter(id(m) for m in modules.values())
        holders = Counter(id(getattr(m, "generated", m)) for m in (*self._modules.values(), *self._heads.values()))
        self._shared = {key for counts in (places, holders) for key, n in counts.items() if n > 1}
        owned = {id(m): m for m in modules.values() if isinstance(m, nnx.Module)}
        owners = Counter(id(v) for m in owned.values() for v in params_of(m))
        self._tied = {key for key, n in owners.items() if n > 1}
        self._traced, self._unrolls = _Traced(), False
        self.call(Watch())
        self._unrolls = self._traced.seen

    def layers(self) -> dict[str, LinearLayer]:
        """Return the linear layers, and the projections inside attentions."""
        found = {name: self._layer(m) for name, m in self._modules.items()}
        for name, m in self._heads.items():
            into, out = self._parts(name)
            found |= {into: self._layer(m), out: self._layer(m.out_proj)}
        return found

    @staticmethod
    def _parts(name: str) -> tuple[str, str]:
        return f"{name}.generated".lstrip("."), f"{name}.out_proj".lstrip(".")

    def _layer(self, module: Any) -> LinearLayer:
        weight, reason, orders = getattr(module, "generated", None), "", None
        if isinstance(weight, GeneratedWeight):
            structure = weight.structure.generator
            reason = "its weight has a base, which keeps its order" if structure.base is not None else ""
            orders: Any = structure.permutations or (None, None)
        elif weight is not None:
            reason = "its weight is a part of another one"
        else:
            reason = _reason(module)
        shared = id(module if weight is None else weight) in self._shared or id(module) in self._shared
        if shared or any(id(v) in self._tied for v in params_of(module)):
            reason = "its weight is that of another layer as well"
        if weight is not None:
            n_out, n_in = weight.shape
        else:
            n_out, n_in = (math.prod(_sizes(x)) for x in (module.out_features, module.in_features))
        return LinearLayer(n_out=n_out, n_in=n_in, orders=orders, reason=reason)

    def attentions(self) -> list[Heads]:
        """List the attentions whose projections are one weight."""
        parts = {name: self._parts(name) for name in self._heads}
        sizes = {name: m.generated.shape[1] // m.num_heads for name, m in self._heads.items()}
        return [Heads(into=parts[name][0], out=parts[name][1], channels=sizes[name]) for name in parts]

    def tables(self) -> dict[str, int]:
        """Return the frequencies of rotary positions."""
        return {name: getattr(m, key)[...].shape[0] for name, (m, key) in self._frequencies().items()}

    def _frequencies(self) -> dict[str, tuple[Any, str]]:
        return {
            f"{name}.{key}".lstrip("."): (m, key)
            for name, m in modules_of(self.model)
            for key, x in vars(m).items()
            if "freq" in key and isinstance(x, jax.Array | nnx.Variable) and x[...].ndim == 1
        }

    def call(self, watch: Watch) -> list[np.ndarray]:
        """Call the model with wrappers around its layers."""
        try:
            for name, module in self._modules.items():
                put_module(self.model, name, _Watched(module, name, watch, self._traced))
            # products of float32 in fewer bits would hide small differences; without compilation, a scan is a loop
            unrolled = jax.disable_jit() if self._unrolls else nullcontext()
            with mode_of(self.model, training=False), jax.default_matmul_precision("highest"), unrolled:
                run: Any = self.model
                return [self.values(x) for x in _arrays(run(*self.inputs, **self.options))]
        finally:
            for name, module in self._modules.items():
                put_module(self.model, name, module)

    def gather(self, name: str, axis: int, index: Int[np.ndarray, " n"]) -> None:
        """Permute rows with the bias, or columns."""
        inside = {part: m for key, m in self._heads.items() for part in self._parts(key)}
        module: Any = inside.get(name) or self._modules[name]
        if name in inside and name.endswith("out_proj"):
            module = module.out_proj
        weight = getattr(module, "generated", None)
        if weight is not None:
            weight.permute(axis, Permutation(index))
        else:
            known_kind_of(module).permute(module, axis, index)
        bias = module.linear.bias if is_general(module) else module.bias
        if axis == 0 and bias is not None:
            bias[...] = bias[...].reshape(-1, len(index))[:, jnp.asarray(index)].reshape(bias[...].shape)

    def gather_table(self, name: str, index: Int[np.ndarray, " n"]) -> None:
        """Permute frequencies."""
        module, key = self._frequencies()[name]
        x = getattr(module, key)
        if isinstance(x, nnx.Variable):
            x[...] = x[...][jnp.asarray(index)]
        else:
            setattr(module, key, x[jnp.asarray(index)])

    def values(self, x: Any) -> np.ndarray:
        """Copy an array to the host."""
        return np.asarray(x, np.float64)


def _is_whole(module: Any) -> bool:
    """Return whether a generated layer has linear layers inside."""
    return is_attention(module) or is_general(module)


def _sizes(x: Any) -> tuple[int, ...]:
    return tuple(x) if isinstance(x, tuple | list) else (x,)


def _arrays(outputs: Any) -> Iterator[jax.Array]:
    """Yield the arrays of real numbers in the outputs of a model."""
    leaves = [x for x in jax.tree.leaves(outputs) if isinstance(x, jax.Array)]
    return (x for x in leaves if jnp.issubdtype(x.dtype, jnp.floating))


def _reason(module: Any) -> str:
    """Say why a dense layer, or several that are stacked along the first axis, cannot be permuted."""
    kind = known_kind_of(module)
    if not kind.is_stacked(module):
        return kind.reason(module)
    shape = tuple(math.prod(_sizes(x)) for x in (module.out_features, module.in_features))
    try:
        one = jax.eval_shape(lambda x: kind.read(module, x[0]), getattr(module, kind.variable)[...]).shape
    except (TypeError, ValueError):
        one = ()
    return kind.reason(module, stacked=True) if one == shape else kind.reason(module)


class _Traced:
    """Whether a layer was called inside a transformation."""

    seen = False


class _Watched(nnx.Module):
    """A wrapper around a layer that lets a watch see, and replace, its inputs and outputs with flattened axes."""

    def __init__(self, layer: Any, name: str, watch: Watch, traced: _Traced) -> None:
        self.layer, self.name, self.watch, self.traced = layer, name, watch, traced

    def __call__(self, inputs: jax.Array, *args: Any, **options: Any) -> Any:
        layer = self.layer
        if isinstance(inputs, Tracer):  # inside a transformation, inputs have no values here
            self.traced.seen = True
            return layer(inputs, *args, **options)
        if is_general(layer):
            wide = len(layer.inputs), len(layer.outputs)
        else:
            wide = len(_sizes(layer.in_features)), len(_sizes(layer.out_features))
        lead = inputs.shape[: inputs.ndim - wide[0]]
        x = self.watch.before(self.name, inputs.reshape(*lead, -1))
        y = layer(x.reshape(inputs.shape), *args, **options)
        return self.watch.after(self.name, y.reshape(*lead, -1)).reshape(y.shape)

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "layer"), name)
