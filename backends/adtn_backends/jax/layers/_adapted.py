"""Adapters: named generated weights that are added to frozen dense ones and can be switched at run time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from adtn import Generator
from adtn._typing import Params
from adtn.errors import CompressError
from flax import nnx
from jax.core import Tracer

from ...shared._adapters import Modules, modules_for
from ._kinds import known_kind_of, layer_like
from ._places import modules_of, params_of, put_module
from ._slice import GeneratedSlice
from ._weight import GeneratedWeight


class Cached(nnx.Variable[Any]):
    """A value that was computed from other variables."""


def _bits(x: jax.Array) -> jax.Array:
    """Sum the bits of entries over the last axis modulo 2^32, each position weighted by an odd factor of its own."""
    kind = {8: jnp.uint64, 4: jnp.uint32, 2: jnp.uint16}[x.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(x), kind)
    if kind is jnp.uint64:
        bits = (bits ^ (bits >> 32)).astype(jnp.uint32)
    return jnp.sum(bits.astype(jnp.uint32) * (2 * jnp.arange(x.shape[-1], dtype=jnp.uint32) + 1), -1, jnp.uint32)


def _attached(value: jax.Array, make: Callable[[Any], jax.Array], parts: Any) -> jax.Array:
    """Return ``value``, which equals ``make(parts)`` and is differentiated as such; only the backward pass calls it."""

    @jax.custom_vjp
    def attach(value: jax.Array, parts: Any) -> jax.Array:
        return value

    def forward(value: jax.Array, parts: Any) -> tuple[jax.Array, Any]:
        return attach(value, parts), parts  # calls itself, so that second derivatives are right

    def backward(parts: Any, cotangent: jax.Array) -> tuple[jax.Array, Any]:
        return jnp.zeros_like(cotangent), jax.vjp(make, parts)[1](cotangent)[0]

    attach.defvjp(forward, backward)
    return attach(value, parts)


class Adapted(nnx.Module):
    """A dense layer with adapters: ``y = base(x) + Σ_active generated(x)``.

    Parameters
    ----------
    base_layer : flax.nnx.Module
        The dense layer: Linear, LinearGeneral, Conv or Embed.

    Examples
    --------
    >>> import adtn, jax.numpy as jnp
    >>> from flax import nnx
    >>> layer = Adapted(nnx.Linear(32, 64, rngs=nnx.Rngs(0)))
    >>> layer.add("task", GeneratedWeight(adtn.Generator((64, 32), adtn.TTN(bond=2))))
    >>> layer.merge()
    >>> layer(jnp.zeros((5, 32))).shape
    (5, 64)
    """

    def __init__(self, base_layer: nnx.Module) -> None:
        self.base_layer = base_layer
        self.adapters = nnx.Dict()
        self.active: tuple[str, ...] = ()
        self.merged = False
        self.inside = Cached(jnp.zeros(()))  # the merged weight
        self.seen = Cached(jnp.zeros(()))  # a fingerprint of the parts that it was made of

    def add(self, name: str, weight: GeneratedWeight) -> None:
        """Add an adapter, which becomes the active one.

        Raises
        ------
        CompressError
            If there is one of that name, or the name is not an identifier.
        LayoutError
            If the layer has no generated form, or its weight has another shape.
        """
        if not name.isidentifier() or hasattr(self.adapters, name):  # an adapter, or a method of nnx.Dict
            raise CompressError(
                f"Got the adapter name {name!r}; expected an identifier other than {list(self.adapters)}."
            )
        self.unmerge()
        self.adapters[name] = layer_like(self.base_layer, weight, bias=False)
        self.active = (name,)

    def generated(self, name: str) -> GeneratedWeight:
        """Return the weight of one adapter."""
        return self.adapters[name].generated

    def merge(self) -> None:
        """Cache the sum of the dense weight and the active adapters, which is used as long as neither changes.

        The dense layer keeps its own weight, so the model is saved, loaded and trained as if nothing were merged.
        Every call checks whether the weight or an adapter changed, which costs a pass over the dense weight.
        """
        if self.active:
            self.inside, self.seen = Cached(self._sum(self._parts())), Cached(self._fingerprint())
            self.merged = True

    def unmerge(self) -> None:
        """Forget the merged weight, and apply the dense weight and the adapters separately."""
        self.inside, self.seen = Cached(jnp.zeros(())), Cached(jnp.zeros(()))
        self.merged = False

    def check_stay(self) -> None:
        """Accept every layer: a dense weight of Flax is never computed from other parameters."""

    def stay(self) -> None:
        """Write a merged weight to the dense layer for good."""
        if self.merged:
            self._kernel()[...] = self._sum(self._parts())
            self.unmerge()

    def _kernel(self) -> Any:
        return getattr(self.base_layer, known_kind_of(self.base_layer).variable)

    def _parts(self) -> tuple[jax.Array, list[Params]]:
        """Return the dense weight and the cores of the active adapters."""
        return self._kernel()[...], [self.generated(name).arrays() for name in self.active]

    def _sum(self, parts: tuple[jax.Array, list[Params]]) -> jax.Array:
        """Sum the parts, with the axes of the dense weight."""
        kernel, cores = parts
        kind = known_kind_of(self.base_layer)
        for name, arrays in zip(self.active, cores, strict=True):
            kernel = kernel + kind.write(self.base_layer, self.generated(name)(arrays))
        return kernel

    def _fingerprint(self) -> jax.Array:
        """Return the bits of all cores and a sum for each row of the dense weight, which show any change."""
        kernel, cores = self._parts()
        small = [_bits(x[..., None]).reshape(-1) for arrays in cores for x in arrays.values()]
        return jnp.concatenate([_bits(kernel).reshape(-1), *small])

    def _apply(self, merged: Callable[[Any], jax.Array], beside: Callable[[], jax.Array]) -> jax.Array:
        """Apply a copy of the dense layer with the merged weight if it is up to date, or else call ``beside``."""
        if not self.merged or self.inside.shape != self._kernel().shape:
            return beside()
        graph, state = nnx.split(self.base_layer)

        def through() -> jax.Array:
            layer = nnx.merge(graph, state, copy=True)
            getattr(layer, known_kind_of(layer).variable)[...] = _attached(self.inside[...], self._sum, self._parts())
            return merged(layer)

        same = jnp.array_equal(self.seen[...], self._fingerprint())
        if isinstance(same, Tracer):
            return jax.lax.cond(same, through, beside)
        return through() if same else beside()

    def __call__(self, inputs: jax.Array, *args: Any, **options: Any) -> jax.Array:
        """Apply the dense layer and the active adapters."""
        x = inputs  # a name that callers of flax.nnx use

        def beside() -> jax.Array:
            base: Any = self.base_layer
            y = base(x, *args, **options)
            for name in self.active:
                y = y + self.adapters[name](x, *args, **options)
            return y

        return self._apply(lambda layer: layer(x, *args, **options), beside)

    def attend(self, query: jax.Array) -> jax.Array:
        """Return the products of queries with all rows of an adapted embedding."""

        def beside() -> jax.Array:
            base: Any = self.base_layer
            y = base.attend(query)
            for name in self.active:
                y = y + self.adapters[name].attend(query)
            return y

        return self._apply(lambda layer: layer.attend(query), beside)

    def __getattr__(self, name: str) -> Any:
        # so that code which reads attributes of the dense layer works
        if name.startswith("_") or "base_layer" not in vars(self):
            raise AttributeError(name)
        return getattr(vars(self)["base_layer"], name)


def _beside(generator: Generator, dense: Any) -> GeneratedWeight:
    """Make a generated weight with the dtype of a dense layer."""
    weight, params = GeneratedWeight(generator), params_of(dense)
    return weight.astype(params[0][...].dtype) if params else weight


MODULES = Modules(
    adapted=Adapted,
    wrap=Adapted,
    places=lambda model: dict(modules_of(model)),
    at=lambda model, name: dict(modules_of(model))[name],
    put=put_module,
    parameters=params_of,
    generated=_beside,
    sliced=GeneratedSlice,
)


@modules_for.register(nnx.Module)
def _modules(model: nnx.Module) -> Modules:
    return MODULES
