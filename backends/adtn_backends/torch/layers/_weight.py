"""A generated weight as a module: the trained parameters, and the weight that is made from them."""

from __future__ import annotations

import collections.abc
import ctypes
from collections.abc import Callable, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from adtn import Generator
from adtn._checks import checked
from adtn.backends import get_backend
from adtn.errors import DeviceError, LayoutError
from adtn.generator import generated_rows
from adtn.schedule import decide
from adtn.topology import get_activation
from adtn.weight import BASE, EinsumSteps, Factored, Layer, Materialised, Mode, TracedApply
from torch import nn

from ...shared._cache import remember
from .._vjp import differentiable_vjp, must_differentiate
from ._calls import PLAIN, differentiable, in_own_precision, is_traced

_BACKEND = get_backend("torch")
_TRACED_BATCH = 64  # one graph serves every batch, so it is planned for one of middle size

Use: TypeAlias = Callable[[dict[str, torch.Tensor]], torch.Tensor]
_MADE: ContextVar[Mapping[nn.Module, torch.Tensor]] = ContextVar("made", default={})  # noqa: B039 (never written to)
"""Weights by their modules inside :meth:`GeneratedWeight.once`, in this thread."""


class GeneratedWeight(nn.Module):
    """The parameters of a generator, and its weight as a tensor.

    Layers that are given the same one are tied: they train, move and save the same parameters.

    Parameters
    ----------
    generator : Generator
        Its parameters are the initial values.

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
        self._names = {name: name.replace(".", "_") for name in generator.params}
        for name, key in self._names.items():
            self.register_parameter(key, nn.Parameter(torch.tensor(generator.params[name])))
        constants = {name: x for name, x in generator.constants(implied=False).items() if name not in generator.params}
        self._constants = {name: f"frozen_{name.replace('.', '_')}" for name in constants}
        given = {name for name in constants if name in generator.stored}
        if isinstance(generator.base, np.ndarray):
            given.add(BASE)
        self._ruled = tuple(name for name in constants if name not in given)
        for name, key in self._constants.items():
            x = torch.tensor(np.asarray(constants[name], dtype=generator.dtype))
            self.register_buffer(key, x, persistent=name in given)  # what follows from a rule is no part of the state
        self._whole: Materialised = decide(generator, "generate", device="torch:cpu").materialised.on(_BACKEND)
        for segment in generator.segments:  # autoray imports at the first use, which compilers do not follow
            get_activation(segment.activation).value(torch.zeros(1))
        linear = len(generator.shape) == 2 and generator.segments[-1].activation == "identity"
        self.without = TracedApply(generator.segments, generator.weighting, _BACKEND) if linear else None
        self._cache: _Cached | None = None
        self._layers: dict[tuple[Any, ...], Any] = {}
        self._traced: dict[tuple[str | None, ...], EinsumSteps | None] = {}

    def extra_repr(self) -> str:
        """The generator."""
        return repr(self._structure)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return self._structure.shape

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the parameters, and of the weight."""
        return self._first().dtype

    @property
    def device(self) -> torch.device:
        """Device of the parameters, and of the weight."""
        return self._first().device

    def _first(self) -> torch.Tensor:
        return getattr(self, next(iter((self._names | self._constants).values())))

    def generator(self) -> Generator:
        """A generator with the parameters as they are now."""
        values: dict[str, np.ndarray] = {}
        for name, key in self._names.items():
            x: Any = getattr(self, key).detach()
            x = x.full_tensor() if hasattr(x, "full_tensor") else x  # FSDP keeps shards between forwards
            values[name] = x.cpu().double().numpy()
        return self._structure.with_params(values)

    def arrays(self) -> dict[str, torch.Tensor]:
        """Trained and frozen cores by the names of the generator, wherever pruning, replicas or FSDP put them."""
        return {name: getattr(self, key) for name, key in (self._names | self._constants).items()}

    def forward(self, use: Use | None = None) -> torch.Tensor:
        """The weight, differentiable; or what a layer makes of the cores, ``use(arrays)``.

        Layers come in by this door, so that hooks of this module (pruning, weight norms, FSDP) run before.
        """
        return (use or self.weight_of)(self.arrays())

    def weight_of(self, arrays: dict[str, torch.Tensor]) -> torch.Tensor:
        """The weight of these cores, differentiable."""
        if is_traced() or self.device.type == "meta":
            return self._whole.weight(arrays)
        with in_own_precision(self.device):
            return _Generate.apply(self._whole, tuple(arrays), *arrays.values())  # pyright: ignore[reportReturnType]

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        """Rows of the weight by their indices, ``(n,)``, differentiable; the others are not made.

        Examples
        --------
        >>> import adtn, torch
        >>> weight = GeneratedWeight(adtn.Generator((64, 32), adtn.TTN(bond=2)))
        >>> weight.rows(torch.tensor([3, 60])).shape
        torch.Size([2, 32])
        """
        return self(lambda arrays: self.rows_of(arrays, index))

    def rows_of(self, arrays: dict[str, torch.Tensor], index: torch.Tensor) -> torch.Tensor:
        """:meth:`rows` of these cores."""
        n, index = index.shape[0], index.long()
        padded = nn.functional.pad(index, (0, (1 << max(n - 1, 0).bit_length()) - n))  # few programs for all numbers

        def one_hot(digits: Any, d: int) -> torch.Tensor:
            return nn.functional.one_hot(digits, d).to(self.dtype)

        with in_own_precision(self.device):
            return generated_rows(self._structure, arrays, padded, one_hot)[:n]

    def now(self) -> torch.Tensor:
        """The weight of the parameters as they are: differentiable where there is something to differentiate.

        Without gradients it is made once and looked up while the parameters stay what they are; do not write to it.
        """
        if is_traced():
            return self()
        made = _MADE.get().get(self)
        if made is None or (not made.requires_grad and differentiable(self.arrays())):
            return self(self._now)
        return made

    def _now(self, arrays: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.weight_of(arrays) if differentiable(arrays) else self.cached(arrays)

    def cached(self, arrays: dict[str, torch.Tensor]) -> torch.Tensor:
        """The weight for inference, made anew when a core has changed, by whatever way.

        On the CPU the entries of the cores are compared, which costs less than the product that follows. Where that
        would wait for a device, the weight is made in every call; see :func:`cached_weights`.
        """
        stamp = self.stamp(arrays)
        cache = self._cache
        if cache is None or stamp is None or cache.stamp != stamp or cache.weight._version != cache.version:
            # an ordinary tensor also in inference mode: gradients may be asked through it later
            with torch.inference_mode(False), torch.no_grad(), in_own_precision(self.device):
                weight = self._whole.weight(arrays)
            if stamp is None:
                return weight
            # the base is held, so that no other tensor gets its address
            self._cache = cache = _Cached(stamp, weight, weight._version, arrays.get(BASE))
        return cache.weight

    def invalidate(self) -> None:
        """Forget the cached weight; needed only after the frozen base was changed through its ``.data``."""
        self._cache = None

    def own(self) -> torch.Tensor:
        """The weight for whoever may write to it: differentiable, or a copy of the cached one."""
        weight = self.now()
        cached = self._cache is not None and weight is self._cache.weight and not self.made
        return weight.clone() if cached else weight

    @property
    def caches(self) -> bool:
        """Whether :meth:`cached` remembers: on the CPU."""
        return self._first().device.type == "cpu"

    def stamp(self, arrays: dict[str, torch.Tensor]) -> list[Any] | None:
        """A stamp of what the cached weight was made of; ``None`` where looking would wait, or is not possible."""
        stamp: list[Any] = []
        if torch._C._len_torch_dispatch_stack():  # modes that put other tensors in the place of real ones
            return None
        for name, x in arrays.items():
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
        """Make the weight once inside this block, however many layers and properties ask for it."""
        weight = self.now()
        token = _MADE.set({**_MADE.get(), self: weight})
        try:
            yield weight
        finally:
            _MADE.reset(token)

    @property
    def made(self) -> bool:
        """Whether this is inside :meth:`once`."""
        return self in _MADE.get()

    def layer(self, rows: torch.Tensor, mode: Mode | None, *, train: bool) -> tuple[Layer, Any]:
        """The executable for batches up to the next power of two, and ``(arrays, x) -> y``, differentiable.

        Parameters
        ----------
        rows : torch.Tensor
            ``(batch, n_in)``.
        mode : {"materialise", "stream", "factored"}, optional
            Forces one.
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
        """How compilers apply the weight to any batch without making it; nothing where it is made.

        The scheduler is asked while a compiler looks; its answer is part of the graph.
        """
        if self.without is None or mode not in (None, Factored.mode):
            return None
        number = next(iter(self.arrays().values()))
        device, dtype = f"torch:{_BACKEND.device_of(number)}", _BACKEND.dtype_of(number)
        key = (device, dtype, mode)
        if key in self._traced:  # function transforms ask at every call
            return self._traced[key]
        try:
            plan = decide(self._structure, "train", device=device, dtype=dtype, batch=_TRACED_BATCH, mode=mode)
        except DeviceError:  # shapes alone ("meta"), or a device that is elsewhere
            return None
        chosen = plan.executable
        steps = self.without.steps(chosen.paths[-1]) if isinstance(chosen, Factored) else None
        return remember(self._traced, key, steps)

    def train(self, mode: bool = True) -> GeneratedWeight:
        """Training drops the cached weight."""
        self._cache = None
        return super().train(mode)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> GeneratedWeight:
        self._cache = None
        super()._apply(fn, recurse)
        if self._ruled and not _preserves(fn):  # such as to_empty, behind which a state is loaded
            self._follow_rules()
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._cache = None
        if any(self._buffers[self._constants[name]].is_meta for name in self._ruled):  # type: ignore[union-attr]
            self._follow_rules()

    def _follow_rules(self) -> None:
        """Frozen cores and bases that no state holds, from their rules, where the parameters are."""
        like = next((getattr(self, key) for key in self._names.values()), None)
        constants = self._structure.constants(implied=False)
        for name in self._ruled:
            key = self._constants[name]
            old: Any = self._buffers[key]
            where = like.device if like is not None and old.is_meta else old.device
            if where.type != "meta":
                # not in place: whoever shares the old memory keeps it
                self._buffers[key] = torch.tensor(np.asarray(constants[name]), dtype=old.dtype, device=where)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_layers": {}, "_traced": {}, "_cache": None}


# what torch.compiler.assume_constant_result does, which imports the compiler: 1.5 s for everybody who imports layers
GeneratedWeight.traced._dynamo_marked_constant = True  # type: ignore[attr-defined]


class _Generate(torch.autograd.Function):
    """The weight with the library's adjoint, which generates again and remembers nothing but the cores."""

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
    """A weight, what it was made of, and the base."""

    stamp: list[Any]
    weight: torch.Tensor
    version: int  # another one: somebody wrote to it
    base: torch.Tensor | None


@contextmanager
def cached_weights(model: nn.Module) -> collections.abc.Generator[None, None, None]:
    """Make every generated weight of a model once inside this block: a promise that no parameter changes.

    On the CPU nobody needs it for inference, because changes are seen there. On accelerators looking for them would
    wait for the device, so that weights are made in every call outside of this block. The counterpart of
    :func:`torch.nn.utils.parametrize.cached`; other threads do not see it.

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
    """Whether a function of :meth:`torch.nn.Module._apply` copies values; ``empty_like`` does not."""
    mark = torch.arange(1.0, 33.0, device="cpu")
    copied = fn(mark)
    return not copied.is_meta and bool((copied.detach().cpu().float() == mark).all())
