"""A generated weight as a module: its parameters, and the weight that is generated from them."""

from __future__ import annotations

import collections.abc
import ctypes
import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from adtn import Generator, Permutation
from adtn._checks import checked
from adtn._typing import Float, Int
from adtn.backends import get_backend
from adtn.errors import DeviceError, LayoutError
from adtn.generator import generated_rows, grouped_core, is_core
from adtn.precision import Codes, parts_of
from adtn.schedule import decide
from adtn.topology import get_activation
from adtn.weight import BASE, EinsumSteps, Factored, Layer, Materialised, Mode, TracedApply
from torch import nn

from ...shared._cache import remember
from ...shared._permuted import permuted
from .._vjp import differentiable_vjp, must_differentiate
from ._calls import PLAIN, differentiable, in_own_precision, is_traced
from ._codes import Orders, TrainedCodes, codes_of, decode, decode_in_groups, tensor_of
from ._isometries import Isometries

_BACKEND = get_backend("torch")
_TRACED_BATCH = 64  # one graph serves all batch sizes, so it is planned for a medium one

Use: TypeAlias = Callable[[dict[str, torch.Tensor]], torch.Tensor]
_MADE: ContextVar[Mapping[nn.Module, torch.Tensor]] = ContextVar("made", default={})  # noqa: B039 (never written to)
"""The weights by module inside :meth:`GeneratedWeight.once`, in this thread."""


class GeneratedWeight(nn.Module):
    """The parameters of a generator as a module, which computes the weight.

    Layers that use the same module are tied: they train, move and save the same parameters.

    The parameters of a rounded generator are buffers of bytes, one for each core, which are decoded in every call, or
    once after :meth:`decode_once`; entropy codes always once. They are not trained, except between :meth:`open_codes`
    and :meth:`close_codes`.
    Conversions to another dtype change that of the decoded cores only.

    Parameters
    ----------
    generator : Generator
        The generator; its parameters are the initial values.

    Examples
    --------
    >>> import adtn
    >>> weight = GeneratedWeight(adtn.Generator((64, 32), adtn.TTN(bond=2)))
    >>> weight().shape
    torch.Size([64, 32])
    """

    @checked(LayoutError)
    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self._structure = generator
        self._codes = {name: f"codes_{name.replace('.', '_')}" for name in generator.codes}
        self._parts = {name: parts_of(x.shape, x.precision) for name, x in generator.codes.items()}
        for name, key in self._codes.items():
            self.register_buffer(key, tensor_of(generator.codes[name]))
        if generator.precision is not None:
            # only the buffers hold the codes; the dtype of decoded cores is that of an empty tensor
            blank = {name: Codes.blank(x.shape, x.precision) for name, x in generator.codes.items()}
            self._structure = generator.with_codes(generator.precision, blank)
            self.register_buffer("_decoded", torch.empty(0, dtype=getattr(torch, generator.dtype)), persistent=False)
        self._names = {name: name.replace(".", "_") for name in generator.params if name not in self._codes}
        for name, key in self._names.items():
            self.register_parameter(key, nn.Parameter(torch.tensor(generator.params[name])))
        known = self._codes | self._names
        constants = {name: x for name, x in generator.constants(implied=False).items() if name not in known}
        self._constants = {name: f"frozen_{name.replace('.', '_')}" for name in constants}
        stored = {name for name in constants if name in generator.stored}
        if isinstance(generator.base, np.ndarray):
            stored.add(BASE)
        self._ruled = tuple(name for name in constants if name not in stored)
        for name, key in self._constants.items():
            x = torch.tensor(np.asarray(constants[name], dtype=generator.dtype))
            self.register_buffer(key, x, persistent=name in stored)  # values that follow from a rule are not saved
        for segment in generator.segments:  # autoray imports functions at first use, which compilers cannot trace
            get_activation(segment.activation).value(torch.zeros(1))
        self._trained: nn.ModuleDict | None = None  # by names of buffers
        self._held: dict[str, str] = {}  # buffers of decoded cores by name, if codes are decoded once
        self._follow(self._structure)
        self.decode_once(False)

    def _follow(self, structure: Generator) -> None:
        """Prepare for the weight of a structure, whose cores are those of this module."""
        self._structure = structure
        self._whole: Materialised = decide(structure, "generate", device="torch:cpu").materialised.on(_BACKEND)
        linear = len(structure.shape) == 2 and structure.segments[-1].activation == "identity"
        self.without = TracedApply(structure.segments, structure.weighting, _BACKEND) if linear else None
        # a decoded core that is the weight itself
        self._is_weight = bool(self._codes) and is_core(structure)
        self._grouped, self._order = grouped_core(structure), Orders()
        self._cache: _Cached | None = None
        # codes are isometries up to their rounding
        self._isometries = Isometries({} if self._codes else structure.isometric_rows)
        self._layers: dict[tuple[Any, ...], Any] = {}
        self._traced: dict[tuple[str | None, ...], EinsumSteps | None] = {}

    @property
    def structure(self) -> Generator:
        """The generator without its present parameters: layout, topology, permutations."""
        return self._structure

    def permute(self, axis: int, order: Permutation) -> None:
        """Permute an axis of the weight, ``new[i] = old[order.array[i]]``, without a change of parameters.

        Raises
        ------
        LayoutError
            If the weight has a base, which keeps its order, or the permutation does not fit.
        """
        self._follow(permuted(self._structure, axis, order))

    def extra_repr(self) -> str:
        """Return the description of the generator."""
        return repr(self._structure)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight."""
        return self._structure.shape

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the cores and of the weight."""
        return self._decoded.dtype if self._codes else self._first().dtype  # type: ignore[return-value]

    @property
    def device(self) -> torch.device:
        """The device of the cores and of the weight."""
        return self._first().device

    def _first(self) -> torch.Tensor:
        return getattr(self, next(iter((self._codes | self._names | self._constants).values())))

    def generator(self) -> Generator:
        """Make a generator with the present parameters; one with the present codes is rounded, as before."""
        if self._structure.precision is not None:
            codes = {name: codes_of(getattr(self, key), self._parts[name]) for name, key in self._codes.items()}
            return self._structure.with_codes(self._structure.precision, codes)
        values: dict[str, np.ndarray] = {}
        for name, key in self._names.items():
            x: Any = getattr(self, key).detach()
            x = x.full_tensor() if hasattr(x, "full_tensor") else x  # FSDP holds only shards between forwards
            values[name] = x.cpu().double().numpy()
        return self._structure.with_params(values)

    def arrays(self) -> dict[str, torch.Tensor]:
        """Return trained and frozen cores by their names in the generator, with pruning, replicas and FSDP as well."""
        arrays = {name: getattr(self, key) for name, key in (self._names | self._constants).items()}
        for name, key in self._codes.items():
            if self._trained is None and name in self._held:
                arrays[name] = getattr(self, self._held[name])
            elif self._trained is None:
                arrays[name] = decode(getattr(self, key), self._parts[name], self.dtype)
            else:
                arrays[name] = self._trained[key]().to(self.dtype)
        return self._isometries(arrays, self.stamp)

    def decode_once(self, once: bool = True) -> None:
        """Hold decoded cores beside the codes, so that calls decode nothing; or decode in every call, for less memory.

        Entropy codes are decoded on the host, and so once in any case.

        Examples
        --------
        >>> import adtn
        >>> gen = adtn.Generator((64, 32), adtn.LowRank(bond=8)).rounded(adtn.Precision("int4"))
        >>> weight = GeneratedWeight(gen)
        >>> weight.decode_once()
        >>> sum(b.nbytes for b in weight.buffers()), weight.is_coded
        (3638, False)
        """
        for key in self._held.values():
            delattr(self, key)
        held = {name for name, parts in self._parts.items() if once or parts.precision.is_coded}
        self._held = {name: f"decoded_{self._codes[name]}" for name in self._codes if name in held}
        for key in self._held.values():
            self.register_buffer(key, None, persistent=False)
        self._decode_held()
        self._cache = None

    def _decode_held(self) -> None:
        for name, key in self._held.items():
            setattr(self, key, decode(getattr(self, self._codes[name]), self._parts[name], self.dtype))

    def open_codes(self) -> None:
        """Train the entries and scales of codes from now on: the module computes with what would be stored."""
        if self._codes and self._trained is None:
            coded = {key: TrainedCodes(getattr(self, key), self._parts[name]) for name, key in self._codes.items()}
            self._trained = nn.ModuleDict(coded)

    def close_codes(self, *, store: bool = True) -> None:
        """Store what was trained since :meth:`open_codes` as codes, or discard it."""
        if self._trained is None:
            return
        trained = self._trained
        del self._trained
        self._trained = None
        for key in self._codes.values() if store else ():
            getattr(self, key).copy_(trained[key].rounded())  # type: ignore[operator]
        self._decode_held()

    @property
    def is_coded(self) -> bool:
        """Whether cores are stored as codes only, so that nothing decoded should stay in memory."""
        return bool(self._codes) and self._trained is None and not self._held

    @property
    def coded(self) -> tuple[int, int]:
        """The number of entries that are stored as codes, and their bytes."""
        parts = self._parts.values()
        return sum(math.prod(x.shape) for x in parts), sum(x.nbytes for x in parts)

    def sources(self, arrays: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return cores as they are stored: the bytes of those that are codes."""
        return {name: getattr(self, self._codes[name]) if name in self._codes else x for name, x in arrays.items()}

    @property
    def trains(self) -> bool:
        """Whether a core is trained; those that are stored as codes are not."""
        return self._trained is not None or any(
            getattr(self, key).requires_grad for key in (self._names | self._constants).values()
        )

    def order_for(self, x: Float[torch.Tensor, "*batch n_in"]) -> Int[torch.Tensor, " n_in"] | None:
        """Return the order of an input for a weight ``in_groups``, ``None`` if it is better to permute the weight."""
        name = self._grouped
        if name is None or not self.is_coded or x.numel() >= math.prod(self.shape):
            return None
        return self._order(getattr(self, self._codes[name]), self._parts[name])

    def forward(self, use: Use | None = None, *, in_groups: bool = False) -> torch.Tensor:
        """Compute the weight, or ``use(arrays)``, which a layer computes from the cores; both differentiable.

        Layers read the cores through this method, so that hooks of this module (pruning, weight norms, FSDP) run first.
        With ``in_groups``, the columns of the weight are in the order in which they are stored, :meth:`order_for`.
        """
        if in_groups and self._grouped is not None:
            data, parts = getattr(self, self._codes[self._grouped]), self._parts[self._grouped]
            return (use or self.weight_of)({self._grouped: decode_in_groups(data, parts, self.dtype)})
        return (use or self.weight_of)(self.arrays())

    def weight_of(
        self, arrays: dict[str, torch.Tensor], part: Materialised | None = None
    ) -> Float[torch.Tensor, "*shape"]:
        """Compute the weight from these cores, or a part of a chain; differentiable."""
        whole = self._whole if part is None else part
        if is_traced() or self.device.type == "meta":
            return whole.weight(arrays)
        with in_own_precision(self.device):
            return _Generate.apply(whole, tuple(arrays), *arrays.values())  # pyright: ignore[reportReturnType]

    def rows(self, index: Int[torch.Tensor, " n"]) -> Float[torch.Tensor, " n *inner"]:
        """Compute rows of the weight by their indices, ``(n,)``, without generating the others; differentiable.

        Examples
        --------
        >>> import adtn, torch
        >>> weight = GeneratedWeight(adtn.Generator((64, 32), adtn.TTN(bond=2)))
        >>> weight.rows(torch.tensor([3, 60])).shape
        torch.Size([2, 32])
        """
        return self(lambda arrays: self.rows_of(arrays, index))

    def rows_of(
        self, arrays: dict[str, torch.Tensor], index: Int[torch.Tensor, " n"]
    ) -> Float[torch.Tensor, " n *inner"]:
        """Compute rows of the weight from these cores, see :meth:`rows`."""
        n, index = index.shape[0], index.long()
        padded = nn.functional.pad(index, (0, (1 << max(n - 1, 0).bit_length()) - n))  # for fewer distinct programs

        def one_hot(digits: Any, d: int) -> torch.Tensor:
            return nn.functional.one_hot(digits, d).to(self.dtype)

        with in_own_precision(self.device):
            return generated_rows(self._structure, arrays, padded, one_hot)[:n]

    def now(self) -> Float[torch.Tensor, "*shape"]:
        """Return the weight of the present parameters, differentiable if there is something to differentiate.

        Without gradients, the weight is cached until a parameter changes; do not write to it.
        """
        if is_traced():
            return self()
        weight = _MADE.get().get(self)
        if weight is None or (not weight.requires_grad and torch.is_grad_enabled() and self.trains):
            return self(self._now)
        return weight

    def _now(self, arrays: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.weight_of(arrays) if differentiable(arrays) else self.cached(arrays)

    def cached(self, arrays: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the cached weight for inference, recomputed if a core has changed in any way.

        On the CPU, the entries of the cores are compared, which costs less than the product that follows. Where this
        would wait for a device, and where cores are codes only, which saves memory, the weight is generated in every
        call; see :func:`cached_weights`.
        """
        if self._is_weight:
            return next(iter(arrays.values())).reshape(self.shape)  # an axis of length 1 has no leg
        stamp = None if self._codes and not self._held else self.stamp(arrays)
        cache = self._cache
        if cache is None or stamp is None or cache.stamp != stamp or cache.weight._version != cache.version:
            # an ordinary tensor even in inference mode, as later calls may need gradients through it
            with torch.inference_mode(False), torch.no_grad(), in_own_precision(self.device):
                weight = self._whole.weight(arrays)
            if stamp is None:
                return weight
            # the base is held, so that no other tensor gets its address
            self._cache = cache = _Cached(stamp, weight, weight._version, arrays.get(BASE))
        return cache.weight

    def invalidate(self) -> None:
        """Discard the cached weight, which is needed only after the frozen base was changed through its ``.data``."""
        self._cache = None

    def own(self) -> torch.Tensor:
        """Return a weight that may be written to: a differentiable one, or a copy of the cached one."""
        weight = self.now()
        cached = self._cache is not None and weight is self._cache.weight and not self.made
        return weight.clone() if cached else weight

    @property
    def caches(self) -> bool:
        """Whether :meth:`cached` caches the weight, which it does on the CPU unless cores are codes only."""
        return (not self._codes or bool(self._held)) and self._first().device.type == "cpu"

    def stamp(self, arrays: dict[str, torch.Tensor]) -> list[Any] | None:
        """Return a stamp that changes with the cores; ``None`` if reading them would wait, or is not possible."""
        stamp: list[Any] = []
        if torch._C._len_torch_dispatch_stack():  # pyright: ignore[reportPrivateUsage] # modes that replace real tensors by others
            return None
        for name, x in self.sources(arrays).items():
            if type(x) not in PLAIN or x.device.type != "cpu":
                return None
            if name == BASE:  # as large as the weight
                if x.is_inference():
                    return None
                stamp.append((x.data_ptr(), x._version, x.dtype))
            else:
                x = x if x.is_contiguous() else x.contiguous()
                stamp.append((x.dtype, ctypes.string_at(x.data_ptr(), x.nbytes)))
        return stamp

    @contextmanager
    def once(self) -> collections.abc.Generator[torch.Tensor, None, None]:
        """Generate the weight once inside this block, for all layers and properties that use it."""
        weight = self.now()
        token = _MADE.set({**_MADE.get(), self: weight})
        try:
            yield weight
        finally:
            _MADE.reset(token)

    @property
    def made(self) -> bool:
        """Whether the code runs inside :meth:`once`."""
        return self in _MADE.get()

    def layer(self, rows: torch.Tensor, mode: Mode | None, *, train: bool) -> tuple[Layer, Any]:
        """Return the executable for batches up to the next power of two, and its differentiable ``(arrays, x) -> y``.

        Parameters
        ----------
        rows : torch.Tensor
            The inputs, ``(batch, n_in)``.
        mode : {"materialise", "stream", "factored"}, optional
            The mode of execution, which the scheduler chooses by default.
        train : bool
            Whether the time of the backward pass counts.
        """
        device, dtype = f"torch:{_BACKEND.device_of(rows)}", _BACKEND.dtype_of(rows)
        batch = 1 << max(rows.shape[0] - 1, 0).bit_length()
        key = (device, dtype, batch, mode, train)
        layer = self._layers.get(key)
        if layer is None:
            task = "train" if train else "apply"
            plan = decide(self._structure, task, device=device, dtype=dtype, batch=batch, mode=mode)
            layer = remember(self._layers, key, (plan.layer, plan.function(_BACKEND)))
        return layer

    def traced(self, mode: Mode | None) -> EinsumSteps | None:
        """Return the steps that apply the weight without generating it, for compilers; ``None`` if it is generated.

        The scheduler runs during compilation, and its choice is part of the graph.
        """
        if self.without is None or mode not in (None, Factored.mode):
            return None
        device = f"torch:{_BACKEND.device_of(self._first())}"
        dtype = _BACKEND.dtype_of(self._decoded if self._codes else self._first())  # type: ignore[arg-type]
        key = (device, dtype, mode)
        if key in self._traced:  # function transforms call this every time
            return self._traced[key]
        try:
            plan = decide(self._structure, "train", device=device, dtype=dtype, batch=_TRACED_BATCH, mode=mode)
        except DeviceError:  # the "meta" device, or one that is not present
            return None
        executable = plan.executable
        steps = self.without.steps(executable.paths[-1]) if isinstance(executable, Factored) else None
        return remember(self._traced, key, steps)

    def train(self, mode: bool = True) -> GeneratedWeight:
        """Set the training mode, and discard the cached weight."""
        self._cache = None
        return super().train(mode)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> GeneratedWeight:
        self._cache = None
        before = self.dtype
        super()._apply(fn, recurse)
        if self.dtype != before:  # of another dtype, the codes still have all digits
            self._decode_held()
        if self._ruled and not _preserves(fn):  # such as to_empty, after which a state is loaded
            self._follow_rules()
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._decode_held()
        self._cache = None
        if any(self._buffers[self._constants[name]].is_meta for name in self._ruled):  # type: ignore[union-attr]
            self._follow_rules()

    def _follow_rules(self) -> None:
        """Recompute frozen cores and bases that are not saved from their rules, on the device of the parameters."""
        like = next((getattr(self, key) for key in (self._codes | self._names).values()), None)
        constants = self._structure.constants(implied=False)
        for name in self._ruled:
            key = self._constants[name]
            old: Any = self._buffers[key]
            where = like.device if like is not None and old.is_meta else old.device
            if where.type != "meta":
                # not in place, as the old memory may be shared
                self._buffers[key] = torch.tensor(np.asarray(constants[name]), dtype=old.dtype, device=where)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_layers": {}, "_traced": {}, "_cache": None, "_order": Orders()}


# as torch.compiler.assume_constant_result does, but without importing the compiler, which takes 1.5 s
GeneratedWeight.traced._dynamo_marked_constant = True  # type: ignore[attr-defined]


class _Generate(torch.autograd.Function):
    """The weight with the library's adjoint, which stores only the cores and recomputes the rest."""

    @staticmethod
    def forward(ctx: Any, weight: Materialised, names: tuple[str, ...], *cores: torch.Tensor) -> torch.Tensor:
        ctx.weight, ctx.names = weight, names
        ctx.save_for_backward(*cores)
        return weight.weight(dict(zip(names, cores, strict=True)))

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        weight: Materialised = ctx.weight
        arrays = dict(zip(ctx.names, ctx.saved_tensors, strict=True))
        if must_differentiate(cotangents[0]):
            return (
                None,
                None,
                *differentiable_vjp(lambda: weight.weight(arrays), ctx.saved_tensors, cotangents[0]),
            )
        grads = weight.weight_adjoint(arrays, cotangents[0].contiguous())
        return None, None, *(grads.get(name) for name in ctx.names)


@dataclass(frozen=True)
class _Cached:
    """A cached weight, with a stamp of the cores that it was made of, and the base."""

    stamp: list[Any]
    weight: torch.Tensor
    version: int  # changes if the weight is written to
    base: torch.Tensor | None


@contextmanager
def cached_weights(model: nn.Module) -> collections.abc.Generator[None, None, None]:
    """Generate every weight of a model once inside this block, during which parameters must not change.

    On the CPU this is not needed for inference, as weights are cached and changes are detected. On accelerators,
    detecting changes would wait for the device, so weights are generated in every call outside this block. It is the
    counterpart of :func:`torch.nn.utils.parametrize.cached`, and does not affect other threads.

    Examples
    --------
    >>> import adtn, torch
    >>> from adtn_backends.torch import ADTNLinear
    >>> model = torch.nn.Sequential(ADTNLinear(adtn.Generator((64, 32), adtn.TTN(bond=2)))).eval()
    >>> with torch.no_grad(), cached_weights(model):
    ...     [model(torch.zeros(5, 32)).shape for _ in range(2)]
    [torch.Size([5, 64]), torch.Size([5, 64])]
    """
    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, GeneratedWeight) and not module.made:
                stack.enter_context(module.once())
        yield


def _preserves(fn: Callable[..., Any]) -> bool:
    """Return whether a function of :meth:`torch.nn.Module._apply` copies values; ``empty_like`` does not."""
    mark = torch.arange(1.0, 33.0, device="cpu")
    copied = fn(mark)
    return not copied.is_meta and bool((copied.detach().cpu().float() == mark).all())
