"""A generated weight as a module: its parameters, and the weight that is generated from them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from adtn import Generator, Permutation
from adtn._checks import checked
from adtn._typing import Float, Int, Params
from adtn.backends import get_backend
from adtn.calculus import isometric
from adtn.errors import LayoutError
from adtn.generator import generated_rows, grouped_core
from adtn.precision import Codes, Parts, parts_of
from adtn.schedule import Images, decide, decide_convolution
from adtn.weight import ANY_BATCH, Chain, Layer, Materialised, Mode
from flax import nnx

from ...shared._cache import remember
from ...shared._geometry import ConvMode
from ...shared._permuted import permuted
from ._codes import Coded, TrainedCodes, array_of, codes_of, decoder, order_in_groups
from ._shards import replicated

_BACKEND = get_backend("jax")
_OPEN_BATCH = 64


class Frozen(nnx.Variable[Any]):
    """A variable that is not trained: a base, or a core that is fixed."""


class GeneratedWeight(nnx.Module):
    """The parameters of a generator as a module, which computes the weight.

    Layers that use the same module share their weight.

    The parameters of a rounded generator are variables of bytes, one for each core, which are decoded in every call, or
    once after :meth:`decode_once`; entropy codes always once. They are not trained, except between :meth:`open_codes`
    and :meth:`close_codes`.
    :meth:`astype` changes the dtype of the decoded cores only.

    Parameters
    ----------
    generator : Generator
        The generator; its parameters are the initial values.

    Examples
    --------
    >>> import adtn
    >>> GeneratedWeight(adtn.Generator((64, 32), adtn.TTN(bond=2)))().shape
    (64, 32)
    """

    @checked(LayoutError)
    def __init__(self, generator: Generator) -> None:
        self.codes = {name: f"codes_{name.replace('.', '_')}" for name in generator.codes}
        for name, key in self.codes.items():
            setattr(self, key, Coded(array_of(generator.codes[name])))
        structure = generator
        if generator.precision is not None:  # only the variables hold the codes
            blank = {name: Codes.blank(x.shape, x.precision) for name, x in generator.codes.items()}
            structure = generator.with_codes(generator.precision, blank)
        self.structure = _Static(structure)
        self.decoded_dtype = jax.dtypes.canonicalize_dtype(generator.dtype).name
        self.names = {name: name.replace(".", "_") for name in generator.params if name not in self.codes}
        for name, key in self.names.items():
            setattr(self, key, nnx.Param(jnp.asarray(generator.params[name])))
        known = self.codes | self.names
        constants = {name: x for name, x in generator.constants(implied=False).items() if name not in known}
        self.constants = {name: f"frozen_{name.replace('.', '_')}" for name in constants}
        for name, key in self.constants.items():
            setattr(self, key, Frozen(jnp.asarray(np.asarray(constants[name]), dtype=self.decoded_dtype)))
        self.opened = False  # whether codes are trained
        self.held: dict[str, str] = {}  # variables of decoded cores by name, if codes are decoded once
        self.trained: Any = nnx.Dict() if self.codes else None  # by names of variables
        self.decode_once(False)

    def decode_once(self, once: bool = True) -> None:
        """Hold decoded cores beside the codes, so that calls decode nothing; or decode in every call, for less memory.

        Entropy codes are decoded on the host, and so once in any case.

        Examples
        --------
        >>> import adtn
        >>> gen = adtn.Generator((64, 32), adtn.LowRank(bond=8)).rounded(adtn.Precision("int4"))
        >>> weight = GeneratedWeight(gen)
        >>> weight.decode_once()
        >>> sum(x.nbytes for x in jax.tree.leaves(nnx.state(weight)))
        3638
        """
        for key in self.held.values():
            delattr(self, key)
        held = {name for name, parts in self.structure.parts.items() if once or parts.precision.is_coded}
        self.held = {name: f"decoded_{key}" for name, key in self.codes.items() if name in held}
        self.decode_held()

    def decode_held(self) -> None:
        """Decode the codes again, after they have changed."""
        if self.held:
            data = {name: getattr(self, self.codes[name])[...] for name in self.held}
            for name, x in self.structure.decode()(data, self.decoded_dtype).items():
                setattr(self, self.held[name], Frozen(x))

    def open_codes(self) -> None:
        """Train the entries and scales of codes from now on: the module computes with what would be stored."""
        if self.codes and not self.opened:
            self.trained = nnx.Dict({self.codes[name]: TrainedCodes(codes) for name, codes in self._present().items()})
            self.opened = True

    def close_codes(self, *, store: bool = True) -> None:
        """Store what was trained since :meth:`open_codes` as codes, or discard it."""
        if not self.opened:
            return
        trained, self.trained, self.opened = self.trained, nnx.Dict(), False
        for name, codes in self._present().items() if store else ():
            getattr(self, self.codes[name])[...] = array_of(trained[self.codes[name]].rounded(codes))
        self.decode_held()

    def _present(self) -> dict[str, Codes]:
        """Return the present codes by name."""
        parts = self.structure.parts
        return {name: codes_of(getattr(self, key)[...], parts[name]) for name, key in self.codes.items()}

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight."""
        return self.structure.generator.shape

    def permute(self, axis: int, order: Permutation) -> None:
        """Permute an axis of the weight, ``new[i] = old[order.array[i]]``, without a change of parameters.

        Raises
        ------
        LayoutError
            If the weight has a base, which keeps its order, or the permutation does not fit.
        """
        self.structure = _Static(permuted(self.structure.generator, axis, order))

    @property
    def dtype(self) -> Any:
        """The dtype of the cores and of the weight."""
        if self.codes:
            return jnp.dtype(self.decoded_dtype)
        first = next(iter((self.names | self.constants).values()))
        return getattr(self, first)[...].dtype

    def order_for(self, x: Float[jax.Array, "*batch n_in"]) -> Int[jax.Array, " n_in"] | None:
        """Return the order of an input for cores ``in_groups``, ``None`` if it is better to permute the weight.

        The compiler decodes inside the product with a single row, but not inside one with several permuted rows.
        """
        name, rows = self.structure.grouped, math.prod(x.shape[:-1])
        if name is None or self.opened or self.held or any(jax.typeof(x).sharding.spec):
            return None
        if not isinstance(rows, int) or rows != 1:  # it is symbolic with jax.export
            return None
        return order_in_groups(replicated(getattr(self, self.codes[name])[...]), self.structure.parts[name])

    def arrays(self, *, in_groups: bool = False) -> dict[str, jax.Array]:
        """Return trained and frozen cores by name; ``in_groups`` with their columns as :meth:`order_for` says."""
        arrays = {name: replicated(getattr(self, key)[...]) for name, key in (self.names | self.constants).items()}
        if self.opened:
            arrays |= {name: self.trained[key]().astype(self.decoded_dtype) for name, key in self.codes.items()}
        else:
            arrays |= {name: replicated(getattr(self, key)[...]) for name, key in self.held.items()}
            rest = {name: key for name, key in self.codes.items() if name not in self.held}
            if rest:
                data = {name: replicated(getattr(self, key)[...]) for name, key in rest.items()}
                arrays |= self.structure.decode(in_groups=in_groups)(data, self.decoded_dtype)
        return isometric(arrays, self.structure.rows) if self.structure.rows else arrays

    def generator(self) -> Generator:
        """Make a generator with the present parameters; one with the present codes is rounded, as before."""
        structure = self.structure.generator
        if structure.precision is not None:
            return structure.with_codes(structure.precision, self._present())
        values = {name: np.asarray(getattr(self, key)[...], np.float64) for name, key in self.names.items()}
        return structure.with_params(values)

    @property
    def coded(self) -> tuple[int, int]:
        """The number of entries that are stored as codes, and their bytes."""
        parts = self.structure.parts.values()
        return sum(math.prod(x.shape) for x in parts), sum(x.nbytes for x in parts)

    def astype(self, dtype: Any) -> GeneratedWeight:
        """Convert the parameters to another dtype in place, and return the module."""
        state = nnx.state(self)
        nnx.update(self, jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, state))
        self.decoded_dtype = jax.dtypes.canonicalize_dtype(dtype).name
        return self

    def __call__(self, arrays: Params | None = None) -> Float[jax.Array, "*shape"]:
        """Compute the weight from the module's cores, or from other ones, with the library's adjoint."""
        make = self.structure.weight()
        return make(self.arrays() if arrays is None else arrays, jnp.zeros(()))

    def rows(self, index: Int[jax.Array, " n"], arrays: Params | None = None) -> Float[jax.Array, " n *inner"]:
        """Compute rows of the weight by their indices, ``(n,)``, without generating the others; differentiable."""

        def one_hot(digits: Any, d: int) -> jax.Array:
            return jax.nn.one_hot(digits, d, dtype=self.dtype)

        values = self.arrays() if arrays is None else arrays
        return generated_rows(self.structure.generator, values, index, one_hot)

    def layer(self, rows: jax.Array, mode: Mode | None) -> tuple[Layer, Any]:
        """Return the executable for a batch of this size, and its differentiable function ``(arrays, x) -> y``."""
        return self.structure.layer(rows.shape[0], str(rows.dtype), mode)

    def chained(
        self, images: Images, groups: int, mode: ConvMode | None
    ) -> tuple[Chain, tuple[Callable[..., jax.Array], ...]] | None:
        """Return the chain of a convolution, and the functions that make its parts; ``None`` if its weight is made."""
        return self.structure.chained(images.rounded, str(self.dtype), groups, mode)


class _Static:
    """The static part of a module: all copies of the module have the same object, and so share compiled functions."""

    def __init__(self, generator: Generator) -> None:
        self.generator = generator
        self.parts: dict[str, Parts] = {name: parts_of(x.shape, x.precision) for name, x in generator.codes.items()}
        self.grouped = grouped_core(generator)
        self.rows = {} if self.parts else generator.isometric_rows  # codes are isometries up to their rounding
        self._decode: dict[bool, Any] = {}
        self._weight: Any = None
        self._layers: dict[tuple[Any, ...], tuple[Layer, Any]] = {}
        self._chains: dict[tuple[Any, ...], tuple[Chain, tuple[Any, ...]] | None] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"generator": self.generator}  # compiled functions cannot be sent to another process

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["generator"])

    def decode(self, *, in_groups: bool = False) -> Any:
        if in_groups not in self._decode:
            self._decode[in_groups] = decoder(self.parts, in_groups=in_groups)
        return self._decode[in_groups]

    def weight(self) -> Any:
        if self._weight is None:
            whole = decide(self.generator, "generate", device=_device()).materialised
            self._weight = _BACKEND.with_vjp(_Generating(whole.on(_BACKEND)))
        return self._weight

    def layer(self, batch: int, dtype: str, mode: Mode | None) -> tuple[Layer, Any]:
        has_size = isinstance(batch, int)  # not with jax.export and a symbolic size: plan for a medium one
        if not has_size and mode not in ANY_BATCH:
            mode = ANY_BATCH[0]
        key = (1 << max(batch - 1, 0).bit_length() if has_size else _OPEN_BATCH, dtype, mode)
        layer = self._layers.get(key)
        if layer is None:
            plan = decide(self.generator, "train", device=_device(), dtype=dtype, batch=key[0], mode=mode)
            layer = remember(self._layers, key, (plan.layer, plan.function(_BACKEND)))
        return layer

    def chained(
        self, images: Images, dtype: str, groups: int, mode: ConvMode | None
    ) -> tuple[Chain, tuple[Any, ...]] | None:
        key = (images, dtype, groups, mode)
        if key not in self._chains:
            plan = decide_convolution(self.generator, images, device=_device(), dtype=dtype, groups=groups, mode=mode)
            pieces = plan.chain.pieces if plan.chain else ()
            parts = [decide(piece, "generate", device=_device(), dtype=dtype).materialised for piece in pieces]
            makes = tuple(_BACKEND.with_vjp(_Generating(part.on(_BACKEND))) for part in parts)
            remember(self._chains, key, None if plan.chain is None else (plan.chain, makes))
        return self._chains[key]


def _device() -> str:
    platform = jax.default_backend()
    return "jax:cpu" if platform == "cpu" else f"jax:{platform}:0"


class _Generating:
    """A layer ``(arrays, nothing) -> W`` whose adjoint recomputes what it needs."""

    keeps = False

    def __init__(self, whole: Materialised) -> None:
        self.whole = whole

    def __call__(self, arrays: Params, x: Any) -> Any:
        return self.whole.weight(arrays)

    def with_tape(self, arrays: Params, x: Any) -> tuple[Any, tuple[()]]:
        return self(arrays, x), ()

    def pullback(
        self, tape: tuple[Any, ...], arrays: Params, x: Any, ybar: Any, *, need_x: bool = True
    ) -> tuple[dict[str, Any], Any]:
        return self.whole.weight_adjoint(arrays, ybar), jnp.zeros_like(x)
