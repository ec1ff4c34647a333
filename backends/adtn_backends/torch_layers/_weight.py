"""A generated weight as a module: the trained numbers, and the weight that is made from them."""

from __future__ import annotations

import collections.abc
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from adtn import Generator, Layout, Topology
from adtn._arrays import host_array
from adtn._backend import get_backend
from adtn._checks import checked
from adtn._errors import DeviceError, LayoutError
from adtn.generator import generated_rows
from adtn.network import get_activation
from adtn.schedule import KEPT_BYTES, Steps, TiledWeight, TracedApply, decide, generate, with_base
from torch import nn

from .._fitted import Base, fitted
from .._geometry import check_axes, check_bias

Mode = Literal["materialise", "stream", "factored"]
_BACKEND = get_backend("torch")
_SPACE = _BACKEND.workspace(KEPT_BYTES)
_TRACED_BATCH = 64  # one graph serves every batch, so it is planned for one of middle size


class GeneratedWeight(nn.Module):
    """The trained numbers of a generator as parameters, and its weight as a tensor.

    Layers that are given the same one are tied: they train, move and save the same numbers.

    Parameters
    ----------
    generator : Generator
        Its numbers are the first values of the parameters.

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
        for name, key in self._constants.items():
            x = torch.tensor(np.asarray(constants[name], dtype=generator.dtype))
            # what follows from a rule is no part of the state
            given = name in generator.stored or (name == "base" and isinstance(generator.base, np.ndarray))
            self.register_buffer(key, x, persistent=given)
        plan = decide(generator, "generate", device="torch:cpu")
        assert plan.weight is not None
        self._whole: TiledWeight = plan.weight
        for segment in generator.segments:  # autoray imports at the first use, which compilers do not follow
            get_activation(segment.activation).value(torch.zeros(1))
        linear = len(generator.shape) == 2 and generator.segments[-1].activation == "identity"
        self.without = TracedApply(generator.segments, generator.weighting, _BACKEND) if linear else None
        self._kept: tuple[Any, list[torch.Tensor], torch.Tensor] | None = None
        self._now: torch.Tensor | None = None
        self._layers: dict[tuple[Any, ...], Any] = {}

    def extra_repr(self) -> str:
        """The generator."""
        return repr(self._structure)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight."""
        return self._structure.shape

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters, and of the weight."""
        return next(iter(self.arrays().values())).dtype

    @property
    def device(self) -> torch.device:
        """Of the parameters, and of the weight."""
        return next(iter(self.arrays().values())).device

    def generator(self) -> Generator:
        """A generator with the numbers as they are now."""
        numbers: dict[str, np.ndarray] = {}
        for name, key in self._names.items():
            x: Any = getattr(self, key).detach()
            x = x.full_tensor() if hasattr(x, "full_tensor") else x  # FSDP keeps shards between forwards
            numbers[name] = x.cpu().double().numpy()
        return self._structure.with_params(numbers)

    def arrays(self) -> dict[str, torch.Tensor]:
        """Trained and frozen numbers by the names of the generator."""
        return {name: getattr(self, key) for name, key in (self._names | self._constants).items()}

    def forward(self) -> torch.Tensor:
        """The weight, differentiable."""
        if self._now is not None:
            return self._now
        arrays = self.arrays()
        if is_traced():
            return generate(self._whole, _BACKEND, arrays)
        with torch.autocast(self.device.type, enabled=False):
            return _Generate.apply(self._whole, tuple(arrays), *arrays.values())  # pyright: ignore[reportReturnType]

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        """Rows of the weight by their numbers, ``(n,)``, differentiable; the others are not made.

        Examples
        --------
        >>> import adtn, torch
        >>> weight = GeneratedWeight(adtn.Generator((64, 32), adtn.TTN(bond=2)))
        >>> weight.rows(torch.tensor([3, 60])).shape
        torch.Size([2, 32])
        """
        n = index.shape[0]
        padded = nn.functional.pad(index, (0, (1 << max(n - 1, 0).bit_length()) - n))  # few programs for all numbers

        def one_hot(digits: Any, d: int) -> torch.Tensor:
            return nn.functional.one_hot(digits, d).to(self.dtype)

        with torch.autocast(self.device.type, enabled=False):
            return generated_rows(self._structure, self.arrays(), padded, one_hot)[:n]

    def now(self) -> torch.Tensor:
        """The weight, differentiable where there is something to differentiate, or else the kept one."""
        trains = torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters())
        return self() if trains or self.made or is_traced() else self.kept()

    @contextmanager
    def once(self) -> collections.abc.Generator[torch.Tensor, None, None]:
        """Inside this block the weight is made once, however many layers and properties ask for it."""
        self._now = weight = self.now()
        try:
            yield weight
        finally:
            self._now = None

    @property
    def made(self) -> bool:
        """Whether this is inside :meth:`once`."""
        return self._now is not None

    def kept(self) -> torch.Tensor:
        """The weight for inference: made when the numbers have changed since the last call, without a graph."""
        numbers = list(self.arrays().values())
        if self.training or any(x.is_inference() for x in numbers):
            return self().detach()
        stamp = [(x.data_ptr(), x._version, x.dtype, x.device) for x in numbers]
        if self._kept is None or self._kept[0] != stamp:
            # the numbers are held, so that no other tensor gets their addresses
            self._kept = (stamp, [x.detach() for x in numbers], self().detach())
        return self._kept[2]

    def layer(self, rows: torch.Tensor, mode: Mode | None, *, train: bool) -> tuple[str, Any]:
        """The mode in which batches up to the next power of two run, and ``(arrays, x) -> y``.

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
        if key not in self._layers:
            task = "train" if train else "apply"
            plan = decide(self._structure, task, device=device, dtype=dtype, batch=batch, mode=mode)
            self._layers[key] = (plan.mode, plan.function(_BACKEND))
        return self._layers[key]

    @torch.compiler.assume_constant_result
    def traced(self, mode: Mode | None) -> Steps | None:
        """How compilers apply the weight to any batch without making it; nothing where it is made.

        The scheduler is asked while a compiler looks; its answer is part of the graph.
        """
        if self.without is None or mode in ("materialise", "stream"):
            return None
        number = next(iter(self.arrays().values()))
        device, dtype = f"torch:{_BACKEND.device_of(number)}", _BACKEND.dtype_of(number)
        key, chosen = (device, dtype, mode), self.without.chosen
        if key not in chosen:
            try:
                plan = decide(self._structure, "train", device=device, dtype=dtype, batch=_TRACED_BATCH, mode=mode)
            except DeviceError:  # shapes alone ("meta"), or a device that is elsewhere
                return None
            chosen[key] = self.without.steps(plan.paths[-1]) if plan.mode == "factored" else None
        return chosen[key]

    def train(self, mode: bool = True) -> GeneratedWeight:
        """Training drops the kept weight: optimizers may change numbers without a trace."""
        self._kept = None
        return super().train(mode)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> GeneratedWeight:
        self._kept = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_layers": {}, "_kept": None, "_now": None}


class _Generate(torch.autograd.Function):
    """The weight with the library's adjoint, which generates again and remembers nothing but the numbers."""

    @staticmethod
    def forward(ctx: Any, weight: TiledWeight, names: tuple[str, ...], *numbers: torch.Tensor) -> torch.Tensor:
        ctx.weight, ctx.names = weight, names
        ctx.save_for_backward(*numbers)
        return generate(weight, _BACKEND, dict(zip(names, numbers, strict=True)), _SPACE)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *cotangents: torch.Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        weight, arrays = ctx.weight, dict(zip(ctx.names, ctx.saved_tensors, strict=True))
        wbar = weight.pad_rows(cotangents[0].contiguous())
        _, grads = weight.run(
            _BACKEND, with_base(weight, arrays), lambda w, i, carry: (carry, wbar), None, adjoint=True
        )
        return None, None, *(grads.get(name) for name in ctx.names)


def is_traced() -> bool:
    """Whether a compiler or a function transform looks at every operation."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def as_weight(weight: Generator | GeneratedWeight, axes: int, what: str) -> GeneratedWeight:
    """A module for a generator; refuses weights with another number of axes."""
    check_axes(weight.shape, axes, what)
    return weight if isinstance(weight, GeneratedWeight) else GeneratedWeight(weight)


def generator_of(
    dense: torch.Tensor,
    topology: Topology,
    layout: Layout | None,
    *,
    seed: int,
    base: Base,
    steps: int,
    options: dict[str, Any],
) -> Generator:
    """A generator for a given weight; see :func:`adtn_backends._fitted.fitted`."""
    values = dense.detach().cpu().double().numpy()
    return fitted(values, topology, layout, seed=seed, base=base, steps=steps, options=options)


def bias_parameter(bias: Any, n: int, like: GeneratedWeight) -> nn.Parameter | None:
    """``True`` for zeros, ``False`` or ``None`` for nothing, or the values."""
    if bias is False or bias is None:
        return None
    if bias is True:
        values = torch.zeros(n)
    elif isinstance(bias, torch.Tensor) and not bias.is_complex():
        values = bias.detach().clone()
    else:
        values = torch.tensor(host_array("bias", bias, LayoutError))
    check_bias(tuple(values.shape), n)
    return nn.Parameter(values.to(like.device, like.dtype))
